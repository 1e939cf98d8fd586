"""A fork executes nothing that a person has not seen: gates before its point are asked again, or their answers still hold."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine, step
from gates.asking import ENVIRONMENT, PEOPLE, declare

from kneo.clock import ManualClock
from kneo.errors import Conflict, Forbidden
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, continue_run, fork, read_record
from kneo.runtime.engine.start import StartRequest
from kneo.store import audit, history, tables
from kneo.store.adoption import Adoption, adopt
from kneo.store.engine import Store, encode_json
from kneo.tasks.lifecycle import process_due

SOURCE = """
def draft(text): return text + " draft"
def publish(text): note(text); return f"published {text}"
def other(text): note("other " + text); return text
def choose(text): return "a"
def ask(text, context): return str(context.wait("Fine?"))
def flaky(text):
    note("tried")
    if LOG.read_text().count("tried") < 2: raise ValueError("not yet")
    return f"published {text}"
"""

HUMAN = {"id": "ok", "kind": "human", "ref": "ann"}
FLOW = [step("draft"), HUMAN, step("publish")]
BEFORE = {"before": {"human": "ann"}}


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


def finish(engine: Engine, run: Run) -> Run:
    """Answer everything as it comes: approve, or choose the first option."""
    run = engine.drive(run)
    while run.status is RunStatus.PAUSED:
        for task in engine.open(run):
            kind = "approved" if "approved" in task.decisions else "selected" if task.options else "provided"
            engine.answer(task, kind, task.options[0] if kind == "selected" else "yes" if kind == "provided" else None)
        run = engine.drive(run)
    assert run.status is RunStatus.SUCCEEDED, run.error
    return run


def repeat(engine: Engine, run: Run, **order: object) -> Run:
    order.setdefault("requester", "rex")
    return engine.drive(fork(engine.starter, ProgramLoader(engine.store), ForkRequest(run_id=run.id, **order)))


def asked(engine: Engine, run: Run) -> list[tuple[str, str]]:
    return [(task.key, task.subject) for task in engine.open(run)]


def checkpoint_before(engine: Engine, run: Run, path: str) -> int:
    """Find the last checkpoint before a step was done."""
    with engine.store.read() as tx:
        items = history.list_checkpoints(tx, run.id)
    done = next(item for item in items if item.type == "step_completed" and item.step_id == path)
    return done.sequence - 1


PLACES = {
    "sequence": (FLOW, "publish", "ok.step"),
    "steps": ([{"id": "s", "kind": "steps", "steps": [HUMAN, step("publish")]}], "s/publish", "s/ok.step"),
    "loop": (
        [{"id": "l", "kind": "loop", "max_iterations": 2, "steps": [HUMAN, step("publish")]}],
        "l#2/publish",
        "l#2/ok.step",
    ),
    "condition": (
        [{"id": "c", "kind": "condition", "when": {"type": "always"}, "steps": [HUMAN, step("publish")]}],
        "c/publish",
        "c/ok.step",
    ),
    "condition decided by a person": (
        [{"id": "c", "kind": "condition", "review": BEFORE, "steps": [step("publish")]}],
        "c/publish",
        "c.before",
    ),
    "router": (
        [
            {
                "id": "r",
                "kind": "router",
                "selector": "choose",
                "choices": {"a": {"steps": [HUMAN, step("publish")]}, "b": {"steps": [step("other")]}},
            }
        ],
        "r/publish",
        "r/ok.step",
    ),
    "route": (
        [
            {
                "id": "r",
                "kind": "router",
                "review": {"route": {"human": "ann"}},
                "choices": {"a": {"steps": [step("publish")]}, "b": {"steps": [step("other")]}},
            }
        ],
        "r/publish",
        "r.route",
    ),
    "parallel": (
        [{"id": "p", "kind": "parallel", "steps": [{"id": "s", "kind": "steps", "steps": FLOW}, step("other")]}],
        "p/s/publish",
        "p/s/ok.step",
    ),
    "parallel before": (
        [HUMAN, {"id": "p", "kind": "parallel", "steps": [step("publish"), step("other")]}],
        "p/publish",
        "ok.step",
    ),
    "graph": (
        {
            "type": "graph",
            "start": "ok",
            "nodes": {"ok": HUMAN, "publish": step("publish")},
            "edges": [{"from": "ok", "to": "publish"}],
        },
        "publish",
        "ok.step",
    ),
    "handoff": ({"type": "handoff", "participants": [HUMAN, step("publish")]}, "publish", "ok.step"),
    "group chat": ({"type": "group-chat", "participants": [HUMAN, step("publish")]}, "publish", "ok.step"),
    "after": ([step("draft", review={"after": {"human": "ann"}}), step("publish")], "publish", "draft.after"),
    "each": (
        [
            {
                "id": "l",
                "kind": "loop",
                "max_iterations": 1,
                "steps": [step("draft")],
                "review": {"each": {"human": "ann"}},
            },
            step("publish"),
        ],
        "publish",
        "l#1.each",
    ),
    "wait": ([step("ask"), step("publish")], "publish", "ask.wait"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_changed_input_is_asked_about_before_it_is_executed(engine: Engine, place: str) -> None:
    workflow, at, key = PLACES[place]
    run = finish(engine, engine.start(workflow))
    before = engine.notes()
    forked = repeat(engine, run, step=at, input="EVIL")
    assert forked.status is RunStatus.PAUSED
    assert asked(engine, forked) == [(key, "EVIL")]
    assert engine.notes() == before
    task = engine.open(forked)[0]
    assert "EVIL" in task.subject
    consequences = task.consequences["approved"]
    assert at.replace("#2", "") in consequences["next"]
    engine.answer(task, "approved")
    done = engine.drive(forked)
    assert done.status is RunStatus.SUCCEEDED
    assert "EVIL" in engine.notes()[len(before) :]


@pytest.mark.parametrize("place", PLACES)
def test_a_rejected_fork_executes_nothing(engine: Engine, place: str) -> None:
    workflow, at, _ = PLACES[place]
    run = finish(engine, engine.start(workflow))
    before = engine.notes()
    forked = repeat(engine, run, step=at, input="EVIL")
    engine.answer(engine.open(forked)[0], "rejected")
    done = engine.drive(forked)
    assert (done.status, engine.notes()) == (RunStatus.CANCELLED, before)


@pytest.mark.parametrize("place", PLACES)
def test_an_unchanged_fork_repeats_what_was_answered_while_the_answers_hold(engine: Engine, place: str) -> None:
    workflow, at, key = PLACES[place]
    run = finish(engine, engine.start(workflow))
    before = engine.notes()
    forked = repeat(engine, run, step=at)
    assert forked.status is RunStatus.SUCCEEDED
    assert (key, True, None) in [(one["key"], one["reused"], one["reason"]) for one in told(engine, forked)]
    assert len(engine.notes()) > len(before)


def told(engine: Engine, run: Run) -> list[dict[str, object]]:
    return list(read_record(engine.store, run.id).answers)


def test_a_checkpoint_behind_the_gate_is_no_way_around_it(engine: Engine) -> None:
    run = finish(engine, engine.start([step("publish", review=BEFORE)]))
    forked = repeat(engine, run, checkpoint=checkpoint_before(engine, run, "publish"), input="EVIL")
    assert (forked.status, asked(engine, forked)) == (RunStatus.PAUSED, [("publish.before", "EVIL")])
    assert engine.notes() == ["in"]


def test_every_gate_before_the_point_is_asked_one_after_the_other(engine: Engine) -> None:
    second = {"id": "legal", "kind": "human", "ref": "ann"}
    run = finish(engine, engine.start([HUMAN, step("draft"), second, step("publish")]))
    forked = repeat(engine, run, step="publish", input="EVIL")
    assert asked(engine, forked) == [("ok.step", "EVIL")]
    engine.answer(engine.open(forked)[0], "edited", "GOOD")
    forked = engine.drive(forked)
    assert asked(engine, forked) == [("legal.step", "GOOD")]
    engine.answer(engine.open(forked)[0], "approved")
    assert engine.drive(forked).output_text == "published GOOD"


def test_a_fork_of_a_waiting_fork_asks_the_same(engine: Engine) -> None:
    run = finish(engine, engine.start(FLOW))
    waiting = repeat(engine, run, step="publish", input="EVIL")
    for order in ({"step": "publish"}, {"checkpoint": 1}, {"checkpoint": 2}, {"step": "publish", "input": "WORSE"}):
        again = repeat(engine, waiting, **order)
        assert (again.status, asked(engine, again)) == (RunStatus.PAUSED, [("ok.step", order.get("input", "EVIL"))])
    engine.answer(engine.open(waiting)[0], "approved")
    done = engine.drive(waiting)
    assert done.output_text == "published EVIL"
    assert repeat(engine, done, step="publish").output_text == "published EVIL"
    assert repeat(engine, done, step="publish", input="in draft").status is RunStatus.PAUSED


def test_a_fork_of_an_earlier_version_is_followed_back_to_its_gates(engine: Engine) -> None:
    run = finish(engine, engine.start(FLOW))
    for changed in (False, True):
        twin = repeat(engine, run, step="publish")
        as_it_was = {name: value for name, value in twin.metadata.items() if name != "fork"}
        as_it_was["forked_from"] = {**as_it_was["forked_from"], "input_changed": changed}
        with engine.store.write() as tx:
            tx.connection.execute(tables.runs.update().where(tables.runs.c.id == twin.id).values(metadata=as_it_was))
            tx.connection.execute(
                tables.tasks.update().where(tables.tasks.c.run_id == twin.id).values(status="cancelled")
            )
            first = history.list_checkpoints(tx, twin.id)[0]
            behind = encode_json({**first.state, "state": first.state["state"]["children"]["run"]})
            tx.connection.execute(
                tables.checkpoints.update().where(tables.checkpoints.c.id == first.id).values(state=behind)
            )
            tx.connection.execute(
                tables.checkpoints.delete()
                .where(tables.checkpoints.c.run_id == twin.id)
                .where(tables.checkpoints.c.type.like("human%"))
            )
        adopt(engine.store, Adoption(changed=True))
        again = repeat(engine, twin, step="publish", input="EVIL")
        assert (again.status, asked(engine, again)) == (RunStatus.PAUSED, [("ok.step", "EVIL")])
        again = repeat(engine, twin, step="publish")
        assert again.status is (RunStatus.PAUSED if changed else RunStatus.SUCCEEDED)


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_gate_that_the_old_input_did_not_wake_is_woken_by_the_new_one(engine: Engine, position: str) -> None:
    gate = {"human": "ann", "when": {"type": "output_contains", "value": "EVIL"}}
    guarded = [step("draft"), step("publish", review={"before": gate})]
    if position == "after":
        guarded = [step("draft", review={"after": gate}), step("publish")]
    run = finish(engine, engine.start(guarded))
    assert engine.notes() == ["in draft"]
    forked = repeat(engine, run, step="publish", input="EVIL")
    key = "publish.before" if position == "before" else "draft.after"
    assert (forked.status, asked(engine, forked)) == (RunStatus.PAUSED, [(key, "EVIL")])
    assert repeat(engine, run, step="publish", input="harmless").output_text == "published harmless"


def test_an_error_that_a_person_let_pass_is_asked_about(engine: Engine) -> None:
    flaky = step("flaky", review={"error": {"human": "ann", "options": ["retry", "skip", "stop"]}})
    run = engine.run([flaky, step("publish")])
    engine.answer(engine.open(run)[0], "selected", "skip")
    run = engine.drive(run)
    forked = repeat(engine, run, step="publish", input="EVIL")
    assert asked(engine, forked) == [("flaky.error", "EVIL")]
    engine.answer(engine.open(forked)[0], "selected", "retry")
    assert engine.drive(forked).status is RunStatus.CANCELLED
    forked = repeat(engine, run, step="publish", input="FINE")
    engine.answer(engine.open(forked)[0], "selected", "skip")
    assert engine.drive(forked).output_text == "published FINE"


def test_the_other_way_is_no_way_for_a_fork(engine: Engine) -> None:
    workflow, at, _ = PLACES["route"]
    run = finish(engine, engine.start(workflow))
    forked = repeat(engine, run, step=at, input="EVIL")
    task = engine.open(forked)[0]
    assert task.consequences["selected"]["options"]["b"] == {"ends": "cancelled", "error": "human_rejected"}
    engine.answer(task, "selected", "b")
    assert engine.drive(forked).status is RunStatus.CANCELLED
    forked = repeat(engine, run, step=at, input="EVIL")
    engine.answer(engine.open(forked)[0], "selected", "a")
    assert engine.drive(forked).status is RunStatus.SUCCEEDED


def test_a_deadline_approves_no_fork(engine: Engine, clock: ManualClock) -> None:
    human = {"timeout_seconds": 60, "on_timeout": "approve"}
    run = engine.run(FLOW, ann=human)
    engine.answer(engine.open(run)[0], "approved")
    run = engine.drive(run)
    forked = repeat(engine, run, step="publish", input="EVIL")
    clock.advance(timedelta(seconds=61))
    process_due(engine.store)
    assert (engine.drive(forked).status, engine.notes()) == (RunStatus.CANCELLED, ["in draft"])


def test_a_gate_in_a_nested_workflow_is_asked(engine: Engine) -> None:
    tree = engine.tree([step("publish")])
    inner = {"type": "sequential", "steps": FLOW}
    tree["components"]["functions"] |= {"draft": {"implementation": f"{engine.module}.draft"}}
    tree["components"]["workflows"] = {"inner": inner}
    tree["workflow"] = [{"id": "w", "kind": "workflow", "ref": "inner"}]
    run = finish(engine, engine.starter.start(StartRequest(input="in", requester="bob", spec=tree)))
    forked = repeat(engine, run, step="w/publish", input="EVIL")
    assert asked(engine, forked) == [("w/ok.step", "EVIL")]


def test_a_quorum_has_to_agree_to_the_fork_too(engine: Engine) -> None:
    run = engine.run(FLOW, ann={"quorum": {"approvals": 2}, "candidates": {"exclude": ["requester"]}})
    for name in ("ann", "ben"):
        engine.answer(engine.open(run)[0], "approved", actor=name)
    run = engine.drive(run)
    forked = repeat(engine, run, step="publish", input="EVIL", requester="mal", answers={"ok.step": "approved"})
    task = engine.open(forked)[0]
    with pytest.raises(Forbidden):
        engine.answer(task, "approved", actor="mal")
    for name in ("ann", "ben"):
        assert engine.drive(forked).status is RunStatus.PAUSED
        engine.answer(task, "approved", actor=name)
    assert engine.drive(forked).output_text == "published EVIL"


def test_answers_and_questions_of_the_fork_count_for_gates_before_its_point(engine: Engine) -> None:
    run = finish(engine, engine.start(FLOW))
    again = repeat(engine, run, step="publish", input="mine", answers={"ok.step": "approved"})
    assert again.output_text == "published mine"
    again = repeat(engine, run, step="publish", ask=("all",))
    assert (again.status, asked(engine, again)) == (RunStatus.PAUSED, [("ok.step", "in draft")])
    assert repeat(engine, run, step="publish", answers={"ok.step": "rejected"}).status is RunStatus.CANCELLED


def test_answers_hold_only_while_those_who_gave_them_may_answer(engine: Engine) -> None:
    run = engine.run(FLOW, ann={"candidates": {"exclude": ["requester"]}})
    engine.answer(engine.open(run)[0], "edited", "better")
    run = engine.drive(run)
    mine = repeat(engine, run, step="publish", requester="ann")
    assert (mine.status, asked(engine, mine)) == (RunStatus.PAUSED, [("ok.step", "better")])
    assert "is no longer valid" in str(told(engine, mine)[0]["reason"])
    engine.answer(engine.open(mine)[0], "approved", actor="ben")
    assert engine.drive(mine).output_text == "published better"
    assert repeat(engine, run, step="publish", requester="rex").output_text == "published better"


def test_a_fork_says_what_it_repeats(engine: Engine) -> None:
    run = finish(engine, engine.start(FLOW))
    forked = repeat(engine, run, step="publish")
    said = forked.metadata["fork"]
    assert (said["run_id"], said["step"], said["input_changed"], said["gates"]) == (
        run.id,
        "publish",
        False,
        ["ok.step"],
    )
    assert [(one["step"], one["status"]) for one in said["repeats"]] == [("publish", "completed")]
    assert said["repeats"][0]["idempotency_key"].startswith(run.id)
    with engine.store.read() as tx:
        assert [event.data["fork"] for event in history.list_trace(tx, forked.id, event_type="workflow_forked")] == [
            said
        ]
        facts = next(
            item.event for item in audit.events(tx, run_id=forked.id, limit=50) if item.event.event_type == "run.forked"
        )
    assert (facts.metadata["repeat_count"], facts.metadata["gates"]) == (1, ["ok.step"])
    assert repeat(engine, run, step="draft").metadata["fork"]["repeat_count"] == 2


def test_an_input_that_would_have_no_effect_is_refused(engine: Engine) -> None:
    run = finish(engine, engine.start([step("draft", review={"after": {"human": "ann"}}), step("publish")]))
    with engine.store.read() as tx:
        items = history.list_checkpoints(tx, run.id)
    waiting = next(item.sequence for item in items if item.type == "human_pause")
    with pytest.raises(Conflict) as caught:
        repeat(engine, run, checkpoint=waiting, input="EVIL")
    assert caught.value.code == "fork_input_unused"


def test_a_failed_run_is_continued_while_its_answers_hold(engine: Engine) -> None:
    run = engine.run([HUMAN, step("flaky")])
    engine.answer(engine.open(run)[0], "approved")
    run = engine.drive(run)
    assert run.status is RunStatus.FAILED
    run = engine.drive(continue_run(engine.store, ProgramLoader(engine.store), run.id, actor="rex"))
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "published in")


def test_a_failed_run_is_asked_again_where_its_answers_no_longer_hold(engine: Engine) -> None:
    declare(engine.store, inlineSpecs=True)
    tree = engine.tree([HUMAN, step("flaky")], ann={"candidates": {"roles": ["legal"]}})
    run = engine.drive(
        engine.starter.start(StartRequest(input="in", requester="bob", spec=tree, environment=ENVIRONMENT))
    )
    engine.answer(engine.open(run)[0], "approved", actor="cy")
    run = engine.drive(run)
    assert (run.status, engine.notes()) == (RunStatus.FAILED, ["tried"])
    declare(engine.store, {**PEOPLE, "cy": {}, "eve": {"roles": ["legal"]}}, inlineSpecs=True)
    run = engine.drive(continue_run(engine.store, ProgramLoader(engine.store), run.id, actor="rex"))
    assert (run.status, engine.notes()) == (RunStatus.PAUSED, ["tried"])
    engine.answer(engine.open(run)[0], "approved", actor="eve")
    assert (engine.drive(run).status, engine.notes()) == (RunStatus.SUCCEEDED, ["tried", "tried"])


def test_a_gate_whose_checkpoints_were_pruned_is_not_forgotten(engine: Engine) -> None:
    run = finish(engine, engine.start(FLOW))
    gone = tables.checkpoints.c.type.in_(["human_pause", "human_resume", "run_started"])
    with engine.store.write() as tx:
        tx.connection.execute(tables.checkpoints.delete().where(gone, tables.checkpoints.c.run_id == run.id))
        last = history.list_checkpoints(tx, run.id)[-1].sequence
    for more in ({}, {"input": "EVIL"}):
        with pytest.raises(Conflict) as caught:
            repeat(engine, run, checkpoint=last, **more)
        assert caught.value.code == "checkpoint_incomplete"
    assert engine.notes() == ["in draft"]


def test_two_gates_of_one_key_do_not_stand_in_for_each_other(engine: Engine) -> None:
    """The key of a question is what its author writes; which gate it is is decided by its place."""
    first = {**step("draft"), "review": {"before": {"human": "ben", "key": "ok"}}}
    second = {**step("publish"), "review": {"before": {"human": "ann", "key": "ok"}}}
    run = engine.run([first, second], ben={"candidates": {"users": ["ben"]}}, ann={"candidates": {"users": ["ann"]}})
    engine.answer(engine.open(run)[0], "approved", actor="ben")
    run = engine.drive(run)
    engine.answer(engine.open(run)[0], "approved", actor="ann")
    run = engine.drive(run)
    forked = repeat(engine, run, step="publish", input="evil")
    [task] = engine.open(forked)
    assert (task.step_id, task.subject) == ("draft", "evil")
