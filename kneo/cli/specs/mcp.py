"""``kneo spec mcp``: the tools that MCP servers offer, declared and pinned in a spec."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kneo.agents.sandboxes import SandboxHost
from kneo.agents.services import operator_rules
from kneo.agents.tools.mcp import McpTools
from kneo.agents.tools.mcp.pins import OfferedTool
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.files import write_whole
from kneo.cli.options import JsonOption
from kneo.cli.project import open_project
from kneo.cli.specs.check import check_in, require_usable
from kneo.errors import Conflict, Invalid, NotFound
from kneo.settings import Settings
from kneo.spec.documents import DEFAULT_LIMITS, Document, SourceLocation, Unreadable
from kneo.spec.models.spec import Spec
from kneo.spec.policy import ToolRules
from kneo.spec.reading.reader import read
from kneo.spec.reading.yaml import write_yaml

app = typer.Typer(no_args_is_help=True)


@app.callback()
def mcp() -> None:
    """Declare the tools of MCP servers."""


@dataclass(frozen=True)
class Pulled:
    """The difference between a spec and a server.

    Attributes:
        added: Declarations of tools that the spec does not have, by name.
        changed: The server's values of fields that differ, by the tool's name in the spec.
        gone: Tools of the spec that the server does not offer.
    """

    added: Mapping[str, Declaration]
    changed: Mapping[str, Declaration]
    gone: Sequence[str]

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.changed or self.gone)


@app.command("pull")
@examples("kneo spec mcp pull spec.yaml crm", "kneo spec mcp pull spec.yaml crm --check")
def pull(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Spec file (YAML or JSON).")],
    server: Annotated[str, typer.Argument(metavar="SERVER", help="A name in mcp_servers of the spec.")],
    *,
    tool: Annotated[
        list[str] | None, typer.Option("--tool", help="Only this tool of the server; repeatable. Default: all.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Also replace descriptions and schemas that differ from the server's.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing. Exit status 1 if anything differs.")] = False,
    as_text: Annotated[bool, typer.Option("--print", help="Print the declarations instead of writing them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask an MCP server for its tools and declare them in a spec.

    The server is started or connected to from this machine, with its secrets. A program must be one of
    KNEO_SERV_MCP_COMMANDS. Review what the server says before you commit it: models read the descriptions.
    """
    project = open_project(None)
    checked = check_in(project, spec)
    if checked.spec is None:
        require_usable(checked, as_json=as_json)
    usable = checked.usable()
    offered = ask_servers(project.settings, usable, [server])[server]
    pulled = compare(usable, server, _selected(offered, tool, server), selected=bool(tool))
    changes = {**pulled.added, **(pulled.changed if update else {})}
    written = bool(changes) and not (check or as_text)
    if written:
        write_whole(checked.file.path, with_tools(checked.file.loaded.documents[0], changes).encode())
    answer = {
        "server": server,
        "added": {name: dict(fields) for name, fields in pulled.added.items()},
        "changed": {name: sorted(fields) for name, fields in pulled.changed.items()},
        "gone": list(pulled.gone),
        "written": written,
    }
    if as_text and not as_json:
        render.text(write_yaml({"tools": {name: dict(fields) for name, fields in changes.items()}}).rstrip("\n"))
    else:
        render.emit(
            answer, as_json=as_json, text=lambda: _print(pulled, checked.name, server, updated=update, written=written)
        )
    raise typer.Exit(1 if check and not pulled.is_empty else 0)


def compare(spec: Spec, server: str, offered: Mapping[str, OfferedTool], *, selected: bool = False) -> Pulled:
    """Compare the tools of a spec with those of their server.

    Args:
        spec: The spec.
        server: The server's name in it.
        offered: The tools to compare.
        selected: Whether the server has further tools.
    """
    declared = {
        tool.mcp.name or name: name
        for name, tool in spec.tools.items()
        if tool.mcp is not None and tool.mcp.server == server
    }
    added, changed = dict[str, Declaration](), dict[str, Declaration]()
    for remote, tool in offered.items():
        fields = _fields(tool)
        if remote not in declared:
            name = remote if remote not in spec.tools else f"{server}_{remote}"
            reference = {"server": server} if name == remote else {"server": server, "name": remote}
            added[name] = {**fields, "mcp": reference, **({} if tool.is_read_only else {"effects": True})}
            continue
        present = spec.tools[declared[remote]].model_dump(include=set(fields))
        different = {key: value for key, value in fields.items() if present[key] != value}
        if different:
            changed[declared[remote]] = different
    gone = () if selected else tuple(name for remote, name in declared.items() if remote not in offered)
    return Pulled(added, changed, gone)


def _fields(tool: OfferedTool) -> dict[str, object]:
    fields: dict[str, object] = {"description": tool.description, "parameters": dict(tool.input_schema)}
    if tool.output_schema is not None:
        fields["returns"] = dict(tool.output_schema)
    return fields


def _selected(
    offered: Mapping[str, OfferedTool], names: Sequence[str] | None, server: str
) -> Mapping[str, OfferedTool]:
    missing = [name for name in names or () if name not in offered]
    if missing:
        msg = f"The MCP server {server} does not offer {missing[0]}; it offers: {', '.join(sorted(offered)) or 'no tool'}."
        raise NotFound(msg)
    return {name: offered[name] for name in names} if names else offered


def _print(pulled: Pulled, spec: str, server: str, *, updated: bool, written: bool) -> None:
    if pulled.is_empty:
        render.success(f"{spec} declares the tools of {server} as the server describes them.")
    for name, fields in pulled.added.items():
        first = (str(fields["description"]).strip().splitlines() or ["(no description)"])[0]
        render.text(f"  + {name}{', with effects' if 'effects' in fields else ''}: {first}")
    for name, fields in pulled.changed.items():
        hint = "" if updated else " (--update replaces them)"
        render.text(f"  ~ {name}: {', '.join(sorted(fields))} differ from the server's{hint}")
    for name in pulled.gone:
        render.warning(f"The server {server} no longer offers the tool {name}.", "Remove it from the spec.")
    if written:
        render.success(f"Wrote {spec}. Select the tools in tools.include of an agent, and sign with --pin-tools.")


Offers = Mapping[str, Mapping[str, OfferedTool]]
"""Tools by server and by name."""


def ask_servers(settings: Settings, spec: Spec, servers: Iterable[str]) -> Offers:
    """Connect to servers of a spec from this machine, and list their tools.

    Raises:
        NotFound: the spec does not declare a server.
        McpRefused: this machine's settings do not allow it.
        McpServerFailed: it cannot be reached.
    """
    names = sorted(set(servers))
    for name in names:
        if name not in spec.mcp_servers:
            msg = f"The spec has no MCP server {name}; declared: {', '.join(sorted(spec.mcp_servers)) or 'none'}."
            raise NotFound(msg, hint="Declare it in mcp_servers.")

    async def rules(_environment: str | None) -> ToolRules:
        return operator_rules(settings)

    return asyncio.run(_ask(McpTools(rules, settings.secret, settings.mcp, SandboxHost.of(settings)), spec, names))


async def _ask(mcp: McpTools, spec: Spec, names: Iterable[str]) -> Offers:
    try:
        return {name: await mcp.tools(name, spec.mcp_servers[name]) for name in names}
    finally:
        await mcp.close()


def pin_tools(settings: Settings, tree: Mapping[str, object], warn: Callable[[str, str], None]) -> dict[str, object]:
    """Return a resolved spec in which each tool of an MCP server has the pin of what the server says now.

    Args:
        settings: The settings of this process.
        tree: The spec.
        warn: Receives each tool whose parameters differ from the server's, and its server.

    Raises:
        Invalid: no tool of the spec is of an MCP server.
        NotFound: a server does not offer a tool.
        McpRefused, McpServerFailed: a server cannot be asked.
    """
    spec = Spec.model_validate(tree)
    references = {name: tool.mcp for name, tool in spec.tools.items() if tool.mcp is not None}
    if not references:
        msg = "No tool of this spec is of an MCP server, so there is nothing to pin."
        raise Invalid(msg, hint="Leave out --pin-tools.")
    offers = ask_servers(settings, spec, (reference.server or "" for reference in references.values()))
    tools = tree["tools"]
    assert isinstance(tools, Mapping)
    pinned = dict(tools)
    for name, reference in references.items():
        offered = offers[reference.server or ""].get(reference.name or name)
        if offered is None:
            msg = f"The MCP server {reference.server} does not offer the tool {reference.name or name}."
            raise NotFound(msg, hint=f"Update the tool {name}: kneo spec mcp pull.")
        if spec.tools[name].parameters != offered.input_schema:
            warn(name, reference.server or "")
        tool = pinned[name]
        assert isinstance(tool, Mapping)
        pinned[name] = {**tool, "mcp": {**tool["mcp"], "pin": offered.pin().model_dump()}}
    return {**tree, "tools": pinned}


Declaration = Mapping[str, object]


def with_tools(document: Document, tools: Mapping[str, Declaration]) -> str:
    """Return the text of a spec with further tools, and with other values for fields of those that it has.

    Raises:
        Conflict: the text cannot be edited without changing more, as tools in braces.
    """
    assert isinstance(document.value, dict)
    present = document.value.get("tools") or {}
    wanted = {**present, **{name: {**present.get(name, {}), **fields} for name, fields in tools.items()}}
    value = {**document.value, "tools": wanted}
    text = _as_json(value) if document.file.endswith(".json") else _edited(document, present, tools)
    if _value_of(text, document.file) != value:
        msg = f"{document.file} cannot be edited: its tools are not one block of lines."
        raise Conflict(msg, hint="Write each tool below tools on lines of its own, or pass --print and copy the tools.")
    return text


def _value_of(text: str, file: str) -> object:
    try:
        return read(text.encode(), file=file, limits=DEFAULT_LIMITS).value
    except Unreadable:
        return None


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _edited(document: Document, present: Mapping[str, Declaration], tools: Mapping[str, Declaration]) -> str:
    lines = document.text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    root = document.locations()
    if not present:
        if "tools" in root.keys:
            del lines[root.keys["tools"][0] - 1]
        return "".join([*lines, *_block({"tools": dict(tools)}, 0)])
    block = root.children["tools"]
    end = _end(lines, root, "tools", len(lines))
    column = min(column for _, column in block.keys.values())
    added = {name: fields for name, fields in tools.items() if name not in present}
    lines[end:end] = _block(added, column - 1)
    for name in sorted(tools.keys() & present.keys(), key=lambda name: block.keys[name], reverse=True):
        _update(lines, block.children[name], tools[name], _end(lines, block, name, end))
    return "".join(lines)


def _update(lines: list[str], tool: SourceLocation, fields: Declaration, end: int) -> None:
    """Replace fields of a tool, the last one first, so that the lines of the others stay where they are."""
    indent = min(column for _, column in tool.keys.values()) - 1
    lines[end:end] = _block({key: value for key, value in fields.items() if key not in tool.keys}, indent)
    for key in sorted(fields.keys() & tool.keys.keys(), key=lambda key: tool.keys[key], reverse=True):
        lines[tool.keys[key][0] - 1 : _end(lines, tool, key, end)] = _block({key: fields[key]}, indent)


def _end(lines: list[str], parent: SourceLocation, key: str, end: int) -> int:
    """Return the number of lines up to the end of a key's value, without the comments before the next key."""
    start = parent.keys[key][0]
    last = min((line - 1 for line, _ in parent.keys.values() if line > start), default=end)
    while last > start and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1
    return last


def _block(value: Declaration, indent: int) -> list[str]:
    text = write_yaml(dict(value)) if value else ""
    return [" " * indent + line if line.strip() else line for line in text.splitlines(keepends=True)]
