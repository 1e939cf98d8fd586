"""Trying again, starting from the past, and what the past looks like."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine, step
from installation_key import find_key
from sqlalchemy import update

from kneo.clock import SystemClock
from kneo.errors import Conflict, Invalid, NotFound
from kneo.records.run import AgentUsage, Run, RunStatus
from kneo.runtime.engine import views
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, cancel_run, continue_run, fork, read_record
from kneo.store import audit, history
from kneo.store.migrate import open_store
from kneo.store.tables import runs

SOURCE = """
def a(text): note("a"); return text + ">a"
def b(text): note("b"); return text + ">b"
def c(text): note("c"); return text + ">c"
def once_broken(text, context):
    note(context.idempotency_key.split(":", 1)[1])
    if LOG.read_text().count("once") + 0 < 2: raise ValueError("not yet")
    return text + ">ok"
"""
HUMAN = {"id": "q", "kind": "human", "ref": "ann"}


@pytest.fixture
def engine(migrated_url: str, tmp_path: Path) -> Engine:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


def go_on(engine: Engine, run: Run) -> Run:
    return engine.drive(continue_run(engine.store, ProgramLoader(engine.store), run.id, actor="ann"))


def fork_of(engine: Engine, run: Run, **order: object) -> Run:
    made = fork(engine.starter, ProgramLoader(engine.store), ForkRequest(run_id=run.id, requester="ann", **order))
    return engine.drive(made)


def test_what_had_succeeded_is_not_repeated(engine: Engine) -> None:
    run = engine.run([step("a"), step("once", "once_broken"), step("b")])
    assert run.status is RunStatus.FAILED
    run = go_on(engine, run)
    assert (run.status, run.output_text, run.error) == (RunStatus.SUCCEEDED, "in>a>ok>b", None)
    assert engine.notes() == ["a", "once:0", "once:1", "b"]
    assert run.visited_steps == ("a", "once", "b")
    with engine.store.read() as tx:
        kinds = [event.event.event_type for event in audit.events(tx, run_id=run.id, limit=20)]
    assert "run.continued" in kinds
    with pytest.raises(Conflict):
        go_on(engine, run)


def test_only_the_branch_that_failed_is_tried_again(engine: Engine) -> None:
    inner = {"id": "s", "kind": "steps", "steps": [step("b"), step("once", "once_broken")]}
    run = engine.run([{"id": "p", "kind": "parallel", "steps": [inner, step("a")]}, step("c")])
    assert run.status is RunStatus.FAILED
    run = go_on(engine, run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "in>a>c")
    assert sorted(engine.notes()) == ["a", "b", "c", "p/s/once:0", "p/s/once:1"]


def test_a_run_that_reached_a_limit_is_not_continued(engine: Engine) -> None:
    edges = [{"from": "a", "to": "a"}]
    run = engine.run({"type": "graph", "start": "a", "nodes": {"a": step("a")}, "edges": edges, "max_steps": 2})
    assert run.error.type == "max_iterations"
    with pytest.raises(Conflict) as caught:
        go_on(engine, run)
    assert caught.value.code == "run_state_conflict"


def test_a_fork_begins_where_it_is_told_and_keeps_what_came_before(engine: Engine) -> None:
    run = engine.run([step("a"), step("b"), step("c")])
    twin = fork_of(engine, run, step="b")
    assert (twin.status, twin.output_text) == (RunStatus.SUCCEEDED, "in>a>b>c")
    assert engine.notes() == ["a", "b", "c", "b", "c"]
    assert engine.steps(twin) == [("a", "completed"), ("b", "completed"), ("c", "completed")]
    assert twin.metadata["forked_from"]["run_id"] == run.id
    assert fork_of(engine, run, step="c", input="other").output_text == "other>c"
    assert fork_of(engine, run, checkpoint=1).output_text == "in>a>b>c"
    assert engine.look(run).output_text == "in>a>b>c"
    with pytest.raises(NotFound):
        fork_of(engine, run, step="nowhere")


def test_a_fork_has_used_nothing_of_what_its_origin_used(engine: Engine) -> None:
    run = engine.run([step("a"), step("b")])
    used = AgentUsage(requests=3, tool_calls=1, input_tokens=100)
    with engine.store.write() as tx:
        tx.connection.execute(update(runs).where(runs.c.id == run.id).values(usage=vars(used)))
    assert engine.look(run).usage == used
    assert fork_of(engine, run, step="b").usage == AgentUsage()


def test_a_fork_of_a_waiting_run_asks_for_itself(engine: Engine) -> None:
    run = engine.run([step("a"), HUMAN, step("b")])
    twin = fork_of(engine, run, step="q")
    assert twin.status is RunStatus.PAUSED
    mine, theirs = engine.open(run)[0], engine.open(twin)[0]
    assert mine.id != theirs.id
    assert (mine.key, mine.subject_digest) == (theirs.key, theirs.subject_digest)
    engine.answer(theirs, "approved")
    assert engine.drive(twin).status is RunStatus.SUCCEEDED
    assert engine.look(run).status is RunStatus.PAUSED


def test_the_past_can_be_looked_at(engine: Engine) -> None:
    run = engine.run([step("a"), step("once", "once_broken")])
    past = read_record(engine.store, run.id)
    context = views.recovery_view(past)["replay_context"]
    assert context["completed_steps"] == ["a"]
    assert (context["failed_step"], context["resume_input"], context["can_continue"]) == ("once", "in>a", True)
    timeline = views.replay_view(past)["timeline"]
    assert [item["type"] for item in timeline] == ["run_started", "step_completed", "step_failed", "run_failed"]
    changes = views.checkpoint_diff(past.run, past.checkpoints, 1, 2)
    assert {"path": "metadata.output_text", "value": "in>a"} in changes["added"]
    assert any(change["path"] == "state.step_count" for change in changes["changed"])
    for pair in ((1, 1), (1, 99)):
        with pytest.raises(Invalid):
            views.checkpoint_diff(past.run, past.checkpoints, *pair)


@pytest.mark.parametrize(
    ("on_reject", "status", "event"),
    [("stop", RunStatus.CANCELLED, "workflow_cancelled"), ("fail", RunStatus.FAILED, "workflow_failed")],
)
def test_the_last_event_says_how_a_run_ended(engine: Engine, on_reject: str, status: RunStatus, event: str) -> None:
    run = engine.run([HUMAN, step("a")], ann={"on_reject": on_reject})
    engine.answer(engine.open(run)[0], "rejected")
    run = engine.drive(run)
    with engine.store.read() as tx:
        last = history.list_trace(tx, run.id)[-1]
    assert (run.status, last.type, last.data["error"]["type"]) == (status, event, "human_rejected")
    waiting = engine.run([HUMAN])
    cancel_run(engine.store, waiting.id, actor="ann")
    with engine.store.read() as tx:
        assert history.list_trace(tx, waiting.id)[-1].type == "workflow_cancelled"
