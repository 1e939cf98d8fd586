"""The entry point: parse a command line, import and run the command, render errors and return an exit status."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException
from typer.main import get_command, get_group

from kneo import __version__
from kneo.cli import render
from kneo.cli.commands import COMMANDS, EXTENSIONS, Entry, aliases_of, examples_of, list_extensions_of
from kneo.errors import KneoError, NotFound
from kneo.extension_points import ExtensionFailed
from kneo.process_protection import protect_process
from kneo.settings import debug_wanted

if TYPE_CHECKING:
    # typer carries its own copy of click and has no public name for these.
    from typer._click import Command, Context, HelpFormatter

HELP_COLUMNS = 28
"""Widest first column of a list of commands."""


class LazyGroup(TyperGroup):
    """A group whose commands are partly a table of import targets, and partly extensions.

    Attributes:
        entries: The table.
        aliases: Other names of commands: alias → name.
        path: The names of the groups from the root to this one, separated by spaces; empty for the root.
    """

    entries: Mapping[str, Entry] = {}
    aliases: Mapping[str, str] = {}
    path = ""

    def list_commands(self, ctx: Context) -> list[str]:
        own = dict.fromkeys([*super().list_commands(ctx), *self.entries])
        return [*dict.fromkeys([*own, *list_extensions_of(self.path)])]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        cmd_name = self.aliases.get(cmd_name, cmd_name)
        if cmd_name not in self.commands and (entry := self._entry(cmd_name)) is not None:
            self.commands[cmd_name] = resolve(f"{self.path} {cmd_name}".lstrip(), entry)
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _add_examples(command)
        return command

    def _entry(self, name: str) -> Entry | None:
        """Return the table's entry of a command, else that of an extension.

        Raises:
            ExtensionFailed: the extension cannot be loaded.
        """
        if name in self.entries:
            return self.entries[name]
        # The names of extensions are read for a name that Kneo does not have, and for help.
        path = list_extensions_of(self.path).get(name)
        return EXTENSIONS.load(path) if path is not None else None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            close = get_close_matches(args[0], self.list_commands(ctx))
            guess = f" Did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"There is no command {args[0][:60]!r}.{guess}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            entry = self._entry_for_help(name)
            if entry is not None:
                if entry.hidden:
                    continue
                also = [(alias, f"Same as {name}") for alias, other in self.aliases.items() if other == name]
                sections.setdefault(entry.section, []).extend([(name, entry.help), *also])
                continue
            command = self.commands[name]
            if not command.hidden:
                short = command.get_short_help_str(formatter.width)
                sections.setdefault("Commands", []).append((name, short))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_max=HELP_COLUMNS)

    def _entry_for_help(self, name: str) -> Entry | None:
        """Return the entry of a command, also for an extension that cannot be loaded: the others are shown all the same."""
        try:
            return self.entries.get(name) if name in self.commands else self._entry(name)
        except ExtensionFailed:
            return Entry("", "Cannot be loaded; see kneo doctor")


def _add_examples(command: Command) -> None:
    """Print the examples of a command, or of each command of a group, below its help."""
    if isinstance(command, TyperGroup):
        for part in command.commands.values():
            _add_examples(part)
    elif lines := examples_of(command.callback):
        command.epilog = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def resolve(path: str, entry: Entry) -> Command:
    """Import a command or a group.

    Args:
        path: Its name, after those of its groups.
        entry: What it is.

    Raises:
        ImportError, AttributeError: the table names a target that does not exist.
    """
    name = path.rpartition(" ")[2]
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
    group.entries, group.aliases, group.path = entry.parts, aliases_of(path), path
    return group


USAGE = 2
INTERRUPTED = 130
"""What a shell reports for a process that was stopped with Ctrl-C."""

app = typer.Typer(
    name="kneo",
    cls=LazyGroup,
    help="Deploy AI agents from Git, and keep people in control of what they do.",
    epilog='Use "kneo COMMAND --help" for details. Commands that print data support --json.',
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"kneo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit status."""
    protect_process()
    _collect_garbage_less()
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without ✓ shows ? rather than an error about itself
            stream.reconfigure(errors="replace")
    status = run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    sys.exit(status)


def _collect_garbage_less() -> None:
    """Look for unreachable cycles after 20,000 new objects instead of 700, and not at the end of the process.

    The imports of an agent's run create 200,000 objects that stay, and each look visits those that are there: a third of the
    processor time of the run.
    """
    gc.set_threshold(20_000, 10, 10)
    atexit.register(gc.freeze)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status: 0 for success, else the ``exit_code`` of the error."""
    as_json = "--json" in arguments
    try:
        return _status(_group().main(args=list(arguments), prog_name="kneo", standalone_mode=False))
    except KneoError as error:
        _explain(error, as_json=as_json)
        return error.exit_code
    except TyperException as error:
        return _explain_usage(error, as_json=as_json)
    except (Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return 1
    except Exception as error:  # noqa: BLE001 - the outermost edge: any other exception is a defect, reported in one line
        return _explain_defect(error, as_json=as_json)


def _group() -> LazyGroup:
    group = get_command(app)
    assert isinstance(group, LazyGroup), "the app above asks for this class"
    group.entries, group.aliases = COMMANDS, aliases_of("")
    return group


def _status(returned: object) -> int:
    return returned if isinstance(returned, int) else 0


def _explain(error: KneoError, *, as_json: bool) -> None:
    _print_error(error.code, error.message, error.hint or _hint(error), as_json=as_json, **error.details)
    if debug_wanted():
        traceback.print_exception(error)


def _print_error(code: str, message: str, hint: str | None, *, as_json: bool, **details: object) -> None:
    if as_json:
        render.print_json({"error": code, "message": message, "hint": hint, **details})
    else:
        render.failure(message, hint)


def _hint(error: KneoError) -> str | None:
    """Return the command that helps with an error that has no hint of its own."""
    if isinstance(error, NotFound) and error.message == f"There is no run {error.details.get('run_id')}.":
        return "List the latest runs with kneo runs list."
    return None


def _explain_usage(error: TyperException, *, as_json: bool) -> int:
    message = error.format_message()
    if message.startswith("Usage: "):  # a group without a command: the message is its help
        typer.echo(message, err=True)
        return USAGE
    hint = f"See {getattr(getattr(error, 'ctx', None), 'command_path', 'kneo')} --help."
    _print_error("usage", message, hint, as_json=as_json)
    return USAGE


def _explain_defect(error: Exception, *, as_json: bool) -> int:
    message = f"Internal error: {type(error).__name__}: {error}"
    hint = "Please report this defect. Set KNEO_SERV_DEBUG=1 to print the traceback."
    _print_error("internal_error", message, hint, as_json=as_json)
    if debug_wanted():
        traceback.print_exception(error)
    return 1


def _discard_output() -> None:
    """Replace the closed standard output, so that the interpreter can flush it without an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
