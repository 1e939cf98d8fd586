"""Examples below the help of commands: command lines that each command accepts."""

from __future__ import annotations

import shlex

from typer._click import ClickException, Context

from kneo.cli.commands import examples_of
from kneo.cli.main import LazyGroup, _group


def lines(group: LazyGroup, parent: Context) -> list[str]:
    found = []
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        if isinstance(command, LazyGroup):
            found += lines(command, Context(command, info_name=name, parent=parent))
        else:
            found += examples_of(command.callback)
    return found


def accepts(root: LazyGroup, line: str) -> bool:
    """Return whether a command accepts an example, and shows it in its help."""
    program, *words = shlex.split(line)
    group, context = root, Context(root, info_name=program)
    while words and (command := group.get_command(context, words[0])) is not None:
        context = Context(command, info_name=words.pop(0), parent=context)
        if not isinstance(command, LazyGroup):
            command.make_context(context.info_name, words, parent=context)
            return line in (command.epilog or "")
        group = command
    return False


def test_each_example_is_a_command_line_that_its_command_accepts() -> None:
    root = _group()
    examples = lines(root, Context(root, info_name="kneo"))
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
