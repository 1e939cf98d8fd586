"""JSON Schemas of specs and programs, and the validation of values.

A schema is compiled before it is used: it has no external references, a bounded size, patterns that match in linear
time, and no reference back to itself for the same value. Each validation costs a bounded amount of work for any schema
and value; a value that costs more is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import date
from functools import cache, lru_cache
from graphlib import CycleError, TopologicalSorter
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from kneo.clock import parse_time
from kneo.errors import Invalid
from kneo.spec.documents import Path
from kneo.spec.patterns import PatternInvalid, TextUnmatchable, compile_pattern, find_flaw

if TYPE_CHECKING:
    # A tenth of a second to import, for the few specs and answers that have a schema.
    from jsonschema import FormatChecker, ValidationError

Schema: TypeAlias = Mapping[str, object]

MAX_DEPTH = 50
"""Values inside values of a schema."""

MAX_VALUES = 20_000
"""Values of a schema altogether."""

MAX_SUBSCHEMAS = 1_000

MAX_APPLIED = 10_000
"""Subschemas that are applied to one and the same value. References to references multiply."""

MAX_WORK = 200_000_000
"""What checking one value may cost, in units of some five nanoseconds."""

_KEYWORD_COST = 1_000
"""Units for a keyword, or a subschema, that is applied to a value."""

_ENTRY_COST = 50
"""Units for each entry of a keyword that is looked up in a value: a property, a subschema that is ``true``."""

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_SINGLE = (
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_SAME_VALUE = frozenset({"allOf", "anyOf", "oneOf", "dependentSchemas", "else", "if", "not", "then"})
"""Keywords whose subschemas are about the same value as the schema around them."""

_REFERENCES = ("$ref", "$dynamicRef")
_ROOT_ONLY = ("$id", "$schema")


class SchemaInvalid(ValueError):
    """A JSON Schema cannot be used; ``flaws`` says why."""

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        super().__init__(str(flaws[0]))
        self.flaws = tuple(flaws)


class Uncheckable(ValueError):
    """A value cannot be checked: the value or its schema is too large."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """A reason why a JSON Schema cannot be used.

    Attributes:
        path: The path below the schema.
        message: A sentence.
        code: The code of the diagnostic.
    """

    path: Path
    message: str
    code: str = "E_JSON_SCHEMA"

    def __str__(self) -> str:
        """Format the flaw with its JSON path."""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return f"${where}: {self.message}"


class CompiledSchema:
    """A JSON Schema that can be used."""

    def __init__(self, tree: dict[str, object]) -> None:
        from referencing import Registry
        from referencing.jsonschema import DRAFT202012

        validator = _validator_class()
        self._validator = validator(tree, format_checker=_formats(), registry=Registry())
        self._resolver = Registry[Any]().with_resource("", DRAFT202012.create_resource(tree)).resolver()

    def errors(self, value: object, limit: int) -> list[ValidationError]:
        """Return what of a value does not satisfy the schema, up to a number of errors.

        Raises:
            Uncheckable: the check would take too long, or the value contains a text that cannot be matched.
        """
        token = _work.set(_Work(lambda reference: self._resolver.lookup(reference).contents))
        found: list[ValidationError] = []
        try:
            for error in self._validator.iter_errors(value):
                found.append(error)
                if len(found) == limit:
                    break
        except TextUnmatchable as error:
            msg = f"a text in it {error}"
            raise Uncheckable(msg) from error
        except RecursionError as error:
            msg = "it is nested too deeply"
            raise Uncheckable(msg) from error
        except ArithmeticError as error:
            msg = "a number in it is too large"
            raise Uncheckable(msg) from error
        finally:
            _work.reset(token)
        return found


def compile_schema(schema: Schema) -> CompiledSchema:
    """Make a JSON Schema ready for use.

    Raises:
        SchemaInvalid: it cannot be used.
    """
    flaws = find_flaws(schema)
    if flaws:
        raise SchemaInvalid(flaws)
    return _compiled(json.dumps(schema))


def find_flaws(schema: Schema) -> tuple[Flaw, ...]:
    """Return everything that keeps a JSON Schema from being used."""
    reason = _too_large(schema)
    if reason is not None:
        return (Flaw((), reason),)
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:
        return (Flaw((), f"The schema is not JSON: {error}."),)
    return _flaws(text)


@lru_cache(maxsize=128)
def _compiled(text: str) -> CompiledSchema:
    tree = json.loads(text)
    # $schema would choose a validator of another dialect, and $id the address that references begin at.
    return CompiledSchema({key: value for key, value in tree.items() if key not in _ROOT_ONLY})


@lru_cache(maxsize=128)
def _flaws(text: str) -> tuple[Flaw, ...]:
    from jsonschema import Draft202012Validator, SchemaError

    tree = json.loads(text)
    walk = _Walk(tree)
    found = list(walk.flaws())
    if not any(flaw.code == "E_JSON_SCHEMA" for flaw in found):
        try:
            Draft202012Validator.check_schema(tree, format_checker=_no_formats())
        except RecursionError:
            found.append(Flaw((), "The schema is nested too deeply."))
        except SchemaError as error:
            found.append(Flaw(tuple(error.absolute_path), f"{error.message[:300]}."))
    return tuple(found)


def _too_large(value: object) -> str | None:
    count, level = 0, [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for part in level:
            inner += part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
        count += len(level)
        if count > MAX_VALUES:
            return f"The schema has more than {MAX_VALUES} values."
        if not inner:
            return None
        level = inner
    return f"The schema is nested more than {MAX_DEPTH} levels deep."


# ---- what a schema is made of ---------------------------------------------------------------------------------


@dataclass
class _Walk:
    """The subschemas of a schema that can be applied, by their path, and those that apply others to the same value."""

    root: object
    nodes: dict[Path, object] = field(default_factory=dict)
    same_value: dict[Path, list[Path]] = field(default_factory=dict)
    anchors: dict[str, Path] = field(default_factory=dict)
    unevaluated: list[Path] = field(default_factory=list)
    patterned: bool = False

    def flaws(self) -> Iterator[Flaw]:
        references: list[tuple[Path, str, str]] = []
        waiting: list[Path] = [()]
        while waiting or references:
            while waiting:
                path = waiting.pop()
                if path in self.nodes:
                    continue
                if len(self.nodes) == MAX_SUBSCHEMAS:
                    yield Flaw((), f"The schema has more than {MAX_SUBSCHEMAS} subschemas.")
                    return
                node = self.nodes[path] = _at(self.root, path)
                if isinstance(node, dict):
                    yield from self._own_flaws(path, node)
                    references += [(path, key, node[key]) for key in _REFERENCES if isinstance(node.get(key), str)]
                    waiting += self._children(path, node)
            for path, key, reference in references:
                target = self._target(reference)
                if target is None:
                    yield Flaw((*path, key), _dangling(reference))
                else:
                    self.same_value[path].append(target)
                    waiting.append(target)
            references = []
        if self.patterned:
            # What is evaluated already is found with a backtracking engine, in any subschema for the same value.
            message = "unevaluatedProperties and patternProperties do not go together; write additionalProperties."
            yield from (Flaw(path, message) for path in self.unevaluated)
        yield from self._loops()

    def _children(self, path: Path, node: Mapping[str, object]) -> list[Path]:
        applied = self.same_value.setdefault(path, [])
        found: list[Path] = []
        for key, value in node.items():
            inner: list[Path] = []
            if key in _SINGLE:
                inner = [(*path, key)]
            elif key in _LISTS and isinstance(value, list):
                inner = [(*path, key, index) for index in range(len(value))]
            elif key in _MAPS and isinstance(value, dict):
                inner = [(*path, key, name) for name in value]
            found += inner
            if key in _SAME_VALUE:
                applied += inner
        return found

    def _own_flaws(self, path: Path, node: Mapping[str, object]) -> Iterator[Flaw]:
        for key in ("$anchor", "$dynamicAnchor"):
            name = node.get(key)
            if isinstance(name, str):
                self.anchors[name] = path
        for key in _ROOT_ONLY:
            if path and key in node:
                yield Flaw((*path, key), f"{key} may stand at the top of a schema only.")
        patterned = node.get("patternProperties")
        names = patterned if isinstance(patterned, dict) else {}
        if names:
            self.patterned = True
        if "unevaluatedProperties" in node:
            self.unevaluated.append((*path, "unevaluatedProperties"))
        for name in names:
            yield from _pattern_flaws(name, (*path, "patternProperties", name))
        pattern = node.get("pattern")
        if isinstance(pattern, str):
            yield from _pattern_flaws(pattern, (*path, "pattern"))

    def _target(self, reference: str) -> Path | None:
        """Find the path that a reference within the document leads to."""
        if not reference.startswith("#"):
            return None
        fragment = unquote(reference[1:])
        if fragment and not fragment.startswith("/"):
            return self.anchors.get(fragment)
        path: list[str | int] = []
        here = self.root
        for part in fragment.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(here, dict) and key in here:
                here = here[key]
                path.append(key)
            elif isinstance(here, list) and key.isdecimal() and key.isascii() and int(key[:9]) < len(here):
                here = here[int(key[:9])]
                path.append(int(key[:9]))
            else:
                return None
        return tuple(path)

    def _loops(self) -> Iterator[Flaw]:
        """Find references that never end, and those that end after too many steps."""
        try:
            order = list(TopologicalSorter(self.same_value).static_order())
        except CycleError as error:
            first, *_ = error.args[1]
            yield Flaw(first, "The schema applies itself to the same value without end.")
            return
        sizes: dict[Path, int] = {}
        for path in order:
            sizes[path] = 1 + sum(sizes[inner] for inner in self.same_value.get(path, ()))
            if sizes[path] > MAX_APPLIED:
                yield Flaw(path, f"More than {MAX_APPLIED} subschemas apply to one value here.")
                return


def _at(root: object, path: Path) -> object:
    here = root
    for part in path:
        assert isinstance(here, dict | list)
        here = here[part]  # type: ignore[index]  # the path was read off this very document
    return here


def _dangling(reference: str) -> str:
    shown = reference[:200]
    if not reference.startswith("#"):
        return f"{shown} refers to another document; a schema here stands alone. Put what it refers to under $defs."
    return f"{shown} refers to something that the schema does not have."


def _pattern_flaws(pattern: str, path: Path) -> Iterator[Flaw]:
    flaw = find_flaw(pattern)
    if flaw is not None:
        code = "E_JSON_SCHEMA_REGEX_UNSAFE" if flaw.unsupported else "E_JSON_SCHEMA_REGEX"
        yield Flaw(path, flaw.reason, code)


# ---- how values are checked -----------------------------------------------------------------------------------


class _Work:
    """The cost of a check so far, and the sizes of the parts of a value."""

    def __init__(self, lookup: Callable[[str], object]) -> None:
        self.lookup = lookup
        self._left = MAX_WORK
        self._sizes: dict[int, int] = {}

    def spend(self, units: int) -> None:
        """Count work.

        Raises:
            Uncheckable: it is more than one value may cost.
        """
        self._left -= units
        if self._left < 0:
            msg = "checking it takes too long"
            raise Uncheckable(msg)

    def apply(self, value: object) -> None:
        """Count one keyword that is applied to a value; its error message repeats the value."""
        self.spend(_KEYWORD_COST + 2 * self.size(value))

    def size(self, value: object) -> int:
        """Return about how many characters a value takes when it is written out."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, dict | list):
            return 8
        # A value is alive for as long as it is checked, so no other one has its identity.
        known = self._sizes.get(id(value))
        if known is None:
            inner: list[object] = [*value, *value.values()] if isinstance(value, dict) else value
            known = self._sizes[id(value)] = 2 + sum(2 + self.size(part) for part in inner)
        return known


_work: ContextVar[_Work] = ContextVar("work")

Rule: TypeAlias = Callable[[Any, Any, Any, Any], "Iterator[ValidationError] | None"]
"""A keyword: the validator, what the schema says, the value, the schema."""


@cache
def _validator_class() -> Any:  # noqa: ANN401 - jsonschema makes its classes at run time
    from jsonschema import Draft202012Validator, validators

    own: dict[str, Rule] = {
        "additionalProperties": _additional_properties,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "unevaluatedItems": _unevaluated_items,
        "unevaluatedProperties": _unevaluated_properties,
        "uniqueItems": _unique_items,
    }
    keywords = {**Draft202012Validator.VALIDATORS, **own}
    made = validators.extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {name: _counted(name, rule) for name, rule in keywords.items()}
    )
    _count_subschemas(made)
    return made


def _counted(name: str, rule: Rule) -> Rule:
    applies_others = name in {*_LISTS, *_MAPS, *_SINGLE} - {"not", "oneOf"}

    def check(validator: object, expected: object, value: object, schema: object) -> Iterator[ValidationError] | None:
        work = _work.get()
        work.apply(value)
        if isinstance(expected, dict | list):
            # Everything of it is compared with the value, or repeated in what is said when it fails.
            work.spend(_ENTRY_COST * len(expected) if applies_others else 3 * work.size(expected))
        return rule(validator, expected, value, schema)

    return check


def _count_subschemas(validator_class: Any) -> None:  # noqa: ANN401
    """Count the subschemas that are applied: one may have no keyword that is counted, as ``true``, ``false`` and ``{}``."""
    evolve, iter_errors, descend = validator_class.evolve, validator_class.iter_errors, validator_class.descend

    def counted_evolve(self: object, **changes: object) -> object:
        _work.get().spend(_KEYWORD_COST)
        return evolve(self, **changes)

    def counted_iter_errors(self: object, instance: object) -> object:
        _work.get().spend(_KEYWORD_COST)
        return iter_errors(self, instance)

    def counted_descend(self: object, instance: object, schema: object, *args: object, **named: object) -> object:
        if schema is True:
            _work.get().spend(_ENTRY_COST)
        elif schema is False:
            _work.get().apply(instance)
        return descend(self, instance, schema, *args, **named)

    validator_class.evolve = counted_evolve
    validator_class.iter_errors = counted_iter_errors
    validator_class.descend = counted_descend


def _matches(pattern: str, text: str) -> bool:
    try:
        compiled = compile_pattern(pattern)
    except PatternInvalid as flaw:  # compile_schema refuses these; a value must not pass without its pattern
        raise Uncheckable(flaw.reason) from flaw
    _work.get().spend(compiled.cost(text))
    return compiled.search(text)


def _pattern(validator: Any, pattern: str, value: object, _schema: object) -> Iterator[ValidationError]:  # noqa: ANN401
    from jsonschema import ValidationError

    if validator.is_type(value, "string") and not _matches(pattern, str(value)):
        yield ValidationError(f"{str(value)[:200]!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any,  # noqa: ANN401
    patterns: Mapping[str, object],
    value: Any,  # noqa: ANN401
    _schema: object,
) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    for pattern, subschema in patterns.items():
        for key, inner in value.items():
            if _matches(pattern, key):
                yield from validator.descend(inner, subschema, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any,  # noqa: ANN401
    allowed: object,
    value: Any,  # noqa: ANN401
    schema: Mapping[str, Any],
) -> Iterator[ValidationError]:
    from jsonschema import ValidationError

    if not validator.is_type(value, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    more = [key for key in value if key not in named and not any(_matches(each, key) for each in patterns)]
    if validator.is_type(allowed, "object"):
        for key in more:
            yield from validator.descend(value[key], allowed, path=key)
    elif not allowed and more:
        shown = ", ".join(repr(key[:100]) for key in more[:10])
        yield ValidationError(f"Additional properties are not allowed ({shown})")


def _unevaluated_properties(
    validator: Any,  # noqa: ANN401
    subschema: object,
    value: Any,  # noqa: ANN401
    schema: Mapping[str, Any],
) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        yield from _unevaluated(validator, subschema, value.items(), value, schema)


def _unevaluated_items(
    validator: Any,  # noqa: ANN401
    subschema: object,
    value: Any,  # noqa: ANN401
    schema: Mapping[str, Any],
) -> Iterator[ValidationError]:
    if validator.is_type(value, "array"):
        yield from _unevaluated(validator, subschema, enumerate(value), value, schema)


def _unevaluated(
    validator: Any,  # noqa: ANN401
    subschema: object,
    parts: Iterable[tuple[object, object]],
    value: Any,  # noqa: ANN401
    schema: Mapping[str, Any],
) -> Iterator[ValidationError]:
    from jsonschema import ValidationError

    evaluated = _evaluated(validator, value, schema)
    wrong = [key for key, inner in parts if key not in evaluated and not _is_valid(validator, inner, subschema)]
    if wrong:
        what = "properties" if isinstance(value, dict) else "items"
        shown = ", ".join(repr(key)[:100] for key in wrong[:10])
        yield ValidationError(f"Unevaluated {what} are not allowed ({shown})")


def _is_valid(validator: Any, value: object, schema: object) -> bool:  # noqa: ANN401
    return next(validator.descend(value, schema), None) is None


def _evaluated(validator: Any, value: Any, schema: Any) -> set[object]:  # noqa: ANN401
    """Return the properties or items of a value that a schema, or one that it applies to the value, evaluates."""
    if not isinstance(schema, dict):
        return set()
    found: set[object] = set()
    parts: Collection[tuple[object, object]]
    if isinstance(value, dict):
        parts, keywords = value.items(), ("additionalProperties", "unevaluatedProperties")
        found |= schema.get("properties", {}).keys() & value.keys()
    else:
        parts, keywords = [*enumerate(value)], ("contains", "unevaluatedItems")
        found |= set(range(len(value) if "items" in schema else len(schema.get("prefixItems", ()))))
    for keyword in keywords:
        if keyword in schema:
            found |= {key for key, inner in parts if key not in found and _is_valid(validator, inner, schema[keyword])}
    for applied in _applied(validator, value, schema):
        found |= _evaluated(validator, value, applied)
    return found


def _applied(validator: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[object]:  # noqa: ANN401
    """Yield the subschemas that a schema applies to the same value and that the value satisfies."""
    for keyword in _REFERENCES:
        if keyword in schema:
            yield _work.get().lookup(schema[keyword])
    for name, inner in schema.get("dependentSchemas", {}).items():
        if isinstance(value, dict) and name in value:
            yield inner
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from (inner for inner in schema.get(keyword, ()) if _is_valid(validator, value, inner))
    if "if" in schema:
        holds = _is_valid(validator, value, schema["if"])
        yield schema["if"] if holds else True
        yield schema.get("then" if holds else "else", True)


def _unique_items(
    validator: Any,  # noqa: ANN401
    unique: object,
    value: Any,  # noqa: ANN401
    _schema: object,
) -> Iterator[ValidationError]:
    from jsonschema import ValidationError

    if not unique or not validator.is_type(value, "array"):
        return
    seen: set[object] = set()
    for index, item in enumerate(value):
        key = _hashable(item)
        if key in seen:
            yield ValidationError(f"The item at {index} stands there twice")
            return
        seen.add(key)


def _hashable(value: object) -> object:
    """Return what is equal for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return "map", frozenset((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return "list", tuple(_hashable(inner) for inner in value)
    if isinstance(value, float):
        value = int(value) if isfinite(value) and value.is_integer() else repr(value)
        return "number", hex(value) if isinstance(value, int) else value
    if isinstance(value, int) and not isinstance(value, bool):
        # As text: hashes of numbers are known beforehand, and a set of numbers that share one takes quadratic time.
        return "number", hex(value)
    if value is None or isinstance(value, str | bool):
        return type(value) is bool, value
    return "other", id(value)  # a function may return what is no JSON


@cache
def _formats() -> FormatChecker:
    from jsonschema import FormatChecker

    known = FormatChecker(formats=())
    known.checks("date", raises=ValueError)(_is_date)
    known.checks("date-time", raises=Invalid)(_is_time)
    known.checks("regex")(_is_pattern)
    return known


@cache
def _no_formats() -> FormatChecker:
    from jsonschema import FormatChecker

    return FormatChecker(formats=())


def _is_date(value: object) -> bool:
    if not isinstance(value, str):
        return True
    # date.fromisoformat takes week dates and dates without dashes, too.
    return len(value) == 10 and value[4] == value[7] == "-" and bool(date.fromisoformat(value))


def _is_time(value: object) -> bool:
    return not isinstance(value, str) or bool(parse_time(value))


def _is_pattern(value: object) -> bool:
    return not isinstance(value, str) or find_flaw(value) is None
