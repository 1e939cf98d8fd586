"""The journal of a run's agents: written by the session behind its fence, while the step is under way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from installation_key import find_key
from kneo_process import eventually
from scripted_agents import ScriptedAgents, question, reply, spec

from kneo.agents.turn import PeopleRequired, Postponed
from kneo.background import background
from kneo.clock import ManualClock, SystemClock
from kneo.records.conversation import ConversationEntry
from kneo.records.run import NewTrace, Run, RunStatus
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask, TaskStatus
from kneo.runtime.engine.assemble import worker_on
from kneo.runtime.engine.recover import cancel_run
from kneo.runtime.engine.wait import find_run
from kneo.runtime.steps.agents import Conversation
from kneo.store import agent_journal, history, runs, tasks
from kneo.store.agent_journal import JournalLimits
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.tasks.decisions import DecisionNotAllowed, DecisionRequest
from kneo.tasks.inbox import decide


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield store
    store.close()


def journal(store: Store, run: Run) -> list[tuple[str, str]]:
    with store.read() as tx:
        return [(entry.conversation, entry.name) for entry in agent_journal.list_entries(tx, run.id)]


def trace(store: Store, run: Run) -> list[tuple[int, str]]:
    with store.read() as tx:
        return [(event.sequence, event.type) for event in history.list_trace(tx, run.id)]


def open_tasks(store: Store, run: Run) -> dict[str, HumanTask]:
    with store.read() as tx:
        return {task.key: task for task in tasks.of_run(tx, run.id, UNRESOLVED)}


def answer(store: Store, task: HumanTask, kind: str, **more: object) -> HumanTask:
    request = DecisionRequest(request_id=task.request_id, decision=DecisionKind(kind), **more)
    return decide(store, task.id, request, actor="ann")


def test_entries_are_written_with_their_trace_and_usage_while_the_step_runs(store: Store) -> None:
    seen: list[object] = []

    async def turn(conversation: Conversation, _path: str) -> str:
        await conversation.journal.append(reply(1), trace=[NewTrace(type="model_completed", step_id="work", data={})])
        seen.append([entry.name for entry in conversation.journal.load()])
        await conversation.journal.below("1.a").append(reply(1), durable=False)
        return "done"

    agents = ScriptedAgents(store, turn)
    run = agents.drive(agents.start())
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "done")
    assert seen == [["model:1"]]
    assert journal(store, run) == [("work~0", "model:1"), ("work~0>1.a", "model:1")]
    assert (run.usage.requests, run.usage.input_tokens, run.usage.output_tokens) == (2, 20, 2)
    events = trace(store, run)
    assert [number for number, _ in events] == list(range(1, run.trace_count + 1))
    assert [kind for _, kind in events] == [
        "workflow_started",
        "model_completed",
        "step_completed",
        "workflow_completed",
    ]


def test_appends_of_parallel_branches_are_all_written(store: Store) -> None:
    async def turn(conversation: Conversation, path: str) -> str:
        await asyncio.gather(*(conversation.journal.append(reply(number)) for number in range(1, 11)))
        return path

    agents = ScriptedAgents(store, turn)
    branches = [{"id": f"b{number}", "kind": "agent", "ref": "teller"} for number in range(4)]
    run = agents.drive(agents.start(spec({"id": "all", "kind": "parallel", "steps": branches})))
    assert run.status is RunStatus.SUCCEEDED
    assert len(set(journal(store, run))) == 40
    assert run.usage.requests == 40


def test_an_entry_that_cannot_be_written_fails_its_step_alone(store: Store) -> None:
    async def turn(conversation: Conversation, path: str) -> str:
        if path == "all/bad":
            await conversation.journal.append(reply(1, body={"text": "x" * JournalLimits().body_bytes}))
        await conversation.journal.append(reply(1))
        return path

    agents = ScriptedAgents(store, turn)
    good = {"id": "good", "kind": "agent", "ref": "teller"}
    bad = {"id": "bad", "kind": "agent", "ref": "teller", "on_error": "continue"}
    run = agents.drive(agents.start(spec({"id": "all", "kind": "parallel", "steps": [bad, good]})))
    assert run.status is RunStatus.SUCCEEDED
    assert journal(store, run) == [("all/good~0", "model:1")]
    with store.read() as tx:
        [failed] = [step for step in history.list_steps(tx, run.id) if step.status == "failed"]
    assert failed.error is not None
    assert (failed.step_id, failed.error.type) == ("all/bad", "conversation_too_long")


def take_over(store: Store, run: Run) -> None:
    with store.write() as tx:
        runs.clear_owners(tx)
        assert runs.acquire(tx, run.id, "another") is not None


@pytest.mark.parametrize("end", ["taken over", "cancelled"])
def test_a_session_that_lost_its_run_writes_nothing_and_its_step_ends_at_the_append(store: Store, end: str) -> None:
    calls: list[str] = []
    ended: list[str] = []

    async def turn(conversation: Conversation, _path: str) -> str:
        await conversation.journal.append(reply(1))
        calls.append("one")
        if len(calls) > 1:
            return "again"
        await asyncio.to_thread(lose)
        try:
            await conversation.journal.append(reply(2))
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        calls.append("a call after the run was lost")
        return "done"

    def lose() -> None:
        if end == "cancelled":
            cancel_run(store, run.id, actor="ann")
        else:
            take_over(store, run)

    agents = ScriptedAgents(store, turn)
    run = agents.start()
    after = agents.drive(run)
    assert calls == ["one"]
    assert ended == ["cancelled"]
    assert journal(store, run) == [("work~0", "model:1")]
    assert after.status is (RunStatus.CANCELLED if end == "cancelled" else RunStatus.RUNNING)
    assert after.owner == (None if end == "cancelled" else "another")


def test_each_answer_continues_the_turn_while_the_others_are_open(store: Store) -> None:
    called: list[str] = []

    async def turn(conversation: Conversation, _path: str) -> str:
        left = []
        for name in "abc":
            given = conversation.answers.get(question(f"1.{name}").key)
            if given is None:
                left.append(question(f"1.{name}"))
            elif name not in called:
                called.append(name)
        if left:
            raise PeopleRequired(left)
        return ",".join(called)

    agents = ScriptedAgents(store, turn)
    run = agents.drive(agents.start())
    assert run.status is RunStatus.PAUSED
    assert set(open_tasks(store, run)) == {"work.pay:1.a", "work.pay:1.b", "work.pay:1.c"}
    for count, name in enumerate("bca", 1):
        task = open_tasks(store, run)[f"work.pay:1.{name}"]
        assert task.subject == '{"arguments":{"amount":5},"tool":"pay"}'
        assert task.title == "pay(amount: 5)"
        assert task.prompt == "Fine?\n\n- amount: 5"
        answer(store, task, "approved", expect_digest=task.subject_digest)
        run = agents.drive(run)
        assert called == list("bca"[:count])
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "b,c,a")
    assert [kind for _, kind in trace(store, run)].count("step_waiting") == 3


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"content": '{"amount": "six"}'}, "amount must satisfy type"),
        ({"content": '{"amount": 0}'}, "amount must satisfy minimum"),
        ({"content": "{}"}, "amount is required"),
        ({"arguments": {"amount": 6, "to": "eve"}}, "has unknown fields"),
        ({"content": "six"}, "not a JSON object"),
        ({"content": '{"amount": NaN}'}, "not a JSON object"),
        ({"content": "[" * 100_000}, "not a JSON object"),
        ({"content": '{"amount": 6}', "arguments": {"amount": 7}}, "instead of content"),
    ],
)
def test_edited_arguments_that_do_not_fit_are_refused_when_they_are_sent(
    store: Store, sent: dict[str, object], says: str
) -> None:
    async def turn(_conversation: Conversation, _path: str) -> str:
        raise PeopleRequired([question()])

    agents = ScriptedAgents(store, turn)
    run = agents.drive(agents.start())
    [before] = open_tasks(store, run).values()
    with pytest.raises(DecisionNotAllowed, match=says) as refused:
        answer(store, before, "edited", **sent)
    assert (refused.value.http_status, refused.value.code) == (422, "human_input_invalid")
    assert list(open_tasks(store, run).values()) == [before]


@pytest.mark.parametrize("sent", [{"content": ' {"amount": 6}'}, {"arguments": {"amount": 6}}])
def test_edited_arguments_reach_the_turn(store: Store, sent: dict[str, object]) -> None:
    async def turn(conversation: Conversation, _path: str) -> str:
        given = conversation.answers.get(question().key)
        if given is None:
            raise PeopleRequired([question()])
        assert given.kind is DecisionKind.EDITED
        return str(json.loads(given.content or "")["amount"])

    agents = ScriptedAgents(store, turn)
    run = agents.drive(agents.start())
    answer(store, *open_tasks(store, run).values(), "edited", **sent)
    assert agents.drive(run).output_text == "6"


def test_arguments_are_for_tool_calls_alone(store: Store) -> None:
    async def turn(_conversation: Conversation, _path: str) -> str:
        return "draft"

    agents = ScriptedAgents(store, turn)
    after = {"id": "work", "kind": "agent", "ref": "teller", "review": {"after": {"human": "ops"}}}
    run = agents.drive(agents.start(spec(after)))
    [task] = open_tasks(store, run).values()
    with pytest.raises(DecisionNotAllowed, match="only where a tool call is edited"):
        answer(store, task, "edited", arguments={"amount": 6})


def test_a_question_that_is_no_longer_asked_is_cancelled(store: Store) -> None:
    async def turn(conversation: Conversation, _path: str) -> str:
        if conversation.answers:
            return "done"
        raise PeopleRequired([question("1.a"), question("1.b")])

    agents = ScriptedAgents(store, turn)
    run = agents.drive(agents.start())
    answer(store, open_tasks(store, run)["work.pay:1.a"], "rejected", content="no")
    run = agents.drive(run)
    assert run.status is RunStatus.SUCCEEDED
    with store.read() as tx:
        found = {task.key: task.status for task in tasks.of_run(tx, run.id, TaskStatus)}
    assert found == {"work.pay:1.a": TaskStatus.APPLIED, "work.pay:1.b": TaskStatus.CANCELLED}


def test_a_rejection_that_stops_ends_the_run_without_another_turn(store: Store) -> None:
    turns: list[int] = []

    async def turn(conversation: Conversation, _path: str) -> str:
        turns.append(len(conversation.answers))
        raise PeopleRequired([question()])

    tree = spec()
    tree["tools"]["pay"]["review"]["before"]["on_reject"] = "stop"  # type: ignore[index]
    agents = ScriptedAgents(store, turn)
    run = agents.drive(agents.start(tree))
    [task] = open_tasks(store, run).values()
    assert task.consequences["rejected"]["ends"] == "cancelled"  # type: ignore[index]
    assert task.consequences["approved"]["next"] == ["work"]  # type: ignore[index]
    answer(store, task, "rejected", content="no")
    run = agents.drive(run)
    assert (run.status, run.error and run.error.type) == (RunStatus.CANCELLED, "human_rejected")
    assert turns == [0]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 1, 31, 12, tzinfo=UTC))


def parked(store: Store, run: Run) -> bool:
    now = find_run(store, run.id)
    return (now.status, now.owner) == (RunStatus.RUNNING, None) and "step_postponed" in kinds(store, run)


def kinds(store: Store, run: Run) -> list[str]:
    return [kind for _, kind in trace(store, run)]


def test_a_postponed_run_leaves_its_slot_to_others_and_continues_later(migrated_url: str, clock: ManualClock) -> None:
    store = open_store(migrated_url, clock, find_key)
    turns: list[str] = []

    async def turn(conversation: Conversation, path: str) -> str:
        turns.append(path)
        if path == "work" and len(turns) == 1:
            raise Postponed(40, "busy")
        return "done"

    agents = ScriptedAgents(store, turn)
    run = agents.start()
    worker = worker_on(store, agents.driver(), concurrency=1)
    with background("worker", worker.run, worker.stop):
        eventually(lambda: parked(store, run))
        other = agents.start(spec({"id": "other", "kind": "agent", "ref": "teller"}))
        eventually(lambda: find_run(store, other.id).status is RunStatus.SUCCEEDED)
        assert turns == ["work", "other"]
        clock.advance(timedelta(seconds=41))
        eventually(lambda: find_run(store, run.id).status is RunStatus.SUCCEEDED)
    assert turns == ["work", "other", "work"]
    assert "step_failed" not in kinds(store, run)
    store.close()


def test_an_answer_reaches_a_parked_run_before_its_time(migrated_url: str, clock: ManualClock) -> None:
    store = open_store(migrated_url, clock, find_key)

    async def turn(conversation: Conversation, path: str) -> str:
        if path == "all/busy" and not (seen := conversation.journal.load()):
            await conversation.journal.append(reply(1))
            raise Postponed(1_000, f"busy {len(seen)}")
        if path == "all/asks" and not conversation.answers:
            raise PeopleRequired([question()])
        return path

    agents = ScriptedAgents(store, turn)
    steps = [{"id": name, "kind": "agent", "ref": "teller"} for name in ("busy", "asks")]
    run = agents.start(spec({"id": "all", "kind": "parallel", "steps": steps}))
    worker = worker_on(store, agents.driver(), concurrency=1)
    with background("worker", worker.run, worker.stop):
        eventually(lambda: parked(store, run) and open_tasks(store, run))
        [task] = open_tasks(store, run).values()
        answer(store, task, "approved")
        eventually(lambda: kinds(store, run).count("step_completed") == 1)
        assert find_run(store, run.id).status is RunStatus.RUNNING
        clock.advance(timedelta(seconds=1_001))
        eventually(lambda: find_run(store, run.id).status is RunStatus.SUCCEEDED)
    store.close()


def entry_of(run: Run, store: Store) -> ConversationEntry:
    with store.read() as tx:
        return agent_journal.list_entries(tx, run.id)[0]


def test_an_entry_belongs_to_the_conversation_of_its_journal(store: Store) -> None:
    async def turn(conversation: Conversation, _path: str) -> str:
        await conversation.journal.append(replace(reply(1), conversation="another~0"))
        return "done"

    agents = ScriptedAgents(store, turn)
    run = agents.drive(agents.start())
    assert entry_of(run, store).conversation == "work~0"
