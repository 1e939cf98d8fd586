import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kneo.cli import main as frame
from kneo.cli.commands import COMMANDS, Entry
from kneo.errors import Conflict, Invalid, NotFound, Transient, Untrusted, Usage

HEAVY = (
    "alembic",
    "cryptography",
    "fastapi",
    "git",
    "httpx",
    "jsonschema",
    "rich",
    "sqlalchemy",
    "uvicorn",
    "watchdog",
)


def put(monkeypatch: pytest.MonkeyPatch, name: str, function: object) -> None:
    """Add a command to the tree for one test."""
    module = type(sys)("cli_test_command")
    module.target = function
    monkeypatch.setitem(sys.modules, "cli_test_command", module)
    monkeypatch.setitem(COMMANDS, name, Entry("cli_test_command:target", "For this test."))


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import sys\nfrom kneo.cli.main import run\n"
        f"status = run({list(arguments)!r})\n"
        "print('\\n'.join(['@', *sorted(sys.modules)]))\n"
        "raise SystemExit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.partition("@\n")[2].split())


def test_help_imports_no_command_and_nothing_heavy():
    modules = imported_by("--help")
    assert modules.isdisjoint(HEAVY)
    assert {m for m in modules if m.startswith("kneo.cli.")} == {
        "kneo.cli.commands",
        "kneo.cli.main",
        "kneo.cli.options",
        "kneo.cli.render",
    }


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_entry_of_the_table_can_be_called_for_help(name: str, capsys: pytest.CaptureFixture[str]):
    assert frame.run([name, "--help"]) == 0
    assert f"kneo {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    assert frame.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_no_arguments_show_help_and_fail(capsys: pytest.CaptureFixture[str]):
    assert frame.run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: kneo")


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str, capsys: pytest.CaptureFixture[str]):
    assert frame.run([option]) == 0
    assert capsys.readouterr().out.startswith("kneo 0.")


@pytest.mark.parametrize(
    ("error", "status"),
    [(Invalid, 1), (Usage, 2), (Untrusted, 3), (NotFound, 4), (Conflict, 5), (Transient, 75)],
)
def test_errors_become_one_line_and_an_exit_status(
    error: type[Invalid], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def command(*, json: bool = False) -> None:
        raise error("It is wrong.", hint="Make it right.", file="a.yaml")

    put(monkeypatch, "probe", command)
    assert frame.run(["probe"]) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "✗ It is wrong.\n  Make it right.\n")


def test_errors_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def command(*, json: bool = False) -> None:
        raise Untrusted("Nobody signed it.", code="SignatureInvalid", file=Path("b.json"))

    put(monkeypatch, "probe", command)
    assert frame.run(["probe", "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "error": "SignatureInvalid",
        "message": "Nobody signed it.",
        "hint": None,
        "file": "b.json",
    }


def test_a_defect_is_one_line_unless_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        raise ZeroDivisionError("one over none")

    put(monkeypatch, "probe", command)
    assert frame.run(["probe"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: one over none" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("KNEO_SERV_DEBUG", "1")
    assert frame.run(["probe"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(monkeypatch: pytest.MonkeyPatch):
    def command() -> None:
        raise KeyboardInterrupt

    put(monkeypatch, "probe", command)
    assert frame.run(["probe"]) == 130


def test_a_command_may_return_or_raise_its_status(monkeypatch: pytest.MonkeyPatch):
    def returns() -> int:
        return 10

    def raises() -> None:
        raise typer.Exit(7)

    put(monkeypatch, "probe", returns)
    assert frame.run(["probe"]) == 10
    put(monkeypatch, "probe", raises)
    assert frame.run(["probe"]) == 7


@pytest.mark.parametrize("arguments", [["a.yaml", "--env", "dev"], ["--env", "dev", "a.yaml"], ["--env=dev", "a.yaml"]])
def test_options_before_and_after_arguments(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def command(spec: str, env: str = "") -> None:
        typer.echo(f"{spec} {env}")

    put(monkeypatch, "probe", command)
    assert frame.run(["probe", *arguments]) == 0
    assert capsys.readouterr().out == "a.yaml dev\n"


def test_a_misspelled_command_gets_a_guess(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    put(monkeypatch, "reconcile", print)
    assert frame.run(["reconcil"]) == 2
    assert "Did you mean reconcile?" in capsys.readouterr().err


def test_unknown_options_are_usage_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def command() -> None: ...

    put(monkeypatch, "probe", command)
    assert frame.run(["probe", "--nope"]) == 2
    assert "See kneo probe --help." in capsys.readouterr().err
    assert frame.run(["probe", "--nope", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "usage"


def test_groups_and_their_parts_from_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    group, part = typer.Typer(), typer.Typer()

    @group.command()
    def lint() -> None:
        typer.echo("linted")

    @part.command("sign")
    def sign_it() -> None:
        typer.echo("signed")

    put(monkeypatch, "probe", group)
    here, there = COMMANDS["probe"], type(sys)("cli_test_part")
    there.target = part
    monkeypatch.setitem(COMMANDS, "probe", here._replace(parts={"bundle": Entry("cli_test_part:target", "Bundles.")}))
    assert frame.run(["probe", "--help"]) == 0
    assert "bundle" in capsys.readouterr().out, "listed without being importable"
    monkeypatch.setitem(sys.modules, "cli_test_part", there)
    assert frame.run(["probe", "lint"]) == 0
    assert frame.run(["probe", "bundle", "sign"]) == 0
    assert capsys.readouterr().out == "linted\nsigned\n"
    assert frame.run(["probe"]) == 2


def test_a_reader_that_leaves_is_no_error(tmp_path: Path):
    script = f"{sys.executable} -c 'from kneo.cli.main import main; main([\"--help\"])' | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("group", "unneeded"),
    [
        ("spec", {"kneo.cli.specs.bundle", "kneo.cli.clone", "cryptography"}),
        ("keys", {"kneo.cli.specs.trust", "kneo.cli.specs.spec", "kneo.spec.lint"}),
        ("trust", {"kneo.cli.specs.bundle", "kneo.cli.specs.spec", "kneo.spec.lint"}),
    ],
)
def test_a_groups_help_imports_what_it_needs(group: str, unneeded: set[str]):
    modules = imported_by(group, "--help")
    assert modules.isdisjoint(unneeded | {"fastapi", "git", "httpx", "rich", "sqlalchemy", "uvicorn", "watchdog"})


@pytest.mark.parametrize(
    ("typed", "offered"), [("kneo rec", "reconcile"), ("kneo runs wa", "watch"), ("kneo runs list --sta", "--status")]
)
def test_shells_complete_commands_and_options(typed: str, offered: str):
    variables = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_KNEO_COMPLETE": "complete_bash"}
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-m", "kneo.cli.main"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert offered in done.stdout.split()
