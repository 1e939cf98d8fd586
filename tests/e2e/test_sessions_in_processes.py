"""Sessions over processes: one that is killed in the middle, and another one that continues, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Machine, eventually
from model_server import ModelRequest, ModelServer, Reply, model_server
from model_turns import variables

pytestmark = pytest.mark.e2e

SPEC = {
    "version": "v1",
    "agent": {
        "name": "chat",
        "model": {"provider": "openai", "name": "m", "extra": {"api": "chat"}},
        "memory": {"policy": "full"},
    },
}


class Talk:
    """Answers; the first request with the text ``wait`` gets no answer."""

    held = False

    def __call__(self, request: ModelRequest) -> Reply:
        said = request.body["messages"][-1]["content"]
        if said == "wait" and not self.held:
            self.held = True
            return Reply(hold=True)
        return Reply(f"You said {said}")


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(Talk()) as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, database_url: str, server: ModelServer) -> Iterator[Machine]:
    made = Machine(tmp_path / "machine", database_url, **variables(server))
    try:
        yield made
    finally:
        made.stop()


def test_a_killed_process_leaves_the_session_to_the_next(machine: Machine, server: ModelServer) -> None:
    def seen(text: str) -> list[list[str]]:
        """Return the messages of each request that asked about a text."""
        texts = [[message["content"] for message in request.body["messages"]] for request in server.requests]
        return [each for each in texts if each[-1] == text]

    body = {"spec": SPEC, "session_id": "s", "target": "agent"}
    first = machine.up()
    assert first.post("/runs", {**body, "input": "one"})["status"] == "succeeded"
    held = first.post("/runs", {**body, "input": "wait", "async_mode": True}, expect=202)["run_id"]
    eventually(lambda: seen("wait"))
    first.kill()

    second = machine.up()
    eventually(lambda: second.get(f"/runs/{held}")["status"] == "succeeded")
    assert seen("wait") == [["one", "You said one", "wait"]] * 2
    assert second.post("/runs", {**body, "input": "two"})["status"] == "succeeded"
    assert seen("two") == [["one", "You said one", "wait", "You said wait", "two"]]
    [session] = second.get("/sessions")["sessions"]
    assert (session["session_id"], session["message_count"]) == ("s", 6)
