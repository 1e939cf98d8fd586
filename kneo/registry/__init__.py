"""The registry: releases of each environment, their history, and pending changes.

The controller writes the registry and the runtime reads it; they share nothing else. Every change and its audit event are
one transaction, which the caller opens.
"""

from kneo.registry.decisions import (
    UnsignedDecision,
    decision_reason,
    decisions_about,
    hold,
    lock_environment,
    pending_item,
    pending_subject,
    prepare_decision,
    record_decision,
    record_signed_decision,
    suspend,
    unhold,
    unsuspend,
)
from kneo.registry.policy import change_policy, policy_in_force
from kneo.registry.record import (
    CONTROLLER,
    BundlePromotion,
    ReleaseChange,
    accept_environment,
    accept_roots,
    environment_subject,
    promote,
    report_conditions,
    report_pending,
    retire,
    update_signatures,
)
from kneo.registry.resolve import (
    ResolvedRelease,
    check_not_retired,
    check_served,
    declared,
    is_followed,
    resolve,
    spec_in,
    trust_root,
)
from kneo.registry.status import EnvironmentStatus, OpenTasks, find_status, open_tasks, status, statuses

__all__ = [
    "CONTROLLER",
    "BundlePromotion",
    "EnvironmentStatus",
    "OpenTasks",
    "ReleaseChange",
    "ResolvedRelease",
    "UnsignedDecision",
    "accept_environment",
    "accept_roots",
    "change_policy",
    "check_not_retired",
    "check_served",
    "decision_reason",
    "decisions_about",
    "declared",
    "environment_subject",
    "find_status",
    "hold",
    "is_followed",
    "lock_environment",
    "open_tasks",
    "pending_item",
    "pending_subject",
    "policy_in_force",
    "prepare_decision",
    "promote",
    "record_decision",
    "record_signed_decision",
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
    "update_signatures",
]
