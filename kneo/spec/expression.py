"""Expressions: conditions written as text, in a subset of CEL, evaluated in three values. Pure.

An expression is true, false or unknown. A path that is missing, a value of another type, NaN and infinity make a comparison
unknown; ``&&``, ``||`` and ``!`` follow Kleene, as CEL's rules for errors do. Parsing bounds the size of an expression, so
evaluation takes time linear in the expression and the values, and raises nothing.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from kneo.spec.base import suggest
from kneo.spec.patterns import PatternInvalid, TextUnmatchable, compile_pattern

MAX_CHARS = 2_000
MAX_COMPARISONS = 50
MAX_DEPTH = 20

NAME, TYPE = "E_CONDITION_NAME", "E_CONDITION_TYPE"

Literal_: TypeAlias = bool | int | float | str | None
Kind: TypeAlias = Literal["number", "string", "boolean", "null", "array", "object"]
Schema: TypeAlias = Mapping[str, object]


class ExpressionInvalid(ValueError):
    """A text is no expression.

    Attributes:
        message: A sentence with the column.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ExpressionFlaw(NamedTuple):
    """A name or a comparison of an expression that is never definite."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ValuePath:
    """A path to a value; with ``is_size`` the size of that value."""

    names: tuple[str, ...]
    is_size: bool = False

    def __str__(self) -> str:
        path = self.names[0] + "".join(
            f".{name}" if _NAME.fullmatch(name) else f"[{name!r}]" for name in self.names[1:]
        )
        return f"size({path})" if self.is_size else path


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison of the value at a path: an operator, a method, ``in`` or ``has``, and its operand."""

    operator: str
    path: ValuePath
    operand: ValuePath | Literal_ | tuple[Literal_, ...] = None


@dataclass(frozen=True, slots=True)
class Negation:
    part: Expression


@dataclass(frozen=True, slots=True)
class Junction:
    """Several expressions joined by ``||`` or ``&&``."""

    is_any: bool
    parts: tuple[Expression, ...]


Expression: TypeAlias = Comparison | Negation | Junction
Operand: TypeAlias = ValuePath | Literal_ | tuple[Literal_, ...]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<text>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")"
    rf"|(?P<name>{_NAME.pattern})"
    r"|(?P<sign>\|\||&&|==|!=|<=|>=|[<>!().,\[\]-])"
    r"|(?P<space>[ \t\r\n]+)"
    r"|(?P<end>\Z)",
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "t": "\t", "r": "\r"}
_WORDS: Mapping[str, Literal_] = {"true": True, "false": False, "null": None}
_METHODS: Mapping[str, Callable[[str, str], bool]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": str.__contains__,
    "matches": lambda text, pattern: compile_pattern(pattern).search(text),
}
_EQUALITY, _ORDER = ("==", "!="), ("<", "<=", ">", ">=")
_OPERATORS: Mapping[str, Callable[..., bool]] = {
    **_METHODS,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPARED: Mapping[str, Collection[str]] = {
    **dict.fromkeys(_EQUALITY, ("number", "string", "boolean")),
    **dict.fromkeys(_ORDER, ("number", "string")),
}
"""The kinds of values that an operator compares; a method compares strings."""
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_MAX_INTEGER = 2**63


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Parse an expression.

    Raises:
        ExpressionInvalid: the text is none, or too large.
    """
    if len(text) > MAX_CHARS:
        msg = f"when has {len(text)} characters; at most {MAX_CHARS:,} are allowed."
        raise ExpressionInvalid(msg)
    return _Parser(text).parse()


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            raise _refused(at + 1, f"unexpected {text[at]!r}")
        kind = match.lastgroup or ""
        if kind != "space":
            yield _Token(kind, match[0], at + 1)
        if kind == "end":
            return
        at = match.end()


def _refused(column: int, problem: str) -> ExpressionInvalid:
    return ExpressionInvalid(f"when, column {column}: {problem}.")


class _Parser:
    """A recursive descent parser of one text; ``part`` methods return an expression or an operand."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = self._comparisons = self._depth = 0

    def parse(self) -> Expression:
        result = self._condition(self._junction())
        if self._next.kind != "end":
            raise self._unexpected("the end")
        return result

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, sign: str | None = None) -> _Token:
        token = self._next
        if token.kind == "end" or (sign is not None and token.text != sign):
            raise self._unexpected(sign or "a value")
        self._at += 1
        return token

    def _is_next(self, *signs: str) -> bool:
        return self._next.kind in {"sign", "name"} and self._next.text in signs

    def _unexpected(self, expected: str) -> ExpressionInvalid:
        found = "the end" if self._next.kind == "end" else self._next.text[:40]
        return _refused(self._next.column, f"expected {expected}, found {found}")

    def _junction(self) -> Operand | Expression:
        self._deepen()
        result = self._joined("||", lambda: self._joined("&&", self._relation, is_any=False), is_any=True)
        self._depth -= 1
        return result

    def _deepen(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(self._next.column, f"nested deeper than {MAX_DEPTH}")

    def _joined(self, sign: str, part: Callable[[], Operand | Expression], *, is_any: bool) -> Operand | Expression:
        first = part()
        if not self._is_next(sign):
            return first
        parts = [self._condition(first)]
        while self._is_next(sign):
            self._take()
            parts.append(self._condition(part()))
        return Junction(is_any, tuple(parts))

    def _condition(self, part: Operand | Expression) -> Expression:
        """Return a part as a condition; a path alone compares with ``true``."""
        if isinstance(part, Comparison | Negation | Junction):
            return part
        if isinstance(part, ValuePath) and not part.is_size:
            return self._comparison("==", part, True)
        raise _refused(self._next.column, "a value alone is no condition")

    def _comparison(self, sign: str, path: ValuePath, operand: Operand = None) -> Comparison:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise _refused(self._next.column, f"more than {MAX_COMPARISONS} comparisons")
        return Comparison(sign, path, operand)

    def _relation(self) -> Operand | Expression:
        left, column = self._value(), self._next.column
        if not self._is_next(*_MIRRORED, "in"):
            return left
        sign = self._take().text
        right = self._list() if sign == "in" else self._value()
        if isinstance(left, Comparison | Negation | Junction) or isinstance(right, Comparison | Negation | Junction):
            raise _refused(column, "conditions are not compared")
        if isinstance(left, ValuePath):
            return self._comparison(sign, left, right)
        if isinstance(right, ValuePath):
            return self._comparison(_MIRRORED[sign], right, left)
        raise _refused(column, "expected a path on one side")

    def _list(self) -> tuple[Literal_, ...]:
        self._take("[")
        values: list[Literal_] = []
        while not self._is_next("]"):
            values.append(self._literal())
            if not self._is_next("]"):
                self._take(",")
        self._take()
        return tuple(values)

    def _value(self) -> Operand | Expression:
        token = self._next
        if self._is_next("!", "("):
            return self._negation() if token.text == "!" else self._group()
        if token.kind == "name" and token.text not in _WORDS:
            return self._path_or_call()
        return self._literal()

    def _negation(self) -> Negation:
        self._take("!")
        self._deepen()
        part = self._condition(self._value())
        self._depth -= 1
        return Negation(part)

    def _group(self) -> Operand | Expression:
        self._take("(")
        part = self._junction()
        self._take(")")
        return part

    def _literal(self) -> Literal_:
        if self._next.kind == "text":
            return self._text("a value")
        if self._is_next(*_WORDS):
            return _WORDS[self._take().text]
        sign = -1 if self._is_next("-") and self._take() else 1
        token = self._next
        if token.kind != "number":
            raise self._unexpected("a number" if sign < 0 else "a value")
        self._take()
        number = int(token.text) if token.text.isdecimal() else float(token.text)
        is_float = isinstance(number, float)
        if not (math.isfinite(number) if is_float else -_MAX_INTEGER <= sign * number < _MAX_INTEGER):
            raise _refused(token.column, "the number is too large")
        return sign * number

    def _text(self, expected: str) -> str:
        if self._next.kind != "text":
            raise self._unexpected(expected)
        token = self._take()
        unknown = next((each for each in _ESCAPE.findall(token.text) if each not in _ESCAPES), None)
        if unknown is not None:
            raise _refused(token.column, f"unknown escape \\{unknown}")
        return _ESCAPE.sub(lambda found: _ESCAPES[found[1]], token.text[1:-1])

    def _path_or_call(self) -> ValuePath | Comparison:
        name = self._take()
        if name.text == "in":
            raise _refused(name.column, "expected a value, found in")
        if name.text in {"has", "size"} and self._is_next("("):
            self._take()
            path = self._path_or_call() if self._next.kind == "name" else None
            if not isinstance(path, ValuePath) or path.is_size:
                raise _refused(name.column, f"{name.text} needs a path")
            self._take(")")
            return self._comparison("has", path) if name.text == "has" else ValuePath(path.names, is_size=True)
        names = [name.text]
        while self._is_next(".", "["):
            if self._take().text == "[":
                names.append(self._text("a name in quotes"))
                self._take("]")
                continue
            if self._next.kind != "name" or self._next.text in {*_WORDS, "in"}:
                raise self._unexpected("a name")
            part = self._take()
            if self._is_next("("):
                return self._method(ValuePath(tuple(names)), part)
            names.append(part.text)
        if self._is_next("("):
            raise _refused(name.column, f"there is no function {name.text}")
        return ValuePath(tuple(names))

    def _method(self, path: ValuePath, method: _Token) -> Comparison:
        if method.text not in _METHODS:
            raise _refused(method.column, f"there is no function {method.text}")
        self._take("(")
        column, operand = self._next.column, self._text("a text in quotes")
        self._take(")")
        if method.text == "matches":
            try:
                compile_pattern(operand)
            except PatternInvalid as flaw:
                raise _refused(column, flaw.reason.rstrip(".")) from flaw
        return self._comparison(method.text, path, operand)


# ---- evaluation -------------------------------------------------------------------------------------------------

_MISSING = object()


def evaluate(expression: Expression, facts: Mapping[str, object]) -> bool | None:
    """Return whether an expression is true; None where it is unknown.

    Args:
        expression: The expression.
        facts: The values by the first names of paths.
    """
    if isinstance(expression, Negation):
        value = evaluate(expression.part, facts)
        return None if value is None else not value
    if isinstance(expression, Junction):
        values = [evaluate(part, facts) for part in expression.parts]
        if expression.is_any in values:
            return expression.is_any
        return None if None in values else not expression.is_any
    return _compare(expression, facts)


def _compare(comparison: Comparison, facts: Mapping[str, object]) -> bool | None:
    value, operand = _value_at(comparison.path, facts), comparison.operand
    if comparison.operator == "has":
        return value is not _MISSING
    if comparison.operator != "in":
        return _relate(
            comparison.operator, value, _value_at(operand, facts) if isinstance(operand, ValuePath) else operand
        )
    found = {_relate("==", value, each) for each in operand} if isinstance(operand, tuple) else {None}
    return True if True in found else None if None in found or not found else False


def _value_at(path: ValuePath, facts: Mapping[str, object]) -> object:
    value: object = facts
    for name in path.names:
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    if path.is_size:
        return len(value) if isinstance(value, str | Mapping | list | tuple) else _MISSING
    return value


_KINDS: tuple[tuple[type | tuple[type, ...], Kind], ...] = (
    (bool, "boolean"),
    ((int, float), "number"),
    (str, "string"),
    (type(None), "null"),
    (Mapping, "object"),
    ((list, tuple), "array"),
)


def kind_of(value: object) -> Kind | None:
    """Return the kind of a value; None for one that no comparison is definite about."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return next((kind for types, kind in _KINDS if isinstance(value, types)), None)


def _relate(sign: str, value: object, other: object) -> bool | None:
    kind, other_kind = kind_of(value), kind_of(other)
    if kind is None or other_kind is None:
        return None
    if sign in _EQUALITY and "null" in (kind, other_kind):
        return (kind == other_kind) == (sign == "==")
    if kind != other_kind or kind not in _COMPARED.get(sign, {"string"}):
        return None
    try:
        return _OPERATORS[sign](value, other)
    except TextUnmatchable:
        return None


# ---- names and types --------------------------------------------------------------------------------------------

_TEXT: Schema = {"type": "string"}
_RUN: Schema = {
    "additionalProperties": False,
    "properties": {
        "requester": _TEXT,
        "environment": {"type": ["string", "null"]},
        "workflow": {"type": ["string", "null"]},
    },
}


def call_facts(parameters: Schema) -> Schema:
    """Return the JSON Schema of the facts at calls of a tool, whose arguments have a schema."""
    names = {"args": parameters, "tool": _TEXT, "agent": _TEXT, "values": {}, "run": _RUN}
    return {"additionalProperties": False, "properties": names}


STEP_FACTS: Schema = {
    "additionalProperties": False,
    "properties": {
        "input": _TEXT,
        "output": _TEXT,
        "status": _TEXT,
        "metadata": {},
        "variables": {"additionalProperties": _TEXT},
        "values": {},
        "run": _RUN,
    },
}
"""The JSON Schema of the facts at steps; ``input`` and ``output`` are both what the step or gate is about."""


def find_type_errors(expression: Expression, schema: Schema, *, tool: str = "") -> Iterator[ExpressionFlaw]:
    """Yield the names that do not exist and the comparisons of different types, as far as a schema states them.

    Args:
        expression: The expression.
        schema: The JSON Schema of the facts, of ``call_facts`` or ``STEP_FACTS``.
        tool: The name of the tool at whose calls the expression is evaluated.
    """
    for comparison in comparisons(expression):
        operands = [comparison.path, *([comparison.operand] if isinstance(comparison.operand, ValuePath) else [])]
        flaws = [flaw for path in operands if (flaw := _name_error(path, schema, tool)) is not None]
        yield from flaws
        if not flaws:
            yield from _type_errors(comparison, schema)


def comparisons(expression: Expression) -> Iterator[Comparison]:
    """Yield the comparisons of an expression, in their order."""
    if isinstance(expression, Comparison):
        yield expression
    else:
        for part in (expression.part,) if isinstance(expression, Negation) else expression.parts:
            yield from comparisons(part)


def _below(schema: object, name: str) -> tuple[object, Sequence[str] | None]:
    """Return the schema of a property, and the known names where there is no such property."""
    if not isinstance(schema, Mapping):
        return None, None
    declared = schema.get("properties")
    names = declared if isinstance(declared, Mapping) else {}
    if name in names:
        return names[name], None
    # Declared properties are taken as all of them where the schema does not state that there are others.
    others = schema.get("additionalProperties", not names or "patternProperties" in schema or "$ref" in schema)
    return (None, tuple(names)) if others is False else (others, None)


def _name_error(path: ValuePath, schema: object, tool: str) -> ExpressionFlaw | None:
    for depth, name in enumerate(path.names):
        schema, known = _below(schema, name)
        if known is not None:
            below = ".".join(path.names[1 : depth + 1])
            named = (
                f"{tool} has no argument {below}" if path.names[0] == "args" and depth else f"There is no {path} here"
            )
            hint = suggest(name, known)
            return ExpressionFlaw(NAME, f"{named}.{f' {hint}' if hint else ''}")
    return None


def _kinds(path: ValuePath, schema: object) -> frozenset[str]:
    """Return the possible kinds of the value at a path; none where the schema does not state them."""
    for name in path.names:
        schema, _ = _below(schema, name)
    stated = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = stated if isinstance(stated, list | tuple) else [stated] if isinstance(stated, str) else ()
    return frozenset("number" if kind == "integer" else kind for kind in kinds)


_SIZED = frozenset({"string", "array", "object"})


def _type_errors(comparison: Comparison, schema: Schema) -> Iterator[ExpressionFlaw]:
    path, operand, sign = comparison.path, comparison.operand, comparison.operator
    if sign == "has":
        return
    sides: list[frozenset[str]] = []
    for side in (path, operand):
        kinds = _kinds(side, schema) if isinstance(side, ValuePath) else frozenset[str]()
        if isinstance(side, ValuePath) and side.is_size:
            if kinds and not kinds & _SIZED:
                value = replace(side, is_size=False)
                yield ExpressionFlaw(TYPE, f"{side} has no value: {value} is {_in_words(kinds)}.")
                return
            kinds = frozenset({"number"})
        sides.append(kinds)
    kinds = sides[0]
    if sign in _ORDER and kinds and not kinds & {"number", "string"}:
        yield ExpressionFlaw(TYPE, f"{path} is {_in_words(kinds)}, which has no order.")
        return
    values = operand if isinstance(operand, tuple) else (operand,)
    others = [frozenset([kind]) for each in values if (kind := kind_of(each)) is not None]
    for other in [sides[1]] if isinstance(operand, ValuePath) else others:
        # A comparison with null is definite for every value.
        if kinds and other and not other & kinds and not (other == {"null"} and sign in {*_EQUALITY, "in"}):
            yield ExpressionFlaw(TYPE, f"{path} is {_in_words(kinds)} and is compared with {_in_words(other)}.")
            return


def _in_words(kinds: frozenset[str]) -> str:
    return " or ".join(
        kind if kind == "null" else f"{'an' if kind[0] in 'ao' else 'a'} {kind}" for kind in sorted(kinds)
    )
