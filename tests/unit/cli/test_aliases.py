"""Aliases: other names of commands, which take the same options and run the same function."""

from __future__ import annotations

import pytest
from typer._click import Command, Context

from kneo.cli.commands import ALIASES
from kneo.cli.main import LazyGroup, _group, run


def find(path: str) -> Command:
    command: Command = _group()
    for word in path.split():
        assert isinstance(command, LazyGroup)
        found = command.get_command(Context(command), word)
        assert found is not None, path
        command = found
    return command


def commands(command: Command, path: str = "") -> dict[str, Command]:
    """Return all commands below a command by their paths; a command itself where it is no group."""
    if not isinstance(command, LazyGroup):
        return {path: command}
    found: dict[str, Command] = {}
    for name in [*command.list_commands(Context(command)), *command.aliases]:
        below = command.get_command(Context(command), name)
        assert below is not None
        found |= commands(below, f"{path} {name}".strip())
    return found


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_runs_the_same_functions_with_the_same_options(alias: str) -> None:
    by_alias, canonical = commands(find(alias)), commands(find(ALIASES[alias]))
    assert by_alias.keys() == canonical.keys()
    for path, command in canonical.items():
        other = by_alias[path]
        assert [(each.name, each.opts, each.required) for each in other.params] == [
            (each.name, each.opts, each.required) for each in command.params
        ]
        assert getattr(other.callback, "__wrapped__", None) is getattr(command.callback, "__wrapped__", None)


@pytest.mark.parametrize("verb", ["resume", "unclaim", "summary", "prune", "history", "list", "decide"])
def test_the_fixed_names_of_human_work(verb: str) -> None:
    assert find(f"human {verb}").help == find(f"task {verb}").help


@pytest.mark.parametrize("alias", ALIASES)
def test_the_help_lists_the_alias_below_its_command(alias: str, capsys: pytest.CaptureFixture[str]) -> None:
    group, _, name = alias.rpartition(" ")
    canonical = ALIASES[alias].rpartition(" ")[2]
    assert run([*group.split(), "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name, "Same", "as", canonical] == lines[
        next(i for i, line in enumerate(lines) if line[:1] == [canonical]) + 1
    ]
