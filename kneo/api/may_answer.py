"""Whether the caller may decide a human task or a pending change, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kneo import registry
from kneo.api.approvers import check_approver, check_may_decide, check_may_decide_rules, check_root
from kneo.errors import Forbidden, KneoError
from kneo.names import person_key
from kneo.records.release import Pending, PendingGate
from kneo.records.task import SIGNED_BY_REVIEWER, HumanTask
from kneo.store.service_key import missing_key
from kneo.tasks.inbox import check_decider

if TYPE_CHECKING:
    from kneo.api.context import Principal
    from kneo.settings import Settings
    from kneo.store.engine import Tx

APPROVAL_GATES = frozenset({"approvals", "policy", "prune"})
"""The gates that a decision of a person opens."""

REJECTED = "Rejected"
"""The reason of a gate that a rejection closes; only its author can withdraw it."""

POLICY = "policy"
"""The kind of a pending environment file."""


@dataclass(frozen=True, kw_only=True)
class MayAnswerView:
    """Whether the caller may decide, and why not."""

    ok: bool
    reason: str | None = None
    code: Annotated[str | None, Field(description="The error code of a decision by the caller.")] = None
    signature: Annotated[bool, Field(description="Whether a decision needs a signature with the person's own key.")] = (
        False
    )


def _refused(error: KneoError) -> MayAnswerView:
    return MayAnswerView(ok=False, reason=error.message, code=error.code)


def may_decide_task(tx: Tx, task: HumanTask, principal: Principal) -> MayAnswerView:
    """Return whether the caller may decide a task now."""
    try:
        principal.require("human:write")
        check_decider(tx, task, principal.name)
    except KneoError as error:
        return _refused(error)
    return MayAnswerView(ok=True, signature=task.plan.receipt == SIGNED_BY_REVIEWER)


def may_decide_change(
    tx: Tx, settings: Settings, environment: str, pending: Pending, principal: Principal
) -> MayAnswerView:
    """Return whether the caller may approve or reject a pending change, and would be counted."""
    if pending.subject is None or pending.policy_digest is None:
        return MayAnswerView(ok=False, reason=pending.message, code="not_approvable")
    try:
        principal.require("releases:decide")
        signature = _check_approver(tx, environment, pending, principal.name)
        check_root(tx, settings)
        if not signature and tx.find_key() is None:
            raise missing_key()
    except KneoError as error:
        return _refused(error)
    gates = tuple(approval_gates(pending))
    counts = not gates or any(gate.reason == REJECTED or _names(gate, principal.name) for gate in gates)
    if not counts and not _has_decided(tx, environment, pending, principal.name):
        reason = f"{principal.name} has a part in this change, so the decision would not count."
        return MayAnswerView(ok=False, reason=reason, code="separation_of_duties")
    return MayAnswerView(ok=True, signature=signature)


def _check_approver(tx: Tx, environment: str, pending: Pending, name: str) -> bool:
    """Check that a person is an approver; return whether the decision needs the person's own signature."""
    try:
        if pending.kind == POLICY:
            check_may_decide_rules(tx, environment, name)
        else:
            check_may_decide(tx, environment, name)
    except Forbidden as error:
        if error.code != "signature_required":
            raise
        if not any(_names(gate, name) for gate in approval_gates(pending)):
            check_approver(tx, environment, name)
        return True
    return False


def waits_for(pending: Pending, name: str) -> bool:
    """Return whether an approval of a person is missing for a pending change."""
    return any(gate.reason != REJECTED and _names(gate, name) for gate in approval_gates(pending))


def approval_gates(pending: Pending) -> Iterator[PendingGate]:
    """Yield the closed gates of a pending change that a decision of a person opens."""
    first = PendingGate(gate=pending.gate, reason=pending.reason, message=pending.message, who=pending.who)
    yield from (gate for gate in (first, *pending.also) if gate.gate in APPROVAL_GATES)


def _names(gate: PendingGate, name: str) -> bool:
    return person_key(name) in {person_key(one) for one in gate.who}


def _has_decided(tx: Tx, environment: str, pending: Pending, name: str) -> bool:
    decided = registry.decisions_about(tx, environment, pending)
    return any(person_key(item.principal) == person_key(name) for item in decided)
