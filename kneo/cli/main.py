"""The entry point: parse a command line, run the command, render errors and return an exit status."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException
from typer.main import get_command

from kneo import __version__
from kneo.cli import render
from kneo.cli.commands import COMMANDS, aliases_of
from kneo.cli.lazy import LazyGroup
from kneo.errors import KneoError, NotFound
from kneo.settings import debug_wanted

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
    hint = error.hint or _hint(error)
    if as_json:
        render.print_json({"error": error.code, "message": error.message, "hint": hint, **error.details})
    else:
        render.failure(error.message, hint)
    if debug_wanted():
        traceback.print_exception(error)


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
    if as_json:
        render.print_json({"error": "usage", "message": message, "hint": hint})
    else:
        render.failure(message, hint)
    return USAGE


def _explain_defect(error: Exception, *, as_json: bool) -> int:
    message = f"Internal error: {type(error).__name__}: {error}"
    hint = "Please report this defect. Set KNEO_SERV_DEBUG=1 to print the traceback."
    if as_json:
        render.print_json({"error": "internal_error", "message": message, "hint": hint})
    else:
        render.failure(message, hint)
    if debug_wanted():
        traceback.print_exception(error)
    return 1


def _discard_output() -> None:
    """Replace the closed standard output, so that the interpreter can flush it without an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
