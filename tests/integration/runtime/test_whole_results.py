"""Results of tools that are cut for the model and kept whole for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent_runs import AgentRuns, object_of
from model_server import Call, Reply, model_server
from operation_context import operation_context

from kneo.api.run_conversation import get_run_conversation, get_tool_result
from kneo.errors import InvalidValue, NotFound
from kneo.records.run import Run, RunStatus
from kneo.store.engine import Store

LONG = "zebra " * 100 + "ada@example.org"


def run_with(store: Store, folder: Path, patch: pytest.MonkeyPatch, *texts: str, keep: str = "whole") -> Run:
    replies = [Reply(calls=[Call("look", {"id": text}, id="c")]) for text in texts]
    with model_server([*replies, Reply("Done.")]) as server:
        runs = AgentRuns(store, folder / "code", server, patch)
        tool = runs.tool("look", object_of("id", "string"), keep=keep, max_result_chars=100)
        run = runs.drive(runs.begin(runs.agent_tree(tools={"look": tool})))
        assert "characters in all]" in server.requests[1].text or not texts[0].startswith("zebra")
    assert run.status is RunStatus.SUCCEEDED, run.error
    return run


def test_a_result_that_is_cut_for_the_model_is_kept_whole(
    timed_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(timed_store, tmp_path, monkeypatch, LONG)
    context = operation_context(timed_store)
    for name in ("c", "1.c"):
        shown = get_tool_result(context, run.id, name)
        assert (shown.tool, shown.conversation, shown.call) == ("look", "work~0", "1.c")
        assert "example.org" not in shown.text
        assert "zebra " * 100 in shown.text
    whole = get_tool_result(context, run.id, "c", whole=True)
    assert whole.text == json.dumps({"found": LONG})
    assert whole.characters == len(whole.text)
    [conversation] = get_run_conversation(context, run.id).conversations
    assert conversation.conversation == "work~0"
    assert run.usage is not None
    assert run.usage.tool_calls == 1


def test_calls_of_one_name_are_told_apart(timed_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(timed_store, tmp_path, monkeypatch, LONG, f"{LONG} again")
    context = operation_context(timed_store)
    with pytest.raises(InvalidValue, match="2 calls have the name"):
        get_tool_result(context, run.id, "c")
    assert "again" in get_tool_result(context, run.id, "2.c").text


@pytest.mark.parametrize(("text", "keep"), [("short", "whole"), (LONG, "shown")])
def test_other_results_are_not_kept_twice(
    timed_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, keep: str
) -> None:
    run = run_with(timed_store, tmp_path, monkeypatch, text, keep=keep)
    with pytest.raises(NotFound):
        get_tool_result(operation_context(timed_store), run.id, "c")
