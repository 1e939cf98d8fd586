"""Groups of commands that import a command's module when it is called, and not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup
from typer.main import get_group

from kneo.cli.commands import Entry, aliases_of, examples_of

if TYPE_CHECKING:
    # typer carries its own copy of click and has no public name for these two.
    from typer._click import Command, Context, HelpFormatter

HELP_COLUMNS = 28
"""Widest first column of a list of commands."""


class LazyGroup(TyperGroup):
    """A group whose commands are partly a table of import targets."""

    entries: Mapping[str, Entry] = {}
    aliases: Mapping[str, str] = {}

    def list_commands(self, ctx: Context) -> list[str]:
        return [*dict.fromkeys([*super().list_commands(ctx), *self.entries])]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        cmd_name = self.aliases.get(cmd_name, cmd_name)
        if cmd_name not in self.commands and cmd_name in self.entries:
            self.commands[cmd_name] = resolve(cmd_name, self.entries[cmd_name])
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _add_examples(command)
        return command

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            close = get_close_matches(args[0], self.list_commands(ctx))
            guess = f" Did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"There is no command {args[0][:60]!r}.{guess}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            entry = self.entries.get(name)
            if entry is not None:
                if entry.hidden:
                    continue
                sections.setdefault(entry.section, []).append((name, entry.help))
                continue
            command = self.commands[name]
            if not command.hidden:
                short = command.get_short_help_str(formatter.width)
                sections.setdefault("Commands", []).append((name, short))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_max=HELP_COLUMNS)


def _add_examples(command: Command) -> None:
    """Print the examples of a command, or of each command of a group, below its help."""
    if isinstance(command, TyperGroup):
        for part in command.commands.values():
            _add_examples(part)
    elif lines := examples_of(command.callback):
        command.epilog = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def resolve(name: str, entry: Entry) -> Command:
    """Import a command or a group.

    Raises:
        ImportError, AttributeError: the table names a target that does not exist.
    """
    module, _, attribute = entry.target.partition(":")
    target: object = getattr(importlib.import_module(module), attribute)
    # The settings of the parent take precedence over those of an app: no markup, so that help and usage errors need no
    # rich, which takes longer to import than everything else here.
    parent = typer.Typer(rich_markup_mode=None, add_completion=False)
    if not isinstance(target, typer.Typer):
        if not callable(target):
            msg = f"{entry.target} is neither a function nor a typer.Typer."
            raise TypeError(msg)
        parent.command(name, help=target.__doc__ or entry.help)(target)
        return get_group(parent).commands[name]
    parent.add_typer(target, name=name, help=entry.help)
    plain = get_group(parent).commands[name]
    assert isinstance(plain, TyperGroup), "add_typer makes a group"
    group = LazyGroup(
        name=name,
        commands=dict(plain.commands),
        help=plain.help,
        callback=plain.callback,
        params=plain.params,
        invoke_without_command=plain.invoke_without_command,
        no_args_is_help=not plain.invoke_without_command,
        rich_markup_mode=None,
    )
    group.entries, group.aliases = entry.parts, aliases_of(name)
    return group
