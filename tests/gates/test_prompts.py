"""The words of a question are made of what happened so far."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine, step

from kneo.records.run import Run
from kneo.store.engine import Store

SOURCE = """
def draft(text, context): return f"{context.feedback or 'first'} draft"
def check(text): return "looks {{ input }} fine"
def boom(text): raise ValueError("no")
def left(text): return "L"
def tell(text, context): return str(dict(context.values))
"""


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


def asked(engine: Engine, *steps: object, prompt: str, **human: object) -> tuple[Run, str]:
    run = engine.run([*steps], ann={"prompt": prompt, **human})
    return run, engine.open(run)[0].prompt


ASK = {"id": "ok", "kind": "human", "ref": "ann"}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{{ previous.output }} ({{previous.status}})", "looks {{ input }} fine (completed)"),
        ("{{ messages }}", "draft: first draft\ncheck: looks {{ input }} fine"),
        ("{{ messages.count }} {{ messages.first }}", "2 first draft"),
        ("{{ steps.draft.output }} by {{ run.requester }} for {{ run.input }}", "first draft by bob for in"),
        ("{{ variables.kept }} {{ unknown.name }} {{ 1 }}", "first draft {{ unknown.name }} {{ 1 }}"),
        ("{{ step.id }} {{ run.workflow }}", "ok sequential-workflow"),
    ],
)
def test_names_are_filled_in_and_nothing_else(engine: Engine, prompt: str, words: str) -> None:
    _, said = asked(engine, step("draft", save_as="kept"), step("check"), ASK, prompt=prompt)
    assert said == words


def test_a_reviewer_reads_what_was_sent_back_and_why(engine: Engine) -> None:
    gate = {"human": "ann", "on_reject": "retry", "max_retries": 1}
    run, said = asked(engine, step("draft", review={"after": gate}), prompt="was: {{ previous.rejected }}")
    assert said == "was: "
    engine.answer(engine.open(run)[0], "rejected", "shorter")
    run = engine.drive(run)
    task = engine.open(run)[0]
    assert (task.prompt, task.previous, task.subject) == ("was: first draft", "first draft", "shorter draft")
    engine.answer(task, "rejected", "no")
    assert engine.drive(run).error.type == "human_rejected"


def test_an_error_says_what_went_wrong(engine: Engine) -> None:
    error = {"human": "ann", "options": ["retry", "stop"]}
    _, said = asked(engine, step("boom", review={"error": error}), prompt="{{ error.type }}: {{ error.message }}")
    assert said == "ValueError: no"


def test_what_was_filled_in_reaches_the_next_step_and_conditions(engine: Engine) -> None:
    fields = [{"name": "tone", "allowed_values": ["dry", "warm"]}, {"name": "n", "type": "int"}]
    run = engine.run([ASK, step("tell")], ann={"fields": fields, "decisions": ["provided", "rejected"]})
    from kneo.tasks.decisions import decision_from_value
    from kneo.tasks.inbox import decide

    task = engine.open(run)[0]
    decide(engine.store, task.id, decision_from_value(task, {"tone": "dry", "n": 2}), actor="ann")
    assert engine.drive(run).output_text == "{'tone': 'dry', 'n': 2}"


def test_two_edits_in_a_row_do_not_leak_into_each_other(engine: Engine) -> None:
    gate = {"after": {"human": "ann"}}
    run = engine.run([step("draft", review=gate), step("check", review=gate)])
    engine.answer(engine.open(run)[0], "edited", "one")
    run = engine.drive(run)
    task = engine.open(run)[0]
    assert task.subject == "looks {{ input }} fine"
    engine.answer(task, "approved")
    assert engine.drive(run).output_text == "looks {{ input }} fine"
