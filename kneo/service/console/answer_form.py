"""The form that answers a task: its subject, its controls, and the decision that its fields make. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from kneo.api.decisions import TaskDecision
from kneo.api.task_views import HumanTaskView
from kneo.errors import InvalidValue
from kneo.json_text import parse_json
from kneo.service.console import task_words
from kneo.service.console.page import Form

MAX_CONTROLS = 100
"""Fields of a schema that have a control."""

SHORT_CHARS = 200
"""Longest text that a control of one line takes."""

EDITED_CHARS = 2_000
"""Longest text of an argument that has a control."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control of a form, for one property of a schema.

    Attributes:
        name: The property.
        kind: ``text``, ``textarea``, ``number``, ``date``, ``choice`` or ``json``.
        label: The name in words.
        hint: The description.
        required: Whether a value is required.
        value: The text that the control shows first.
        choices: The values and texts of a ``choice``.
        limits: ``min``, ``max``, ``step`` and ``maxlength`` of the HTML element.
    """

    name: str
    kind: str
    label: str
    hint: str
    required: bool
    value: str
    choices: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, str], ...] = ()


def controls(schema: object, typed: Form) -> list[Control]:
    """Return the controls of a schema of an object; none for other schemas.

    Args:
        schema: The JSON Schema of the answer, if there is one.
        typed: The fields of a form that was refused, whose values are shown again.
    """
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        return []
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return []
    required = schema.get("required")
    needed = {str(name) for name in required} if isinstance(required, list) else set()
    return [
        _control(str(name), rule if isinstance(rule, Mapping) else {}, required=str(name) in needed, typed=typed)
        for name, rule in list(properties.items())[:MAX_CONTROLS]
    ]


def _control(name: str, rule: Mapping[str, object], *, required: bool, typed: Form) -> Control:
    default = rule.get("default")
    shown = "" if default is None else default if isinstance(default, str) else _encode(default)
    choices = _choices(rule)
    kind = "choice" if choices else _kind(rule)
    return Control(
        name=name,
        kind=kind,
        label=name.replace("_", " ").capitalize(),
        hint=str(rule.get("description") or ""),
        required=required,
        value=typed.get(f"values.{name}", shown),
        choices=choices,
        limits=tuple(_limits(kind, rule)),
    )


def _kind(rule: Mapping[str, object]) -> str:
    match rule.get("type"):
        case "integer" | "number":
            return "number"
        case "string" if rule.get("format") == "date":
            return "date"
        case "string":
            longest = rule.get("maxLength")
            one_line = (
                rule.get("pattern") or rule.get("format") or (isinstance(longest, int) and longest <= SHORT_CHARS)
            )
            return "text" if one_line else "textarea"
    return "json"


def _choices(rule: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    if rule.get("type") == "boolean":
        return (("true", "Yes"), ("false", "No"))
    values = rule.get("enum")
    if not isinstance(values, list):
        return ()
    texts = [value if isinstance(value, str) else _encode(value) for value in values]
    return tuple((text, text) for text in texts)


def _limits(kind: str, rule: Mapping[str, object]) -> list[tuple[str, str]]:
    names = {"number": {"minimum": "min", "maximum": "max"}, "text": {"maxLength": "maxlength"}}.get(kind, {})
    found = [(html, str(rule[name])) for name, html in names.items() if isinstance(rule.get(name), int | float)]
    step = [("step", "1" if rule.get("type") == "integer" else "any")] if kind == "number" else []
    return step + found


ARGUMENT_LIST = "\n\n- "
"""Where the arguments begin in the prompt of a call."""

FIELDS = frozenset({"request_id", "expect_digest", "decision", "content", "option", "reason"})
"""The fields of the form, besides those of a schema and of an edited call."""

VALUES, ARGUMENTS = "values.", "arguments."
"""The beginnings of the names of fields of a schema, and of arguments of an edited call."""


def form_values(task: HumanTaskView, typed: Form, *, edit_limit: int, shown_chars: int) -> dict[str, object]:
    """Return the values of ``answer_parts.html``.

    Args:
        task: The task.
        typed: The fields of a form that was refused, whose values are shown again.
        edit_limit: Most characters of an edit.
        shown_chars: Most characters of the subject that the page shows.
    """
    call, text = _call(task), task.current_input
    edit_text = _edit_text(task, call)
    return {
        "task": task,
        "request": task.request,
        "lead": _lead(task, call),
        "earlier": [{**each, "fields": _fields(each)} for each in _earlier(call)],
        "typed": typed,
        "choices": _decisions(task),
        "options": _options(task),
        "controls": controls(task.request["schema"], typed),
        "call": call,
        "arguments": _arguments(call),
        "edits": _edits(call, typed),
        "text": _indented(text, shown_chars)[:shown_chars],
        "is_cut": len(text) > shown_chars,
        "edit_text": typed.get("content") or (edit_text if len(edit_text) <= shown_chars else ""),
        "edit_is_empty": len(edit_text) > shown_chars,
        "edit_chars": len(edit_text),
        "edit_limit": edit_limit,
        "people_needed": task.quorum["approvals"],
        "people_have": task.quorum["have"],
    }


def _arguments(call: Mapping[str, object] | None) -> list[tuple[str, str]]:
    arguments = call["arguments"] if call is not None else None
    return [(str(name), _plain(value)) for name, value in arguments.items()] if isinstance(arguments, Mapping) else []


def _edits(call: Mapping[str, object] | None, typed: Form) -> list[Control]:
    """Return a control for each argument of a call; none where one of them is no plain value of ordinary size."""
    arguments = call["arguments"] if call is not None else None
    if not isinstance(arguments, Mapping) or len(arguments) > MAX_CONTROLS:
        return []
    if not all(_is_plain(value) for value in arguments.values()):
        return []
    return [_edit(str(name), value, typed) for name, value in arguments.items()]


def _is_plain(value: object) -> bool:
    """Return whether a control keeps a value: a number, yes or no, or a text that is not long."""
    if isinstance(value, str):
        return len(value) <= EDITED_CHARS and "\r" not in value
    return isinstance(value, bool | int | float)


def _edit(name: str, value: object, typed: Form) -> Control:
    choices = (("true", "Yes"), ("false", "No")) if isinstance(value, bool) else ()
    is_long = isinstance(value, str) and (len(value) > SHORT_CHARS or "\n" in value)
    kind = "textarea" if is_long else "text" if isinstance(value, str) else "choice" if choices else "number"
    return Control(
        name=name,
        kind=kind,
        label=name,
        hint="",
        required=True,
        value=typed.get(f"{ARGUMENTS}{name}", _plain(value)),
        choices=choices,
        limits=(("step", "any"),) if kind == "number" else (),
    )


def _content(task: HumanTaskView, form: Form) -> str:
    """Return the text that was written; of an edit the arguments that the controls have."""
    call, sent = _call(task), {name: values[-1] for name, values in form.below(ARGUMENTS).items()}
    arguments = call["arguments"] if call is not None and sent and form.get("decision") == "edited" else None
    if not isinstance(arguments, Mapping):
        return form.get("content")
    rules = {name: {"type": "string"} if isinstance(value, str) else {} for name, value in arguments.items()}
    return _encode({name: _value(rules.get(name), text) for name, text in sent.items()})


def _earlier(call: Mapping[str, object] | None) -> list[Mapping[str, object]]:
    calls = call.get("calls") if call is not None else None
    return calls if isinstance(calls, list) else []


def _fields(call: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the fields of the result of an earlier call, where it is an object of plain values and not cut."""
    text = str(call["result_preview"])
    try:
        value = parse_json(text) if call["characters"] == len(text) else None
    except ValueError:
        return []
    is_flat = isinstance(value, dict) and not any(isinstance(each, dict | list) for each in value.values())
    return [(str(name), _plain(each)) for name, each in value.items()] if is_flat and isinstance(value, dict) else []


def _decisions(task: HumanTaskView) -> list[dict[str, object]]:
    """Return the decisions of a form, each with its consequence."""
    on_reject = str(task.request["on_reject"])
    facts = task.metadata.get("facts")
    agent = str(facts.get("agent", "")) if isinstance(facts, Mapping) and "gate" in facts else ""
    allowed = task.request["decisions"]
    assert isinstance(allowed, list)
    return [
        {
            "decision": decision,
            "verb": task_words.verb(decision, on_reject),
            "key": task_words.KEYS[decision],
            "consequence": task_words.consequence(task.consequences.get(decision), decision, agent=agent),
        }
        for decision in task_words.VERBS
        if decision in allowed
    ]


def _edit_text(task: HumanTaskView, call: Mapping[str, object] | None) -> str:
    """Return the text that an edit starts from: the arguments of a call, else the subject; empty where none is allowed."""
    allowed = task.request["decisions"]
    if not isinstance(allowed, list) or "edited" not in allowed:
        return ""
    return json.dumps(call["arguments"], ensure_ascii=False, indent=2) if call else task.current_input


def _call(task: HumanTaskView) -> Mapping[str, object] | None:
    """Return the facts of the tool call that a task is about."""
    facts = task.metadata.get("facts")
    return (
        facts
        if isinstance(facts, Mapping) and "tool" in facts and isinstance(facts.get("arguments"), Mapping)
        else None
    )


def _lead(task: HumanTaskView, call: Mapping[str, object] | None) -> str:
    """Return what the question says besides its headline. The arguments of a call have a table of their own."""
    prompt, title = str(task.request["prompt"]), str(task.request["title"])
    if call is not None:
        prompt = prompt.partition(ARGUMENT_LIST)[0]
    return next((text for text in (prompt, title) if text != task.headline), "")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _indented(text: str, shown_chars: int) -> str:
    """Return a JSON object or list with indentation, any other text as it is."""
    if text[:1] not in {"{", "["} or len(text) > shown_chars:
        return text
    try:
        return json.dumps(parse_json(text), ensure_ascii=False, indent=2)
    except ValueError:
        return text


def _options(task: HumanTaskView) -> list[tuple[str, str]]:
    """Return the options of a task, each with its consequence."""
    options = task.request["options"]
    selected = task.consequences.get("selected")
    known = selected.get("options") if isinstance(selected, Mapping) else None
    leads = known if isinstance(known, Mapping) else {}
    return (
        [(str(name), task_words.consequence(leads.get(name))) for name in options] if isinstance(options, list) else []
    )


def decision_of(task: HumanTaskView, form: Form) -> TaskDecision:
    """Return the decision that a submitted form makes on a task.

    Raises:
        InvalidValue: no decision is chosen, a rejection has no reason, or a field is of the wrong kind.
    """
    kind, reason = form.get("decision"), form.get("reason").strip()
    if not kind:
        msg = "Choose a decision."
        raise InvalidValue(msg, code="human_input_invalid", field="decision")
    if kind == "rejected" and not reason:
        msg = "A rejection needs a reason."
        hint = "The next attempt reads it." if task.request["on_reject"] == "retry" else None
        raise InvalidValue(msg, code="human_input_invalid", hint=hint, field="reason")
    schema = task.request["schema"]
    values = _values(schema, form) if isinstance(schema, Mapping) and kind != "rejected" else None
    try:
        return TaskDecision.model_validate(
            {
                "request_id": form.get("request_id") or None,
                "expect_digest": form.get("expect_digest") or None,
                "decision": kind,
                "content": _content(task, form) if kind in {"edited", "provided"} and not values else None,
                "selected_options": form.all("option") if kind == "selected" else None,
                "values": values or None,
                "comment": reason or None,
                "feedback": (reason or None) if kind == "rejected" else None,
            }
        )
    except ValidationError as error:
        msg = f"{kind[:40]!r} is not a decision of this task."
        raise InvalidValue(msg, code="human_input_invalid", field="decision") from error


def _values(schema: Mapping[str, object], form: Form) -> dict[str, object]:
    """Return the values of the filled-in fields, in the types of their properties."""
    properties = schema.get("properties")
    rules = properties if isinstance(properties, Mapping) else {}
    sent = {name: values[-1] for name, values in form.below(VALUES).items()}
    return {name: _value(rules.get(name), text) for name, text in sent.items() if text != ""}


def _value(rule: object, text: str) -> object:
    """Return a text in the type of its property; a text that is none of that type stays, and the schema refuses it."""
    kind = rule.get("type") if isinstance(rule, Mapping) else None
    if kind == "string" or (isinstance(rule, Mapping) and text in (rule.get("enum") or ())):
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
