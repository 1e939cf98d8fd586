"""Guardrails that run, with the steps and the tools of their agents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kneo.cli.main import run
from kneo.spec.coverage.policy import guardrail_places
from kneo.spec.index import SpecIndex
from kneo.spec.models.spec import Spec

MODEL = {"provider": "openai", "name": "m"}


def words(name: str, **more: object) -> dict[str, object]:
    return {"id": name, "type": "keyword", "config": {"keywords": ["no"]}, **more}


def tree(**changes: object) -> dict[str, object]:
    agents = {
        "writer": {
            "name": "writer",
            "model": MODEL,
            "strategy": {"type": "react"},
            "tools": {"include": ["ask_expert"]},
            "guardrails": {"output": [words("out"), words("empty", config={})], "tool": [words("calls")]},
        },
        "expert": {
            "name": "expert",
            "model": MODEL,
            "guardrails": {"input": [words("in")], "workflow": [words("between")], "tool": [words("none")]},
        },
        "idle": {"name": "idle", "model": MODEL, "guardrails": {"input": [words("unused")]}},
    }
    return {
        "version": "v1",
        "agent": {"name": "root", "model": {"provider": "dummy", "name": "d"}},
        "workflow": {
            "type": "sequential",
            "steps": [
                {"id": "draft", "kind": "agent", "ref": "writer"},
                {"id": "off", "kind": "agent", "ref": "idle", "enabled": False},
            ],
        },
        "components": {"agents": agents},
        "tools": {"ask_expert": {"description": "Ask.", "agent": "expert"}},
        **changes,
    }


def places(spec: dict[str, object]) -> set[tuple[str, str | None, tuple[str, ...], tuple[str, ...]]]:
    index = SpecIndex.of(Spec.model_validate(spec))
    return {(place.agent, place.guardrail.id, place.steps, place.tools) for place in guardrail_places(index)}


def test_guardrails_are_found_at_steps_and_behind_tools() -> None:
    assert places(tree()) == {
        ("writer", "out", ("draft",), ()),
        ("writer", "calls", ("draft",), ()),
        ("expert", "in", (), ("ask_expert",)),
    }


def test_the_root_agent_has_no_step() -> None:
    agent = {"name": "root", "model": MODEL, "guardrails": {"workflow": [words("between")]}}
    assert places({"version": "v1", "agent": agent}) == {("root", "between", (), ())}


def test_a_simulation_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(tree()))
    assert run(["spec", "simulate", "spec.json"]) == 0
    shown = capsys.readouterr().out
    assert "output: out (keyword, block) of writer at draft" in shown
    assert "input: in (keyword, block) of expert at tool ask_expert" in shown
    run(["spec", "simulate", "spec.json", "--json"])
    listed = json.loads(capsys.readouterr().out)["guardrails"]
    assert {each["id"] for each in listed} == {"out", "calls", "in"}
