"""Examples below the help of commands: command lines that each command accepts."""

from __future__ import annotations

import shlex

import pytest
from typer._click import Context

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


ROOT = _group()


@pytest.mark.parametrize("line", lines(ROOT, Context(ROOT, info_name="kneo")))
def test_an_example_is_a_command_line_that_its_command_accepts(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "kneo"
    group, context = ROOT, Context(ROOT, info_name="kneo")
    while isinstance(group, LazyGroup):
        command = group.get_command(context, words[0])
        assert command is not None, line
        context = Context(command, info_name=words.pop(0), parent=context)
        if not isinstance(command, LazyGroup):
            command.make_context(context.info_name, words, parent=context)
            assert line in (command.epilog or "")
            return
        group = command
