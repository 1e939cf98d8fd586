"""What one pass found out about an environment, as conditions and waiting releases. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.gates import Waits
from controller.load import Problem
from controller.outcome import Done, Outcome, Stalled, Waiting
from controller.plan import Action, Retire, name_of
from controller.verify import Rejection
from kneo.state.release import Condition, ConditionType, Pending


@dataclass(frozen=True)
class Report:
    """Everything that is shown about an environment after a pass."""

    outcome: Outcome
    conditions: tuple[Condition, ...]
    pending: tuple[Pending, ...] | None
    """What waits and why; ``None`` when the pass did not get far enough to know."""


def report_problem(problem: Problem, revision: str, *, trusted: bool) -> Report:
    """Report an environment that cannot change because a file it needs is bad. What it serves, it keeps serving."""
    kind = ConditionType.POLICY_VALID if trusted else ConditionType.SOURCE_VERIFIED
    conditions = (
        _condition(kind, False, problem.reason, problem.message, revision),
        _condition(ConditionType.STALLED, True, problem.reason, problem.message, revision),
        _condition(ConditionType.READY, False, problem.reason, problem.message, revision),
    )
    return Report(Stalled(problem.reason, problem.message), conditions, None)


def report(
    revision: str,
    rejected: Sequence[Rejection],
    waiting: Sequence[tuple[Action, Waits]],
    changed: int,
    served: int,
) -> Report:
    """Report a pass that got as far as its gates."""
    pending = (
        *(
            Pending(bundle=r.bundle, version=r.version, gate="verify", reason=r.reason, message=r.message)
            for r in rejected
        ),
        *(_pending(action, verdict) for action, verdict in waiting),
    )
    outcome = _outcome(rejected, [verdict for _, verdict in waiting], changed)
    fine = isinstance(outcome, Done)
    reason = "Serving" if isinstance(outcome, Done) else outcome.reason
    message = f"{served} of {served} releases are served." if isinstance(outcome, Done) else outcome.message
    verified = not rejected
    conditions = [
        _condition(
            ConditionType.SOURCE_VERIFIED, True, "Verified", "The trust root and the commit were verified.", revision
        ),
        _condition(ConditionType.POLICY_VALID, True, "Valid", "The environment file was read.", revision),
        _condition(
            ConditionType.VERIFIED,
            verified,
            "Verified" if verified else rejected[0].reason,
            "Every named bundle was verified." if verified else _described(rejected[0]),
            revision,
        ),
        _condition(ConditionType.PROMOTED, fine, "Promoted" if fine else reason, message, revision),
        _condition(ConditionType.READY, fine, reason, message, revision),
    ]
    if isinstance(outcome, Stalled):
        conditions.append(_condition(ConditionType.STALLED, True, outcome.reason, outcome.message, revision))
    if isinstance(outcome, Waiting):
        conditions.append(_condition(ConditionType.RECONCILING, True, outcome.reason, outcome.message, revision))
    return Report(outcome, tuple(conditions), pending)


def _outcome(rejected: Sequence[Rejection], waiting: Sequence[Waits], changed: int) -> Outcome:
    if rejected:
        return Stalled(rejected[0].reason, _described(rejected[0]))
    if waiting:
        return Waiting(waiting[0].reason, waiting[0].message)
    return Done(changed)


def _described(rejection: Rejection) -> str:
    return f"{rejection.bundle} {rejection.version} was refused: {rejection.message}"


def _pending(action: Action, verdict: Waits) -> Pending:
    version = action.current.version if isinstance(action, Retire) else action.bundle.version
    return Pending(
        bundle=name_of(action),
        version=version,
        gate=verdict.gate,
        reason=verdict.reason,
        message=verdict.message,
        who=verdict.who,
    )


def _condition(kind: ConditionType, status: bool, reason: str, message: str, revision: str) -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, revision=revision)
