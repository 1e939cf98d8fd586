"""Permission to decide: who may approve a change, and whether the caller may answer a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kneo import registry
from kneo.clock import isoformat
from kneo.errors import Forbidden, KneoError, Untrusted
from kneo.names import person_key
from kneo.records.release import Pending, PendingGate
from kneo.records.task import HumanTask
from kneo.store import releases
from kneo.store.service_key import missing_key
from kneo.tasks.inbox import check_decider
from kneo.tasks.receipts import must_be_signed
from kneo.trust.root import TrustRoot

if TYPE_CHECKING:
    from kneo.api.operation import Principal
    from kneo.settings import Settings
    from kneo.store.engine import Tx


def check_root(tx: Tx, settings: Settings) -> TrustRoot:
    """Read the trust root, which must not be expired: an expired root admits no decision.

    Raises:
        Untrusted: ``Expired``, or there is no trust root.
    """
    root = registry.trust_root(tx, settings.trust_root)
    if root.expired_at(tx.now):
        msg = f"The trust root expired on {isoformat(root.expires)}. Decisions are refused until it is renewed."
        raise Untrusted(msg, code="Expired", hint="kneo trust sign --expires 365d --key FILE, then commit.")
    return root


def check_approver(tx: Tx, environment: str, actor: str) -> None:
    """Check that a person has one of the environment's approver roles.

    Raises:
        Forbidden: ``not_an_approver``.
    """
    spec = registry.declared(tx, environment).spec
    rule = spec.approvals
    if rule is None:
        return
    person = {person_key(name): person for name, person in spec.people.items()}.get(person_key(actor))
    if person is None or not set(person.roles) & set(rule.roles):
        roles = " or ".join(rule.roles)
        msg = f"You are not an approver for {environment} (signed in as: {actor}; required role: {roles})."
        file = f"environments/{environment}.yaml"
        hint = f"Set KNEO_SERV_API_KEY or pass --profile NAME; approvers are listed under people in {file}."
        raise Forbidden(msg, code="not_an_approver", hint=hint)


POLICY = "policy"
"""The kind of a pending environment file."""


def check_may_decide(tx: Tx, environment: str, pending: Pending, actor: str) -> None:
    """Check that an authenticated person may decide about a pending change without an own signature.

    Raises:
        Forbidden: ``not_an_approver``, or ``signature_required``.
    """
    if pending.kind == POLICY:
        _check_rules_approver(tx, environment, actor)
    else:
        _check_unsigned_approver(tx, environment, actor)


def _check_unsigned_approver(tx: Tx, environment: str, actor: str) -> None:
    rule = registry.declared(tx, environment).spec.approvals
    if rule is not None and rule.signed:
        msg = f"{environment} counts only decisions that people sign with their own keys."
        raise Forbidden(msg, code="signature_required", hint="kneo approve --key FILE")
    check_approver(tx, environment, actor)


def _check_rules_approver(tx: Tx, environment: str, actor: str) -> None:
    """Check that a person may decide about a pending environment file.

    The first file of an environment, and a file with ``inlineSpecs: true``, need the approvers of every environment that
    requires approvals; the controller reports which of them are missing.
    """
    refused: list[KneoError] = []
    names = [record.name for record in releases.list_environments(tx)]
    for name in sorted(names, key=lambda one: one != environment):
        rule = registry.declared(tx, name).spec.approvals
        if rule is None or rule.required == 0:
            continue
        try:
            _check_unsigned_approver(tx, name, actor)
        except Forbidden as error:
            refused.append(error)
        else:
            return
    if refused:
        raise refused[0]
    msg = f"No rules are in force yet that say who may approve the first file of {environment}."
    hint = f"Sign with a key of the trust root: kneo approve {environment} --policy --key FILE"
    raise Forbidden(msg, code="signature_required", hint=hint)


APPROVAL_GATES = frozenset({"approvals", "policy", "prune"})
"""The gates that a decision of a person opens."""

REJECTED = "Rejected"
"""The reason of a gate that a rejection closes; only its author can withdraw it."""


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
    return MayAnswerView(ok=True, signature=must_be_signed(task))


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
        check_may_decide(tx, environment, pending, name)
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
