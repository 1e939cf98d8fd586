"""The result of a reconciliation: outcome, conditions, pending changes and notifications of one environment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kneo import registry
from kneo.controller.stages.gates import Allowed, Blocked
from kneo.controller.stages.load import SourceProblem
from kneo.controller.stages.plan import Action, Retire, kind_of, name_of, version_of
from kneo.controller.stages.verify import Rejection
from kneo.notify.outbox import Notice
from kneo.records.release import (
    Condition,
    ConditionType,
    OutdatedApproval,
    Pending,
    PendingGate,
    PromotionKind,
    also_closed,
)
from kneo.spec.models.environment import Environment
from kneo.store.engine import Tx

HELD = "Held"

PHASES = {
    PromotionKind.PROMOTE: "promoted",
    PromotionKind.ROLLBACK: "rolled_back",
    PromotionKind.RETIRE: "retired",
}


@dataclass(frozen=True)
class Ready:
    """The registry has the state that Git declares."""

    changed: int
    state: ClassVar[str] = "Ready"


@dataclass(frozen=True)
class _NotReady:
    reason: str
    message: str

    @property
    def state(self) -> str:
        """The state as one word."""
        return self.reason


@dataclass(frozen=True)
class Reconciling(_NotReady):
    """A gate blocks a change: an approval, a window or time can unblock it without a new commit."""


@dataclass(frozen=True)
class Stalled(_NotReady):
    """Only a new commit can help."""


@dataclass(frozen=True)
class ReconcileFailed(_NotReady):
    """The reconciliation failed; the controller tries again."""


Outcome = Ready | Reconciling | Stalled | ReconcileFailed


@dataclass(frozen=True)
class Drift:
    """A release that fails verification, whose bytes are not the accepted ones, or that no promotion explains."""

    bundle: str
    version: str
    digest: str
    reason: str
    message: str
    """A sentence."""


@dataclass(frozen=True)
class EnvironmentReport:
    """Outcome, conditions and pending changes of an environment."""

    outcome: Outcome
    conditions: tuple[Condition, ...]
    pending: tuple[Pending, ...] | None
    """Pending changes; None when the reconciliation ended before its gates."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The findings of a reconciliation that evaluated its gates.

    Args:
        revision: The commit.
        environment: The environment's file.
        rejected: Declared releases that failed verification.
        blocked: Changes that a gate blocks.
        changed: Number of applied changes.
        drift: Drift of current releases.
        open_tasks: Open tasks of a retired environment, in words.
    """

    revision: str
    environment: Environment
    rejected: Sequence[Rejection] = ()
    blocked: Sequence[tuple[Action, Blocked]] = ()
    changed: int = 0
    drift: Sequence[Drift] = ()
    open_tasks: object = None


def report_problem(problem: SourceProblem, revision: str, *, trusted: bool) -> EnvironmentReport:
    """Report an environment that a bad file keeps from changing. Its current releases stay."""
    kind = ConditionType.POLICY_VALID if trusted else ConditionType.SOURCE_VERIFIED
    conditions = tuple(
        Condition(type=type_, status=status, reason=problem.reason, message=problem.message, revision=revision)
        for type_, status in ((kind, False), (ConditionType.STALLED, True), (ConditionType.READY, False))
    )
    return EnvironmentReport(Stalled(problem.reason, problem.message), conditions, None)


def report_failure(problem: SourceProblem, revision: str) -> EnvironmentReport:
    """Report an environment whose reconciliation failed. Its current releases stay."""
    conditions = tuple(
        Condition(type=kind, status=status, reason=problem.reason, message=problem.message, revision=revision)
        for kind, status in ((ConditionType.STALLED, True), (ConditionType.READY, False))
    )
    return EnvironmentReport(ReconcileFailed(problem.reason, problem.message), conditions, None)


def report_policy(environment: Environment, verdict: Blocked, revision: str) -> EnvironmentReport:
    """Report an environment whose new rules are pending; nothing in it changes before they are approved."""
    item = Pending(
        bundle=environment.file,
        version=environment.policy_digest[:19],
        gate=verdict.gate,
        reason=verdict.reason,
        message=verdict.message,
        who=verdict.who,
        kind="policy",
        subject=environment.policy_digest,
        policy_digest=environment.policy_digest,
        outdated_approvals=verdict.outdated,
    )
    blocked = (
        (ConditionType.POLICY_VALID, False),
        (ConditionType.RECONCILING, True),
        (ConditionType.READY, False),
    )
    conditions = (
        _source_verified(revision),
        *(
            Condition(type=type_, status=status, reason=verdict.reason, message=verdict.message, revision=revision)
            for type_, status in blocked
        ),
    )
    return EnvironmentReport(Reconciling(verdict.reason, verdict.message), conditions, (item,))


def report(findings: Findings) -> EnvironmentReport:
    """Report an environment whose gates were evaluated."""
    rejected = (
        Pending(bundle=item.bundle, version=item.version, gate="verify", reason=item.reason, message=item.message)
        for item in findings.rejected
    )
    pending = (_pending(action, verdict, findings.environment.policy_digest) for action, verdict in findings.blocked)
    outcome = _outcome(findings)
    return EnvironmentReport(outcome, tuple(_conditions(findings, outcome)), (*rejected, *pending))


def _source_verified(revision: str) -> Condition:
    message = "The trust root and the commit are verified."
    return Condition(
        type=ConditionType.SOURCE_VERIFIED, status=True, reason="Verified", message=message, revision=revision
    )


def _conditions(findings: Findings, outcome: Outcome) -> Iterator[Condition]:
    ready = isinstance(outcome, Ready)
    total = len(findings.environment.spec.releases)
    reason, message = "Serving", f"Ready: {total}/{total} releases."
    if not isinstance(outcome, Ready):
        reason, message = outcome.reason, outcome.message
    elif findings.environment.spec.retired:
        reason, message = (
            "Retired",
            f"Retired: no releases; the environment's file may be removed. {findings.open_tasks}",
        )
    first, drift = next(iter(findings.rejected), None), next(iter(findings.drift), None)
    held = next((verdict.message for _, verdict in findings.blocked if verdict.reason == HELD), None)
    yield _source_verified(findings.revision)
    rows: list[tuple[ConditionType, bool, str, str]] = [
        (ConditionType.POLICY_VALID, True, "Valid", "The environment file is valid."),
        (ConditionType.VERIFIED, True, "Verified", "Every declared bundle is verified.")
        if first is None
        else (ConditionType.VERIFIED, False, first.reason, _rejection_message(first)),
        (ConditionType.PROMOTED, ready, "Promoted" if ready else reason, message),
        (ConditionType.HELD, held is not None, HELD if held else "NotHeld", held or "No declared change is held."),
        (ConditionType.DRIFT_DETECTED, False, "InSync", "Every release has the accepted bytes.")
        if drift is None
        else (ConditionType.DRIFT_DETECTED, True, drift.reason, _drift_message(findings.drift)),
        (ConditionType.READY, ready, reason, message),
    ]
    if isinstance(outcome, Stalled):
        rows.append((ConditionType.STALLED, True, reason, message))
    if isinstance(outcome, Reconciling):
        rows.append((ConditionType.RECONCILING, True, reason, message))
    for kind, status, why, text in rows:
        yield Condition(type=kind, status=status, reason=why, message=text, revision=findings.revision)


def _outcome(findings: Findings) -> Outcome:
    if findings.drift:
        return Stalled(findings.drift[0].reason, _drift_message(findings.drift))
    if findings.rejected:
        return Stalled(findings.rejected[0].reason, _rejection_message(findings.rejected[0]))
    if findings.blocked:
        verdict = findings.blocked[0][1]
        return Reconciling(verdict.reason, verdict.message)
    return Ready(findings.changed)


def _drift_message(drift: Sequence[Drift]) -> str:
    more = f" ({len(drift) - 1} more)" if len(drift) > 1 else ""
    return f"{drift[0].message}{more}"


def _rejection_message(rejection: Rejection) -> str:
    return f"{rejection.bundle} {rejection.version} was rejected: {rejection.message}"


def _pending(action: Action, verdict: Blocked, policy_digest: str) -> Pending:
    digest = None if isinstance(action, Retire) else action.bundle.digest
    also = further_gates(verdict)
    return Pending(
        bundle=name_of(action),
        version=version_of(action),
        gate=verdict.gate,
        reason=verdict.reason,
        message=verdict.message + also_closed(also),
        who=verdict.who,
        kind=kind_of(action).value,
        digest=digest,
        subject=verdict.subject or digest,
        policy_digest=policy_digest,
        also=also,
        outdated_approvals=outdated_approvals(verdict),
    )


def outdated_approvals(verdict: Blocked) -> tuple[OutdatedApproval, ...]:
    """Return the approvals that do not count any more at any of the blocked gates."""
    return tuple(dict.fromkeys(each for item in (verdict, *verdict.also) for each in item.outdated))


def further_gates(verdict: Blocked) -> tuple[PendingGate, ...]:
    """Return the blocked gates after the first one."""
    return tuple(
        PendingGate(gate=item.gate, reason=item.reason, message=item.message, who=item.who) for item in verdict.also
    )


def write_report(tx: Tx, environment: str, result: EnvironmentReport, *, revision: str) -> tuple[Pending, ...]:
    """Write changed conditions and pending changes; return the newly pending or rejected ones."""
    added: tuple[Pending, ...] = ()
    if result.pending is not None:
        added = registry.report_pending(tx, environment, result.pending, revision=revision)
    registry.report_conditions(tx, registry.environment_subject(environment), result.conditions)
    return added


def notices_of_changes(
    environment: str, revision: str, at: str, done: Iterable[tuple[Action, Allowed]], why: str = ""
) -> Iterator[Notice]:
    """Yield a notification for each applied change.

    Args:
        environment: Name of the environment.
        revision: The commit.
        at: Time of the change.
        done: The applied changes.
        why: The requester's reason for a rollback.
    """
    for action, _ in done:
        yield Notice(
            environment=environment,
            bundle=name_of(action),
            version=version_of(action),
            digest=action.current.digest if isinstance(action, Retire) else action.bundle.digest,
            phase=PHASES[kind_of(action)],
            reason="",
            message=why,
            revision=revision,
            at=at,
        )


def notices_of_findings(
    environment: str, revision: str, pending: Iterable[Pending], drift: Iterable[Drift]
) -> Iterator[Notice]:
    """Yield a notification for each newly pending or rejected change, and for each drifted release."""
    for release in drift:
        yield Notice(
            environment=environment,
            bundle=release.bundle,
            version=release.version,
            digest=release.digest,
            phase="drifted",
            reason=release.reason,
            message=release.message,
            revision=revision,
        )
    for item in pending:
        yield Notice(
            environment=environment,
            bundle=item.bundle,
            version=item.version,
            digest=item.digest,
            phase="refused" if item.gate == "verify" else "waiting",
            reason=item.reason,
            message=item.message,
            revision=revision,
            who=item.who,
        )
