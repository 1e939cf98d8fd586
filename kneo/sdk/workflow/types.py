"""Inputs and outputs of steps, and human reviews with their translation to the gates of the spec. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import TypeAlias

from pydantic import BaseModel

from kneo.embed.answers import TYPES
from kneo.sdk.builder import Json
from kneo.sdk.people import OnTimeout, QuestionPeople, member_of


class OnReject(StrEnum):
    """The effect of a rejection."""

    skip = "skip"
    cancel = "cancel"
    retry = "retry"
    else_branch = "else"


class OnError(StrEnum):
    """The effect of a failure."""

    fail = "fail"
    skip = "skip"
    pause = "pause"


@dataclass(frozen=True)
class UserInputField:
    """One value that a person fills in.

    Attributes:
        field_type: ``str``, ``int``, ``float``, ``bool``, ``list``, ``dict``, ``date`` or ``datetime``.
        value: The default.
        allowed_values: The values to choose from.
    """

    name: str
    field_type: str = "str"
    description: str | None = None
    required: bool = True
    value: object = None
    allowed_values: Sequence[object] | None = None

    def __post_init__(self) -> None:
        if self.field_type not in TYPES:
            msg = f"field_type={self.field_type!r} of {self.name} is none of {', '.join(TYPES)}."
            raise ValueError(msg)

    def to_spec(self) -> Json:
        """Return the field as a field of a gate."""
        optional = {
            "description": self.description or None,
            "default": self.value,
            "allowed_values": list(self.allowed_values) if self.allowed_values is not None else None,
        }
        present = {name: value for name, value in optional.items() if value is not None}
        return {"name": self.name, "type": self.field_type, "required": self.required, **present}


@dataclass(frozen=True)
class StepOutput:
    """The output of a step. Content that is not a text is passed on as JSON."""

    content: object = None
    step_name: str | None = None
    success: bool = True
    error: str | None = None

    @property
    def text(self) -> str:
        return encode_content(self.content)

    def to_dict(self) -> Json:
        """Return the output as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class StepInput:
    """The input of a step.

    Attributes:
        input: The input of the run.
        previous_step_content: The output of the step before, as reviewed.
        previous_step_outputs: The outputs of all finished steps, by name. The content of a Parallel is the map of its branches'
            contents, that of another container the content of the last step in it.
        additional_data: The data that the program passed at the start of the run, with ``user_input`` (values that
            people filled in for this step), ``rejection_feedback`` and ``previous_output`` (of a rejected output).
        run_id: The run.
        idempotency_key: The same key when an attempt is repeated after a crash; pass it to external effects.
        session_id: The session of the run.
    """

    input: str
    previous_step_content: str | None
    previous_step_outputs: Mapping[str, StepOutput]
    additional_data: Mapping[str, object]
    run_id: str
    idempotency_key: str
    session_id: str | None = None

    def get_step_output(self, step_name: str) -> StepOutput | None:
        return self.previous_step_outputs.get(step_name)

    def get_step_content(self, step_name: str) -> object:
        output = self.previous_step_outputs.get(step_name)
        return output.content if output is not None else None

    def get_input_as_string(self) -> str:
        return self.input


Executor: TypeAlias = Callable[[StepInput], object]
"""``f(step_input)``, sync or async; returns a StepOutput, a text, or any value that JSON can express."""

Predicate: TypeAlias = Callable[[StepOutput], object]


def encode_content(content: object) -> str:
    """Encode content as the text that the next step receives; an object of pydantic as its JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, BaseModel):
        return content.model_dump_json()
    if is_dataclass(content) and not isinstance(content, type):
        content = asdict(content)
    return "" if content is None else json.dumps(content, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class HumanReview(QuestionPeople):
    """The questions to people around a primitive, with the attributes of ``QuestionPeople``.

    Attributes:
        requires_output_review: True, or ``f(step_output)`` that decides; a predicate that raises asks.
        on_reject: The default is ``skip``, and ``else_branch`` for a Condition.
        max_retries: Repetitions after the first attempt; 0 means none.
    """

    requires_confirmation: bool = False
    confirmation_message: str | None = None
    requires_user_input: bool = False
    user_input_message: str | None = None
    user_input_schema: Sequence[UserInputField | Mapping[str, object]] = ()
    requires_output_review: bool | Predicate = False
    output_review_message: str | None = None
    requires_iteration_review: bool = False
    iteration_review_message: str | None = None
    allow_multiple_selections: bool = False
    on_reject: OnReject | None = None
    on_error: OnError = OnError.fail
    max_retries: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, enum in (("on_reject", OnReject), ("on_error", OnError)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, member_of(name, value, enum))
        if self.requires_user_input and self.timeout and self.on_timeout is OnTimeout.approve:
            msg = "on_timeout=approve cannot be combined with requires_user_input: the values would be missing."
            raise ValueError(msg)
        if self.requires_output_review and self.requires_iteration_review:
            msg = "requires_output_review and requires_iteration_review are for different primitives."
            raise ValueError(msg)

    @property
    def input_fields(self) -> tuple[UserInputField, ...]:
        """The values to fill in."""
        schema = self.user_input_schema
        return tuple(each if isinstance(each, UserInputField) else UserInputField(**each) for each in schema)  # type: ignore[arg-type]  # its names


SUPPORTED = {
    "requires_confirmation": ("Step", "Steps", "Condition", "Loop", "Router"),
    "requires_user_input": ("Step", "Router"),
    "requires_output_review": ("Step", "Router"),
    "requires_iteration_review": ("Loop",),
}
"""The primitives that support each question."""

NEEDS_REVIEW = "review"
"""The metadata key with which a step requests a review of its output."""

_PARAMETERS = frozenset(each.name for each in fields(HumanReview))


def review_of(kind: str, name: str, review: HumanReview | None, parameters: Mapping[str, object]) -> HumanReview | None:
    """Return the review of a primitive, written as ``human_review`` or as parameters of the primitive itself.

    Raises:
        ValueError: the primitive does not support a question of the review, or both ways are used.
        TypeError: a parameter is unknown.
    """
    unknown = parameters.keys() - _PARAMETERS
    if unknown:
        msg = f"{kind}() got an unexpected keyword argument {min(unknown)!r}"
        raise TypeError(msg)
    if parameters and review is not None:
        msg = f"{kind} {name} has both {min(parameters)} and human_review; move {min(parameters)} into human_review."
        raise ValueError(msg)
    if parameters:
        review = HumanReview(**parameters)  # type: ignore[arg-type]  # the names are checked above
    if review is not None:
        _check(kind, name, review)
    return review


OF_QUESTION = {
    "confirmation_message": "requires_confirmation",
    "user_input_message": "requires_user_input",
    "user_input_schema": "requires_user_input",
    "allow_multiple_selections": "requires_user_input",
    "output_review_message": "requires_output_review",
    "iteration_review_message": "requires_iteration_review",
}
"""The parameters that belong to one question."""


def _check_effect(kind: str, name: str, review: HumanReview) -> None:
    """Check that every parameter belongs to a question.

    Raises:
        ValueError: a parameter would have no effect.
    """
    has_question = any(getattr(review, question) for question in SUPPORTED)
    for each in fields(HumanReview):
        if each.name in {*SUPPORTED, "on_error"} or getattr(review, each.name) == each.default:
            continue
        question = OF_QUESTION.get(each.name)
        if question is not None and not getattr(review, question):
            msg = f"{kind} {name} has {each.name} without {question}; it would have no effect."
            raise ValueError(msg)
        if not has_question and review.on_error is not OnError.pause:
            asks = ", ".join(word for word, kinds in SUPPORTED.items() if kind in kinds)
            msg = f"{kind} {name} has {each.name} and no question; add one of: {asks}, on_error=pause."
            raise ValueError(msg)


def _check(kind: str, name: str, review: HumanReview) -> None:
    _check_effect(kind, name, review)
    for question, kinds in SUPPORTED.items():
        if getattr(review, question) and kind not in kinds:
            supported = ", ".join(word for word, where in SUPPORTED.items() if kind in where) or "nothing"
            msg = f"{kind} {name} does not support {question}; supported there: {supported}."
            raise ValueError(msg)
    if kind == "Step" and review.requires_user_input and not review.user_input_schema:
        msg = f"Step {name} requires user input and has no user_input_schema."
        raise ValueError(msg)
    if review.on_reject is OnReject.else_branch and kind != "Condition":
        msg = f"{kind} {name} has no else branch; on_reject takes skip, cancel or retry there."
        raise ValueError(msg)
    if review.on_reject is OnReject.retry and not (review.requires_output_review or review.requires_iteration_review):
        msg = f"{kind} {name}: on_reject=retry before it runs would run what was rejected; take skip or cancel."
        raise ValueError(msg)


def gates(kind: str, name: str, review: HumanReview | None) -> Json:
    """Return the ``review`` and ``on_error`` keys of a step of the spec."""
    if review is None:
        return {}
    gate: Json = {}
    people = review.people
    if review.requires_confirmation or (review.requires_user_input and kind == "Step"):
        gate["before"] = _before(kind, name, review) | people
    after = {"on_reject": (review.on_reject or OnReject.skip).value, "max_retries": review.max_retries, **people}
    if review.requires_output_review:
        when = {"when": {"type": "metadata_equals", "key": NEEDS_REVIEW, "value": "true"}}
        prompt = review.output_review_message or f"Review the output of {name}?"
        gate["after"] = {"prompt": prompt, **after, **(when if callable(review.requires_output_review) else {})}
    if review.requires_iteration_review:
        gate["each"] = {"prompt": review.iteration_review_message or f"Is this round of {name} good enough?", **after}
    if review.requires_user_input and kind == "Router":
        prompt = review.user_input_message or f"Which way should {name} go?"
        multiple = {"multiple": True} if review.allow_multiple_selections else {}
        gate["route"] = {"prompt": prompt, "decisions": ["selected"], **multiple, **people}
    if review.on_error is OnError.pause:
        options = {"options": ["retry", "skip"], "max_retries": review.max_retries}
        gate["error"] = {"prompt": f"{name} failed.", **options, **people}
    return {
        **({"review": gate} if gate else {}),
        **({"on_error": "continue"} if review.on_error is OnError.skip else {}),
    }


def _before(kind: str, name: str, review: HumanReview) -> Json:
    message = review.confirmation_message if review.requires_confirmation else review.user_input_message
    default = f"What should {name} work with?" if review.requires_user_input else f"Execute the {kind.lower()} {name}?"
    effect = review.on_reject or (OnReject.else_branch if kind == "Condition" else OnReject.skip)
    gate: Json = {
        "prompt": message or default,
        "on_reject": (OnReject.skip if effect is OnReject.retry else effect).value,
    }
    if review.requires_user_input:
        gate["fields"] = [each.to_spec() for each in review.input_fields]
        if review.requires_confirmation and review.user_input_message:
            gate["description"] = review.user_input_message
    return gate
