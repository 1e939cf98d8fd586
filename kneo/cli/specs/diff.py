"""``kneo spec diff``: the changes from one spec to another.

A spec is a file, ``REV:path`` as Git writes a file of a commit, or a bundle of either kind. Signatures of bundles are not
verified here; ``kneo spec bundle verify`` does that.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.clone import Clone
from kneo.cli.commands import examples
from kneo.cli.files import read_bytes
from kneo.cli.options import JsonOption
from kneo.cli.project import Project, open_project
from kneo.cli.specs.check import check_in
from kneo.errors import Invalid, NotFound
from kneo.spec.code import BundleCode, text_of
from kneo.spec.diff import NO_CODE
from kneo.spec.diff import diff as compare
from kneo.spec.documents import DEFAULT_LIMITS
from kneo.spec.models.spec import Spec
from kneo.spec.reading.inline import Files
from kneo.spec.reading.load import LoadedSpec, load_spec, load_tree, resolve
from kneo.spec.reading.reader import read_json
from kneo.trust.dsse import ENVELOPE_BYTES, parse_envelope
from kneo.trust.hmac_bundle import KIND
from kneo.trust.statement import PAYLOAD_TYPE, parse_bundle


@examples(
    "kneo spec diff HEAD~1:specs/agent.yaml specs/agent.yaml",
    "kneo spec diff bundles/agent/1.0.0.dsse.json specs/agent.yaml --markdown",
)
def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="The old spec: a file, REV:path of a commit, or a bundle.")
    ],
    after: Annotated[
        str | None,
        typer.Argument(metavar="B", help="The new spec, in the same notation; without it A is a first version."),
    ] = None,
    *,
    env: Annotated[str | None, typer.Option("--env", help="The environment whose overlays and defaults apply.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a comment for a pull request.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Print every line of long texts.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two specs and list the changes, the most dangerous first.

    The changes cover prompts, models, tools, permissions, domains, people, gates and steps. With one spec, list what it can
    do, which gates ask whom, and what no gate covers.
    """
    project = open_project(env)
    old, new = (before, after) if after is not None else (None, before)
    command = f"kneo spec diff --whole {shlex.join(name for name in (old, new) if name is not None)}"
    code = _code(project, old) if old is not None else None, _code(project, new)
    is_bundled = code[1] is not None or (old is not None and code[0] is not None and _is_bundle(project, new))
    changes = compare(
        _spec(project, old) if old is not None else None,
        _spec(project, new),
        command=command,
        code=code if is_bundled else NO_CODE,
    )
    if as_json:
        render.print_json({"from": old, "to": new, **changes.as_json()})
    else:
        render.text(changes.to_markdown(whole=whole) if markdown else changes.to_text(whole=whole))


def _read(project: Project, name: str) -> bytes:
    revision, colon, inside = name.partition(":")
    if not colon or (project.cwd / name).exists():
        return read_bytes(project.cwd / name, max_bytes=ENVELOPE_BYTES, what="spec")
    clone = Clone.find(Path.cwd())
    try:
        commit = clone.resolve(revision)
        return (clone.read(commit, inside, max_bytes=ENVELOPE_BYTES) or b"") if commit is not None else b""
    finally:
        clone.close()


def _is_bundle(project: Project, name: str) -> bool:
    return _bundled(_read(project, name), name) is not None


def _code(project: Project, name: str) -> BundleCode | None:
    """Return the code of a bundle; None of a spec, whose code is not signed yet."""
    data = _read(project, name)
    if _bundled(data, name) is None or b'"payloadType"' not in data:
        return None
    return parse_bundle(parse_envelope(data, file=name).payload, file=name).code


def _spec(project: Project, name: str) -> Spec:
    """Return a spec in normal form, with its texts inlined.

    Raises:
        NotFound: the file, commit or bundle does not exist.
        Invalid: it does not match the schema of specs.
    """
    path = Path(name)
    revision, colon, inside = name.partition(":")
    if colon and not (project.cwd / path).exists():
        return _committed(revision, inside, name)
    data = read_bytes(project.cwd / path, max_bytes=ENVELOPE_BYTES, what="spec")
    bundled = _bundled(data, name)
    if bundled is not None:
        return _whole(load_tree(dict(bundled)), name)
    checked = check_in(project, path)
    return _whole(replace(checked.file.loaded, diagnostics=checked.findings), name)


def _committed(revision: str, inside: str, name: str) -> Spec:
    clone = Clone.find(Path.cwd())
    try:
        commit = clone.resolve(revision)
        if commit is None:
            message = f"There is no commit {revision!r} here, and no file {name}."
            raise NotFound(message, code="commit_not_found")
        data = clone.read(commit, inside, max_bytes=ENVELOPE_BYTES)
        if data is None:
            message = f"The commit {revision} has no file {inside}."
            raise NotFound(message, hint="The path is from the repository's root, as in git show REV:path.")
        bundled = _bundled(data, name)
        if bundled is not None:
            return _whole(load_tree(dict(bundled)), name)
        files = CommittedFiles(clone, commit, PurePosixPath(inside).parent)
        return _whole(resolve(load_spec(data, file=name, files=files), files), name)
    finally:
        clone.close()


def _bundled(data: bytes, name: str) -> Mapping[str, object] | None:
    """Return the spec of a bundle; None where the data is not a bundle.

    Raises:
        Invalid: the bundle is damaged.
    """
    if not data.lstrip().startswith(b"{"):
        return None
    try:
        value = read_json(data, file=name).value
    except Invalid:
        return None  # not JSON: YAML may begin so too
    if not isinstance(value, dict):
        return None
    if "payloadType" in value:
        envelope = parse_envelope(data, file=name)
        if envelope.payload_type != PAYLOAD_TYPE:
            message = f"{name} holds {envelope.payload_type}, not a bundle."
            raise Invalid(message, code="Malformed", file=name)
        return parse_bundle(envelope.payload, file=name).predicate.spec
    spec = value.get("spec")
    return spec if value.get("kind") == KIND and isinstance(spec, dict) else None


def _whole(loaded: LoadedSpec, name: str) -> Spec:
    """Return a spec that matches the schema; its rules may fail, so that a fix can be compared too."""
    if loaded.spec is not None:
        return loaded.spec
    first = next(found for found in loaded.diagnostics if found.is_error)
    where = f"{first.file}:{first.line}" if first.file else name
    message = f"{where}: {first.code}: {first.message}"
    findings = [found.as_json() for found in loaded.diagnostics]
    raise Invalid(message, hint=first.suggestion, file=name, diagnostics=findings)


@dataclass(frozen=True)
class CommittedFiles(Files):
    """The files of a spec in the same commit."""

    clone: Clone
    commit: str
    folder: PurePosixPath

    def text(self, path: str) -> str | None:
        for candidate in self._candidates(path):
            data = self.clone.read(self.commit, candidate, max_bytes=DEFAULT_LIMITS.max_bytes)
            if data is not None:
                return text_of(data)
        return None

    def names(self, path: str) -> tuple[str, ...] | None:
        found = (self.clone.names(self.commit, candidate) for candidate in self._candidates(path))
        return next((names for names in found if names is not None), None)

    def _candidates(self, path: str) -> tuple[str, ...]:
        """Return the path below the spec's folder and below the root, never outside the repository."""
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            return ()
        return tuple(dict.fromkeys((str(self.folder / parts), str(parts))))
