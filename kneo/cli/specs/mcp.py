"""``kneo spec mcp``: declare the tools of MCP servers in a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kneo.agents.mcp.pins import OfferedTool
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.files import write_whole
from kneo.cli.project import open_project
from kneo.cli.specs.check import check_in, require_usable
from kneo.cli.specs.mcp_offers import ask_servers
from kneo.cli.specs.spec_editor import Declaration, with_tools
from kneo.errors import NotFound
from kneo.spec.models.spec import Spec
from kneo.spec.reading.yaml_writer import write_yaml

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        typer.echo(write_yaml({"tools": {name: dict(fields) for name, fields in changes.items()}}), nl=False)
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
