"""The registry: what each environment serves, since when, and why not something else.

The controller writes here, the runtime reads here, and they meet nowhere else. Every change is made inside a
transaction that the caller opens, together with its audit event.
"""

from kneo.registry.check import check_served, spec_in
from kneo.registry.decide import (
    Decided,
    decided_about,
    find_waiting,
    hold,
    lock_environment,
    reason_of,
    record_decision,
    record_signed,
    suspend,
    unhold,
    unsuspend,
    what_waits,
)
from kneo.registry.open_tasks import OpenTasks, open_tasks
from kneo.registry.policy import change_policy, policy_in_force
from kneo.registry.record import (
    CONTROLLER,
    Change,
    Serving,
    accept_environment,
    accept_roots,
    environment_subject,
    keep_signatures,
    promote,
    report_conditions,
    report_pending,
    retire,
)
from kneo.registry.serve import Approved, check_not_retired, declared, is_followed, resolve, trust_root
from kneo.registry.status import EnvironmentStatus, find_status, status, statuses

__all__ = [
    "CONTROLLER",
    "Approved",
    "Change",
    "Decided",
    "EnvironmentStatus",
    "OpenTasks",
    "Serving",
    "accept_environment",
    "accept_roots",
    "change_policy",
    "check_not_retired",
    "check_served",
    "decided_about",
    "declared",
    "environment_subject",
    "find_status",
    "find_waiting",
    "hold",
    "is_followed",
    "keep_signatures",
    "lock_environment",
    "open_tasks",
    "policy_in_force",
    "promote",
    "reason_of",
    "record_decision",
    "record_signed",
    "report_conditions",
    "report_pending",
    "resolve",
    "retire",
    "spec_in",
    "status",
    "statuses",
    "suspend",
    "trust_root",
    "unhold",
    "unsuspend",
    "what_waits",
]
