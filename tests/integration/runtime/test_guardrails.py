"""Guardrails of whole runs: what they block or change is in no view of the run, whatever the workflow around the agent does."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_runs import MODEL, AgentRuns, MakeRuns
from engine import level_sandboxes
from model_server import Call, ModelRequest, Reply
from operation_context import operation_context
from sqlalchemy import select

from kneo.api.run_conversation import get_run_conversation
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import continue_run
from kneo.runtime.engine.start import StartRequest
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.executor import Executor
from kneo.store.engine import Store
from kneo.store.tables import metadata

MARKER = "marker-4711"


def keyword(action: str = "block", **config: object) -> dict[str, object]:
    return {"id": "words", "type": "keyword", "action": action, "config": {"keywords": ["MARKER-"], **config}}


def agent(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "model": MODEL, **more}


def step(name: str, kind: str = "agent", **more: object) -> dict[str, object]:
    return {"id": name, "kind": kind, "ref": name, **more}


def tree(steps: list[dict[str, object]], *agents: dict[str, object]) -> dict[str, object]:
    components = {"agents": {str(each["name"]): each for each in agents}, "humans": {"boss": {"description": "Fine?"}}}
    return {"agent": agent("root"), "workflow": {"type": "sequential", "steps": steps}, "components": components}


def replies(text: str) -> Callable[[ModelRequest], Reply]:
    return lambda _request: Reply(text)


def begin(runs: AgentRuns, spec: dict[str, object], text: str = "Go.") -> Run:
    return runs.starter.start(StartRequest(input=text, requester="bob", spec=spec))


def kept(timed_store: Store, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return every table as one text, without the journal: nobody reads its bodies but the run itself."""
    with timed_store.read() as tx:
        return {
            table.name: str([tuple(row) for row in tx.connection.execute(select(table))])
            for table in metadata.sorted_tables
            if table.name not in {"agent_journal", *without}
        }


def conversation(timed_store: Store, run: Run) -> str:
    return str(get_run_conversation(operation_context(timed_store), run.id, whole=True))


@pytest.mark.parametrize("stage", ["output", "workflow"])
@pytest.mark.parametrize("on_error", ["fail", "continue", "retry", "fallback"])
def test_a_blocked_answer_is_nowhere_and_ends_the_run(
    make: MakeRuns, timed_store: Store, stage: str, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kneo")
    runs = make(replies(f"It is {MARKER}."))
    steps = [step("writer", on_error=on_error, fallback_ref="other"), step("other")]
    run = runs.drive(begin(runs, tree(steps, agent("writer", guardrails={stage: [keyword()]}), agent("other"))))
    assert (run.status, run.error.type) == (RunStatus.FAILED, "guardrail_violation")  # type: ignore[union-attr]
    assert len(runs.server.requests) == 1
    assert [name for name, text in kept(timed_store).items() if MARKER in text] == []
    shown = conversation(timed_store, run)
    assert MARKER not in shown
    assert "[withheld: a guardrail checks it]" in shown
    assert MARKER in str(runs.journal(run))
    assert MARKER not in caplog.text
    assert "guardrail_blocked" in runs.trace(run)


def test_a_redacted_answer_is_shown_as_it_passed(make: MakeRuns, timed_store: Store) -> None:
    runs = make(replies(f"It is {MARKER}."))
    spec = tree(
        [step("writer"), step("other")], agent("writer", guardrails={"output": [keyword("redact")]}), agent("other")
    )
    spec["components"]["agents"]["other"]["model"] = {"provider": "dummy", "name": "echo"}  # type: ignore[index]
    run = runs.drive(begin(runs, spec))
    assert run.output_text == "Final answer: It is [redacted]4711."
    assert [name for name, text in kept(timed_store).items() if MARKER in text] == []
    assert MARKER not in conversation(timed_store, run)
    assert "It is [redacted]4711." in conversation(timed_store, run)


@pytest.mark.parametrize("on_error", ["continue", "fallback"])
def test_what_an_input_guardrail_holds_back_goes_no_further(make: MakeRuns, timed_store: Store, on_error: str) -> None:
    def answer(_request: ModelRequest) -> Reply:
        return Reply(calls=[Call("none", {})], text="")

    for action, status in (("block", RunStatus.FAILED), ("redact", RunStatus.SUCCEEDED)):
        runs = make(answer)
        guarded = agent(
            "writer", guardrails={"input": [keyword(action)]}, strategy={"type": "react", "max_iterations": 1}
        )
        echo = {**agent("other"), "model": {"provider": "dummy", "name": "echo"}}
        steps = [step("writer", on_error=on_error, fallback_ref="other"), step("other")]
        run = runs.drive(begin(runs, tree(steps, guarded, echo), f"See {MARKER}."))
        assert run.status is status
        assert (
            MARKER
            not in f"{run.output_text}{conversation(timed_store, run)}{[request.text for request in runs.server.requests]}"
        )
        with timed_store.read() as tx:
            steps_of_run = [
                row for row in tx.connection.execute(select(metadata.tables["steps"])) if row.run_id == run.id
            ]
        assert MARKER not in str(steps_of_run)


CHECK = """
from pathlib import Path
def check(text):
    if Path({file!r}).exists():
        raise RuntimeError("The list of words cannot be read.")
    return "marker" not in text
"""


@pytest.mark.parametrize("is_parallel", [False, True])
def test_a_run_whose_input_could_not_be_checked_is_continued(
    make: MakeRuns, timed_store: Store, tmp_path: Path, is_parallel: bool
) -> None:
    runs = make(replies("Done."))
    module, broken = f"checks_{uuid.uuid4().hex}", tmp_path / "broken"
    (tmp_path / "code" / f"{module}.py").write_text(CHECK.format(file=str(broken)))
    broken.touch()
    guard = {"id": "words", "type": "function", "ref": "check"}
    writer = agent("writer", guardrails={"input": [guard]})
    asks = {"id": "ask", "kind": "human", "ref": "boss"}
    steps = [step("writer", on_error="continue")]
    if is_parallel:
        steps = [{"id": "both", "kind": "parallel", "on_error": "continue", "steps": [*steps, asks]}]
    spec = tree(steps, writer)
    spec["components"]["functions"] = {"check": {"implementation": f"{module}.check"}}  # type: ignore[index]
    run = runs.drive(begin(runs, spec))
    assert (run.status, run.error.type if run.error else None) == (RunStatus.FAILED, "guardrail_violation")
    assert runs.server.requests == []
    assert runs.open(run) == ()
    broken.unlink()
    run = runs.drive(continue_run(timed_store, ProgramLoader(timed_store), run.id, actor="bob"))
    if is_parallel:
        [task] = runs.open(run)
        runs.decide(task, "approved")
        run = runs.drive(run)
    assert run.status is RunStatus.SUCCEEDED, run
    assert len(runs.server.requests) == 1


def test_a_guardrail_step_passes_its_input_on_or_ends_the_run(make: MakeRuns) -> None:
    for reply, status, output in (("PASS.", RunStatus.SUCCEEDED, "Go."), ("FAIL", RunStatus.FAILED, None)):
        runs = make(replies(reply))
        run = runs.drive(begin(runs, tree([step("judge", "guardrail", on_error="continue")], agent("judge"))))
        assert (run.status, run.output_text) == (status, output)
        assert (run.error.type if run.error else None) == (None if output else "guardrail_violation")


def test_guardrails_of_the_provider_dummy_need_no_library_of_agents(
    make: MakeRuns, timed_store: Store, tmp_path: Path
) -> None:
    runs = make(replies("unused"))
    (tmp_path / "code" / "checks_of_texts.py").write_text(
        "def polite(text):\n    return {'passed': 'rude' not in text, 'text': 'polite'}\n"
    )
    guards = {"output": [{"id": "f", "type": "function", "ref": "polite", "action": "revise"}]}
    spec = {
        "agent": {"name": "root", "model": {"provider": "dummy", "name": "echo"}, "guardrails": guards},
        "components": {"functions": {"polite": {"implementation": "checks_of_texts.polite"}}},
    }
    driver = Driver(timed_store, ProgramLoader(timed_store), Executor(runs.code, level_sandboxes(runs.code, "process")))
    for text, output in (("rude", "polite"), ("fine", "Final answer: fine")):
        run = begin(runs, spec, text)
        asyncio.run(driver.drive_alone(run.id))
        assert runs.look(run).output_text == output


def test_a_person_reviews_what_a_guardrail_holds_in_another_process(make: MakeRuns, timed_store: Store) -> None:
    runs = make(replies(f"It is {MARKER}."))
    guarded = agent("writer", guardrails={"output": [keyword("human_review", human="boss")]})
    run = runs.drive(begin(runs, tree([step("writer")], guarded)))
    [task] = runs.open(run)
    assert task.subject == f"It is {MARKER}."
    assert "The guardrail words holds the answer of writer" in f"{task}"
    runs.decide(task, "edited", content=f"Still {MARKER}.")
    run = runs.drive(run)
    [again] = runs.open(run)
    runs.decide(again, "edited", content="It is a secret.")
    run = runs.drive(run)
    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "It is a secret.")
    assert len(runs.server.requests) == 1
    rejected = runs.drive(begin(runs, tree([step("writer", on_error="continue")], guarded)))
    [task] = runs.open(rejected)
    runs.decide(task, "rejected", comment="No.")
    ended = runs.drive(rejected)
    assert (ended.status, ended.error.type) == (RunStatus.FAILED, "guardrail_violation")  # type: ignore[union-attr]
