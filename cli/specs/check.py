"""Checking a spec the way every command about specs does, and printing what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import typer

from cli import render
from cli.project import LoadedFile, Project
from kneo import __version__
from kneo.spec.coverage.policy import check_policy
from kneo.spec.diagnostics import Diagnostic, Severity, has_errors
from kneo.spec.lint.formats import as_github, as_sarif, as_text
from kneo.spec.models import Spec
from kneo.spec.models.environment import with_gates
from kneo.spec.reading.load import resolve


class Format(StrEnum):
    TEXT = "text"
    SARIF = "sarif"
    GITHUB = "github"


@dataclass(frozen=True)
class Checked:
    """A spec, everything found about it, and what was read to find it."""

    project: Project
    file: LoadedFile
    findings: tuple[Diagnostic, ...]

    @property
    def spec(self) -> Spec | None:
        return self.file.loaded.spec

    @property
    def valid(self) -> bool:
        return self.spec is not None and not has_errors(self.findings)

    @property
    def name(self) -> str:
        return self.project.shown(self.file.path)

    def usable(self) -> Spec:
        """Return the spec of a check that found its shape right."""
        assert self.spec is not None, "commands ask only after they looked at the findings"
        return self.spec

    def gated(self) -> Spec:
        """Return the spec as it runs in its environment, with the questions that are added there."""
        return with_gates(self.usable(), self.project.gates_for(self.file.path))

    def origin(self) -> dict[str, object]:
        """Say which files and which environment the answer is about."""
        shown = self.project.shown
        return {
            "file": self.name,
            "overlays": [shown(path) for path in self.file.overlays],
            "environment": self.project.environment,
        }

    def answered(self, answer: Mapping[str, object]) -> Checked:
        """Take over what a service found, with the places known here."""
        listed = answer.get("diagnostics")
        known = {(found.code, found.path_text): found for found in self.findings}
        findings = [_from_json(each, known) for each in (listed if isinstance(listed, list) else [])]
        return replace(self, findings=tuple(findings))


def _from_json(value: object, known: Mapping[tuple[str, str | None], Diagnostic]) -> Diagnostic:
    said = value if isinstance(value, dict) else {}
    code, path = str(said.get("code", "E_UNKNOWN")), said.get("path")
    same = known.get((code, path if isinstance(path, str) else None))
    if same is not None:
        return same
    severity = said.get("severity")
    kind = Severity(severity) if severity in set(Severity) else Severity.ERROR
    at = (path,) if isinstance(path, str) else None
    suggestion = said.get("suggestion")
    return Diagnostic(code, kind, str(said.get("message", "")), at, suggestion if isinstance(suggestion, str) else None)


def check(project: Project, argument: Path | None) -> Checked:
    """Load a spec, take in its files and find everything that is wrong with it, by its environment's policy too.

    Raises:
        Usage, NotFound: there is no such spec.
    """
    file = project.load(argument)
    for overlay in file.missing:
        render.warning(f"The overlay {project.shown(overlay)} is not there and is left out.")
    resolved = resolve(file.loaded, file.files)
    findings = resolved.diagnostics
    if resolved.spec is not None:
        gated = with_gates(resolved.spec, project.gates_for(file.path))
        violations = check_policy(gated, findings, project.policy_for(file.path))
        findings = (*findings, *resolved.place(violations))
    return Checked(project, replace(file, loaded=resolved), findings)


def print_findings(
    checked: Checked, findings: Sequence[Diagnostic], shape: Format, answer: Mapping[str, object] | None
) -> None:
    """Print findings: as JSON where an answer is given, else in the shape that is asked for."""
    if shape is Format.SARIF:
        render.print_json(as_sarif(findings, tool_version=__version__))
    elif answer is not None:
        render.print_json(answer)
    elif shape is Format.GITHUB:
        typer.echo(as_github(findings), nl=False)
    else:
        _print_text(checked, findings)


def require_usable(checked: Checked, *, as_json: bool) -> None:
    """Stop a command whose spec cannot be used, with everything that was found.

    Raises:
        typer.Exit: with status 1.
    """
    if checked.valid:
        return
    findings = [found.as_json() for found in checked.findings]
    answer = {"ok": False, "valid": False, "diagnostics": findings, **checked.origin()}
    print_findings(checked, checked.findings, Format.TEXT, answer if as_json else None)
    raise typer.Exit(1)


def _print_text(checked: Checked, findings: Sequence[Diagnostic]) -> None:
    sources = checked.file.sources
    for found in findings:
        render.text(as_text(found, sources))
    errors = sum(found.is_error for found in findings)
    counted = [_count(errors, "error"), _count(sum(f.severity is Severity.WARNING for f in findings), "warning")]
    said = ", ".join(words for words in counted if words)
    over = "".join(f" + {checked.project.shown(path)}" for path in checked.file.overlays)
    about = f"{checked.name}{over} ({checked.project.environment})"
    if errors:
        render.line(render.FAILED, f"{about}: {said}.")
    elif said:
        render.line(render.CAREFUL, f"{about} can be used: {said}.")
    else:
        render.success(f"{about}: nothing to say.")


def _count(number: int, word: str) -> str:
    return "" if not number else f"{number} {word}" if number == 1 else f"{number} {word}s"
