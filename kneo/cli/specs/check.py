"""Checks of a spec for every command about specs: load it, apply the rules and policies, print the findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import typer

from kneo import __version__
from kneo.cli import render
from kneo.cli.files import read_bytes
from kneo.cli.project import LoadedFile, Project, open_project
from kneo.errors import Invalid
from kneo.names import visible
from kneo.project.files import SpecFiles
from kneo.spec.compiler import refusal
from kneo.spec.coverage.policy import check_policy
from kneo.spec.documents import (
    Diagnostic,
    Document,
    Severity,
    Unreadable,
    as_github,
    as_sarif,
    as_text,
    error,
    has_errors,
    locate,
)
from kneo.spec.environment import ENVIRONMENT_LIMITS, parse_environment
from kneo.spec.models.environment import with_gates
from kneo.spec.models.spec import Spec
from kneo.spec.policy import PolicyFlags, strictest
from kneo.spec.reading.load import LoadedSpec, is_environment, resolve
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import InvalidDeclaration


class Format(StrEnum):
    TEXT = "text"
    SARIF = "sarif"
    GITHUB = "github"


@dataclass(frozen=True)
class Checked:
    """A spec, its findings, and the files that were read."""

    project: Project
    file: LoadedFile
    findings: tuple[Diagnostic, ...]
    is_environment: bool = False
    """Whether the file is an environment file, which has no spec, overlays or environment of the project."""

    @property
    def spec(self) -> Spec | None:
        return self.file.loaded.spec

    @property
    def valid(self) -> bool:
        return (self.spec is not None or self.is_environment) and not has_errors(self.findings)

    @property
    def name(self) -> str:
        return self.project.shown(self.file.path)

    def usable(self) -> Spec:
        """Return the spec of a check that found its shape right."""
        assert self.spec is not None, "commands read the findings first"
        return self.spec

    def gated(self) -> Spec:
        """Return the spec as it runs in its environment, with the gates that the environment adds."""
        return with_gates(self.usable(), self.file.gates)

    def origin(self) -> dict[str, object]:
        """Return the files and the environment of a response."""
        shown = self.project.shown
        return {
            "file": self.name,
            "overlays": [shown(path) for path in self.file.overlays],
            "environment": self.project.environment,
        }

    def with_findings(self, answer: Mapping[str, object]) -> Checked:
        """Return the findings of a service, with positions in the local files."""
        listed = answer.get("diagnostics")
        known = {(found.code, found.path_text): found for found in self.findings}
        findings = [_from_json(each, known) for each in (listed if isinstance(listed, list) else [])]
        return replace(self, findings=tuple(findings))


def _from_json(value: Mapping[str, object], known: Mapping[tuple[str, str | None], Diagnostic]) -> Diagnostic:
    code, path, suggestion = str(value.get("code", "E_UNKNOWN")), value.get("path"), value.get("suggestion")
    same = known.get((code, path if isinstance(path, str) else None))
    if same is not None:
        return same
    severity = value.get("severity")
    kind = Severity(severity) if isinstance(severity, str) and severity in set(Severity) else Severity.ERROR
    at = (path,) if isinstance(path, str) else None
    return Diagnostic(
        code, kind, str(value.get("message", "")), at, suggestion if isinstance(suggestion, str) else None
    )


def check(argument: Path | None, environment: str | None) -> Checked:
    """Check a spec of the project, by the rules and by the policy of its environment.

    Args:
        argument: The file; None is the project's default spec.
        environment: The environment; None is the project's.

    Raises:
        Usage, NotFound: the spec does not exist.
    """
    return check_in(open_project(environment), argument)


def check_file(argument: Path | None, environment: str | None) -> Checked:
    """Check a spec as ``check`` does, or an environment file by its own rules.

    Raises:
        Usage, NotFound: the file does not exist.
    """
    project = open_project(environment)
    path = project.spec_path(argument)
    data = read_bytes(path, max_bytes=ENVIRONMENT_LIMITS.max_bytes, what="spec")
    try:
        document = read(data, file=project.shown(path), limits=ENVIRONMENT_LIMITS)
    except Unreadable:
        return check_in(project, argument)  # reports the same, at the same position
    if not is_environment(document.value):
        return check_in(project, argument)
    findings = tuple(locate(found, [document]) for found in _environment_findings(data, document))
    loaded = LoadedSpec(None, {}, findings, (document,))
    file = LoadedFile(loaded, path, (), (), SpecFiles(path.parent, project.root), None)
    return Checked(project, file, findings, is_environment=True)


def _environment_findings(data: bytes, document: Document) -> Iterator[Diagnostic]:
    try:
        name = parse_environment(data, file=document.file).name
    except InvalidDeclaration as refusal:
        yield from refusal.findings
        return
    except Invalid as refusal:
        yield error("E_ENVIRONMENT", refusal.message, ("spec",), suggestion=refusal.hint)
        return
    path = Path(document.file)
    if path.parent.name == "environments" and name != path.stem:
        message = f"metadata.name is {name}; it must be {path.stem}, like the file."
        yield error("E_ENVIRONMENT", message, ("metadata", "name"))


def check_in(project: Project, argument: Path | None) -> Checked:
    """Check a spec of a project that is open."""
    file = project.load(argument)
    for overlay in file.missing:
        render.warning(f"The overlay {project.shown(overlay)} does not exist and is left out.")
    resolved = resolve(file.loaded, file.files)
    findings = resolved.diagnostics
    if resolved.spec is not None:
        gated = with_gates(resolved.spec, file.gates)
        violations = check_policy(gated, findings, _policy(project, file))
        findings = (*findings, *resolved.located(violations))
    return Checked(project, replace(file, loaded=resolved), findings)


def _policy(project: Project, file: LoadedFile) -> PolicyFlags:
    """Return the policy of a spec: the strictest of the project's and its config repository's."""
    own = project.config.policy(project.environment) if project.config is not None else None
    declared = file.declared.spec.policy if file.declared else None
    return strictest(*(flags for flags in (own, declared) if flags is not None))


def print_findings(
    checked: Checked, findings: Sequence[Diagnostic], shape: Format, answer: Mapping[str, object] | None
) -> None:
    """Print findings: as JSON where an answer is passed, else in the format."""
    if shape is Format.SARIF:
        render.print_json(as_sarif(findings, tool_version=__version__))
    elif answer is not None:
        render.print_json(answer)
    elif shape is Format.GITHUB:
        typer.echo(as_github(findings), nl=False)
    else:
        _print_text(checked, findings)


def require_usable(checked: Checked, *, as_json: bool) -> None:
    """Stop a command whose spec has errors, and print its findings.

    Raises:
        typer.Exit: with status 1.
    """
    if checked.valid:
        return
    findings = [found.as_json() for found in checked.findings]
    answer = {"ok": False, "valid": False, "diagnostics": findings, **checked.origin()}
    print_findings(checked, checked.findings, Format.TEXT, answer if as_json else None)
    raise typer.Exit(1)


def read_tree(path: Path | None, environment: str | None) -> Mapping[str, object]:
    """Return the resolved spec of a run: with the overlays, defaults and policy of its project.

    Raises:
        Usage, NotFound: the spec does not exist.
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    checked = check(path, environment)
    if not checked.valid:
        raise refusal(checked.findings)
    return checked.file.loaded.tree


def _print_text(checked: Checked, findings: Sequence[Diagnostic]) -> None:
    for found in findings:
        render.text(as_text(found, checked.file.sources))
    errors = sum(found.is_error for found in findings)
    warnings = sum(found.severity is Severity.WARNING for found in findings)
    counts = [render.count(number, word) for number, word in ((errors, "error"), (warnings, "warning")) if number]
    overlays = "".join(f" + {checked.project.shown(path)}" for path in checked.file.overlays)
    subject = visible(f"{checked.name}{overlays} ({checked.project.environment})")
    if checked.is_environment:
        subject = visible(checked.name)
    if counts:
        render.line(render.FAILED if errors else render.CAREFUL, f"{subject}: {', '.join(counts)}")
    else:
        render.success(f"{subject}: no problems found")
