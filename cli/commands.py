"""The tree of commands: the only list of what ``kneo`` can do, and where each part lives.

The one-line help stands here rather than beside the function, so that ``kneo --help`` imports no command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """Where a command or a group of commands lives.

    Attributes:
        target: ``module:attribute``; a function is a command, a ``typer.Typer`` is a group.
        help: What it does, in one line.
        section: The heading it stands under in the help.
        parts: Further commands of a group that live in modules of their own.
    """

    target: str
    help: str
    section: str = "Commands"
    parts: Mapping[str, Entry] = {}


START, DECLARE, RUN, SERVE, RELEASE, KNOW = "Start", "Declare and sign", "Run", "Serve", "Release", "Look back"

COMMANDS: dict[str, Entry] = {
    "keys": Entry("cli.keys:app", "Make signing keys and look at them.", DECLARE),
}
