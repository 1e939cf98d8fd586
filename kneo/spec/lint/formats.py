"""Findings as text with the line and a caret, as SARIF 2.1.0, and as GitHub workflow annotations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from kneo.spec.diagnostics import Diagnostic, Severity

MAX_LINE = 160  # characters of a source line that are shown

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_SARIF_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_GITHUB_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def as_text(found: Diagnostic, sources: Mapping[str, str]) -> str:
    """Render one finding for a terminal.

    Args:
        found: The finding.
        sources: The text of each file by the name that diagnostics use.
    """
    position = ":".join(str(part) for part in (found.file, found.line, found.column) if part is not None)
    head = f"{position}: " if position else ""
    lines = [f"{head}{found.severity.value} {found.code}: {found.message}"]
    lines += _excerpt(found, sources)
    if found.path_text:
        lines.append(f"    at {found.path_text}")
    if found.suggestion:
        lines.append(f"    → {found.suggestion}")
    return "\n".join(lines)


def _excerpt(found: Diagnostic, sources: Mapping[str, str]) -> list[str]:
    if found.file is None or found.line is None or found.column is None or found.file not in sources:
        return []
    written = _LINE_BREAK.split(sources[found.file])
    if not 0 < found.line <= len(written):
        return []
    shown = written[found.line - 1][:MAX_LINE]
    # Control characters of a file must not reach the terminal.
    shown = "".join(letter if letter.isprintable() else " " for letter in shown)
    gutter = str(found.line)
    caret = " " * (min(found.column, MAX_LINE) - 1) + "^"
    return [f"    {gutter} | {shown}", f"    {' ' * len(gutter)} | {caret}"]


def as_github(findings: Iterable[Diagnostic]) -> str:
    """Render findings as the workflow commands that GitHub shows at the lines of a pull request."""
    return "".join(_github_command(found) + "\n" for found in findings)


def _github_command(found: Diagnostic) -> str:
    properties = {
        "file": found.file,
        "line": found.line,
        "col": found.column,
        "title": found.code,
    }
    encoded = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value is not None)
    where = f" (at {found.path_text})" if found.path_text else ""
    todo = f"\n{found.suggestion}" if found.suggestion else ""
    return f"::{_GITHUB_LEVEL[found.severity]} {encoded}::{_data(found.message + where + todo)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: object) -> str:
    return _data(str(value)).replace(":", "%3A").replace(",", "%2C")


def as_sarif(findings: Sequence[Diagnostic], *, tool_version: str) -> dict[str, object]:
    """Render findings as one SARIF 2.1.0 run."""
    codes = list(dict.fromkeys(found.code for found in findings))
    driver = {"name": "kneo", "version": tool_version, "rules": [{"id": code} for code in codes]}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": [_sarif_result(found, codes.index(found.code)) for found in findings],
            }
        ],
    }


def _sarif_result(found: Diagnostic, rule: int) -> dict[str, object]:
    text = f"{found.message} {found.suggestion}" if found.suggestion else found.message
    location: dict[str, object] = {}
    if found.file is not None:
        region = {"startLine": found.line or 1, "startColumn": found.column or 1}
        location["physicalLocation"] = {"artifactLocation": {"uri": found.file}, "region": region}
    if found.path_text:
        location["logicalLocations"] = [{"fullyQualifiedName": found.path_text}]
    return {
        "ruleId": found.code,
        "ruleIndex": rule,
        "level": _SARIF_LEVEL[found.severity],
        "message": {"text": text},
        "locations": [location] if location else [],
    }
