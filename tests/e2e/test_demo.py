"""The agent of ``make demo`` is stopped at its gate, and the payment that a person edited is made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples import demo


@pytest.mark.e2e
def test_the_agent_of_the_demo_pays_what_a_person_made_of_its_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    demo._agent_at_a_gate(demo.Demo(tmp_path), "")
    (payment,) = (tmp_path / "clerk" / "payments.jsonl").read_text().splitlines()
    assert {"to": "Bolt Ltd", "amount": 100}.items() <= json.loads(payment).items()
    shown = capsys.readouterr().out
    assert "not a real one" in shown
    assert "paused: clerk wants to call pay." in shown
    assert "Bolt Ltd was paid." in shown
