"""What steps are given and give back, and what people may be asked around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class OnReject(StrEnum):
    """What a rejection does."""

    skip = "skip"
    cancel = "cancel"
    retry = "retry"
    else_branch = "else"


class OnTimeout(StrEnum):
    """What silence does."""

    approve = "approve"
    reject = "reject"
    skip = "skip"
    cancel = "cancel"
    fail = "fail"
    proceed = "continue"
    escalate = "escalate"


class OnError(StrEnum):
    """What a failure does."""

    fail = "fail"
    skip = "skip"
    pause = "pause"


@dataclass(frozen=True)
class UserInputField:
    """One value that a person fills in.

    Attributes:
        field_type: ``str``, ``int``, ``float``, ``bool``, ``list``, ``dict``, ``date`` or ``datetime``.
        value: What it is when nobody says.
        allowed_values: The values there are to choose from.
    """

    name: str
    field_type: str = "str"
    description: str | None = None
    required: bool = True
    value: object = None
    allowed_values: Sequence[object] | None = None

    def __post_init__(self) -> None:
        if self.field_type not in _TYPES:
            msg = f"field_type={self.field_type!r} of {self.name} is none of {', '.join(_TYPES)}."
            raise ValueError(msg)

    def declared(self) -> dict[str, object]:
        """Return it as a field of a gate."""
        found: dict[str, object] = {"name": self.name, "type": self.field_type, "required": self.required}
        if self.description:
            found["description"] = self.description
        if self.value is not None:
            found["default"] = self.value
        if self.allowed_values is not None:
            found["allowed_values"] = list(self.allowed_values)
        return found


@dataclass(frozen=True)
class StepOutput:
    """What a step said. Content that is no text passes on as JSON."""

    content: object = None
    step_name: str | None = None
    success: bool = True
    error: str | None = None

    @property
    def text(self) -> str:
        return spelled(self.content)


@dataclass(frozen=True)
class StepInput:
    """What a step is given.

    Attributes:
        input: What the run was given.
        previous_step_content: What the step before said, or its edited form.
        previous_step_outputs: What each step so far said, by name.
        additional_data: What the run was told beside its input; ``user_input`` (what people filled in for this step),
            ``rejection_feedback`` and ``previous_output`` (when a reviewer sent its result back) are added.
        run_id: The run.
        idempotency_key: The same whenever the same attempt is repeated after a crash; hand it to whatever has effects.
    """

    input: str
    previous_step_content: str | None
    previous_step_outputs: Mapping[str, StepOutput]
    additional_data: Mapping[str, object]
    run_id: str
    idempotency_key: str

    def get_step_output(self, step_name: str) -> StepOutput | None:
        return self.previous_step_outputs.get(step_name)

    def get_step_content(self, step_name: str) -> object:
        found = self.previous_step_outputs.get(step_name)
        return found.content if found is not None else None

    def get_input_as_string(self) -> str:
        return self.input


Executor: TypeAlias = Callable[[StepInput], object]
"""``f(step_input)``, sync or async; returns a StepOutput, a text, or anything JSON can say."""

Predicate: TypeAlias = Callable[[StepOutput], object]


def spelled(content: object) -> str:
    """Write content as the text that flows on."""
    if isinstance(content, str):
        return content
    return "" if content is None else json.dumps(content, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class HumanReview:
    """What people are asked around a primitive.

    Attributes:
        requires_output_review: Whether, or ``f(step_output)`` that says whether; one that raises asks.
        on_reject: Left out: ``skip``, and at a Condition ``else_branch``.
        max_retries: Repetitions after the first; 0 means none.
        timeout: Seconds a person has for each question.
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
    timeout: int | None = None
    on_timeout: OnTimeout = OnTimeout.cancel

    def __post_init__(self) -> None:
        for name, words in (("on_reject", OnReject), ("on_error", OnError), ("on_timeout", OnTimeout)):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _word(name, given, words))
        if self.requires_user_input and self.timeout and self.on_timeout is OnTimeout.approve:
            msg = "on_timeout=approve cannot stand beside requires_user_input: nobody would have filled anything in."
            raise ValueError(msg)
        if self.requires_output_review and self.requires_iteration_review:
            msg = "requires_output_review and requires_iteration_review are for different primitives."
            raise ValueError(msg)

    @property
    def input_fields(self) -> tuple[UserInputField, ...]:
        """The values to fill in."""
        return tuple(_field(each) for each in self.user_input_schema)

    def problems(self, values: Mapping[str, object]) -> Iterator[str]:
        """Say what is wrong with values that were filled in."""
        fields = {each.name: each for each in self.input_fields}
        yield from (f"{name} is not asked for" for name in values if name not in fields)
        for name, each in fields.items():
            value = values.get(name, each.value)
            if value is None or value == "":
                if each.required:
                    yield f"{name} is missing"
            elif not _is_of(value, each.field_type):
                yield f"{name} is {type(value).__name__}, not {each.field_type}"
            elif each.allowed_values is not None and value not in each.allowed_values:
                yield f"{name} is none of {', '.join(str(allowed) for allowed in each.allowed_values)}"


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
    "date": str,
    "datetime": str,
}


def _is_of(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "bool"
    return isinstance(value, _TYPES[name])


def _field(given: UserInputField | Mapping[str, object]) -> UserInputField:
    return given if isinstance(given, UserInputField) else UserInputField(**given)  # type: ignore[arg-type]  # its names


def _word(name: str, given: object, words: type[StrEnum]) -> StrEnum:
    try:
        return words(str(getattr(given, "value", given)) if given != "else_branch" else "else")
    except ValueError as error:
        known = ", ".join(word.name for word in words)
        msg = f"{name}={given!r} is none of {known}."
        raise ValueError(msg) from error
