"""Write ``docs/reference/`` from the code: ``make reference``."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from typer._click import Command, Context
from typer.core import TyperGroup
from typer.main import get_group

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(Path(__file__).parent)]

from code_fixtures import findings, fixture_files  # noqa: E402
from environment_page import environment_page  # noqa: E402
from errors_page import errors_page  # noqa: E402
from roles_page import roles_page  # noqa: E402
from settings_page import settings_page  # noqa: E402

from kneo.api.operation import ANY_KEY  # noqa: E402
from kneo.cli.commands import COMMANDS  # noqa: E402
from kneo.cli.main import LazyGroup, app  # noqa: E402
from kneo.service.app import description  # noqa: E402
from kneo.spec.reading.reader import read  # noqa: E402

WIDTH = 100
"""Columns of a help text."""

_TWINS = re.compile(r"^bad:\n(?P<bad>.*?)^good:\n(?P<good>.*)\Z", re.MULTILINE | re.DOTALL)

GENERATED = "<!-- Written by `make reference` from the code. Do not edit. -->"

DIAGNOSTICS_HEAD = f"""\
{GENERATED}

# Diagnostics

All findings about a file of the spec language. A code that begins with `E_` is an error: the file cannot be used.
A code that begins with `W_` is a warning: the file can be used, and needs a review. `I_` is information about the machine of the
check, which is no fault of the file. An environment's policy can turn warnings and
chosen codes into violations (`E_ENV_POLICY_…`).

`kneo spec lint` prints each with its file, line, column and path; `--json`, `--format sarif` and `--format github` print the same
for programs. The codes are stable; the sentences are not.

Each section shows the smallest file that has the finding, and the change after which it is gone.
"""

CLI_HEAD = f"""\
{GENERATED}

# The command line

Every command takes `--json`, but for those that serve or talk with you until they end. Options may stand before or after the arguments. Exit
status: 0 done, 1 refused or invalid, 2 wrong usage, 3 untrusted, 4 not found, 5 conflict, 75 try again later. Answers go to standard
output, everything else to standard error.
"""


HTTP_HEAD = f"""\
{GENERATED}

# HTTP operations

The same for programs is in [openapi.json](openapi.json) and at `/openapi.json` of a running service. Refusals, waiting, streams and
idempotency keys are explained in [the guide](../guides/api/http.md).
"""


def diagnostics_page() -> str:
    rows = ["| code | severity | such as |", "|---|---|---|"]
    sections = []
    for file in fixture_files():
        text = file.read_text()
        case = read(text.encode(), file=file.name).value
        found = next(each for each in findings(case, "bad") if each.code == file.stem)
        anchor = found.code.lower()
        rows.append(f"| [`{found.code}`](#{anchor}) | {found.severity.value} | {_cell(found.message)} |")
        sections.append(f"## {found.code}\n")
        sections.append(f"{found.severity.value.capitalize()} at `{found.path_text}`: {found.message}")
        if found.suggestion:
            sections.append(f"→ {found.suggestion}")
        if case.get("policy"):
            sections.append(f"\nWhere the environment's policy is `{_flow(case['policy'])}`.")
        if case.get("context"):
            sections.append(f"\nWhere this is known of the code: `{_flow(case['context'])}`.")
        if case.get("files"):
            sections.append(f"\nWith these files next to it: `{'`, `'.join(case['files'])}`.")
        sections.append("\n```diff\n" + "\n".join(_twins(text)) + "\n```\n")
    return "\n".join([DIAGNOSTICS_HEAD, *rows, "", *sections])


def _twins(text: str) -> Iterator[str]:
    found = _TWINS.search(text)
    assert found is not None, "a fixture has a bad and a good part"
    bad, good = (found[part].rstrip("\n").splitlines() for part in ("bad", "good"))
    for line in [*difflib.unified_diff(bad, good, n=len(bad), lineterm="")][3:]:
        yield (line[0] + line[3:]).rstrip()  # what stands below bad: and good: is indented by two


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def cli_page() -> str:
    root = get_group(app)
    assert isinstance(root, LazyGroup)
    root.entries = COMMANDS
    return "\n".join([CLI_HEAD, *_commands(root, "kneo", None)])


def commands_of_services() -> set[str]:
    """Return the commands that can ask a service."""
    root = get_group(app)
    assert isinstance(root, LazyGroup)
    root.entries = COMMANDS
    return set(_asking(root, "", None))


def _asking(command: Command, name: str, parent: Context | None) -> Iterator[str]:
    context = Context(command, info_name=name, parent=parent)
    if isinstance(command, TyperGroup):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from _asking(found, f"{name} {below}".strip(), context)
    elif any("--service-url" in parameter.opts for parameter in command.params):
        yield name


def _commands(command: Command, name: str, parent: Context | None) -> Iterator[str]:
    context = Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    yield f"{'#' * (2 if parent is None or parent.parent is None else 3)} {context.command_path}\n"
    lines = [line.rstrip() for line in command.get_help(context).strip().splitlines()]
    yield "```text\n" + "\n".join(lines) + "\n```\n"
    if isinstance(command, TyperGroup):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from _commands(found, below, context)


def openapi_file() -> str:
    return json.dumps(description(), indent=1, ensure_ascii=False) + "\n"


def http_page() -> str:
    tree = description()
    parts = [HTTP_HEAD]
    for tag in tree["tags"]:
        found = [
            (path, verb.upper(), operation)
            for path, verbs in tree["paths"].items()
            for verb, operation in verbs.items()
            if tag["name"] in operation.get("tags", [])
        ]
        if not found:
            continue
        parts += [f"## {tag['name'].capitalize()}", "", tag["description"], ""]
        for path, verb, operation in found:
            parts += _operation(tree, path, verb, operation)
    return "\n".join(parts).rstrip() + "\n"


def _operation(tree: dict, path: str, verb: str, operation: dict) -> Iterator[str]:
    yield f"### `{verb} {path}`"
    yield ""
    named = operation.get("x-required-scopes", [])
    scopes = "any key" if named == [ANY_KEY] else ", ".join(f"`{scope}`" for scope in named) or "no key"
    said = operation.get("description", operation.get("summary", "")).partition("\n\nNeeds ")[0]
    yield f"{said}\n\nNeeds {scopes}. Operation `{operation['operationId']}`."
    yield ""
    parameters = [each for each in operation.get("parameters", []) if each["name"] != "Idempotency-Key"]
    rows = [
        f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {_cell(each.get('description', ''))} |"
        for each in parameters
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        shape = _named(tree, body)
        rows += [
            f"| `{name}`{' **required**' if name in shape.get('required', []) else ''} | body | {_type(field)} | "
            f"{_cell(field.get('description', ''))} |"
            for name, field in shape.get("properties", {}).items()
        ]
    if rows:
        yield from ("| | in | type | |", "|---|---|---|---|", *rows, "")
    for status, answer in operation["responses"].items():
        content = answer.get("content", {}).get("application/json", {}).get("schema")
        if status.startswith("2") and content:
            fields = ", ".join(f"`{name}`" for name in _named(tree, content).get("properties", {}))
            yield f"Answers {status} with {fields or 'a map'}."
            yield ""


def _named(tree: dict, schema: dict) -> dict:
    parts = schema.get("anyOf", [schema])
    found = next((part for part in parts if "$ref" in part), parts[0])
    return tree["components"]["schemas"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found


def _type(schema: dict) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def roles_text() -> str:
    return roles_page(GENERATED)


def settings_text() -> str:
    return settings_page(GENERATED)


def errors_text() -> str:
    return errors_page(GENERATED)


def environment_text() -> str:
    return environment_page(GENERATED)


PAGES = {
    "errors.md": errors_text,
    "environment-file.md": environment_text,
    "settings.md": settings_text,
    "roles.md": roles_text,
    "diagnostics.md": diagnostics_page,
    "cli.md": cli_page,
    "http.md": http_page,
    "openapi.json": openapi_file,
}


def main() -> None:
    folder = ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page())


if __name__ == "__main__":
    main()
