"""Write ``docs/reference/settings.md`` from the fields of ``kneo.settings`` and their docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from kneo import settings
from kneo.agents.tools.python import MAX_RESULT_CHARS
from kneo.embed.database import MAX_CHARS
from kneo.runtime.steps.functions import MAX_OUTPUT_CHARS

TITLES = {
    settings.Settings: "Process",
    settings.HttpSettings: "HTTP service and client",
    settings.OidcSettings: "OpenID Connect",
    settings.PushSettings: "Web Push",
    settings.Limits: "Limits of requests",
    settings.ExecutionSettings: "Execution and retention",
    settings.GitCredentials: "Git credentials",
    settings.ModelSettings: "Models",
    settings.Tracing: "OpenTelemetry",
    settings.AgentSettings: "Tools and agents",
    settings.McpSettings: "MCP servers",
}
UNITS = {"bytes": "bytes", "chars": "characters", "seconds": "seconds", "days": "days"}

HEAD = """\
# Settings

Kneo reads its settings from environment variables, once at the start of a process. A value that does not fit is refused with the name of
its variable: a switch is `true`, `yes`, `on` or `1`, or `false`, `no`, `off` or `0`, and no other word. A `KNEO_SERV_…` variable that no
setting reads has no effect; each process warns of it with the nearest name when it starts, and `kneo doctor` does. A process that executes steps removes the `KNEO_SERV_*` variables from its environment, so that the functions of specs and
their child processes cannot read them; give functions variables of their own.

Every secret setting can also stand in a file: set the variable with `_FILE` at its end to the path, as `KNEO_SERV_API_KEYS_FILE`. The
file is text of at most 64 KiB; a newline at its end is removed. A process does not start where a variable is set in both ways, or where the
file is missing or empty. Keep such a file readable by Kneo's user only; functions of specs run as the same user.

"Read by" names the processes that use a setting: `service` (`kneo up`, `kneo service serve`), `worker` (`kneo up`, `kneo worker`, and
the service's own worker), `controller` (`kneo up`, `kneo controller run`), `command` (commands on the database or on files) and `client`
(commands and programs that call a service). [Operations](../operations/README.md) explains how to use them.
"""


FIXED = """\
## Fixed limits

These limits have no setting.

| limit | unit | beyond it |
|---|---|---|
| {output:,} | characters of the output of a function, and of a participant of a Python workflow | the step fails with `output_too_large` |
| {result:,} | characters of the result of a Python tool | it is cut; the model is shown `KNEO_SERV_TOOL_RESULT_CHARS` or `max_result_chars` of them |
| {value:,} | characters of JSON of one value that a Python program stores with a run: a checkpoint, a state, a configuration | refused with `too_large` |
"""


def settings_page(generated: str) -> str:
    assert set(TITLES) == set(settings.SETTINGS), "each class of settings needs a title"
    docstrings = _docstrings()
    lines = [generated, "", HEAD]
    for group, title in TITLES.items():
        summary, reader = _split(docstrings[group.__name__], "Read by")
        rows = list(_rows(group, docstrings, reader))
        if group is settings.Settings:
            rows.append(("`KNEO_SERV_DEBUG`", "off", "", "all processes", "Print errors with their traceback."))
        table = [f"| {' | '.join(row)} |" for row in rows]
        head = ["| variable | default | unit | read by | meaning |", "|---|---|---|---|---|"]
        lines += [f"## {title}", "", summary, "", *head, *table, ""]
    lines.append(FIXED.format(output=MAX_OUTPUT_CHARS, result=MAX_RESULT_CHARS, value=MAX_CHARS))
    return "\n".join(lines)


def _rows(group: type, docstrings: dict[str, str], reader: str) -> Iterator[tuple[str, ...]]:
    for name, default, declared in settings.settings_of(group):
        meaning, read_by = _split(docstrings[f"{group.__name__}.{name}"], "Read by")
        meaning, words = _split(meaning, "Default")
        variables = ", ".join(f"`{variable}`" for variable in declared.variable.split(", "))
        if declared.secret:
            variables += ", or `…_FILE`"
        unit = UNITS.get(name.rpartition("_")[2], "")
        yield variables, words or _shown(default), unit, read_by or reader, meaning


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int | float):
        return f"{default:g}" if isinstance(default, float) else str(default)
    return f"`{default}`" if isinstance(default, str | Path) and str(default) else "none"


def _split(text: str, label: str) -> tuple[str, str]:
    """Take a final sentence like "Read by: service." off a text."""
    found = re.fullmatch(rf"(.*?) ?{label}: (.*)\.", text)
    return (found[1], found[2]) if found else (text, "")


def _docstrings() -> dict[str, str]:
    """Return the docstrings of classes by name, and of their fields by class and name."""
    found = {}
    for node in ast.parse(Path(settings.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = " ".join((ast.get_docstring(node) or "").split())
            for each, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(each, ast.AnnAssign) and isinstance(after, ast.Expr):
                    assert isinstance(each.target, ast.Name)
                    assert isinstance(after.value, ast.Constant)
                    text = " ".join(str(after.value.value).split()).replace("``", "`")
                    found[f"{node.name}.{each.target.id}"] = text
    return found
