"""Runs of one session: what a later run's agent sees of the earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agent_runs import MODEL, AgentRuns
from installation_key import find_key
from model_server import Call, ModelRequest, ModelServer, Reply, model_server
from sqlalchemy import insert, select

from kneo.clock import SystemClock
from kneo.records.agent_session import FinishedTurn, SessionKey
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.runtime.engine.start import StartRequest
from kneo.store import agent_sessions, history, tables
from kneo.store.authenticated import COVERED, with_mac
from kneo.store.engine import Store, Tx
from kneo.store.migrate import open_store

FUNCTIONS = """
def find(arguments):
    return ["about " + arguments["query"], "of " + str(arguments["top_k"]), "left out"]
def broken(arguments):
    raise RuntimeError("away")
def wrong(arguments):
    return [1, 2]
def sum_up(arguments):
    messages = arguments["messages"]
    return "{}, {} messages, the first: {}".format(arguments["summary"], len(messages), messages[0]["text"])
"""


class Sessions(AgentRuns):
    """Runs with a session, whose agent is a chat agent."""

    def __init__(self, store: Store, folder: Path, server: ModelServer, patch: pytest.MonkeyPatch) -> None:
        super().__init__(store, folder, server, patch)
        with (folder / f"{self.module}.py").open("a") as file:
            file.write(FUNCTIONS)

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
    store = open_store(migrated_url, SystemClock(), find_key)
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
        key = SessionKey(environment="", requester="bob", session_id="s0")
        agent_sessions.append(tx, key, "run_0", [FinishedTurn(agent="chat", user="u", assistant="a")])
        for table in (tables.agent_sessions, tables.session_messages):
            rows = [*tx.connection.execute(select(table)).mappings()]
            copies = [{**row, "session_id": f"s{number}"} for row in rows for number in range(1, 10_000)]
            covered = table.name in COVERED
            tx.connection.execute(insert(table), [with_mac(tx, table, copy) if covered else copy for copy in copies])

    chats.store.transact(fill)
    chats.chat("now", FULL, session="s77")
    assert seen(server.requests[-1]) == ["user: u", "assistant: a", "user: now"]
    with chats.store.read() as tx:
        assert agent_sessions.list_sessions(tx, "bob", limit=1)[1] == 10_000


# ---- summaries ------------------------------------------------------------------------------------------------------

SUMMARY = {"policy": "summary", "max_messages": 4, "summarizer": {"ref": "scribe"}}
SCRIBE = {"components": {"agents": {"scribe": {"name": "scribe", "model": {**MODEL, "name": "scribe"}}}}}


def summing_up(request: ModelRequest) -> Reply:
    if request.model != "scribe":
        return echo(request)
    text = request.body["messages"][-1]["content"]
    return Reply("summary of " + ", ".join(line[6:] for line in text.splitlines() if line.startswith("user: ")))


def scribed(server: ModelServer) -> list[ModelRequest]:
    return [request for request in server.requests if request.model == "scribe"]


def test_more_messages_than_stated_are_summarized_once(chats: Sessions, server: ModelServer) -> None:
    server.script = summing_up
    for text in ("one", "two", "three", "four"):
        run = chats.chat(text, SUMMARY, tree=SCRIBE)
    [asked] = scribed(server)
    assert "user: two" in asked.text
    assert "user: three" not in asked.text
    begins, *window = seen(server.requests[-1])
    assert begins.endswith("Summary of the earlier conversation:\nsummary of one, two")
    assert window == ["user: three", "assistant: You said three", "user: four"]
    # The summary is a row: the next run reads it, and no message before it.
    chats.chat("five", SUMMARY, tree=SCRIBE)
    assert len(scribed(server)) == 1
    assert seen(server.requests[-1])[0] == begins
    assert chats.look(run).usage.requests == 2


def test_a_summary_of_a_summary_has_the_earlier_one(chats: Sessions, server: ModelServer) -> None:
    server.script = summing_up
    for number in range(6):
        chats.chat(f"m{number}", SUMMARY, tree=SCRIBE)
    first, second = scribed(server)
    assert "Summary of the earlier conversation" not in first.text
    assert "summary of m0, m1" in second.text
    assert "user: m0" not in second.text


@pytest.mark.parametrize("failure", [Reply("no", status=400), Reply("  ")])
def test_a_summariser_that_fails_leaves_the_window(chats: Sessions, server: ModelServer, failure: Reply) -> None:
    server.script = lambda request: failure if request.model == "scribe" else echo(request)
    for text in ("one", "two", "three", "four"):
        run = chats.chat(text, SUMMARY, tree=SCRIBE)
        assert run.status is RunStatus.SUCCEEDED
    assert seen(server.requests[-1])[0] == "user: two"
    [failed] = chats.events(run, "memory_failed")
    assert failed["part"] == "summarizer"
    assert failed["memory_policy"] == "summary"
    server.script = summing_up
    chats.chat("five", SUMMARY, tree=SCRIBE)
    assert "summary of one, two, three" in seen(server.requests[-1])[0]


def test_a_function_summarizes(chats: Sessions, server: ModelServer) -> None:
    function = {"implementation": f"{chats.module}.sum_up"}
    tree = {"components": {"functions": {"sum_up": function}}}
    for text in ("one", "two", "three", "four"):
        run = chats.chat(text, {**SUMMARY, "summarizer": {"ref": "sum_up"}}, tree=tree)
    assert chats.events(run, "memory_failed") == []
    assert seen(server.requests[-1])[0].endswith("None, 4 messages, the first: one")


# ---- retrieval ------------------------------------------------------------------------------------------------------

RETRIEVAL = {"policy": "retrieval", "retriever": {"ref": "find"}, "top_k": 2, "max_messages": 2}


def with_tool(chats: Sessions, name: str = "find", **more: object) -> dict[str, object]:
    return {"tools": {"find": chats.tool(name, {"type": "object"}, **more)}}


@pytest.mark.parametrize("kind", ["function", "tool"])
def test_a_retriever_is_given_the_message_and_its_texts_are_shown(
    chats: Sessions, server: ModelServer, kind: str
) -> None:
    functions = {"components": {"functions": {"find": {"implementation": f"{chats.module}.find"}}}}
    tree = functions if kind == "function" else with_tool(chats)
    chats.chat("one", RETRIEVAL, tree=tree)
    run = chats.chat("two", RETRIEVAL, tree=tree)
    assert chats.events(run, "memory_failed") == []
    user, assistant, found, new = seen(server.requests[-1])
    assert (user, assistant, new) == ("user: one", "assistant: You said one", "user: two")
    assert "about two\n\nof 2" in found
    assert "left out" not in found
    assert "never instructions" in found
    assert "<untrusted-" in found


@pytest.mark.parametrize(
    ("name", "more", "error"),
    [
        ("broken", {}, "retriever_failed"),
        ("wrong", {}, "retriever_result_invalid"),
        ("find", {"deny": True}, "retriever_denied"),
    ],
)
def test_a_retriever_that_fails_leaves_the_window(
    chats: Sessions, server: ModelServer, name: str, more: Mapping[str, object], error: str
) -> None:
    tree = with_tool(chats, name)
    if more:
        permissions = {"permissions": {"denied_tools": ["find"]}}
        tree["agent"] = {"name": "chat", "model": MODEL, "memory": RETRIEVAL, "tools": permissions}
    chats.chat("one", RETRIEVAL, tree=tree)
    run = chats.chat("two", RETRIEVAL, tree=tree)
    assert run.status is RunStatus.SUCCEEDED
    assert seen(server.requests[-1]) == ["user: one", "assistant: You said one", "user: two"]
    assert [event["error"] for event in chats.events(run, "memory_failed")] == [error]


def test_the_gate_of_a_retriever_asks_before_it_is_called(chats: Sessions, server: ModelServer) -> None:
    tree = with_tool(chats, review={"before": {"human": "boss"}})
    tree["components"] = {"humans": {"boss": {}}}
    run = chats.chat("one", RETRIEVAL, tree=tree)
    assert run.status is RunStatus.PAUSED
    assert server.requests == []
    chats.decide(chats.open(run)[0], "approved")
    assert chats.drive(run).status is RunStatus.SUCCEEDED
    assert "about one" in seen(server.requests[-1])[0]


# ---- long turns -----------------------------------------------------------------------------------------------------

TOO_LONG = Reply("This model's maximum context length is 8192 tokens.", status=400)


def test_requests_beyond_the_window_leave_out_the_oldest_results(chats: Sessions, server: ModelServer) -> None:
    def small_window(request: ModelRequest) -> Reply:
        if request.text.count('{\\"found') > 2:
            return TOO_LONG
        return Reply(calls=[Call("look", {"id": str(request.turns)})]) if request.turns < 5 else Reply("Done.")

    server.script = small_window
    run = chats.drive(chats.begin(chats.agent_tree()))
    assert run.status is RunStatus.SUCCEEDED
    last = [message["content"] for message in server.requests[-1].body["messages"] if message["role"] == "tool"]
    assert last[0] == "[dropped]"
    assert '"4"' in last[-1]
    assert len(last) == 5
    shortened = chats.events(run, "request_shortened")
    assert shortened
    assert shortened[-1]["left_out_messages"] == 0
    # The rows are whole, and a process that continues knows what its requests leave out.
    assert "[dropped]" not in str([entry.body for entry in chats.journal(run)])
    [*_, reply] = [entry for entry in chats.journal(run) if entry.name.startswith("model:")]
    assert reply.facts["left_out_results"] == shortened[-1]["left_out_results"]


def test_a_session_that_is_too_long_for_the_model_does_not_stop_its_runs(chats: Sessions, server: ModelServer) -> None:
    for text in ("one", "two", "three"):
        chats.chat(text, FULL)
    server.script = lambda request: TOO_LONG if len(request.body["messages"]) > 3 else echo(request)
    run = chats.chat("four", FULL)
    assert run.status is RunStatus.SUCCEEDED
    assert seen(server.requests[-1]) == ["user: three", "assistant: You said three", "user: four"]
    [shortened] = chats.events(run, "request_shortened")
    assert shortened["left_out_messages"] == 4
    server.script = lambda _request: TOO_LONG
    failed = chats.chat("five", FULL)
    assert failed.error is not None
    assert failed.error.type == "model_refused"


def test_a_participant_leaves_its_own_input_alone(chats: Sessions, server: ModelServer) -> None:
    server.script = lambda request: Reply(f"{request.model} answers")
    agents = {name: {"name": name, "model": {**MODEL, "name": name}, "memory": FULL} for name in ("ann", "ben")}
    steps = [{"id": name, "kind": "agent", "ref": name} for name in agents]
    tree = {
        "workflow": {"type": "group-chat", "participants": steps, "rounds": 2},
        "components": {"agents": agents},
    }
    chats.chat("go", FULL, tree=tree)
    assert "conversation so far" in server.requests[-1].text
    assert chats.messages(agent="ann") == ["go", "ann answers", "ben answers", "ann answers"]
    assert chats.messages(agent="ben") == ["ann answers", "ben answers"] * 2


# ---- guardrails -----------------------------------------------------------------------------------------------------


def guarded(stage: str, action: str) -> dict[str, object]:
    pattern = {"id": "secret", "type": "regex", "action": action, "config": {"patterns": ["sesame"]}}
    return {"agent": {"name": "chat", "model": MODEL, "memory": FULL, "guardrails": {stage: [pattern]}}}


def test_what_a_guardrail_takes_out_is_in_no_session(chats: Sessions, server: ModelServer) -> None:
    assert chats.chat("open sesame", FULL, tree=guarded("input", "redact")).status is RunStatus.SUCCEEDED
    assert "sesame" not in str(chats.messages())
    assert chats.messages()[0].startswith("open ")
    server.script = lambda _request: Reply("say sesame")
    assert chats.chat("how?", FULL, tree=guarded("output", "redact")).status is RunStatus.SUCCEEDED
    assert "sesame" not in str(chats.messages())
    assert len(chats.messages()) == 4


@pytest.mark.parametrize("stage", ["input", "output"])
def test_what_a_guardrail_blocks_is_in_no_session(chats: Sessions, server: ModelServer, stage: str) -> None:
    server.script = lambda _request: Reply("sesame")
    run = chats.chat("sesame", FULL, tree=guarded(stage, "block"))
    assert run.status is RunStatus.FAILED
    assert chats.messages() == []
    # A blocked input is not even what the conversation begins with.
    assert any(entry.name == "memory:0" for entry in chats.journal(run)) is (stage == "output")
