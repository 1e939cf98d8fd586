"""Validation of plain values by the models, with findings that name the path and the nearest known word.

This module turns locations of pydantic into paths of the file, its error types into messages, and an unknown key into a
suggestion.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Generic, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kneo.errors import Invalid
from kneo.spec.base import PATTERN_WORDS, FindingCode, SpecModel, describe, nearest, quote, suggest
from kneo.spec.documents import Diagnostic, Document, Path, error, locate

MAX_FINDINGS = 50

M = TypeVar("M", bound=SpecModel)


class InvalidDeclaration(Invalid):
    """A readable file does not match its model; ``findings`` have the paths and reasons."""

    default_code = "invalid_declaration"

    def __init__(self, findings: Sequence[Diagnostic]) -> None:
        first = findings[0]
        position = ":".join(str(part) for part in (first.file, first.line, first.column) if part is not None)
        at = f" (at {first.path_text})" if first.path_text else ""
        more = f" And {len(findings) - 1} more." if len(findings) > 1 else ""
        super().__init__(
            f"{position}: {first.message}{at}{more}",
            hint=first.suggestion,
            file=first.file,
            line=first.line,
            column=first.column,
            diagnostics=[found.as_json() for found in findings],
        )
        self.findings = tuple(findings)


def check_model(model: type[M], value: object, documents: Sequence[Document] = ()) -> M | tuple[Diagnostic, ...]:
    """Return the model of a value, or the findings that prevent it.

    Args:
        model: The model.
        value: Plain maps, lists and scalars.
        documents: The file and then its overlays, for positions.
    """
    try:
        return model.model_validate(value)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    return tuple(_finding(model, detail, documents) for detail in errors[:MAX_FINDINGS])


def parse_model(model: type[M], document: Document) -> M:
    """Return the model of a document.

    Raises:
        InvalidDeclaration: the document is not one; every finding is in it.
    """
    checked = check_model(model, document.value, [document])
    if isinstance(checked, tuple):
        raise InvalidDeclaration(checked)
    return checked


@dataclass(frozen=True, slots=True)
class ReadablePart(Generic[M]):
    """The model of a value without the values that the schema refuses.

    Attributes:
        refused: The paths of the values of fields that were left out. Unknown keys, which no field has, are not among them.
    """

    model: M
    refused: frozenset[Path]


def readable_part(model: type[M], value: object) -> ReadablePart[M] | None:
    """Return the part of an invalid value that can be checked further.

    Left out are unknown keys, and single values of optional fields; ``None`` where anything else is wrong, as what refers to
    a part that is left out would be reported too.
    """
    try:
        return ReadablePart(model.model_validate(value), frozenset())
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    unknown, refused_values = set(), set()
    for detail in errors:
        place = follow(model, detail["loc"])
        if detail["type"] == "extra_forbidden":
            unknown.add(place.path)
        elif place.code is not None or (detail["type"] in _SINGLE_VALUE_KINDS and place.field is not None):
            refused_values.add(place.path)
        else:
            return None
    try:
        return ReadablePart(model.model_validate(_without(value, unknown | refused_values)), frozenset(refused_values))
    except ValidationError:
        return None  # a required field is among those left out


def _without(value: object, left_out: Collection[Path], here: Path = ()) -> object:
    if isinstance(value, dict):
        paths = ((name, inner, (*here, name)) for name, inner in value.items())
        return {name: _without(inner, left_out, path) for name, inner, path in paths if path not in left_out}
    if isinstance(value, list):
        return [_without(inner, left_out, (*here, number)) for number, inner in enumerate(value)]
    return value


def _finding(model: type[BaseModel], detail: ErrorDetails, documents: Sequence[Document]) -> Diagnostic:
    place = follow(model, detail["loc"])
    kind = detail["type"]
    context: _Context = detail.get("ctx", {})
    below = context.get("path", ())
    path = (*place.path, *below) if isinstance(below, tuple) else place.path
    message, suggestion = _explain(kind, path, detail, place.known)
    own = place.code if kind in _EXPECTED_KINDS else None
    code, aliases = (own.code, own.aliases) if own is not None else (str(context.get("code", "E_SCHEMA")), ())
    found = error(code, message, path, suggestion=suggestion, aliases=aliases)
    return locate(replace(found, at_key=kind == "extra_forbidden"), documents)


@dataclass(frozen=True, slots=True)
class FieldLocation:
    """A path of the file, the keys that are known where it ends, and the field of a model that it names."""

    path: Path
    known: tuple[str, ...] = ()
    field: FieldInfo | None = None

    @property
    def code(self) -> FindingCode | None:
        """The code of the field's own for values of the wrong kind."""
        metadata = self.field.metadata if self.field is not None else ()
        return next((each for each in metadata if isinstance(each, FindingCode)), None)


def follow(model: type[BaseModel], loc: tuple[int | str, ...]) -> FieldLocation:
    """Turn a location of pydantic into a place in the file.

    The two differ where a value may be one of several models: pydantic adds the tag of the one it tried.
    """
    path: list[int | str] = []
    known: tuple[str, ...] = ()
    field: FieldInfo | None = None
    here: object = model
    for part in loc:
        here, is_tag = _choose(here, part)
        if is_tag:
            continue
        if part == "[key]":
            break
        path.append(part)
        fields = _fields(here) if isinstance(here, type) and issubclass(here, BaseModel) else {}
        known, field = tuple(fields), fields.get(str(part))
        here = _step_into(here, part)
    return FieldLocation(tuple(path), known, field)


def _choose(annotation: object, part: int | str) -> tuple[object, bool]:
    """Strip what surrounds a type; where a part of the location is a tag, take the member it names."""
    annotation = _bare(annotation)
    if get_origin(annotation) in {Union, UnionType}:
        for member in get_args(annotation):
            if any(isinstance(extra, Tag) and extra.tag == part for extra in get_args(member)[1:]):
                return _bare(member), True
    return annotation, False


def _bare(annotation: object) -> object:
    while True:
        arguments = get_args(annotation)
        if get_origin(annotation) is Annotated:
            annotation = arguments[0]
        elif get_origin(annotation) in {Union, UnionType} and len(solid := _without_none(arguments)) == 1:
            annotation = solid[0]
        else:
            return annotation


def _without_none(members: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(member for member in members if member is not type(None))


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _step_into(annotation: object, part: int | str) -> object:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = _fields(annotation).get(str(part))
        return field.annotation if field is not None else None
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return cast("object", arguments[1])
    if get_origin(annotation) in {tuple, list}:
        return cast("object", arguments[0])
    return None


_EXPECTED_KINDS: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "list_type": "a list",
    "tuple_type": "a list",
    "time_delta_type": "a duration such as 15m",
}

_SINGLE_VALUE_KINDS = frozenset(
    {
        "string_type",
        "int_type",
        "int_from_float",
        "float_type",
        "finite_number",
        "bool_type",
        "literal_error",
        "greater_than_equal",
        "greater_than",
        "less_than_equal",
        "less_than",
    }
)
"""The errors about a text, a number, a truth value or a choice."""


_Explain = tuple[str, str | None]


def _name(path: Path) -> str:
    if not path:
        return "the file"
    return f"{path[-2]}[{path[-1]}]" if isinstance(path[-1], int) and len(path) > 1 else str(path[-1])


def _explain(kind: str, path: Path, detail: ErrorDetails, known: Sequence[str]) -> _Explain:
    name = _name(path)
    value: object = detail["input"]
    if kind in _EXPECTED_KINDS:
        hint = "Put it in quotes to make it text." if kind == "string_type" and isinstance(value, int | float) else None
        return f"{name} must be {_EXPECTED_KINDS[kind]}, not {describe(value)}.", hint
    special = _SPECIAL.get(kind)
    if special is not None:
        return special(name, value, detail.get("ctx", {}), known)
    return f"{name}: {detail['msg'].rstrip('.')}.", None


_Context = Mapping[str, object]


def _missing(name: str, _value: object, _context: _Context, _known: Sequence[str]) -> _Explain:
    return f"{name} is required here.", None


def _refused(_name: str, _value: object, context: _Context, _known: Sequence[str]) -> _Explain:
    suggestion = context.get("suggestion")
    return str(context["message"]), suggestion if isinstance(suggestion, str) else None


def _unknown(name: str, _value: object, _context: _Context, known: Sequence[str]) -> _Explain:
    return f"{quote(name)} is not a key that is known here.", suggest(name, known)


def _choice(name: str, value: object, context: _Context, _known: Sequence[str]) -> _Explain:
    shown = quote(value) if isinstance(value, str | int | float) else describe(value)
    expected = str(context.get("expected"))
    must = "one of " if " or " in expected else ""
    return f"{name} is {shown}; it must be {must}{expected}.", _nearest_choice(value, expected)


def _nearest_choice(value: object, expected: str) -> str | None:
    words = [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]
    close = nearest(value, words) if isinstance(value, str) else None
    return f"Did you mean {close}?" if close else None


def _bound(words: str, key: str) -> Callable[[str, object, _Context, Sequence[str]], _Explain]:
    def explain(name: str, value: object, context: _Context, _known: Sequence[str]) -> _Explain:
        shown = quote(value) if isinstance(value, int | float) else describe(value)
        return f"{name} is {shown}; it must be {words.format(context.get(key))}.", None

    return explain


def _pattern(name: str, value: object, context: _Context, _known: Sequence[str]) -> _Explain:
    pattern = str(context.get("pattern"))
    return f"{name} is {quote(value)}; it must be {PATTERN_WORDS.get(pattern, pattern)}.", None


_SPECIAL: Mapping[str, Callable[[str, object, _Context, Sequence[str]], _Explain]] = {
    "missing": _missing,
    "refused": _refused,
    "extra_forbidden": _unknown,
    "literal_error": _choice,
    "greater_than_equal": _bound("at least {}", "ge"),
    "greater_than": _bound("more than {}", "gt"),
    "less_than_equal": _bound("at most {}", "le"),
    "less_than": _bound("less than {}", "lt"),
    "too_long": _bound("at most {} long", "max_length"),
    "too_short": _bound("at least {} long", "min_length"),
    "string_too_long": _bound("at most {} characters", "max_length"),
    "string_too_short": _bound("at least {} characters", "min_length"),
    "string_pattern_mismatch": _pattern,
}
