"""Answers signed beside the database: nobody is authenticated there, so whoever signs is who their key says they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gates.signing import KEYS, trust
from integration.cli.conftest import Kneo

from kneo.cli.compose import make_store
from kneo.settings import from_env

SPEC = {
    "version": "v1",
    "agent": {"name": "desk", "model": {"provider": "dummy", "name": "dummy"}},
    "workflow": {"type": "sequential", "name": "asks", "steps": [{"id": "approve", "kind": "human", "ref": "board"}]},
    "components": {"humans": {"board": {"description": "Fine?", "receipt": "signed_by_reviewer"}}},
}


@pytest.fixture
def ask(kneo: Kneo, tmp_path: Path) -> list[str]:
    """A run that waits for a signed answer; the words that answer it."""
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    (tmp_path / "ann.pem").write_bytes(KEYS["ann"].dump())
    (tmp_path / "ann.pub").write_text(KEYS["ann"].public.pem)
    waiting = kneo("run", "spec.json", "--input", "hello", "--json").json
    task = kneo("human", "list", "--json").json["tasks"][0]
    assert task["run_id"] == waiting["run_id"]
    return [task["id"], "--request-id", task["request"]["request_id"], "--approve", "--json"]


def test_the_key_says_who_answers(kneo: Kneo, ask: list[str], tmp_path: Path) -> None:
    refused = kneo("human", "resume", *ask, "--key", "ann.pem")
    assert (refused.status, json.loads(refused.out)["error"]) == (3, "no_trust_root")
    store = make_store(from_env())
    trust(store)
    store.close()
    assert kneo("human", "resume", *ask).status == 1
    done = kneo("human", "resume", *ask, "--key", "ann.pem")
    assert done.json["status"] == "succeeded", done
    shown = kneo("human", "receipt", "show", ask[0])
    assert "ann approved, signed with a key of their own" in shown.out
    (tmp_path / "receipt.json").write_text(kneo("human", "receipt", "show", ask[0], "--json").out)
    assert kneo("human", "receipt", "verify", "receipt.json", "--json").json["receipts"][0]["signed_by"] == ["ann"]


def test_an_answer_is_written_down_for_a_key_that_is_elsewhere(kneo: Kneo, ask: list[str]) -> None:
    store = make_store(from_env())
    trust(store)
    store.close()
    said = kneo("human", "statement", *ask, "-o", "answer.json", "--public", "ann.pub").json["said"]
    assert said["reviewer"] == "ann"
    assert kneo("human", "sign", "answer.json", "--key", "ann.pem").status == 0
    assert kneo("human", "resume", *ask, "--statement", "answer.json").json["status"] == "succeeded"
