"""Conditions, questions to people, and the effects of their answers.

A gate is one question at one position of a step or tool; a human holds what several gates share. What a gate states
itself overrides the human that it names.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag

from kneo.spec.base import JsonObject, ListOf, Seconds, Shorthand, SpecModel, Text, TimeoutEffect, refused
from kneo.spec.expression import MAX_CHARS
from kneo.spec.gates import POSITIONS, REVIEW_POSITIONS, Decision, Position, RejectEffect, gate_position
from kneo.spec.models import shorthand

ConditionType: TypeAlias = Literal[
    "always",
    "never",
    "output_contains",
    "output_equals",
    "metadata_equals",
    "variable_equals",
    "status_is",
    "expression",
    "all_of",
    "any_of",
    "not",
]

_PART = {"type": ["object", "string"]}

_SHORT = {
    "anyOf": [
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {"any_of": {"type": "array"}, "all_of": {"type": "array"}, "not": _PART},
            "additionalProperties": False,
        },
        {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_CHARS,
            "description": "An expression, such as args.amount > 100 || args.currency != 'EUR'.",
        },
    ]
}


class Condition(SpecModel):
    """One question, or several joined by ``all_of``, ``any_of`` or ``not``; ``expression`` has its text as ``value``."""

    type: ConditionType
    value: object = Field(default=None, description="What to compare with.")
    key: str | None = Field(default=None, description="Which metadata entry or variable to look at.")
    case_sensitive: bool = Field(default=False, description="Whether upper and lower case differ in a comparison.")
    conditions: ListOf[AnyCondition] = Field(default=(), description="The parts of all_of and any_of.")
    condition: AnyCondition | None = Field(default=None, description="What not turns around.")


AnyCondition: TypeAlias = Annotated[Condition, BeforeValidator(shorthand.condition), Shorthand(_SHORT)]
"""A condition, or a short form: ``{any_of: […]}``, or the text of an expression."""

Condition.model_rebuild()


def has_expression(when: Condition | None) -> bool:
    """Tell whether a condition is the text of an expression; one inside an object counts as a part of the object."""
    return when is not None and when.type == "expression"


Receipt: TypeAlias = Literal["none", "signed", "signed_by_reviewer"]

BY_REVIEWER: Receipt = "signed_by_reviewer"

_STRENGTH = ("none", None, "signed", BY_REVIEWER)
"""From weak to strong; None signs decisions where the service has a key."""

R = TypeVar("R", bound=str)


def strongest(one: R | None, other: R | None) -> R | None:
    """Return the stronger of two receipts."""
    return max(one, other, key=_STRENGTH.index)


RequestType: TypeAlias = Literal["approval", "review", "correction", "selection", "freeform"]


class Candidates(SpecModel):
    """The people who may answer."""

    users: ListOf[str] = ()
    groups: ListOf[str] = ()
    roles: ListOf[str] = ()
    exclude: ListOf[str] = Field(
        default=(),
        description="Who may not: names, or requester, bundle_signer, previous_reviewers.",
        examples=[["requester", "bundle_signer"]],
    )


class RoleQuorum(SpecModel):
    """How many of one role must agree."""

    role: str
    approvals: int = Field(default=1, ge=1)


class Quorum(SpecModel):
    """The number of approvals that a decision needs, and of rejections."""

    approvals: int = Field(default=1, ge=1)
    each: ListOf[RoleQuorum] = Field(default=(), description="Roles that must be among those who agree.")
    order: Literal["any", "sequence"] = Field(default="any", description="sequence asks one role after the other.")
    reject: Literal["any", "majority"] = Field(default="any", description="Whether one objection is enough.")


class Escalation(SpecModel):
    """The person or group that a late question is escalated to."""

    after: Seconds
    to: str
    notify: ListOf[str] = ()


class AnswerField(SpecModel):
    """One value that a person fills in."""

    name: str
    type: Literal["str", "int", "float", "bool", "list", "dict", "date", "datetime"] = "str"
    description: Text | None = None
    required: bool = True
    default: object = None
    allowed_values: ListOf[object] | None = Field(default=None, description="The values there are to choose from.")
    min: float | None = None
    max: float | None = None
    pattern: str | None = Field(default=None, description="A regular expression that the whole text must match.")
    secret: bool = Field(default=False, description="Refused: what people fill in is kept with the run.")


AnyAnswerField: TypeAlias = Annotated[AnswerField, BeforeValidator(shorthand.answer_field)]


class Human(SpecModel):
    """A question to people: the candidates, deadlines, notifications, quorum and effects of the answer."""

    description: Text | None = Field(
        default=None, description="The subject; replaces a title and prompt that are left out."
    )
    title: Text | None = None
    prompt: Text | None = Field(default=None, description="The question, with {{ input }} and {{ previous.output }}.")
    request_type: RequestType | None = Field(
        default=None, description="Derived from position and fields when left out."
    )
    assignee: str | None = Field(default=None, description="The person who is asked first.")
    candidates: Candidates | None = None
    quorum: Quorum | None = None
    timeout_seconds: Seconds | None = Field(default=None, description="Time to answer. Left out: no limit.")
    on_timeout: TimeoutEffect = Field(
        default="fail",
        description="The effect of a timeout.",
        examples=["fail", "continue", "escalate", "approve", "reject", "skip", "cancel", "select:later"],
    )
    poll_seconds: int | None = Field(default=None, ge=0, description="How long an embedded run waits before it parks.")
    escalate: ListOf[Escalation] = Field(default=(), description="Escalations, one after the other.")
    remind: ListOf[Seconds] = Field(default=(), description="When to remind, counted from the question.")
    due: Seconds | None = Field(default=None, description="When an answer is expected; later ones count as overdue.")
    priority: int | None = Field(default=None, ge=0, le=100)
    calendar: str | None = Field(default=None, description="Working hours by which the times above are counted.")
    notify: ListOf[str] = Field(default=(), description="Channels for notifications.")
    links: bool | None = Field(default=None, description="Whether messages carry links to answer with.")
    receipt: Receipt | None = Field(
        default=None,
        description="Proof of the decision: signed by the service, or also by the reviewer. Left out: signed "
        "wherever the service has a key.",
    )
    decisions: ListOf[Decision] | None = Field(default=None, min_length=1, description="The answers that are allowed.")
    fields: ListOf[AnyAnswerField] = Field(default=(), description="Values to fill in.")
    answer_schema: JsonObject | None = Field(default=None, alias="schema", description="JSON Schema of the answer.")
    options: ListOf[str] | None = Field(default=None, description="What there is to choose from.")
    default_option: str | None = None
    multiple: bool | None = Field(default=None, description="Whether more than one option may be chosen.")
    context: JsonObject | None = Field(default=None, description="Facts shown with the question.")
    response_role: Literal["user", "assistant", "system"] | None = Field(
        default=None, description="As whose message the answer enters the conversation."
    )
    on_reject: RejectEffect | None = Field(
        default=None,
        description="What a rejection does. Left out: stop, at a condition else, at a tool tell_agent.",
    )
    max_retries: int | None = Field(default=None, ge=0, description="Repetitions after the first try; 0 means none.")
    grants: Literal["allow", "never"] = Field(
        default="allow", description="Whether standing grants may answer it, at a tool; never: people alone."
    )


NOT_HONOURED = ("calendar",)
"""Fields of humans without support in this version; a spec or an environment that uses them is refused."""


CALLER = "caller"
"""The built-in human at ``external``: the principal that made the call, which makes it itself and reports the result."""


class Gate(Human):
    """One question at one position; fields that are left out come from the human it names, or from the default one."""

    human: HumanRef | None = Field(
        default=None,
        description="A name in components.humans, or a human written out. Left out: components.humans.default, "
        "or the people with the role reviewer.",
    )
    when: AnyCondition | None = Field(
        default=None, description="Ask only then. A condition that fails to evaluate asks."
    )
    sample: float | None = Field(default=None, ge=0, le=1, description="Share of the other cases that is asked anyway.")
    key: str | None = Field(default=None, description="A stable name for this question in recorded answers.")


AnyHuman: TypeAlias = Annotated[Human, BeforeValidator(shorthand.human)]


def _human_tag(value: object) -> str:
    return "human=name" if isinstance(value, str) else "human=map"


HumanRef: TypeAlias = Annotated[
    Annotated[str, Tag("human=name")] | Annotated[AnyHuman, Tag("human=map")], Discriminator(_human_tag)
]

AnyGate: TypeAlias = Annotated[
    Gate,
    BeforeValidator(shorthand.human),
    BeforeValidator(shorthand.gate),
    Shorthand({"anyOf": [{"const": True}, {"type": "string", "description": "A name in components.humans."}]}),
]
"""A gate, ``true`` for one with every default, or the name of the human to ask."""


class Review(SpecModel):
    """The gates of a step or a tool; at least one position is required."""

    before: AnyGate | None = Field(default=None, description=POSITIONS["before"].asks)
    after: AnyGate | None = Field(default=None, description=POSITIONS["after"].asks)
    each: AnyGate | None = Field(default=None, description=POSITIONS["each"].asks)
    route: AnyGate | None = Field(default=None, description=POSITIONS["route"].asks)
    error: AnyGate | None = Field(default=None, description=POSITIONS["error"].asks)
    external: AnyGate | None = Field(default=None, description=POSITIONS["external"].asks)

    def gates(self) -> dict[Position, Gate]:
        """Return the gates by their position."""
        stated: dict[Position, Gate | None] = {place: getattr(self, place) for place in REVIEW_POSITIONS}
        return {place: gate for place, gate in stated.items() if gate is not None}


TOOL = "a tool"


def check_review(review: Review | None, what: str, places: tuple[Position, ...]) -> None:
    """Refuse gates at positions without effect, and rejections that would run the rejected step.

    Args:
        review: The gates of a step or tool.
        what: The kind of the step or tool, for the message.
        places: The positions that it supports.

    Raises:
        PydanticCustomError: a gate has another position or an impossible rejection.
    """
    if review is None:
        return
    gates = review.gates()
    if not gates:
        raise refused("E_REVIEW_EMPTY", "review names no position.", "review")
    for place, gate in gates.items():
        of_tool = gate_position(place, at_tool=True).rejections
        if place not in places:
            where = f"it can be asked at {', '.join(places)}" if places else "it is a question itself"
            raise refused("E_REVIEW_POSITION", f"review.{place} means nothing for {what}; {where}.", "review", place)
        if place == "before" and gate.on_reject == "retry":
            message = "A rejection before something runs cannot retry it: that would run what was rejected."
            raise refused("E_REVIEW_REJECT", message, "review", place, "on_reject")
        if what == TOOL and gate.on_reject not in (None, *of_tool):
            message = f"on_reject: {gate.on_reject} means nothing for a tool; here it is {' or '.join((', '.join(of_tool[:-1]), of_tool[-1]))}."
            raise refused("E_REVIEW_REJECT", message, "review", place, "on_reject")
        if what != TOOL and gate.on_reject == "tell_agent":
            message = "on_reject: tell_agent needs a tool, whose agent receives the rejection."
            raise refused("E_REVIEW_REJECT", message, "review", place, "on_reject")
        if gate.on_reject == "else" and what != "a condition":
            message = "on_reject: else needs a condition, which has an else."
            raise refused("E_REVIEW_REJECT", message, "review", place, "on_reject")


Human.model_rebuild()
Gate.model_rebuild()
Review.model_rebuild()
