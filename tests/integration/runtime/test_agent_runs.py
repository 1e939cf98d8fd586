"""Whole runs of agents: gates, questions, denials, cancellations and forks, with the real loop and a loopback model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import pytest
from agent_runs import AgentRuns, begun
from gates.asking import ENVIRONMENT, declare
from installation_key import find_key
from kneo_process import eventually
from model_server import Call, ModelServer, Reply, model_server, overloaded

from kneo.agents.providers import OperatorConnections
from kneo.background import background
from kneo.clock import ManualClock, SystemClock
from kneo.errors import Invalid
from kneo.records.conversation import EntryStatus
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.assemble import worker_on
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, cancel_run, fork
from kneo.runtime.engine.start import Starter
from kneo.runtime.engine.worker import Worker
from kneo.spec.models.spec import Spec
from kneo.store import agent_journal, history
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.tasks.reuse import reuse_report

ONE_CALL = [Reply(calls=[Call("pay", {"amount": 5})]), Reply("Done.")]

Make = Callable[[list[Reply]], AgentRuns]


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield store
    store.close()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server([]) as server:
        yield server


@pytest.fixture
def make(store: Store, tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(script: list[Reply]) -> AgentRuns:
        server.script = script
        return AgentRuns(store, tmp_path / "code", server, monkeypatch)

    return made


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_each_approved_call_is_made_before_the_next_answer(make: Make, order: tuple[int, ...]) -> None:
    agents = make([Reply(calls=[Call("pay", {"amount": amount}) for amount in (1, 2, 3)]), Reply("Done.")])
    run = agents.drive(agents.begin())
    tasks = sorted(agents.open(run), key=lambda task: task.subject)
    for count, number in enumerate(order, 1):
        agents.decide(tasks[number], "approved", expect_digest=tasks[number].subject_digest)
        run = agents.drive(run)
        assert agents.notes() == [f"pay {one + 1}" for one in order[:count]]
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "Done.")
    assert len(agents.server.requests) == 2


def test_a_call_that_is_denied_after_its_approval_is_not_made(make: Make) -> None:
    agents = make(ONE_CALL)
    denied = {"include": ["pay"], "permissions": {"denied_tools": ["pay"]}}
    run = agents.drive(agents.begin(agents.agent_tree(teller={"tools": denied})))
    assert run.status is RunStatus.SUCCEEDED
    assert agents.all_tasks(run) == []
    assert agents.notes() == []
    assert "tool_policy_denied" in agents.trace(run)


def test_a_call_that_was_approved_at_a_level_never_runs_at_a_lower_one(make: Make) -> None:
    agents = make(ONE_CALL)
    agents.level = "process"
    run = agents.drive(agents.begin())
    [task] = agents.open(run)
    facts = task.metadata["facts"]
    assert isinstance(facts, dict)
    assert facts["sandbox"]["level"] == "process"
    assert facts["sandbox"]["profile"].startswith("sha256:")
    agents.decide(task, "approved")
    agents.level = "none"
    run = agents.drive(run)
    assert agents.notes() == []
    assert "The call was approved at level process and would run at none." in agents.server.requests[-1].text
    [call] = [entry for entry in agents.journal(run) if entry.name.startswith("tool:")]
    assert (call.status, call.body["result"]["error"]) == (EntryStatus.FAILED, "sandbox_too_weak")


def test_a_call_in_a_sandbox_records_its_level_and_profile(make: Make) -> None:
    agents = make(ONE_CALL)
    agents.level = "process"
    run = agents.drive(agents.begin())
    agents.decide(*agents.open(run), "approved")
    run = agents.drive(run)
    assert agents.notes() == ["pay 5"]
    [call] = [entry for entry in agents.journal(run) if entry.name.startswith("tool:")]
    assert call.facts["sandbox"]["level"] == "process"
    assert call.facts["sandbox"]["denied"] == []


def test_a_rejection_reaches_the_model_with_its_reason_and_the_call_is_never_made(make: Make) -> None:
    agents = make(ONE_CALL)
    run = agents.drive(agents.begin())
    [task] = agents.open(run)
    assert task.consequences["rejected"]["next"] == ["work"]  # type: ignore[index]
    agents.decide(task, "rejected", feedback="far too much")
    run = agents.drive(run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "Done.")
    assert agents.notes() == []
    assert "far too much" in agents.server.requests[-1].text
    assert "tool_call_rejected" in agents.trace(run)


@pytest.mark.parametrize(("on_reject", "status"), [("stop", RunStatus.CANCELLED), ("fail", RunStatus.FAILED)])
def test_a_rejection_can_end_the_run(make: Make, on_reject: str, status: RunStatus) -> None:
    agents = make(ONE_CALL)
    review = {"before": {"human": "ops", "on_reject": on_reject}}
    run = agents.drive(agents.begin(agents.agent_tree(pay={"review": review})))
    agents.decide(*agents.open(run), "rejected", feedback="no")
    run = agents.drive(run)
    assert (run.status, run.error and run.error.type) == (status, "human_rejected")
    assert agents.notes() == []
    assert len(agents.server.requests) == 1


def test_a_person_provides_the_result_of_an_external_tool(make: Make) -> None:
    agents = make([Reply(calls=[Call("query", {"id": "x"})]), Reply("Done.")])
    query = {
        "description": "Run a query.",
        "parameters": {"type": "object"},
        "returns": {"type": "object", "properties": {"rows": {"type": "integer"}}, "required": ["rows"]},
        "review": {"external": {"human": "ops"}},
    }
    tree = agents.agent_tree(tools={"query": query}, teller={"tools": ["query"]})
    run = agents.drive(agents.begin(tree))
    [task] = agents.open(run)
    assert task.position == "external"
    agents.decide(task, "provided", content={"rows": 41})
    run = agents.drive(run)
    assert run.output_text == "Done."
    assert "41" in agents.server.requests[-1].text


def test_the_agent_asks_twice_and_a_fork_reuses_both_answers(make: Make) -> None:
    ask = Call("ask_question", {"question": "Which?"})
    agents = make([Reply(calls=[ask, ask]), Reply("Done.")])
    run = agents.drive(agents.begin())
    keys = sorted(agents.asked(run))
    assert [key.rpartition(":")[0] for key in keys] == ["work.ask_question:1", "work.ask_question:2"]
    for number, key in enumerate(keys):
        agents.decide(agents.asked(run)[key], "provided", content=f"answer {number}")
    run = agents.drive(run)
    assert run.status is RunStatus.SUCCEEDED
    forked = fork(agents.starter, ProgramLoader(agents.store), ForkRequest(run_id=run.id, step="work", requester="bob"))
    forked = agents.drive(forked)
    assert (forked.status, forked.output_text) == (RunStatus.SUCCEEDED, "Done.")
    with agents.store.read() as tx:
        assert [one["reused"] for one in reuse_report(tx, forked.id)] == [True, True]
    for text in ("answer 0", "answer 1"):
        assert text in agents.server.requests[-1].text


def test_a_gate_of_an_agent_behind_a_tool_behind_a_tool_comes_up(make: Make) -> None:
    def script(request: object) -> Reply:
        calls = {"top": "ask_middle", "middle": "ask_bottom"}
        if request.turns:  # type: ignore[attr-defined]
            return Reply(f"{request.model} is done.")  # type: ignore[attr-defined]
        if request.model in calls:  # type: ignore[attr-defined]
            return Reply(calls=[Call(calls[request.model], {"input": "go"})])  # type: ignore[attr-defined]
        return Reply(calls=[Call("pay", {"amount": 5})])

    agents = make(script)  # type: ignore[arg-type]

    def agent(name: str, *tools: str) -> dict[str, object]:
        model = {"provider": "openai", "name": name, "extra": {"api": "chat"}}
        return {"name": name, "model": model, "strategy": "react", "tools": list(tools)}

    tree = agents.agent_tree(
        teller=agent("top", "ask_middle") | {"name": "teller"},
        agents={"middle": agent("middle", "ask_bottom"), "bottom": agent("bottom", "pay")},
        tools={f"ask_{name}": {"description": f"Ask {name}.", "agent": name} for name in ("middle", "bottom")},
    )
    run = agents.drive(agents.begin(tree))
    [task] = agents.open(run)
    assert task.title == "pay(amount: 5)"
    assert task.prompt.startswith("Fine?")
    agents.decide(task, "edited", arguments={"amount": 6})
    run = agents.drive(run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "top is done.")
    assert agents.notes() == ["pay 6"]
    assert len({entry.conversation for entry in agents.journal(run)}) == 3
    assert run.usage.requests == 6


BOSS = {"boss": {"description": "Really?"}}
EFFECTS = {
    "name": "effects",
    "match": {"kinds": ["tool"], "capabilities": ["privileged"]},
    "before": {"human": "boss", "on_reject": "stop"},
}


def test_several_gates_of_one_call_ask_one_after_the_other_the_specs_first(make: Make) -> None:
    agents = make(ONE_CALL)
    declare(agents.store, inlineSpecs=True, humans=BOSS, gates=[EFFECTS])
    run = agents.drive(agents.begin(environment=ENVIRONMENT))
    [own] = agents.open(run)
    assert (own.title, own.position) == ("pay(amount: 5)", "tool")
    # Approved, the call is not made yet: the gate of the environment asks next.
    following = [{"key": "environment.effects.before", "human": None, "prompt": "Really?"}]
    assert own.consequences["approved"] == {"next": [], "asks": following}
    assert own.consequences["edited"] == {"next": [], "asks": following}
    agents.decide(own, "edited", arguments={"amount": 6})
    run = agents.drive(run)
    [added] = agents.open(run)
    assert (added.title, added.consequences["approved"]["calls"]) == ("pay(amount: 6)", ["pay"])
    assert added.key.startswith(f"{own.key}+environment.effects.before")
    # The second gate is asked about the arguments that the first one let pass.
    assert json.loads(added.subject) == {"tool": "pay", "arguments": {"amount": 6}}
    assert agents.notes() == []
    agents.decide(added, "approved")
    run = agents.drive(run)
    assert run.status is RunStatus.SUCCEEDED
    assert agents.notes() == ["pay 6"]


def test_a_person_is_asked_again_about_an_edit_whose_short_digest_is_that_of_the_approved_arguments(make: Make) -> None:
    agents = make([Reply(calls=[Call("pay", {"amount": 6_798})]), Reply("Done.")])
    declare(agents.store, inlineSpecs=True, humans=BOSS, gates=[EFFECTS])
    run = agents.drive(agents.begin(environment=ENVIRONMENT))
    [own] = agents.open(run)
    agents.decide(own, "approved")
    run = agents.drive(run)
    [added] = agents.open(run)
    # Both arguments have the digest aa1618df….
    agents.decide(added, "edited", arguments={"amount": 108_428})
    run = agents.drive(run)
    assert agents.notes() == []
    [again] = agents.open(run)
    assert again.title == "pay(amount: 108428)"
    assert again.key.startswith(own.key)
    assert json.loads(again.subject)["arguments"] == {"amount": 108_428}
    agents.decide(again, "rejected", feedback="not that much")
    run = agents.drive(run)
    assert run.status is RunStatus.SUCCEEDED
    assert agents.notes() == []


def test_a_rejection_at_a_gate_of_the_environment_stops_the_run(make: Make) -> None:
    agents = make(ONE_CALL)
    declare(agents.store, inlineSpecs=True, humans=BOSS, gates=[EFFECTS])
    run = agents.drive(agents.begin(agents.agent_tree(pay={"review": None}), environment=ENVIRONMENT))
    [added] = agents.open(run)
    agents.decide(added, "rejected", feedback="no")
    run = agents.drive(run)
    assert (run.status, run.error and run.error.type) == (RunStatus.CANCELLED, "human_rejected")
    assert agents.notes() == []


def test_what_an_environment_denies_while_a_run_waits_is_not_called_after_the_approval(make: Make) -> None:
    agents = make(ONE_CALL)
    declare(agents.store, inlineSpecs=True)
    run = agents.drive(agents.begin(environment=ENVIRONMENT))
    agents.decide(*agents.open(run), "approved")
    declare(agents.store, inlineSpecs=True, tools={"deny": ["p*"]})
    run = agents.drive(run)
    assert run.status is RunStatus.SUCCEEDED
    assert agents.notes() == []
    assert "tool_policy_denied" in agents.trace(run)
    assert "denies the tool" in agents.server.requests[-1].text


def interrupt(agents: AgentRuns, on_interrupted: object = None) -> Run:
    """Start a run whose approved call was under way when its process ended."""
    pay = {"review": None} | ({"on_interrupted": on_interrupted} if on_interrupted is not None else {})
    tree = agents.agent_tree(pay=pay)
    run = agents.begin(tree)
    agents.server.script = [Reply(calls=[Call("pay", {"amount": 5}, id="c1")]), Reply("Done.")]
    # The first reply is in the journal, and the call has begun.
    with agents.store.write() as tx:
        agent_journal.append(tx, run.id, [begun("c1", {"amount": 5})])
    return agents.drive(run)


def module_of(agents: AgentRuns) -> str:
    return f"{agents.module}.was_paid"


@pytest.mark.parametrize(
    ("option", "content", "status", "notes"),
    [
        ("repeat", None, RunStatus.SUCCEEDED, ["pay 5"]),
        ("done", '{"paid": 5}', RunStatus.SUCCEEDED, []),
        ("done", None, RunStatus.SUCCEEDED, []),
        ("stop", None, RunStatus.CANCELLED, []),
    ],
)
def test_a_person_decides_about_an_interrupted_effect(
    make: Make, option: str, content: str | None, status: RunStatus, notes: list[str]
) -> None:
    agents = make([])
    run = interrupt(agents)
    [task] = agents.open(run)
    assert task.options == ("repeat", "done", "stop")
    assert "was under way" in task.title or task.title == "Fine?"
    assert "2026-01-31" in json.dumps(task.metadata)
    assert agents.notes() == []
    agents.decide(task, "selected", selected_option=option, content=content)
    run = agents.drive(run)
    assert run.status is status
    assert agents.notes() == notes
    if content is not None:
        assert "paid" in agents.server.requests[-1].text


def test_a_tool_can_fail_or_verify_its_interrupted_effects(make: Make) -> None:
    agents = make([])
    failed = interrupt(agents, "fail")
    assert (failed.status, failed.error and failed.error.type) == (RunStatus.FAILED, "tool_interrupted")
    repeated = interrupt(agents, {"verify": module_of(agents)})
    assert repeated.status is RunStatus.SUCCEEDED
    assert [line.split()[0] for line in agents.notes()] == ["verified", "pay"]
    agents.log.with_suffix(".paid").touch()
    verified = interrupt(agents, {"verify": module_of(agents)})
    assert verified.status is RunStatus.SUCCEEDED
    assert [line.split()[0] for line in agents.notes()] == ["verified", "pay", "verified"]
    assert {agents.asked(run) == {} for run in (failed, repeated, verified)} == {True}


def test_cancelling_a_run_ends_its_request_and_its_call(make: Make) -> None:
    for script, began in (
        ([Reply(delay=60, text="late")], lambda agents: agents.server.requests),
        ([Reply(calls=[Call("slow")]), Reply("Done.")], lambda agents: agents.notes()),
    ):
        agents = make(script)
        agents.log.unlink(missing_ok=True)
        agents.server.requests.clear()
        run = agents.begin()
        worker = Worker(agents.store, agents.driver(), concurrency=1)
        with background("worker", worker.run, worker.stop):
            eventually(lambda agents=agents, began=began: began(agents))
            before = len(agents.journal(run))
            cancel_run(agents.store, run.id, actor="ann")
        assert agents.look(run).status is RunStatus.CANCELLED
        assert len(agents.journal(run)) == before
        assert len(agents.server.requests) == 1


def test_a_provider_that_asks_to_wait_holds_no_slot_of_the_worker(
    migrated_url: str, tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(datetime(2026, 1, 31, 12, tzinfo=UTC))
    store = open_store(migrated_url, clock, find_key)
    agents = AgentRuns(store, tmp_path / "code", server, monkeypatch)
    server.script = {"m": [[overloaded(300), Reply("Done.")]], "other": [Reply("Other.")]}
    run = agents.begin()
    worker = worker_on(store, agents.driver(), concurrency=1)
    with background("worker", worker.run, worker.stop):
        eventually(lambda: "step_postponed" in agents.trace(run))
        eventually(lambda: agents.look(run).owner is None)
        model = {"provider": "openai", "name": "other", "extra": {"api": "chat"}}
        other = agents.begin(agents.agent_tree(teller={"model": model}))
        eventually(lambda: agents.look(other).status is RunStatus.SUCCEEDED)
        assert [request.model for request in server.requests] == ["m", "other"]
        clock.advance(timedelta(seconds=301))
        eventually(lambda: agents.look(run).status is RunStatus.SUCCEEDED)
    assert [request.model for request in server.requests] == ["m", "other", "m"]
    assert "step_failed" not in agents.trace(run)
    store.close()


def test_no_content_of_a_call_is_in_the_trace(make: Make) -> None:
    agents = make([Reply(calls=[Call("look", {"id": "very secret"})]), Reply("Done.")])
    run = agents.drive(agents.begin())
    assert agents.notes() == ["look very secret"]
    with agents.store.read() as tx:
        events = [event.data for event in history.list_trace(tx, run.id)]
    assert "very secret" not in json.dumps(events)


def test_an_agent_is_not_asked_where_the_library_of_its_mcp_servers_is_missing(
    make: Make, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = make([Reply("Done.")])
    tools = {"echo": {"description": "Repeat.", "parameters": {"type": "object"}, "mcp": {"server": "shop"}}}
    servers = {"shop": {"transport": "http", "url": "https://shop.example.org/mcp"}}
    tree = agents.agent_tree(teller={"tools": ["echo"]}, tools=tools, mcp_servers=servers)
    monkeypatch.setitem(sys.modules, "mcp", None)
    failed = agents.drive(agents.begin(tree))
    assert failed.error is not None
    assert (failed.error.type, server.requests) == ("mcp_not_installed", [])
    agents.starter = Starter(
        agents.store,
        lambda tree: Spec.model_validate_json(json.dumps(tree)),
        pin=None,
        operator=lambda: OperatorConnections.of(agents.settings, None),
    )
    with pytest.raises(Invalid, match="needs the tool echo, and the library of MCP servers is not installed here"):
        agents.begin(tree)


def test_the_tokens_of_an_agent_that_failed_behind_a_tool_are_kept_with_its_call(make: Make) -> None:
    def script(request: object) -> Reply:
        if request.model == "bottom":  # type: ignore[attr-defined]
            return Reply(calls=[Call("look", {"id": "a"})])
        if '"tool_call_id"' in request.text:  # type: ignore[attr-defined]
            return Reply("Done.")
        return Reply(calls=[Call("ask_bottom", {"input": "go"})])

    agents = make(script)  # type: ignore[arg-type]
    bottom = {"name": "bottom", "model": {"provider": "openai", "name": "bottom", "extra": {"api": "chat"}}}
    strategy = {"type": "react", "max_iterations": 2}
    tree = agents.agent_tree(
        teller={"tools": ["ask_bottom"]},
        agents={"bottom": {**bottom, "strategy": strategy, "tools": ["look"]}},
        tools={"ask_bottom": {"description": "Ask.", "agent": "bottom"}},
    )
    run = agents.drive(agents.begin(tree))
    assert run.status is RunStatus.SUCCEEDED
    entries = agents.journal(run)
    [call] = [entry for entry in entries if entry.facts.get("tool") == "ask_bottom"]
    replies = [entry for entry in entries if entry.name.startswith("model:") and ">" in entry.conversation]
    spent = sum(int(str(entry.facts[name])) for entry in replies for name in ("input_tokens", "output_tokens"))
    assert (call.status, call.facts["total_tokens"]) == (EntryStatus.FAILED, spent)
    assert spent > 0
