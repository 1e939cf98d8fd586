"""Commands that prove or decide something do not begin with a database of their own making."""

from __future__ import annotations

from pathlib import Path

import pytest

from kneo.cli.main import run


@pytest.mark.parametrize("command", [["audit", "verify"], ["audit", "checkpoint"], ["why", "prod/mail"]])
def test_nothing_is_made_where_there_is_no_database(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KNEO_SERV_DATABASE_URL", raising=False)
    assert run(command) == 4
    assert "There is no database at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
