"""Forks of runs with agents: the conversations that they take over, and the answers about calls that count again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from installation_key import find_key
from scripted_agents import ScriptedAgents, question, reply, spec

from kneo.agents.turn import PeopleRequired
from kneo.clock import SystemClock
from kneo.records.run import Run, RunStatus
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, continue_run, fork
from kneo.runtime.steps.agents import Conversation
from kneo.store import agent_journal, tasks
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide
from kneo.tasks.reuse import reuse_report

STEPS = tuple({"id": name, "kind": "agent", "ref": "teller"} for name in ("one", "two"))


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield store
    store.close()


def journal(store: Store, run: Run) -> list[str]:
    with store.read() as tx:
        return [f"{entry.conversation} {entry.name}" for entry in agent_journal.list_entries(tx, run.id)]


def open_tasks(store: Store, run: Run) -> list[HumanTask]:
    with store.read() as tx:
        return list(tasks.of_run(tx, run.id, UNRESOLVED))


def approve(store: Store, run: Run) -> None:
    for task in open_tasks(store, run):
        decide(store, task.id, DecisionRequest(decision=DecisionKind.APPROVED), actor="ann")


class Teller:
    """Replies once and asks about one call, whose id is another one in each conversation."""

    def __init__(self, **asked: object) -> None:
        self.began: list[str] = []
        self.amount = 5
        self.fails = False
        self.label: str | None = None
        self.asked = asked

    async def turn(self, conversation: Conversation, path: str) -> str:
        if not conversation.journal.load():
            self.began.append(path)
            await conversation.journal.append(reply(1, body={"call": f"id{len(self.began)}"}))
        [entry] = conversation.journal.load()
        key = f"1.{entry.body['call']}:tools.pay.before"
        if key not in conversation.answers:
            named = f"pay:1:{self.label or f'{self.amount:08x}'}"
            raise PeopleRequired([question(key=key, task_key=named, arguments={"amount": self.amount}, **self.asked)])
        if self.fails and path == "two":
            message = "no"
            raise ValueError(message)
        return path


def test_a_fork_has_the_conversations_before_it_and_reuses_the_answers_of_its_own_steps(store: Store) -> None:
    teller = Teller()
    agents = ScriptedAgents(store, teller.turn)
    parent = agents.drive(agents.start(spec(*STEPS)))
    for _ in range(2):
        approve(store, parent)
        parent = agents.drive(parent)
    assert parent.status is RunStatus.SUCCEEDED
    assert journal(store, parent) == ["one~0 model:1", "two~0 model:1"]
    programs = ProgramLoader(store)
    order = ForkRequest(run_id=parent.id, step="two", requester="bob")
    forked = fork(agents.starter, programs, order)
    assert journal(store, forked) == ["one~0 model:1"]
    forked = agents.drive(forked)
    assert teller.began == ["one", "two", "two"]
    assert (forked.status, forked.output_text) == (RunStatus.SUCCEEDED, "two")
    with store.read() as tx:
        [reused] = reuse_report(tx, forked.id)
    assert (reused["key"], reused["reused"]) == ("two.pay:1:00000005", True)
    # With other arguments the answer does not count, and a person is asked.
    teller.amount = 6
    other = agents.drive(fork(agents.starter, programs, order))
    assert other.status is RunStatus.PAUSED
    assert [task.key for task in open_tasks(store, other)] == ["two.pay:1:00000006"]


def test_a_fork_in_the_middle_of_a_turn_begins_the_conversation_again(store: Store) -> None:
    teller = Teller()
    agents = ScriptedAgents(store, teller.turn)
    parent = agents.drive(agents.start(spec(*STEPS)))
    assert parent.status is RunStatus.PAUSED
    forked = agents.drive(fork(agents.starter, ProgramLoader(store), ForkRequest(run_id=parent.id, requester="bob")))
    assert teller.began == ["one", "one"]
    assert forked.status is RunStatus.PAUSED
    assert journal(store, forked) == ["one~0 model:1"]


def test_a_failed_run_continues_its_conversation_with_its_answers(store: Store) -> None:
    teller = Teller()
    agents = ScriptedAgents(store, teller.turn)
    run = agents.drive(agents.start(spec(*STEPS)))
    approve(store, run)
    run = agents.drive(run)
    teller.fails = True
    approve(store, run)
    run = agents.drive(run)
    assert run.status is RunStatus.FAILED
    teller.fails = False
    continue_run(store, ProgramLoader(store), run.id, actor="bob")
    run = agents.drive(run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "two")
    assert teller.began == ["one", "two"]


def test_an_answer_by_its_key_counts_for_the_arguments_of_the_earlier_question(store: Store) -> None:
    teller = Teller()
    teller.label = "0badf00d"  # that of all arguments here
    agents = ScriptedAgents(store, teller.turn)
    parent = agents.drive(agents.start(spec(STEPS[0])))
    programs = ProgramLoader(store)
    order = ForkRequest(run_id=parent.id, requester="bob", answers={"one.pay:1:0badf00d": "approved"})
    same = agents.drive(fork(agents.starter, programs, order))
    assert same.status is RunStatus.SUCCEEDED
    teller.amount = 5_000
    other = agents.drive(fork(agents.starter, programs, order))
    assert other.status is RunStatus.PAUSED
    with store.read() as tx:
        [asked] = reuse_report(tx, other.id)
    assert (asked["reused"], asked["reason"]) == (False, "the new answer is about another subject")


def test_an_answer_to_a_question_of_a_tool_is_reused_for_the_same_call_only(store: Store) -> None:
    teller = Teller(kind="elicitation", gate=None, prompt="Which account?", answer_schema=None, human="ops")
    teller.label = "0badf00d"
    agents = ScriptedAgents(store, teller.turn)
    parent = agents.drive(agents.start(spec(STEPS[0])))
    [task] = open_tasks(store, parent)
    decide(store, task.id, DecisionRequest(decision=DecisionKind.PROVIDED, content="4711"), actor="ann")
    assert agents.drive(parent).status is RunStatus.SUCCEEDED
    order = ForkRequest(run_id=parent.id, step="one", requester="bob")
    programs = ProgramLoader(store)
    assert agents.drive(fork(agents.starter, programs, order)).status is RunStatus.SUCCEEDED
    teller.amount = 5_000
    other = agents.drive(fork(agents.starter, programs, order))
    assert [one.prompt for one in open_tasks(store, other)] == ["Which account?"]
