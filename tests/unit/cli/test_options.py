"""Groups of options: a command has the options of each group, and gets the group."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from kneo.cli.commands import examples, examples_of
from kneo.cli.main import run
from kneo.cli.options import OptionGroup, expand_groups


@dataclass(frozen=True)
class Size(OptionGroup):
    width: Annotated[int, typer.Option("--width", min=1, help="Width.")] = 2
    names: Annotated[list[str], typer.Option("--name", help="Names.")] = field(default_factory=list)


@dataclass(frozen=True)
class Style(OptionGroup):
    bold: Annotated[bool, typer.Option("--bold")] = False


@examples("draw a")
def draw(what: Annotated[str, typer.Argument()], *, size: Size, style: Style) -> None:
    """Draw."""
    typer.echo(f"{what} {size.width} {size.names} {style.bold}")


@pytest.mark.parametrize(
    ("line", "output"),
    [
        (["a"], "a 2 [] False"),
        (["--bold", "a", "--width", "3", "--name", "x", "--name", "y"], "a 3 ['x', 'y'] True"),
    ],
)
def test_a_command_gets_its_groups(line: list[str], output: str):
    app = typer.Typer()
    app.command()(draw)
    assert CliRunner().invoke(app, line).stdout.strip() == output
    assert CliRunner().invoke(app, ["a", "--width", "0"]).exit_code == 2


def test_the_options_stand_in_the_place_of_their_group_and_the_rest_is_kept():
    assert list(inspect.signature(draw).parameters) == ["what", "width", "names", "bold"]
    assert (draw.__doc__, draw.__name__, examples_of(draw)) == ("Draw.", "draw", ("draw a",))


def test_a_command_without_groups_is_itself():
    def plain(what: str) -> str:
        return what

    assert expand_groups(plain) is plain


def test_commands_do_not_share_the_lists_of_a_group():
    first = Size()
    first.names.append("x")
    assert Size().names == []


@pytest.mark.parametrize(
    "command",
    [
        ["hold", "prod/mail", "--reason", "x", "--until", "999999999d"],
        ["suspend", "prod", "--reason", "x", "--until", "999999999d"],
        ["task", "snooze", "cont_1", "--for", "999999999d"],
        ["trust", "init", "--key", "root.pem", "--expires", "999999999d"],
    ],
)
def test_a_duration_that_ends_after_all_years_is_refused(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["keys", "generate", "--output", "root.pem"]) == 0
    assert run(command) == 1
    assert "999999999d is longer" in capsys.readouterr().err
