"""Repeating a run: what was answered is not asked again, unless somebody says so or something changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine, step

from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork, read_record
from kneo.store import audit
from kneo.store.engine import Store

SOURCE = """
def draft(text): return text + " draft"
def publish(text): note(text); return f"published {text}"
def ask(text, context): return str(context.wait("How many?"))
"""

ASK = {"id": "ok", "kind": "human", "ref": "ann"}
FLOW = [step("draft"), ASK, step("publish")]


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


def answered(engine: Engine, kind: str = "approved", content: str | None = None, **human: object) -> Run:
    run = engine.run(FLOW, ann={"description": "Fine?", **human})
    engine.answer(engine.open(run)[0], kind, content)
    return engine.drive(run)


def repeat(engine: Engine, run: Run, requester: str = "rex", **order: object) -> Run:
    order.setdefault("step", "draft")
    made = fork(engine.starter, ProgramLoader(engine.store), ForkRequest(run_id=run.id, requester=requester, **order))
    return engine.drive(made)


def told(engine: Engine, run: Run) -> list[tuple[object, object, object]]:
    return [(one["key"], one["reused"], one["reason"]) for one in read_record(engine.store, run.id).answers]


def test_nobody_is_asked_what_was_answered(engine: Engine) -> None:
    run = answered(engine, "edited", "better")
    again = repeat(engine, run)
    assert (again.status, again.output_text) == (RunStatus.SUCCEEDED, "published better")
    assert told(engine, again) == [("ok.step", True, None)]
    with engine.store.read() as tx:
        words = [item.event.event_type for item in audit.events(tx, run_id=again.id, limit=50)]
    assert "human.reused" in words
    assert told(engine, repeat(engine, again)) == [("ok.step", True, None)]


def test_what_is_shown_has_to_be_the_same(engine: Engine) -> None:
    again = repeat(engine, answered(engine), input="other")
    assert again.status is RunStatus.PAUSED
    assert told(engine, again) == [("ok.step", False, "its subject has changed")]


def test_a_question_is_asked_again_where_somebody_wants_that(engine: Engine) -> None:
    run = answered(engine)
    for ask in (("ok.step",), ("all",)):
        again = repeat(engine, run, ask=ask)
        assert (again.status, told(engine, again)) == (
            RunStatus.PAUSED,
            [("ok.step", False, "the request asks it again")],
        )


@pytest.mark.parametrize(
    ("value", "status", "output"),
    [
        ("approved", RunStatus.SUCCEEDED, "published in draft"),
        ("rejected", RunStatus.CANCELLED, None),
        (False, RunStatus.CANCELLED, None),
        ({"decision": "edited", "content": "new"}, RunStatus.SUCCEEDED, "published new"),
        ("any text", RunStatus.SUCCEEDED, "published any text"),
        ({"amount": 5}, RunStatus.SUCCEEDED, 'published {"amount": 5}'),
        (["approved"], RunStatus.SUCCEEDED, 'published ["approved"]'),
    ],
)
def test_another_answer_can_be_given(engine: Engine, value: object, status: RunStatus, output: str | None) -> None:
    again = repeat(engine, answered(engine), answers={"ok.step": value})
    assert (again.status, again.output_text) == (status, output)


@pytest.mark.parametrize(
    "value",
    [
        {"decision": "perhaps"},
        {"decision": "approved", "feedback": 5},
        {"decision": "selected", "selected_option": 5},
        {"decision": "approved", "values": "none"},
        {"decision": "edited", "arguments": []},
    ],
)
def test_an_answer_of_another_form_is_refused_and_its_question_asked(engine: Engine, value: object) -> None:
    again = repeat(engine, answered(engine), answers={"ok.step": value})
    assert again.status is RunStatus.PAUSED
    assert "is refused" in str(told(engine, again)[0][2])


def test_whoever_repeats_a_run_gets_no_decision_they_could_not_have_had(engine: Engine) -> None:
    run = answered(engine, candidates={"exclude": ["requester"]})
    mine = repeat(engine, run, requester="ann")
    assert mine.status is RunStatus.PAUSED
    assert "is no longer valid" in str(told(engine, mine)[0][2])
    forced = repeat(engine, run, requester="ann", answers={"ok.step": "approved"})
    assert forced.status is RunStatus.PAUSED
    assert "is refused" in str(told(engine, forced)[0][2])
    assert repeat(engine, run, requester="rex").status is RunStatus.SUCCEEDED


def test_one_word_does_not_make_a_quorum(engine: Engine) -> None:
    run = engine.run(FLOW, ann={"quorum": {"approvals": 2}})
    task = engine.open(run)[0]
    engine.answer(task, "approved", actor="ann")
    engine.answer(task, "approved", actor="ben")
    run = engine.drive(run)
    assert repeat(engine, run).status is RunStatus.SUCCEEDED
    again = repeat(engine, run, answers={"ok.step": "approved"})
    assert (again.status, told(engine, again)[0][2]) == (RunStatus.PAUSED, "more approvals are required")
    engine.answer(engine.open(again)[0], "approved", actor="ben")
    assert engine.drive(again).status is RunStatus.SUCCEEDED


def test_what_a_function_was_told_is_used_again_too(engine: Engine) -> None:
    run = engine.run([step("ask"), step("publish")])
    engine.answer(engine.open(run)[0], "provided", "three")
    run = engine.drive(run)
    assert repeat(engine, run, step="ask").output_text == "published three"
    assert repeat(engine, run, step="ask", ask=("all",)).status is RunStatus.PAUSED


ROUTES = """
def draft(text): return "the same draft"
def pay(text): note("paid"); return "paid"
def file(text): note("filed"); return "filed"
"""


def test_an_answer_counts_only_where_what_flows_on_unseen_is_the_same(store: Store, tmp_path: Path) -> None:
    """A variable decides what an approval of the same text leads to."""
    engine = Engine(store, tmp_path / "code", ROUTES + "\ndef amount(text): return text\n")
    branch = {
        "id": "c",
        "kind": "condition",
        "when": {"type": "variable_equals", "key": "amount", "value": "much"},
        "steps": [step("pay")],
        "else": [step("file")],
    }
    flow = [{**step("amount"), "save_as": "amount"}, step("draft"), ASK, branch]
    run = engine.run(flow, text="little")
    engine.answer(engine.open(run)[0], "approved")
    run = engine.drive(run)
    assert (run.output_text, engine.notes()) == ("filed", ["filed"])
    same = repeat(engine, run, step="amount")
    assert (same.status, told(engine, same)) == (RunStatus.SUCCEEDED, [("ok.step", True, None)])
    other = repeat(engine, run, step="amount", input="much")
    assert (other.status, told(engine, other)) == (
        RunStatus.PAUSED,
        [("ok.step", False, "data that the run continues with has changed")],
    )
    assert "paid" not in engine.notes()


def test_an_answer_to_a_form_counts_only_after_the_same_form(engine: Engine) -> None:
    form = {"fields": [{"name": "amount", "type": "int", "required": True}]}
    asks = {"id": "form", "kind": "human", "ref": "ben"}
    run = engine.run([asks, ASK, step("publish")], ann={"description": "Fine?"}, ben={"description": "?", **form})
    engine.answer(engine.open(run)[0], "approved", values={"amount": 1})
    run = engine.drive(run)
    engine.answer(engine.open(run)[0], "approved")
    run = engine.drive(run)
    again = repeat(engine, run, step="form", answers={"form.step": {"decision": "approved", "values": {"amount": 9}}})
    assert again.status is RunStatus.PAUSED
    assert told(engine, again)[-1] == ("ok.step", False, "data that the run continues with has changed")
