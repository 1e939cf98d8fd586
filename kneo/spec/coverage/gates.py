"""Gates of a spec: their location, their effective human, and whether a person can stop the run there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kneo.spec.documents import Path
from kneo.spec.gates import POSITIONS, GatePosition, Position, default_rejection, gate_position
from kneo.spec.index import LocatedStep, SpecIndex
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.models.human import BY_REVIEWER, Candidates, Condition, Gate, Human, Quorum, has_expression, strongest
from kneo.spec.models.spec import Tool
from kneo.spec.models.workflow import ConditionStep, LeafStep, Step

DEFAULT_HUMAN = "default"
"""The entry of components.humans that a gate without ``human`` asks."""

UNSIGNED_HINT = "Write on_timeout: fail, cancel or escalate."

_STOPS = frozenset({"stop", "cancel", "fail"})

_ENDS = _STOPS | {"retry"}
"""Effects that end the run, also with another on_error; a retry asks again, and ends the run at its limit."""

_LETS_THROUGH = frozenset({"continue", "approve", "select"})


@dataclass(frozen=True, slots=True)
class LocatedGate:
    """A gate with its path, and the step or the name of the tool that it guards."""

    gate: Gate
    path: Path
    position: Position
    step: LocatedStep | None = None
    tool: str | None = None

    @property
    def row(self) -> GatePosition:
        """The row of its position."""
        return gate_position(self.position, at_tool=self.tool is not None)

    @property
    def rejection(self) -> str:
        """The effect of a rejection where neither the gate nor its human states one."""
        return self.row.rejections[0] if self.step is None else step_rejection(self.position, self.step.step)


def all_gates(index: SpecIndex) -> Iterator[LocatedGate]:
    """Yield the gates of all steps and then of all tools."""
    for at in index.steps:
        for position, gate in step_gates(at.step).items():
            yield LocatedGate(gate, (*at.path, "review", position), position, step=at)
    for name, tool in index.spec.tools.items():
        for position, gate in step_gates(tool).items():
            yield LocatedGate(gate, ("tools", name, "review", position), position, tool=name)


def step_gates(part: Step | Tool) -> Mapping[Position, Gate]:
    """Return the gates of a step or a tool by their position."""
    return {} if part.review is None else part.review.gates()


def named_human(gate: Gate, humans: Mapping[str, Human]) -> Human | None:
    """Return the human that a gate asks: written out, by name, or the default one."""
    if isinstance(gate.human, Human):
        return gate.human
    return humans.get(DEFAULT_HUMAN if gate.human is None else gate.human)


def effective_human(gate: Gate, humans: Mapping[str, Human]) -> Human:
    """Return the human of a gate with the fields that the gate overrides."""
    human = named_human(gate, humans)
    if human is None:
        return gate
    own = {name: getattr(gate, name) for name in gate.model_fields_set if name in Human.model_fields}
    return human.model_copy(update=own)


def step_human(step: LeafStep, humans: Mapping[str, Human]) -> Human | None:
    """Return the human of a step of kind human, with the deadline that the step states; None where it is not declared."""
    human = humans.get(step.ref)
    if human is None or step.timeout_seconds is None:
        return human
    return human.model_copy(update={"timeout_seconds": step.timeout_seconds})


def step_rejection(position: Position, step: Step) -> str:
    """Return the effect of a rejection at a position of a step where the spec states none."""
    return default_rejection(position, at_condition=isinstance(step, ConditionStep))


@dataclass(frozen=True, slots=True)
class GateStrength:
    """The effects of a gate that no person approves.

    Attributes:
        weakness: The reason why it does not count as a gate; None where it counts.
        outcomes: The effects of a rejection and of a timeout: stop, cancel, fail, retry, skip, else, …
    """

    weakness: str | None
    outcomes: frozenset[str]

    @property
    def guards(self) -> bool:
        """Whether the step behind the gate runs only after an approval."""
        return self.weakness is None

    @property
    def continues(self) -> bool:
        """Whether the run can continue after a rejection or a timeout."""
        return not self.outcomes <= _ENDS

    @property
    def ends_run(self) -> bool:
        """Whether the steps after the gate run only after an approval."""
        return self.guards and not self.continues


def gate_strength(
    gate: Gate, position: Position, humans: Mapping[str, Human], default_reject: str, *, is_checked: bool = False
) -> GateStrength:
    """Judge a gate.

    Args:
        gate: The gate.
        position: Its position at the step or tool.
        humans: The spec's humans.
        default_reject: The effect of a rejection where neither the gate nor its human states one.
        is_checked: See ``chance``.
    """
    strength = human_strength(effective_human(gate, humans), position, default_reject)
    return GateStrength(chance(gate, is_checked=is_checked) or strength.weakness, strength.outcomes)


def human_strength(human: Human, position: Position, default_reject: str) -> GateStrength:
    """Judge a question that is always asked."""
    reject = human.on_reject or default_reject
    can_reject = POSITIONS[position].can_reject
    outcomes = _timeout(human, reject if can_reject else default_reject)
    weakness = None
    if can_reject:
        outcomes |= {reject}
        if human.decisions is not None and "rejected" not in human.decisions:
            weakness = "cannot be answered with a rejection"
        elif human.on_reject == "continue":
            weakness = "goes on when it is rejected"
    if weakness is None and outcomes & _LETS_THROUGH:
        weakness = "goes on after a timeout"
    return GateStrength(weakness, outcomes)


def step_strength(human: Human) -> GateStrength:
    """Judge a step of kind human."""
    strength = human_strength(human, "before", "stop")
    if strength.weakness is None and "skip" in strength.outcomes:
        return GateStrength("goes on to the next step after a rejection or a timeout", strength.outcomes)
    return strength


def lets_skip(gate: Gate, humans: Mapping[str, Human]) -> bool:
    """Tell whether a gate at an error can skip the failed step, and with it every gate inside the step."""
    human = effective_human(gate, humans)
    return "skip" in (human.options or ("skip",)) or bool(_timeout(human, "stop") & {"skip", *_LETS_THROUGH})


def _timeout(human: Human, reject: str) -> frozenset[str]:
    effect = human.on_timeout.partition(":")[0]
    if human.timeout_seconds is None or effect == "escalate":  # an escalated question stays open
        return frozenset()
    return frozenset({reject if effect == "reject" else effect})


def chance(gate: Gate, *, is_checked: bool = False) -> str | None:
    """Return the reason why a gate does not always ask; None where it does.

    Args:
        gate: The gate.
        is_checked: Whether a call about which an expression does not ask needs a rule of ``tools.unattended`` that accepts it.
    """
    if is_checked and has_expression(gate.when):
        return None
    if gate.sample == 1 or (gate.when is not None and gate.when.type == "always"):
        return None
    if gate.when is not None:
        return "asks only when its condition holds"
    return "asks only a share of the cases" if gate.sample is not None else None


def unsigned_timeout(human: Human, default_reject: str) -> str | None:
    """Describe a timeout that decides without the signature that the receipt requires; None where none does."""
    if human.receipt != BY_REVIEWER:
        return None
    effects = sorted(_timeout(human, human.on_reject or default_reject) - _STOPS)
    return (
        f"receipt requires the reviewer's signature, and a timeout would {effects[0]} without one." if effects else None
    )


def strengthened(human: Human, policy: QuestionPolicy, on_reject: str) -> Human:
    """Return the human of a question with the requirements of the environment: never weaker than the spec's.

    A timeout ends the run where the environment denies the effect that the spec states, or where answers need a
    reviewer's signature and the effect is more than the end of the run.

    Args:
        human: The human that the spec declares.
        policy: The requirements of the environment.
        on_reject: The effect of a rejection there.
    """
    receipt = human.receipt if policy.receipt is None else strongest(human.receipt, policy.receipt)
    if policy == QuestionPolicy() and receipt != BY_REVIEWER:
        return human
    quorum, candidates = human.quorum or Quorum(), human.candidates or Candidates()
    exclude = tuple(dict.fromkeys((*candidates.exclude, *policy.exclude)))
    effect = human.on_timeout.partition(":")[0]
    ends = (on_reject if effect == "reject" else effect) in _STOPS
    unsigned = receipt == BY_REVIEWER and effect != "escalate" and not ends
    return human.model_copy(
        update={
            "quorum": quorum.model_copy(update={"approvals": max(quorum.approvals, policy.approvals)}),
            "candidates": candidates.model_copy(update={"exclude": exclude}),
            "on_timeout": "fail" if effect in policy.deny_on_timeout or unsigned else human.on_timeout,
            "receipt": receipt,
        }
    )


_SUBJECTS = {"output_contains": "the text", "output_equals": "the text", "status_is": "the status"}


def condition_words(condition: Condition, *, tool: bool = False) -> str:
    """Return a condition in words; at a tool it compares the arguments of the call."""
    match condition.type:
        case "all_of" | "any_of":
            inner = [condition_words(part, tool=tool) for part in condition.conditions]
            return f"({(' and ' if condition.type == 'all_of' else ' or ').join(inner)})"
        case "not":
            return (
                f"not ({condition_words(condition.condition, tool=tool)})" if condition.condition is not None else "not"
            )
        case "always" | "never":
            return condition.type
        case "expression":
            return str(condition.value)
        case kind:
            subject = "the arguments" if tool and kind.startswith("output") else _SUBJECTS.get(kind)
            named = f"{'args' if tool else 'metadata'}.{condition.key}" if kind == "metadata_equals" else None
            verb = "contain" if subject == "the arguments" else "contains" if kind == "output_contains" else "is"
            return f"{subject or named or f'variables.{condition.key}'} {verb} {condition.value!r}"
