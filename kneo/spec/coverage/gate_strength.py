"""Which questions to people count as a gate: somebody is always asked, can refuse, and a refusal has an effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kneo.spec.coverage.gates import effective_human
from kneo.spec.models import Condition, Gate, Human
from kneo.spec.models.environment_gates import QuestionPolicy
from kneo.spec.models.human import Candidates, Position, Quorum
from kneo.spec.models.receipts import BY_REVIEWER, strongest

_ENDS = frozenset({"stop", "cancel", "fail", "retry"})
"""What ends the run, whatever on_error says, or repeats something and asks again; at its limit that ends it too."""

_STOPS = frozenset({"stop", "cancel", "fail"})

_LETS_THROUGH = frozenset({"continue", "approve", "select"})


@dataclass(frozen=True, slots=True)
class GateStrength:
    """What may happen at a question when nobody approves.

    Attributes:
        weakness: Why it does not count as a gate; None where it does.
        outcomes: The effects of a rejection and of silence: stop, cancel, fail, retry, skip, else, …
    """

    weakness: str | None
    outcomes: frozenset[str]

    @property
    def guards(self) -> bool:
        """Whether what it stands before cannot run unless a person agreed."""
        return self.weakness is None

    @property
    def goes_on(self) -> bool:
        """Whether the run can go on after a rejection or silence."""
        return not self.outcomes <= _ENDS

    @property
    def ends_run(self) -> bool:
        """Whether nothing after it can run unless a person agreed."""
        return self.guards and not self.goes_on


def strengthened(human: Human, least: QuestionPolicy, on_reject: str) -> Human:
    """Return what a question asks for once an environment has had its say: never less than the spec does.

    Where the spec lets silence do what the environment denies it, the run ends at the deadline instead; and so where
    answers have to be signed by people, and silence would do more than end the run.

    Args:
        human: Who is asked, and how.
        least: What the environment asks for.
        on_reject: What a rejection does there.
    """
    receipt = human.receipt if least.receipt is None else strongest(human.receipt, least.receipt)
    if least == QuestionPolicy() and receipt != BY_REVIEWER:
        return human
    quorum, candidates = human.quorum or Quorum(), human.candidates or Candidates()
    exclude = tuple(dict.fromkeys((*candidates.exclude, *least.exclude)))
    word = human.on_timeout.partition(":")[0]
    unsigned = receipt == BY_REVIEWER and word != "escalate" and not silence_ends(word, on_reject)
    denied = word in least.deny_on_timeout or unsigned
    return human.model_copy(
        update={
            "quorum": quorum.model_copy(update={"approvals": max(quorum.approvals, least.approvals)}),
            "candidates": candidates.model_copy(update={"exclude": exclude}),
            "on_timeout": "fail" if denied else human.on_timeout,
            "receipt": receipt,
        }
    )


def silence_ends(word: str, on_reject: str) -> bool:
    """Say whether a deadline does nothing but end the run, which nobody has to have signed."""
    return (on_reject if word == "reject" else word) in _STOPS


UNSIGNED_HINT = "Write on_timeout: fail, cancel or escalate."


def unsigned_silence(human: Human, default_reject: str) -> str | None:
    """Say what is wrong with silence where answers have to be signed by people; None: nothing."""
    if human.receipt != BY_REVIEWER:
        return None
    effect = next(iter(sorted(_timeout(human, human.on_reject or default_reject) - _STOPS)), None)
    if effect is None:
        return None
    return f"Answers have to be signed by whoever gives them, and silence would {effect} with nobody's signature."


def judge_step(human: Human) -> GateStrength:
    """Judge a step of kind human."""
    outcomes = _outcomes(human, "stop")
    weakness = _weakness(human, outcomes)
    if weakness is None and "skip" in outcomes:
        weakness = "goes on to the next step when it is rejected or nobody answers"
    return GateStrength(weakness, outcomes)


def judge_gate(gate: Gate, position: Position, humans: Mapping[str, Human], *, default_reject: str) -> GateStrength:
    """Judge a gate by what it says and what its human says.

    Args:
        gate: The gate.
        position: Where it stands.
        humans: The spec's humans.
        default_reject: What a rejection does there when nobody says.
    """
    human = effective_human(gate, humans)
    if position == "route":
        outcomes = _timeout(human, default_reject)
        return GateStrength(_asks(gate) or _silence(outcomes), outcomes)
    outcomes = _outcomes(human, default_reject)
    return GateStrength(_asks(gate) or _weakness(human, outcomes), outcomes)


def lets_skip(gate: Gate, humans: Mapping[str, Human]) -> bool:
    """Tell whether a gate at an error can lead past what failed, and so past every question in it."""
    human = effective_human(gate, humans)
    return "skip" in (human.options or ("skip",)) or bool(_timeout(human, "stop") & {"skip", *_LETS_THROUGH})


def _outcomes(human: Human, default_reject: str) -> frozenset[str]:
    reject = human.on_reject or default_reject
    return _timeout(human, reject) | {reject}


def _timeout(human: Human, reject: str) -> frozenset[str]:
    if human.timeout_seconds is None:
        return frozenset()
    effect = human.on_timeout.partition(":")[0]
    if effect == "escalate":
        return frozenset()  # somebody else is asked; the question stays open
    return frozenset({reject if effect == "reject" else effect})


def _asks(gate: Gate) -> str | None:
    if gate.sample == 1 or (gate.when is not None and _always(gate.when)):
        return None
    if gate.when is not None:
        return "asks only when its condition holds"
    return "asks only a share of the cases" if gate.sample is not None else None


def _always(condition: Condition) -> bool:
    return condition.type == "always"


def _weakness(human: Human, outcomes: frozenset[str]) -> str | None:
    if not _can_reject(human):
        return "cannot be answered with a rejection"
    if human.on_reject == "continue":
        return "goes on when it is rejected"
    return _silence(outcomes)


def _silence(outcomes: frozenset[str]) -> str | None:
    return "goes on when nobody answers in time" if outcomes & _LETS_THROUGH else None


def _can_reject(human: Human) -> bool:
    return human.decisions is None or "rejected" in human.decisions
