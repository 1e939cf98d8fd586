"""Loading of specs: read, merge overlays, migrate, fill defaults, normalize, validate, apply the rules.

Every stage passes a plain tree to the next. The first stage that fails ends the pipeline with its findings. The rules apply to
a spec that matches the schema, and else to the part of it that can be read, so that one mistake does not hide another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from kneo.spec.base import describe
from kneo.spec.documents import (
    DEFAULT_LIMITS,
    Diagnostic,
    Document,
    Path,
    SourceLocation,
    Unreadable,
    error,
    has_errors,
    known_depth,
    locate,
    too_large,
    unreadable,
)
from kneo.spec.models.spec import Spec
from kneo.spec.modules import NOTHING_KNOWN, RuleContext
from kneo.spec.reading.inline import Files, Inlined, fill_prompts, inline_skills, inline_texts
from kneo.spec.reading.migrate import Migration, UnsupportedVersion, migrate
from kneo.spec.reading.normalize import NO_DEFAULTS, SpecDefaults, apply_defaults, merge_all, normalize
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import check_model, readable_part

_TREE_LIMITS = replace(DEFAULT_LIMITS, max_nodes=10 * DEFAULT_LIMITS.max_nodes)
"""For merged values: each file was within its own bounds, and there may be several."""

Rules = Callable[[Spec, RuleContext], tuple[Diagnostic, ...]]


def no_rules(_spec: Spec, _context: RuleContext) -> tuple[Diagnostic, ...]:
    """Check nothing beyond the schema."""
    return ()


class SourceFile(NamedTuple):
    """A file's name and bytes."""

    file: str
    data: bytes


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A loaded spec, or the findings that prevent it.

    Attributes:
        spec: The spec; None where the tree does not match the schema.
        tree: The plain values of the last stage.
        diagnostics: All findings, in the order of the checks.
        documents: The files: the spec, then its overlays.
    """

    spec: Spec | None
    tree: dict[str, object]
    diagnostics: tuple[Diagnostic, ...]
    documents: tuple[Document, ...] = field(default=(), repr=False)
    renames: tuple[tuple[Path, Path], ...] = field(default=(), repr=False)

    @property
    def valid(self) -> bool:
        """Whether the spec can be used: it matches the schema and no finding is an error."""
        return self.spec is not None and not has_errors(self.diagnostics)

    def located(self, findings: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
        """Add file, line and column to findings about this spec."""
        return tuple(_located(found, self.documents, self.renames) for found in findings)


def load_spec(
    data: bytes,
    *,
    file: str,
    overlays: Sequence[SourceFile] = (),
    overrides: Mapping[str, object] | None = None,
    defaults: SpecDefaults = NO_DEFAULTS,
    context: RuleContext = NOTHING_KNOWN,
    files: Files | None = None,
    rules: Rules = no_rules,
) -> LoadedSpec:
    """Load a spec with all its findings; no exception is raised for the content of a file.

    Args:
        data: The spec's bytes.
        file: Its name; ``.json`` is read as JSON, anything else as YAML.
        overlays: Files merged over it, in order.
        overrides: One more overlay that is not a file, applied last.
        defaults: The project's defaults for fields that the spec leaves open.
        context: Facts from outside the spec, for the rules.
        files: The files that the spec can refer to; without them a reference to a file is an error.
        rules: The semantic checks.
    """
    documents: list[Document] = []
    try:
        documents.extend(read(source, file=name) for name, source in [SourceFile(file, data), *overlays])
    except Unreadable as refusal:
        return LoadedSpec(None, {}, (unreadable(refusal),), tuple(documents))
    if (reason := too_large(overrides, DEFAULT_LIMITS)) is not None:
        return LoadedSpec(None, {}, (error("E_SCHEMA", f"The overrides are too large. {reason}"),), tuple(documents))
    merged = merge_all(documents[0].value, [*(overlay.value for overlay in documents[1:]), overrides])
    return load_tree(merged, documents=documents, defaults=defaults, context=context, files=files, rules=rules)


def load_tree(
    value: object,
    *,
    documents: Sequence[Document] = (),
    defaults: SpecDefaults = NO_DEFAULTS,
    context: RuleContext = NOTHING_KNOWN,
    files: Files | None = None,
    rules: Rules = no_rules,
) -> LoadedSpec:
    """Do what :func:`load_spec` does after reading and merging, for a spec that is already plain values.

    Args are those of :func:`load_spec`; ``documents`` are the files the values came from, for positions.
    """
    documents = tuple(documents)
    if (reason := too_large(value, _TREE_LIMITS)) is not None:
        return LoadedSpec(None, {}, (error("E_SCHEMA", f"The spec is too large. {reason}", ()),), documents)
    if not isinstance(value, dict):
        found = error("E_SCHEMA", f"A spec is a map, not {describe(value)}.", ())
        return LoadedSpec(None, {}, (locate(found, documents),), documents)
    if (other := find_other_kind(value)) is not None:
        return LoadedSpec(None, value, (locate(other, documents),), documents)
    try:
        migration = migrate(value)
    except UnsupportedVersion as refusal:
        found = error("E_SCHEMA", refusal.message, ("version",), suggestion=refusal.hint)
        return LoadedSpec(None, value, (locate(found, documents),), documents)
    tree, findings = _prepare(migration, defaults, files)
    loaded = LoadedSpec(None, tree, (), documents, migration.renames)
    checked = check_model(Spec, tree)
    if isinstance(checked, tuple):
        findings += checked
        return replace(loaded, diagnostics=loaded.located([*findings, *_findings_of_rest(tree, rules, context)]))
    findings += rules(checked, context)
    return replace(loaded, spec=checked, diagnostics=loaded.located(findings))


def _findings_of_rest(tree: Mapping[str, object], rules: Rules, context: RuleContext) -> Iterator[Diagnostic]:
    """Yield the findings of the rules about the readable part of a spec.

    Those about a value that was left out of it, and about the parts that hold the value, may follow from leaving it out; they are
    not among them. Findings about a whole section of the spec are.
    """
    part = readable_part(Spec, tree)
    if part is None:
        return
    silent = {path[:length] for path in part.refused for length in range(2, len(path) + 1)}
    yield from (found for found in rules(part.model, context) if found.path not in silent)


def _prepare(
    migration: Migration, defaults: SpecDefaults, files: Files | None
) -> tuple[dict[str, object], list[Diagnostic]]:
    tree = normalize(apply_defaults(migration.tree, defaults))
    inlined = Inlined(tree) if files is None else inline_texts(tree, files)
    filled = fill_prompts(inlined.tree)
    return filled.tree, [*inlined.findings, *filled.findings]


def resolve(loaded: LoadedSpec, files: Files) -> LoadedSpec:
    """Inline the skills too, and fill in the prompts that name them: the spec that is signed and run needs no other file.

    Returns:
        The spec with every source replaced by its content, and findings about unreadable files.
    """
    if loaded.spec is None:
        return loaded
    inlined = inline_skills(loaded.tree, files)
    filled = fill_prompts(inlined.tree)
    found = loaded.located((*inlined.findings, *filled.findings))
    findings = [*loaded.diagnostics, *(each for each in found if each not in loaded.diagnostics)]
    checked = check_model(Spec, filled.tree)
    if isinstance(checked, tuple):
        return replace(loaded, spec=None, diagnostics=(*findings, *loaded.located(checked)))
    return replace(loaded, spec=checked, tree=filled.tree, diagnostics=tuple(findings))


def _located(found: Diagnostic, documents: Sequence[Document], renames: Sequence[tuple[Path, Path]]) -> Diagnostic:
    if found.path is None or found.file is not None:
        return found
    origin = found.path
    for new, old in reversed(renames):
        if origin[: len(new)] == new:
            origin = (*old, *origin[len(new) :])
    located = locate(replace(found, path=_source_path(origin, documents)), documents)
    return replace(located, path=found.path)


def _source_path(path: Path, documents: Sequence[Document]) -> Path:
    """Return the path as the last document with most of it has it."""
    spellings = [source_path(path, document.locations()) for document in documents]
    best = max(
        range(len(documents)), key=lambda index: (known_depth(documents[index], spellings[index]), index), default=0
    )
    return spellings[best] if spellings else path


_WRAPPERS = frozenset({"include", "steps", "conditions"})
"""Keys whose value may be written directly in the location of the map that holds them."""

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "timeout_seconds": ("timeout",),
    "type": ("field_type",),
    "conditions": ("any_of", "all_of"),
    "condition": ("not",),
}

_POLICY_WORDS = {
    "allow_network": "network",
    "allow_filesystem_read": "filesystem",
    "allow_filesystem_write": "filesystem",
    "allow_shell": "shell",
    "allowed_tools": "allow",
    "denied_tools": "deny",
}


def source_path(path: Path, root: SourceLocation) -> Path:
    """Return the path under which a file says what the normal form has at ``path``, as far as it says it."""
    written, rest = _follow(path, root)
    if rest and any(pair == ("tools", "permissions") for pair in pairwise(path)):
        at = path.index("tools")
        other = (*path[:at], "policies", "tool", *(_POLICY_WORDS.get(str(part), part) for part in path[at + 2 :]))
        followed, left = _follow(other, root)
        if len(left) < len(rest):
            return (*followed, *left)
    return (*written, *rest)


def _follow(path: Path, location: SourceLocation) -> tuple[Path, Path]:
    """Go as far as the document goes; return what was followed and what is left."""
    written: list[str | int] = []
    for index, part in enumerate(path):
        key = part if part in location.children else _spelling(part, location)
        if key is None and part in _WRAPPERS and index + 1 < len(path) and path[index + 1] in location.children:
            continue
        if key is None:
            return tuple(written), path[index:]
        written.append(key)
        location = location.children[key]
    return tuple(written), ()


def _spelling(part: str | int, location: SourceLocation) -> str | None:
    return next((word for word in _SPELLINGS.get(str(part), ()) if word in location.children), None)


ENVIRONMENT = "Environment"

_SIGNED = (
    "This is a signed bundle or decision, and not a spec.",
    "Verify a bundle: kneo spec bundle verify FILE; verify a decision: kneo promotion receipt verify FILE.",
)
_KINDS: dict[tuple[str, str], tuple[str, str]] = {
    ("kind", ENVIRONMENT): ("This is an environment file, and not a spec.", "Check it: kneo spec lint FILE."),
    ("kind", "kneo.spec.bundle"): _SIGNED,
    ("payloadType", "application/vnd.in-toto+json"): _SIGNED,
    ("payloadType", "application/vnd.kneo.trust-root+json"): (
        "This is a signed trust root, and not a spec.",
        "Show it: kneo trust show.",
    ),
}
"""Message and hint by the key that names the kind, and its value. A spec has neither of the keys."""


def is_environment(value: object) -> bool:
    """Return whether a value is an environment file by its kind."""
    return isinstance(value, dict) and value.get("kind") == ENVIRONMENT


def find_other_kind(value: dict[str, object]) -> Diagnostic | None:
    """Return the finding about a file of another kind; ``None`` for a spec."""
    for (key, kind), (message, hint) in _KINDS.items():
        if value.get(key) == kind:
            path: Path = (key,)
            return error("E_SCHEMA", message, path, suggestion=hint)
    return None
