"""Runs of one session: what a later run's agent sees of the earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agent_runs import MODEL, AgentRuns
from model_server import Call, ModelRequest, ModelServer, Reply, model_server

from kneo.clock import SystemClock
from kneo.records.agent_session import FinishedTurn, SessionKey
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.runtime.engine.start import StartRequest
from kneo.store import agent_sessions, history
from kneo.store.engine import Store, Tx
from kneo.store.migrate import open_store


class Sessions(AgentRuns):
    """Runs with a session, whose agent is a chat agent."""

    def chat(self, text: str, memory: Mapping[str, object], **more: Any) -> Run:
        run = self.start_chat(text, memory, **more)
        return self.drive(run)

    def start_chat(
        self,
        text: str,
        memory: Mapping[str, object],
        *,
        session: str | None = "s",
        requester: str = "bob",
        tree: Mapping[str, object] | None = None,
    ) -> Run:
        spec: dict[str, object] = {"agent": {"name": "chat", "model": MODEL, "memory": memory}, **(tree or {})}
        origin = {"session_id": session} if session is not None else {}
        return self.starter.start(StartRequest(input=text, requester=requester, spec=spec, origin=origin))

    def messages(self, requester: str = "bob", session: str = "s", agent: str = "chat") -> list[str]:
        key = SessionKey(environment="", requester=requester, session_id=session)
        with self.store.read() as tx:
            return [each.text for each in agent_sessions.newest_messages(tx, key, agent, limit=1000)]

    def events(self, run: Run, kind: str) -> list[Mapping[str, object]]:
        with self.store.read() as tx:
            return [event.data for event in history.list_trace(tx, run.id) if event.type == kind]


def seen(request: ModelRequest) -> list[str]:
    """Return the texts of a request's messages."""
    return [f"{message['role']}: {message['content']}" for message in request.body["messages"]]


def echo(request: ModelRequest) -> Reply:
    return Reply(f"You said {request.body['messages'][-1]['content']}")


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url, SystemClock())
    yield store
    store.close()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(echo) as server:
        yield server


@pytest.fixture
def chats(store: Store, tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(store, tmp_path / "code", server, monkeypatch)


FULL = {"policy": "full"}


def test_a_later_run_sees_the_earlier_ones(chats: Sessions, server: ModelServer) -> None:
    chats.chat("one", FULL)
    second = chats.chat("two", FULL)
    assert seen(server.requests[-1]) == ["user: one", "assistant: You said one", "user: two"]
    chats.chat("three", FULL)
    assert seen(server.requests[-1])[2:] == ["user: two", "assistant: You said two", "user: three"]
    with chats.store.read() as tx:
        [step] = history.list_steps(tx, second.id)
    assert step.facts["memory"] == {"policy": "full", "before_message_count": 2, "after_message_count": 2}
    assert chats.events(second, "memory_recalled")[0]["before_message_count"] == 2
    assert "You said one" not in str(chats.events(second, "memory_recalled"))


def test_a_run_sees_nothing_of_another_session_or_requester(chats: Sessions, server: ModelServer) -> None:
    chats.chat("secret", FULL)
    for more in ({"session": "t"}, {"session": None}, {"requester": "eve"}):
        chats.chat("hello", FULL, **more)
        assert seen(server.requests[-1]) == ["user: hello"]
    assert chats.messages() == ["secret", "You said secret"]
    assert chats.messages("eve") == ["hello", "You said hello"]


def test_an_agent_without_memory_leaves_nothing(chats: Sessions) -> None:
    spec = {"agent": {"name": "chat", "model": MODEL}}
    chats.chat("one", {}, tree=spec)
    assert chats.messages() == []


def test_a_sliding_window_shows_the_newest_messages_beginning_with_the_user(
    chats: Sessions, server: ModelServer
) -> None:
    for text in ("one", "two", "three"):
        chats.chat(text, {"policy": "sliding_window", "max_messages": 3})
    assert seen(server.requests[-1]) == ["user: two", "assistant: You said two", "user: three"]


def test_a_turn_that_is_entered_again_sees_the_same_past(chats: Sessions, server: ModelServer) -> None:
    def pay_first(request: ModelRequest) -> Reply:
        asks = request.body["messages"][-1]["content"] == "pay"
        return Reply(calls=[Call("pay", {"amount": 5})]) if asks else echo(request)

    server.script = pay_first
    tree = chats.agent_tree(teller={"memory": FULL})
    assert chats.chat("one", FULL, tree=tree).status is RunStatus.SUCCEEDED
    paused = chats.chat("pay", FULL, tree=tree)
    assert paused.status is RunStatus.PAUSED
    chats.chat("between", FULL, tree=tree)
    chats.decide(chats.open(paused)[0], "approved")
    assert chats.drive(paused).status is RunStatus.SUCCEEDED
    again = [line for line in seen(server.requests[-1]) if line.startswith("user")]
    assert again == ["user: one", "user: pay"]
    assert chats.messages(agent="teller")[-2] == "pay"


def test_what_a_person_rejected_or_edited_is_in_no_session_before(chats: Sessions, server: ModelServer) -> None:
    answers = iter(["first draft", "second draft"])
    server.script = lambda _request: Reply(next(answers))
    gate = {"after": {"human": "boss", "on_reject": "retry"}}
    tree = {
        "workflow": [{"id": "draft", "kind": "agent", "ref": "chat", "review": gate}],
        "components": {"humans": {"boss": {}}},
    }
    run = chats.chat("write", FULL, tree=tree)
    assert run.status is RunStatus.PAUSED
    assert chats.messages() == []
    chats.decide(chats.open(run)[0], "rejected", feedback="Shorter.")
    run = chats.drive(run)
    assert chats.messages() == []
    chats.decide(chats.open(run)[0], "edited", content="final text")
    assert chats.drive(run).status is RunStatus.SUCCEEDED
    assert chats.messages() == ["write", "final text"]


def test_a_run_that_fails_leaves_nothing(chats: Sessions, server: ModelServer) -> None:
    replies = iter([Reply("fine"), Reply("no", status=400)])
    server.script = lambda _request: next(replies)
    tree = {
        "workflow": [{"id": "one", "kind": "agent", "ref": "chat"}, {"id": "two", "kind": "agent", "ref": "chat"}],
    }
    assert chats.chat("go", FULL, tree=tree).status is RunStatus.FAILED
    assert chats.messages() == []


def test_two_runs_at_the_same_time_both_leave_their_turns(chats: Sessions) -> None:
    runs = [chats.start_chat(text, FULL) for text in ("a", "b")]
    for run in runs:
        chats.drive(run)
    assert sorted(chats.messages()[::2]) == ["a", "b"]


def test_a_fork_does_not_see_what_its_parent_answered(chats: Sessions, server: ModelServer) -> None:
    chats.chat("one", FULL)
    parent = chats.chat("two", FULL)
    order = ForkRequest(run_id=parent.id, step="chat", requester="bob")
    chats.drive(fork(chats.starter, ProgramLoader(chats.store), order))
    assert seen(server.requests[-1]) == ["user: one", "assistant: You said one", "user: two"]


def test_ten_thousand_sessions_are_rows_alone(chats: Sessions, server: ModelServer) -> None:
    def fill(tx: Tx) -> None:
        for number in range(10_000):
            key = SessionKey(environment="", requester="bob", session_id=f"s{number}")
            agent_sessions.append(tx, key, "run_0", [FinishedTurn(agent="chat", user="u", assistant="a")])

    chats.store.transact(fill)
    chats.chat("now", FULL, session="s77")
    assert seen(server.requests[-1]) == ["user: u", "assistant: a", "user: now"]
    with chats.store.read() as tx:
        assert agent_sessions.list_sessions(tx, "bob", limit=1)[1] == 10_000
