"""The decorator that makes a function a tool of an agent, with the people who are asked about its calls."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Literal, overload

from kneo.tools import BY_NAME, FunctionTool

_FIELD_TYPES: Mapping[object, str] = {
    each: each.__name__ for each in (str, int, float, bool, list, dict, date, datetime)
}
"""The types of a form's fields."""


@overload
def tool(function: Callable[..., object], /) -> FunctionTool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    requires_confirmation: bool = False,
    requires_user_input: bool = False,
    user_input_fields: Sequence[str] = (),
    external_execution: bool = False,
    on_reject: Literal["tell_agent", "stop", "fail"] = "tell_agent",
    gate: Mapping[str, object] | None = None,
) -> Callable[[Callable[..., object]], FunctionTool]: ...


def tool(  # noqa: PLR0913 - the parameters by which programs know it
    function: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    requires_confirmation: bool = False,
    requires_user_input: bool = False,
    user_input_fields: Sequence[str] = (),
    external_execution: bool = False,
    on_reject: Literal["tell_agent", "stop", "fail"] = "tell_agent",
    gate: Mapping[str, object] | None = None,
) -> FunctionTool | Callable[[Callable[..., object]], FunctionTool]:
    """Make a function a tool; its parameters and their types are the arguments.

    Args:
        function: The function, sync or async. Its parameters ``key`` and ``context`` receive the idempotency key and the
            ``ToolContext`` of the call.
        name: The tool's name; default: the function's.
        description: For the model; default: the function's docstring.
        requires_confirmation: A person approves each call, may edit its arguments, or rejects it.
        requires_user_input: A person fills in arguments of each call.
        user_input_fields: The arguments that a person fills in, instead of the model; default: all.
        external_execution: A person or system outside carries out each call and provides its result; the function is not
            called.
        on_reject: What a rejection does: the agent gets it as the result of the call, or the run is stopped, or fails.
        gate: The people and the deadline of the question, as a gate of a spec has them: ``assignee``, ``candidates``,
            ``quorum``, ``timeout_seconds``, ``on_timeout``, ``escalate``, ``remind``, …

    Raises:
        ValueError: more than one kind of pause, a gate without a pause, or a field that the function does not have.
    """
    requires_user_input = requires_user_input or bool(user_input_fields)
    if requires_confirmation + requires_user_input + external_execution > 1:
        msg = "A tool has one of requires_confirmation, requires_user_input and external_execution."
        raise ValueError(msg)

    if gate and not (requires_confirmation or requires_user_input or external_execution):
        msg = "A tool with a gate has one of requires_confirmation, requires_user_input and external_execution."
        raise ValueError(msg)
    shared: dict[str, object] = {**(gate or {}), "on_reject": on_reject}

    def decorate(function: Callable[..., object]) -> FunctionTool:
        if requires_user_input:
            fields = _fields(function, user_input_fields)
            form = {"fields": list(fields.values()), "decisions": ["approved", "rejected"]}
            review: dict[str, object] = {"before": {**shared, **form}}
            return FunctionTool(function, name=name, description=description, review=review, optional=frozenset(fields))
        if requires_confirmation:
            review = {"before": {**shared, "decisions": ["approved", "edited", "rejected"]}}
        else:
            review = {"external": shared} if external_execution else {}
        return FunctionTool(function, name=name, description=description, review=review)

    return decorate if function is None else decorate(function)


def _fields(function: Callable[..., object], names: Sequence[str]) -> Mapping[str, dict[str, object]]:
    """Return the fields of the form for these parameters of a function, or for all of them.

    Raises:
        ValueError: the function has no such parameter, or its type is none of a form.
    """
    parameters = {name: each for name, each in inspect.signature(function).parameters.items() if name not in BY_NAME}
    unknown = [name for name in names if name not in parameters]
    if unknown:
        msg = f"The tool {getattr(function, '__name__', 'tool')} has no parameter {', '.join(unknown)}."
        raise ValueError(msg)
    hints = typing.get_type_hints(function)
    return {name: _field(name, parameters[name], hints.get(name, str)) for name in names or parameters}


def _field(name: str, parameter: inspect.Parameter, hint: object) -> dict[str, object]:
    is_optional = parameter.default is not parameter.empty
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [each for each in typing.get_args(hint) if each is not type(None)]
        hint = members[0] if len(members) == 1 else hint
    field: dict[str, object] = {"name": name, "required": not is_optional}
    if typing.get_origin(hint) is Literal:
        options = list(typing.get_args(hint))
        return {**field, "type": _FIELD_TYPES.get(type(options[0]), "str"), "allowed_values": options}
    kind = _FIELD_TYPES.get(typing.get_origin(hint) or hint)
    if kind is None:
        msg = f"A person cannot fill in the parameter {name}: its type is none of {', '.join(_FIELD_TYPES.values())}."
        raise ValueError(msg)
    return {**field, "type": kind}
