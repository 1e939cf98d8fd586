"""What users of Python workflows complain about, on both databases: pauses in a row, in containers, crashes, stale answers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kneo.clock import ManualClock
from kneo.embed.runs import InProcessExecutor, RunHost
from kneo.embed.worker_lock import worker_lock
from kneo.errors import Conflict, NotFound, Usage
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.code import CodeUnavailable
from kneo.sdk import HumanInterventionRequiredError, SequentialWorkflow, WorkflowBuilder
from kneo.sdk import Workflow as Conversation
from kneo.sdk.db import RunDatabase
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import Executions, Flow, wait
from kneo.sdk.workflow import (
    Condition,
    HumanReview,
    Loop,
    Parallel,
    Router,
    Step,
    StepInput,
    Workflow,
    WorkflowRunOutput,
)

CONFIRM = HumanReview(requires_confirmation=True)


@pytest.fixture
def db(migrated_url: str) -> Iterator[RunDatabase]:
    opened = RunDatabase(migrated_url)
    yield opened
    opened.close()


class Steps(list[str]):
    """Makes steps that note their names."""

    def make(self, name: str, review: HumanReview | None = None) -> Step:
        def execute(step_input: StepInput) -> str:
            self.append(name)
            return f"{step_input.previous_step_content}>{name}"

        return Step(name, executor=execute, human_review=review)


def started(workflow: Workflow) -> WorkflowRunOutput:
    output = workflow.run("in")
    assert isinstance(output, WorkflowRunOutput)
    return output


def confirmed(workflow: Workflow, output: WorkflowRunOutput) -> WorkflowRunOutput:
    """Confirm the active question, and continue."""
    requirement = output.active_step_requirements[-1]
    requirement.confirm()
    after = workflow.continue_run(output)
    assert isinstance(after, WorkflowRunOutput)
    return after


# ---- pauses -----------------------------------------------------------------------------------------------------


def test_two_pauses_in_a_row(db: RunDatabase) -> None:
    log = Steps()
    workflow = Workflow("w", [log.make("a", CONFIRM), log.make("b", CONFIRM)], db=db)
    output = confirmed(workflow, started(workflow))
    assert (output.paused_step_name, log) == ("b", ["a"])
    assert [requirement.is_open for requirement in output.step_requirements] == [False, True]
    assert confirmed(workflow, output).content == "in>a>b"


def test_a_rejection_and_then_another_answer(db: RunDatabase) -> None:
    log = Steps()
    review = HumanReview(requires_output_review=True, on_reject="retry")
    workflow = Workflow("w", [log.make("a", review), log.make("b")], db=db)
    output = started(workflow)
    output.steps_requiring_output_review[-1].reject(feedback="again")
    output = workflow.continue_run(output)
    assert (output.is_paused, log) == (True, ["a", "a"])
    assert confirmed(workflow, output).content == "in>a>b"


def test_branches_that_each_pause_twice(db: RunDatabase) -> None:
    log = Steps()
    both = HumanReview(requires_confirmation=True, requires_output_review=True)
    workflow = Workflow("w", [Parallel(log.make("a", both), log.make("b", both), name="p"), log.make("c")], db=db)
    output = started(workflow)
    for count in (2, 2, 1, 1):
        assert len(output.active_requirements) == count
        output = confirmed(workflow, output)
    assert not output.is_paused
    assert sorted(log) == ["a", "b", "c"]
    assert log[-1] == "c"


def test_a_pause_in_a_loop_in_a_router_in_a_condition(db: RunDatabase) -> None:
    log = Steps()
    loop = Loop("loop", [log.make("x", CONFIRM)], max_iterations=3)
    router = Router("router", [loop, log.make("other")], selector=lambda _: "loop")
    workflow = Workflow("w", [Condition("if", lambda _: True, steps=[router]), log.make("end")], db=db)
    output = started(workflow)
    for done in range(3):
        assert output.step_requirements[-1].step_id == "if/router/loop/x"
        assert len(log) == done
        output = confirmed(workflow, output)
    assert output.content == "in>x>x>x>end"


def test_answers_that_do_not_fit_change_nothing(db: RunDatabase) -> None:
    fields = [{"name": "count", "field_type": "int"}]
    review = HumanReview(requires_user_input=True, user_input_schema=fields)
    workflow = Workflow(
        "w", [Step("a", executor=lambda given: given.additional_data["user_input"], human_review=review)], db=db
    )
    output = started(workflow)
    (requirement,) = output.steps_requiring_user_input
    for values in ({"count": "many"}, {}, {"other": 1}):
        with pytest.raises(ValueError, match=r"count|other"):
            requirement.set_user_input(**values)
    with pytest.raises(ValueError, match="No requirement"):
        workflow.continue_run(output)
    assert workflow.get_run(output.run_id).is_paused
    requirement.set_user_input(count=3)
    assert workflow.continue_run(output).content == '{"count": 3}'


def test_an_answer_is_taken_once(db: RunDatabase) -> None:
    log = Steps()
    workflow = Workflow("w", [log.make("a", CONFIRM), log.make("b", CONFIRM)], db=db)
    output = started(workflow)
    copy = workflow.get_run(output.run_id)
    confirmed(workflow, output)
    copy.step_requirements[-1].reject()
    with pytest.raises(Conflict):
        workflow.continue_run(copy)
    assert (log, workflow.get_run(output.run_id).paused_step_name) == (["a"], "b")


# ---- crashes, clocks and numbers --------------------------------------------------------------------------------

CRASHED = textwrap.dedent(
    """
    import os, signal, sys
    from kneo.sdk.db import RunDatabase
    from kneo.embed.runs import RunHost
    from kneo.sdk.workflow import HumanReview, Step, Workflow

    def pay(given):
        with open("paid", "a") as file:
            file.write(given.idempotency_key + "\\n")
        return "paid"

    steps = [Step("pay", executor=pay, human_review=HumanReview(requires_confirmation=True))]
    workflow = Workflow("w", steps, db=RunDatabase(sys.argv[1]), session_id="s")
    if len(sys.argv) > 2:
        async def die(host, run_id):  # after the answer is recorded, before the run continues
            os.kill(os.getpid(), signal.SIGKILL)
        output = workflow.run("in")
        output.step_requirements[-1].confirm()
        RunHost.drive = die
        workflow.continue_run(output)
    print(workflow.continue_run(run_id=workflow.get_session().runs[-1].run_id).content)
    """
)


def test_a_crash_between_answer_and_continuation_loses_no_answer(migrated_url: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CRASHED)
    command = [sys.executable, str(program), migrated_url]
    died = subprocess.run([*command, "die"], cwd=tmp_path, check=False, timeout=240)
    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "paid").exists()
    again = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=240)
    assert again.stdout == "paid\n"
    assert len((tmp_path / "paid").read_text().split()) == 1


@pytest.mark.parametrize("ahead", [timedelta(hours=-5), timedelta(hours=5)])
def test_an_answer_from_a_machine_with_another_clock(migrated_url: str, ahead: timedelta) -> None:
    start = datetime(2026, 5, 1, tzinfo=UTC)
    log = Steps()

    def on(moment: datetime) -> Workflow:
        return Workflow("w", [log.make("a", CONFIRM), log.make("b")], db=RunDatabase(migrated_url, ManualClock(moment)))

    here, there = on(start), on(start + ahead)
    output = started(here)
    assert confirmed(there, there.get_run(output.run_id)).content == "in>a>b"
    assert here.get_run(output.run_id).content == "in>a>b"
    here.db.close()
    there.db.close()


async def pause_all(host: RunHost, run_ids: Sequence[str]) -> None:
    """Execute runs to their pauses, several at a time."""
    driver = Driver(host.store, ProgramLoader(host.store), InProcessExecutor(host))
    with worker_lock(host.store):
        for first in range(0, len(run_ids), 50):
            await asyncio.gather(*[driver.drive(run_id) for run_id in run_ids[first : first + 50]])
    await driver.close()


FLOWS = int(os.environ.get("KNEO_TEST_FLOWS", "100"))  # noqa: TID251 - a choice of those who run the tests
"""Paused flows; 1,000 take a minute on each database."""


def test_one_of_many_paused_flows_continues_alone(db: RunDatabase) -> None:
    begun: list[int] = []

    def ask(number: int) -> str:
        begun.append(number)
        return f"{number} {wait(name='ok', question='Fine?', timeout=0)}"

    flow = Flow("many", ask, db)
    host = flow.host()
    runs = [host.start(flow.spec(), f'{{"args": [{number}], "kwargs": {{}}}}', {}).id for number in range(FLOWS)]
    asyncio.run(pause_all(host, runs))
    assert len(begun) == FLOWS
    executions = Executions([flow])
    assert executions.input(runs[7], value="yes").result == "7 yes"
    assert len(begun) == FLOWS + 1  # the others were not begun again
    assert executions.get(runs[-1]).status == "waiting"


# ---- programs that do not fit their runs ------------------------------------------------------------------------


def test_a_step_that_was_renamed_while_its_run_waits(db: RunDatabase) -> None:
    log = Steps()
    workflow = Workflow("w", [log.make("a", CONFIRM), log.make("b")], db=db)
    output = started(workflow)
    renamed = Workflow("w", [log.make("a", CONFIRM), log.make("c")], db=db)
    copy = renamed.get_run(output.run_id)
    copy.step_requirements[-1].confirm()
    with pytest.raises(CodeUnavailable, match=r"step b, which this program does not have.*Steps of this program: a, c"):
        renamed.continue_run(copy)
    assert log == ["a"]
    assert workflow.continue_run(run_id=output.run_id).content == "in>a>b"
    assert log == ["a", "b"]


def test_a_participant_that_was_renamed_while_its_run_waits(db: RunDatabase) -> None:
    def built(name: str) -> Conversation:
        last = WorkflowBuilder.step(name, lambda messages, _config: f"{name} {messages[-1].content}")
        return SequentialWorkflow([WorkflowBuilder.human_step("q", "?"), last], database=db)

    with pytest.raises(HumanInterventionRequiredError) as caught:
        built("last").run_sync("in")
    with pytest.raises(CodeUnavailable, match="step last, which this program does not have"):
        asyncio.run(built("other").resume(caught.value.run_id, "yes"))
    assert asyncio.run(built("last").resume(caught.value.run_id)).output_text == "last yes"


def test_a_run_of_another_workflow_is_named(db: RunDatabase) -> None:
    log = Steps()
    output = started(Workflow("mine", [log.make("a", CONFIRM)], db=db))
    with pytest.raises(NotFound, match="belongs to the workflow mine, not to other"):
        Workflow("other", [log.make("a")], db=db).continue_run(run_id=output.run_id)


def test_arguments_and_results_that_cannot_be_stored_are_named(db: RunDatabase) -> None:
    echo = Flow("echo", lambda value: object() if value == "object" else value, db)
    for value, message in (({1}, "cannot be stored with its run"), ("x" * 1_000_001, "the limit is 1000000")):
        with pytest.raises(Usage, match=f"^The arguments of echo .*{message}"):
            echo.start(value)
    assert not Executions([echo]).list()
    failed = echo.start("object")
    assert (failed.status, str(failed.error).partition(":")[0]) == (
        "failed",
        "The result of echo cannot be stored with its run",
    )


def test_the_file_of_a_database_is_not_the_address_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Usage, match="begins with sqlite:///"):
        SqliteDb(db_url="postgresql://db.example/kneo")
    assert not list(tmp_path.iterdir())


def test_two_programs_on_one_file(
    migrated_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first program holds the database while its step runs; the second one says so, and works afterwards."""
    path = migrated_file("shared.db")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import sys
            from kneo.sdk.db.sqlite import SqliteDb
            from kneo.sdk.workflow import Step, Workflow

            def hold(given):
                print("begun", flush=True)
                return sys.stdin.readline().strip()

            print(Workflow("first", [Step("hold", executor=hold)], db=SqliteDb({str(path)!r})).run("in").content)
        """)
    )
    log = Steps()
    workflow = Workflow("second", [log.make("a")], db=SqliteDb(path))
    first = subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "begun\n"
        monkeypatch.setattr("kneo.embed.worker_lock.LOCK_WAIT_SECONDS", 0.05)
        with pytest.raises(Conflict, match=rf"Another process executes steps on {path}.*use one database in turns"):
            workflow.run("in")
        assert log == []
        assert first.communicate("done\n", timeout=240)[0] == "done\n"
    finally:
        first.kill()
        first.wait()
    assert started(workflow).content == "in>a"
    workflow.db.close()
