"""The entry point: from a command line to an exit status, with every error said in one way."""

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

from cli import render
from cli.commands import COMMANDS
from cli.lazy import LazyGroup
from kneo import __version__
from kneo.errors import KneoError, NotFound
from kneo.settings import debug_wanted

USAGE = 2
INTERRUPTED = 130
"""What a shell reports for a process that was stopped with Ctrl-C."""

app = typer.Typer(
    name="kneo",
    cls=LazyGroup,
    help="Agent and workflow specs are code, Git deploys them, people stay in charge.",
    epilog="kneo COMMAND --help tells more. Every command that answers takes --json.",
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
        bool, typer.Option("--version", "-V", help="Print the version and stop.", is_eager=True, callback=_show_version)
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
    """Run one command and return its exit status: 0 done, else what ``kneo.errors`` says."""
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
    except Exception as error:  # noqa: BLE001 - the outermost edge: whatever is left is a defect, and is said in one line
        return _explain_defect(error, as_json=as_json)


def _group() -> LazyGroup:
    group = get_command(app)
    assert isinstance(group, LazyGroup), "the app above asks for this class"
    group.entries = COMMANDS
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
    """Say which command helps, where an error that has no hint of its own is as good as known."""
    if isinstance(error, NotFound) and error.message == f"There is no run {error.details.get('run_id')}.":
        return "kneo runs list shows the latest."
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
    message = f"Something went wrong inside kneo: {type(error).__name__}: {error}"
    hint = "This is a defect; please report it. KNEO_SERV_DEBUG=1 shows where it happened."
    if as_json:
        render.print_json({"error": "internal_error", "message": message, "hint": hint})
    else:
        render.failure(message, hint)
    if debug_wanted():
        traceback.print_exception(error)
    return 1


def _discard_output() -> None:
    """Whoever read our output has gone; give the interpreter somewhere to flush to, so that it does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
