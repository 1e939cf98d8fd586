"""All commands: the examples below their help are command lines that they accept, and what prints something prints JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from typer._click import ClickException, Command, Context
from typer.core import TyperGroup

from kneo.cli.commands import examples_of
from kneo.cli.main import _group


def commands(group: TyperGroup, parent: Context) -> Iterator[tuple[str, Command]]:
    """Yield each command with the names of its groups and its own."""
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        context = Context(command, info_name=name, parent=parent)
        if isinstance(command, TyperGroup):
            yield from commands(command, context)
        else:
            yield context.command_path, command


def accepts(root: TyperGroup, line: str) -> bool:
    """Return whether a command accepts an example, and shows it in its help."""
    program, *words = shlex.split(line)
    group, context = root, Context(root, info_name=program)
    while words and (command := group.get_command(context, words[0])) is not None:
        context = Context(command, info_name=words.pop(0), parent=context)
        if not isinstance(command, TyperGroup):
            command.make_context(context.info_name, words, parent=context)
            return line in (command.epilog or "")
        group = command
    return False


def test_each_example_is_a_command_line_that_its_command_accepts() -> None:
    root = _group()
    every = commands(root, Context(root, info_name="kneo"))
    examples = [line for _, command in every for line in examples_of(command.callback)]
    refused = []
    for line in examples:
        try:
            accepted = line.startswith("kneo ") and accepts(root, line)
        except ClickException as error:
            refused.append(f"{line}: {error.format_message()}")
        else:
            refused += [] if accepted else [line]
    assert len(examples) > 150
    assert refused == []


RUNNING = {f"kneo {name}" for name in ("dev", "mcp serve", "sdk serve", "service serve", "task review", "up", "worker")}
"""Commands that serve or talk with a person until they end."""


def test_each_command_that_ends_prints_json() -> None:
    root = _group()
    every = commands(root, Context(root, info_name="kneo"))
    assert {path for path, command in every if not any("--json" in option.opts for option in command.params)} == RUNNING
