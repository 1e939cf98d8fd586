import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kneo.cli import render
from kneo.settings import colour_wanted


def test_lines_go_where_they_belong(capsys: pytest.CaptureFixture[str]):
    render.success("done")
    render.warning("odd", "look")
    render.failure("broken")
    captured = capsys.readouterr()
    assert captured.out == "✓ done\n"
    assert captured.err == "⚠ odd\n  look\n✗ broken\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-172_800, "2 d ago"),
        (-3_599, "59 min ago"),
        (-59, "just now"),
        (4, "just now"),
        (30, "in less than a minute"),
        (7_200, "in 2 h"),
    ],
)
def test_times_are_shown_relative_to_now(seconds: int, shown: str):
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert render.relative((now + timedelta(seconds=seconds)).isoformat(), now) == shown
    assert render.relative(None, now) == ""


def test_json_or_words(capsys: pytest.CaptureFixture[str]):
    value = {"path": Path("a"), "name": "é"}
    render.emit(value, as_json=True, text=lambda: render.text("words"))
    out = capsys.readouterr().out
    assert json.loads(out) == {"path": "a", "name": "é"}
    assert out.startswith('{\n  "path"')
    render.emit(value, as_json=False, text=lambda: render.text("words"))
    assert capsys.readouterr().out == "words\n"


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]):
    hostile = "\x1b[31mred\u202egnp"
    render.text(hostile)
    render.success(hostile)
    render.table(hostile and "T", ["C"], [[hostile]])
    render.panel("P", [("Output", hostile)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out


@pytest.mark.parametrize("columns", ["20", "40", "200"])
def test_tables_lose_no_text_on_narrow_terminals(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(render, "PIPED_COLUMNS", int(columns))
    digest = "sha256:" + "ab" * 32
    render.table("Releases", ["Bundle", "Digest"], [["announcement", digest], [None, 3]])
    out = capsys.readouterr().out
    letters = "".join(out.split())
    assert letters.count("ab") >= 24
    assert all(len(row) <= int(columns) for row in out.splitlines())


def test_square_brackets_are_text(capsys: pytest.CaptureFixture[str]):
    render.table("", ["A"], [["[bold]x[/bold]"]])
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_colour_follows_the_environment():
    assert colour_wanted({})
    assert colour_wanted({"NO_COLOR": ""})
    assert not colour_wanted({"NO_COLOR": "1"})
    assert not colour_wanted({"TERM": "dumb"})


def test_json_is_the_same_value_without_control_characters(capsys: pytest.CaptureFixture[str]):
    value = {"a\u202e": "\x9b2J \u2066 \x7f\x1b[0m", "b": ["ü", "\n"]}
    for show in (render.print_json, render.print_line):
        show(value)
        printed = capsys.readouterr().out
        assert json.loads(printed) == value
        assert not any(sign in printed for sign in "\x9b\u202e\u2066\x7f\x1b")
