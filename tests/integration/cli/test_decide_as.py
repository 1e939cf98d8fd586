"""The part of another person, tried by a developer on the local database, before anything is deployed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gates.asking import declare
from integration.cli.conftest import Kneo
from service_bench import Bench, serving

from kneo.cli.compose import make_store
from kneo.settings import from_env

HUMAN = {"description": "Fine?", "candidates": {"users": ["ann", "carol"], "exclude": ["carol"]}}
SPEC = {
    "version": "v1",
    "agent": {"name": "desk", "model": {"provider": "dummy", "name": "dummy"}},
    "workflow": {"type": "sequential", "name": "asks", "steps": [{"id": "approve", "kind": "human", "ref": "board"}]},
    "components": {"humans": {"board": HUMAN}},
}


@pytest.fixture
def task(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task of a local run that ann may decide, and dev, who started it, may not."""
    monkeypatch.setattr("getpass.getuser", lambda: "dev")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    return str(kneo("run", "spec.json", "--input", "hello", "--json").json["continuation_id"])


@pytest.mark.parametrize("words", [("task", "decide"), ("human", "resume")])
def test_the_part_of_another_person_is_recorded_with_who_tried_it(
    kneo: Kneo, task: str, words: tuple[str, ...]
) -> None:
    refused = kneo(*words, task, "--approve", "--json")
    assert json.loads(refused.out)["error"] == "not_a_candidate"
    done = kneo(*words, task, "--approve", "--as", "ann", "--json")
    assert done.json["status"] == "succeeded", done
    events = kneo("task", "history", task, "--json").json["events"]
    decided = [event for event in events if event["data"].get("decision") == "approved"]
    assert [(event["actor"], event["data"]["via"]) for event in decided] == [("ann", "local developer dev")]
    assert "approved via local developer dev" in kneo("task", "history", task).out
    [event] = [each for each in kneo("events", "--json").json["events"] if "via" in each["metadata"]]
    assert (event["actor"], event["metadata"]["via"]) == ("ann", "local developer dev")


@pytest.mark.parametrize(
    ("name", "error"), [("carol", "separation_of_duties"), ("bob", "not_a_candidate"), (" ", "invalid_name")]
)
def test_candidates_and_exclusions_hold_for_the_part(kneo: Kneo, task: str, name: str, error: str) -> None:
    refused = kneo("task", "decide", task, "--approve", "--as", name, "--json")
    assert (refused.status != 0, json.loads(refused.out)["error"]) == (True, error)
    assert kneo("task", "get", task, "--json").json["status"] == "open"


def test_parts_are_refused_where_an_environment_is_declared(kneo: Kneo, task: str) -> None:
    store = make_store(from_env())
    declare(store, inlineSpecs=True)
    store.close()
    refused = kneo("task", "decide", task, "--approve", "--as", "ann")
    assert refused.status != 0
    assert "Nothing was decided as ann" in refused.err
    assert "without --as" in refused.err
    assert kneo("task", "get", task, "--json").json["status"] == "open"


def test_parts_are_refused_over_http(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "service", f"sqlite:///{tmp_path / 'service.sqlite'}") as bench:
        monkeypatch.setenv("KNEO_SERV_API_KEY", "admin-key")
        waiting = bench.start(SPEC)["continuation_id"]
        refused = kneo("task", "decide", waiting, "--approve", "--as", "ann", "--service-url", bench.url)
        assert refused.status != 0
        assert "a service answers here" in refused.err
        assert is_open(bench, str(waiting))


def is_open(bench: Bench, task: str) -> bool:
    return bench.get(f"/human-tasks/{task}")["status"] == "open"


def test_a_part_is_not_signed(kneo: Kneo, task: str) -> None:
    refused = kneo("task", "decide", task, "--approve", "--as", "ann", "--key", "ann.pem")
    assert refused.status == 2
    assert "without a signature" in refused.err
