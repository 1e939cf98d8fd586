"""What one pass found out about an environment, as conditions and waiting releases. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from controller.stages.gates import Allowed, Blocked
from controller.stages.load import SourceProblem
from controller.stages.plan import Action, Retire, kind_of, name_of, version_of
from controller.stages.verify import Rejection
from kneo import registry
from kneo.digest import Digest
from kneo.notify.outbox import Notice
from kneo.records.release import Condition, ConditionType, Pending, PendingGate, PromotionKind, Release, also_closed
from kneo.spec.models.environment import Environment
from kneo.store.engine import Tx


@dataclass(frozen=True)
class Ready:
    """What Git declares is what the registry serves."""

    changed: int
    state: ClassVar[str] = "Ready"


@dataclass(frozen=True)
class Reconciling:
    """Something has to happen first: a person, a window, time. Worth looking again."""

    reason: str
    message: str

    @property
    def state(self) -> str:
        """The word for it in one cell of a table."""
        return self.reason


@dataclass(frozen=True)
class Stalled:
    """Only a change of what Git declares can help; looking again without one is useless."""

    reason: str
    message: str

    @property
    def state(self) -> str:
        """The word for it in one cell of a table."""
        return self.reason


Outcome = Ready | Reconciling | Stalled


HELD = "Held"


@dataclass(frozen=True)
class Drift:
    """Something that is served and would not be accepted today, or is not what was accepted."""

    bundle: str
    digest: str
    reason: str
    message: str


@dataclass(frozen=True)
class EnvironmentReport:
    """Everything that is shown about an environment after a pass."""

    outcome: Outcome
    conditions: tuple[Condition, ...]
    pending: tuple[Pending, ...] | None
    """What waits and why; ``None`` when the pass did not get far enough to know."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a pass found out.

    Args:
        revision: The commit.
        environment: Its file.
        rejected: Releases that may not be served.
        waiting: Changes that a gate holds back.
        changed: How many changes happened.
        drift: What is wrong with what is served.
    """

    revision: str
    environment: Environment
    rejected: Sequence[Rejection] = ()
    waiting: Sequence[tuple[Action, Blocked]] = ()
    changed: int = 0
    drift: Sequence[Drift] = ()
    questions: object = None
    """The questions that are open in a retired environment, in words."""


def report_problem(problem: SourceProblem, revision: str, *, trusted: bool) -> EnvironmentReport:
    """Report an environment that cannot change because a file it needs is bad. What it serves, it keeps serving."""
    kind = ConditionType.POLICY_VALID if trusted else ConditionType.SOURCE_VERIFIED
    conditions = (
        _condition(kind, False, problem.reason, problem.message, revision),
        _condition(ConditionType.STALLED, True, problem.reason, problem.message, revision),
        _condition(ConditionType.READY, False, problem.reason, problem.message, revision),
    )
    return EnvironmentReport(Stalled(problem.reason, problem.message), conditions, None)


def report_policy(environment: Environment, verdict: Blocked, revision: str) -> EnvironmentReport:
    """Report an environment whose new rules wait for people; until then nothing in it changes."""
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
    )
    conditions = (
        _condition(
            ConditionType.SOURCE_VERIFIED, True, "Verified", "The trust root and the commit were verified.", revision
        ),
        _condition(ConditionType.POLICY_VALID, False, verdict.reason, verdict.message, revision),
        _condition(ConditionType.RECONCILING, True, verdict.reason, verdict.message, revision),
        _condition(ConditionType.READY, False, verdict.reason, verdict.message, revision),
    )
    return EnvironmentReport(Reconciling(verdict.reason, verdict.message), conditions, (item,))


def report(found: Findings) -> EnvironmentReport:
    """Report a pass that got as far as its gates."""
    policy = found.environment.policy_digest
    pending = (
        *(
            Pending(bundle=r.bundle, version=r.version, gate="verify", reason=r.reason, message=r.message)
            for r in found.rejected
        ),
        *(_pending(action, verdict, policy) for action, verdict in found.waiting),
    )
    outcome = _outcome(found)
    return EnvironmentReport(outcome, tuple(_conditions(found, outcome)), pending)


def _conditions(found: Findings, outcome: Outcome) -> list[Condition]:
    revision, served = found.revision, len(found.environment.spec.releases)
    fine = isinstance(outcome, Ready)
    reason = "Serving" if isinstance(outcome, Ready) else outcome.reason
    message = f"{served} of {served} releases are served." if isinstance(outcome, Ready) else outcome.message
    if fine and found.environment.spec.retired:
        reason, message = "Retired", f"Retired; serves nothing, and its file may be removed. {found.questions}"
    rejected = found.rejected
    held = [verdict.message for _, verdict in found.waiting if verdict.reason == HELD]
    drift = found.drift
    conditions = [
        _condition(
            ConditionType.SOURCE_VERIFIED, True, "Verified", "The trust root and the commit were verified.", revision
        ),
        _condition(ConditionType.POLICY_VALID, True, "Valid", "The environment file was read.", revision),
        _condition(
            ConditionType.VERIFIED,
            not rejected,
            rejected[0].reason if rejected else "Verified",
            _described(rejected[0]) if rejected else "Every named bundle was verified.",
            revision,
        ),
        _condition(ConditionType.PROMOTED, fine, "Promoted" if fine else reason, message, revision),
        _condition(
            ConditionType.HELD,
            bool(held),
            HELD if held else "NotHeld",
            held[0] if held else "Nothing that Git asks for is held back.",
            revision,
        ),
        _condition(
            ConditionType.DRIFT_DETECTED,
            bool(drift),
            drift[0].reason if drift else "InSync",
            _drifted(drift) if drift else "What is served is what was accepted.",
            revision,
        ),
        _condition(ConditionType.READY, fine, reason, message, revision),
    ]
    if isinstance(outcome, Stalled):
        conditions.append(_condition(ConditionType.STALLED, True, outcome.reason, outcome.message, revision))
    if isinstance(outcome, Reconciling):
        conditions.append(_condition(ConditionType.RECONCILING, True, outcome.reason, outcome.message, revision))
    return conditions


def _outcome(found: Findings) -> Outcome:
    if found.drift:
        return Stalled(found.drift[0].reason, _drifted(found.drift))
    if found.rejected:
        return Stalled(found.rejected[0].reason, _described(found.rejected[0]))
    if found.waiting:
        verdict = found.waiting[0][1]
        return Reconciling(verdict.reason, verdict.message)
    return Ready(found.changed)


def _drifted(drift: Sequence[Drift]) -> str:
    more = f" ({len(drift) - 1} more)" if len(drift) > 1 else ""
    return f"{drift[0].bundle} is served, but {drift[0].message}{more}"


def _described(rejection: Rejection) -> str:
    return f"{rejection.bundle} {rejection.version} was refused: {rejection.message}"


def _pending(action: Action, verdict: Blocked, policy_digest: Digest) -> Pending:
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
    )


def further_gates(verdict: Blocked) -> tuple[PendingGate, ...]:
    """Return the gates that are closed after the first one."""
    return tuple(
        PendingGate(gate=item.gate, reason=item.reason, message=item.message, who=item.who) for item in verdict.also
    )


def _condition(kind: ConditionType, status: bool, reason: str, message: str, revision: str) -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, revision=revision)


PHASES = {
    PromotionKind.PROMOTE: "promoted",
    PromotionKind.ROLLBACK: "rolled_back",
    PromotionKind.RETIRE: "retired",
}


def notices_of_changes(
    environment: str, revision: str, at: str, done: Iterable[tuple[Action, Allowed]], why: str = ""
) -> Iterator[Notice]:
    """Tell what happened.

    Args:
        environment: Where.
        revision: The commit.
        at: When.
        done: What.
        why: The words of whoever asked for it by hand.
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
    environment: str, revision: str, news: Iterable[Pending], drift: Iterable[Drift], served: Mapping[str, Release]
) -> Iterator[Notice]:
    """Tell what waits now, what was refused, and what is served and should not be."""
    for found in drift:
        yield Notice(
            environment=environment,
            bundle=found.bundle,
            version=served[found.bundle].version,
            digest=found.digest,
            phase="drifted",
            reason=found.reason,
            message=found.message,
            revision=revision,
        )
    for item in news:
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


def write_report(tx: Tx, environment: str, report: EnvironmentReport, *, revision: str) -> tuple[Pending, ...]:
    """Record what a pass found out, and return what waits or is refused now and did not before.

    Writes nothing that is known already.
    """
    news: tuple[Pending, ...] = ()
    if report.pending is not None:
        news = registry.report_pending(tx, environment, report.pending, revision=revision)
    registry.report_conditions(tx, registry.environment_subject(environment), report.conditions)
    return news
