"""Flows that wait for people: what the guide describes, and what no published version of it did."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from kneo_process import PATIENCE_SECONDS, Machine, eventually, run_python

from kneo.cli.main import run as kneo
from kneo.embed import runs as host
from kneo.errors import Conflict, Invalid, NotFound, Transient, Usage
from kneo.function_context import Declined
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import continue_run
from kneo.runtime.engine.wait import RunSettled
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import (
    Client,
    Execution,
    Executions,
    Flow,
    ask_question,
    checkpoint,
    flow,
    hitl_tool,
    wait,
    wait_for_input,
)
from kneo.sdk.run.workflow import StepExecutorContinuedEvent, StepExecutorPausedEvent
from kneo.sdk.workflow import Step, Workflow
from kneo.store import history, tasks
from kneo.store.engine import WORKER_LOCK, Store
from kneo.tasks.decisions import DecisionNotAllowed, decision_from_value, rejection


@pytest.fixture
def database(migrated_file: Callable[[str], Path]) -> Iterator[SqliteDb]:
    found = SqliteDb(migrated_file("runs.db"))
    yield found
    found.close()


def made(database: SqliteDb, function: Callable[..., object]) -> tuple[Flow, Executions]:
    found = flow(database=database)(function)
    return found, Executions([found])


def test_an_agents_question_becomes_its_answer(database: SqliteDb) -> None:
    """The tutorial's last stage: look up, draft, ask, append, publish."""
    published: list[str] = []

    def publish(topic: str) -> str:
        summary = f"{topic} persists every checkpoint output."
        suffix = wait_for_input(question="What suffix should I add before publishing?", timeout=0)
        published.append(f"{summary} {suffix}")
        return published[-1]

    stage, executions = made(database, publish)
    waiting = stage.start("Durable execution")
    assert (waiting.status, published) == ("waiting", [])
    [listed] = executions.list(status="waiting")
    assert listed.id == waiting.id
    with pytest.raises(Invalid, match="use one of: cancelled, completed, failed, running, waiting"):
        executions.list(status="paused")
    done = executions.input(waiting.id, value="Verified by ops on call")
    assert done.result == "Durable execution persists every checkpoint output. Verified by ops on call"
    assert published == [done.result]
    assert [each.value for each in executions.get(waiting.id).waits] == ["Verified by ops on call"]
    assert any("human_intervention_requested" in line for line in executions.logs(waiting.id))


def test_questions_have_stable_names(database: SqliteDb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.sdk.waits.wait_for_input", lambda **said: wait_for_input(**said, timeout=0))
    stage, executions = made(database, lambda: [ask_question("What suffix?"), ask_question("What suffix?")])
    first = stage.start()
    assert [each.name for each in first.pending_waits] == ["ask_question:1:8176f2cc"]
    second = executions.input(first.id, value="a")
    assert [each.name for each in second.pending_waits] == ["ask_question:2:8176f2cc"]
    assert executions.input(first.id, value={"b": 1}).result == ["a", '{"b": 1}']


@dataclass
class Approval:
    ok: bool
    why: str = ""


@pytest.mark.parametrize(
    ("schema", "wrong", "right", "result"),
    [
        (bool, "yes", True, "True"),
        (int, "three", 3, "3"),
        (Approval, {"ok": 1, "other": 2}, {"ok": True}, "Approval(ok=True, why='')"),
        ({"enum": ["a", "b"]}, "c", "b", "'b'"),
    ],
)
def test_an_answer_fits_its_schema_or_is_refused(
    database: SqliteDb, schema: object, wrong: object, right: object, result: str
) -> None:
    stage, executions = made(database, lambda: repr(wait(schema=schema, question="?", timeout=0)))
    waiting = stage.start()
    with pytest.raises(DecisionNotAllowed):
        executions.input(waiting.id, value=wrong)
    assert executions.get(waiting.id).status == "waiting"
    assert executions.input(waiting.id, value=right).result == result


@pytest.mark.parametrize("value", ["text", 3, [1, "a"], {"k": None}, True])
def test_an_open_question_takes_anything(database: SqliteDb, value: object) -> None:
    """No published version took a plain text here."""
    stage, executions = made(database, lambda: wait(question="?", timeout=0))
    assert executions.input(stage.start().id, value=value).result == value


def test_a_wait_has_a_name_and_facts(database: SqliteDb) -> None:
    stage, executions = made(database, lambda: wait(question="Ship?", metadata={"risk": "high"}, timeout=0))
    waiting = stage.start()
    [asked] = waiting.pending_waits
    assert (asked.name, asked.question, asked.schema) == ("wait_condition:1", "Ship?", None)
    with database.store.read() as tx:
        assert '"risk": "high"' in tasks.get(tx, asked.wait_id).subject
    assert executions.get(waiting.id).pending_waits[0].entered_waiting_at


def test_the_program_stays_for_an_answer_as_long_as_the_question_says(database: SqliteDb) -> None:
    stage, _ = made(database, lambda: wait(question="?", timeout=240))
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(stage()))
    thread.start()
    runs_of_flow = stage.host()

    def asked() -> HumanTask | None:
        with runs_of_flow.store.read() as tx:
            return next(iter(tasks.list_tasks(tx)), None)

    task = eventually(asked)
    assert task
    runs_of_flow.decide(task, decision_from_value(task, "now"))
    thread.join(240)
    assert results == ["now"]


def test_an_answer_in_the_moment_of_the_pause_continues_the_call(
    database: SqliteDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, _ = made(database, lambda: wait(question="?", timeout=240))
    look = host.wait_until_settled

    def answer_first(store: Store, settled: RunSettled, seconds: float) -> object:
        with store.read() as tx:
            for task in tasks.of_run(tx, settled.run_id, UNRESOLVED):
                stage.host().decide(task, decision_from_value(task, "now"))
        return look(store, settled, min(seconds, 1))

    monkeypatch.setattr(host, "wait_until_settled", answer_first)
    assert stage() == "now"


def test_calling_a_flow_that_waits_says_so(database: SqliteDb) -> None:
    stage, _ = made(database, lambda: wait(name="ok", timeout=0))
    with pytest.raises(Conflict, match="waits for ok"):
        stage()


def test_what_it_was_given_is_kept_however_it_was_given(database: SqliteDb) -> None:
    """A positional argument used to be lost."""
    stage, executions = made(database, lambda topic, tone="dry": [topic, tone, wait(timeout=0)])
    assert executions.input(stage.start("dogs", tone="warm").id, value=1).result == ["dogs", "warm", 1]


def test_an_answer_counts_once_and_only_where_something_is_asked(database: SqliteDb) -> None:
    stage, executions = made(database, lambda: wait(timeout=0))
    waiting = stage.start()
    with pytest.raises(Conflict, match="waits for an answer"):
        executions.resume(waiting.id)
    executions.input(waiting.id, value=1)
    with pytest.raises(Conflict, match="asks nothing"):
        executions.input(waiting.id, value=2)
    with pytest.raises(NotFound):
        executions.get("run_nothing")


def test_a_wait_that_is_aborted_cancels(database: SqliteDb) -> None:
    stage, executions = made(database, lambda: wait(timeout=0))
    waiting = stage.start()
    assert executions.abort_wait(waiting.id).status == "cancelled"
    with pytest.raises(Conflict):
        executions.input(waiting.id, value=1)


def answered(executions: Executions, stage: Flow, *values: object) -> str:
    waiting = stage.start("cats")
    for value in values:
        executions.input(waiting.id, value=value)
    return waiting.id


def asking_twice(topic: str) -> list[object]:
    return [topic, wait(name="suffix", question="What suffix?", timeout=0), wait(name="ok", schema=bool, timeout=0)]


def test_a_replay_does_not_ask_again(database: SqliteDb) -> None:
    """Every published version asked again."""
    stage, executions = made(database, asking_twice)
    first = answered(executions, stage, "!", True)
    again = executions.replay(first, from_="default")
    assert (again.status, again.result) == ("completed", ["cats", "!", True])
    assert again.id != first
    assert [each.reused for each in again.waits] == [True, True]
    assert executions.get(first).result == again.result


def test_a_replay_takes_other_answers(database: SqliteDb) -> None:
    stage, executions = made(database, asking_twice)
    first = answered(executions, stage, "!", True)
    assert executions.replay(first, answers={"suffix": "?"}).result == ["cats", "?", True]


def test_a_replay_asks_again_what_it_is_told_to(database: SqliteDb) -> None:
    stage, executions = made(database, asking_twice)
    first = answered(executions, stage, "!", True)
    again = executions.replay(first, ask="ok")
    assert [each.name for each in again.pending_waits] == ["ok"]
    assert executions.input(again.id, value=False).result == ["cats", "!", False]
    assert [each.name for each in executions.replay(first, ask="all").pending_waits] == ["suffix"]


def test_a_replay_asks_what_was_not_asked_before(database: SqliteDb) -> None:
    stage, executions = made(database, asking_twice)
    first = answered(executions, stage, "!", True)
    stage.function = lambda topic: [topic, wait(name="suffix", question="Which prefix?", timeout=0)]
    assert [each.question for each in executions.replay(first).pending_waits] == ["Which prefix?"]


def test_a_replay_begins_at_the_flow(database: SqliteDb) -> None:
    stage, executions = made(database, asking_twice)
    with pytest.raises(NotFound, match=r"no checkpoint elsewhere\. Recorded checkpoints: none"):
        executions.replay(answered(executions, stage, "!", True), from_="elsewhere")


def test_who_declines_is_heard_by_the_flow(database: SqliteDb) -> None:
    def careful() -> str:
        try:
            return str(wait(question="Go on?", timeout=0))
        except Declined as refused:
            return f"left out: {refused}"

    stage, executions = made(database, careful)
    waiting = stage.start()
    host = stage.host()
    task = host.snapshot(waiting.id).tasks[0]
    host.decide(task, rejection(task, "too risky"))
    assert executions.resume(waiting.id).result == "left out: too risky"


def test_a_tool_whose_result_a_person_gives(database: SqliteDb) -> None:
    @hitl_tool(schema=bool, timeout=0)
    def may_pay(amount: int, to: str = "ann") -> bool:
        """May this be paid?

        Not part of the question.
        """
        raise AssertionError("never run")

    stage, executions = made(database, lambda: [may_pay(5), may_pay(7, to="bob")])
    first = stage.start()
    [asked] = first.pending_waits
    assert (asked.name, asked.question, asked.schema) == ("may_pay:1", "May this be paid?", {"type": "boolean"})
    second = executions.input(first.id, value=True)
    assert second.pending_waits[0].name == "may_pay:2"
    assert executions.input(first.id, value=False).result == [True, False]


def test_steps_of_workflows_may_wait_too(database: SqliteDb) -> None:
    workflow = Workflow("w", [Step("ask", executor=lambda given: f"{given.input} {wait(question='?')}")], db=database)
    paused = workflow.run("in")
    assert paused.is_paused
    assert paused.pause_kind == "executor"
    [requirement] = paused.active_requirements
    requirement.provide("out")
    assert workflow.continue_run(paused).content == "in out"


def test_a_wait_inside_a_step_is_among_the_events(database: SqliteDb) -> None:
    ask = Step("ask", executor=lambda given: f"{given.input} {wait(question='Which?', name='which', schema=str)}")
    workflow = Workflow("w", [ask], db=database)
    *_, paused, _ = workflow.run("in", stream=True)
    assert isinstance(paused, StepExecutorPausedEvent)
    assert (paused.step_name, paused.message, paused.schema) == ("ask", "Which?", {"type": "string"})
    output = workflow.get_session().runs[-1]
    output.active_requirements[0].provide("out")
    continued = next(iter(workflow.continue_run(output, stream=True)))
    assert isinstance(continued, StepExecutorContinuedEvent)
    assert continued.decision == "provided"


def test_nobody_waits_outside_a_step() -> None:
    with pytest.raises(Usage):
        wait(question="?")


# ---- parts that are done once -----------------------------------------------------------------------------------


def counted(did: list[str]) -> Callable[[str], str]:
    @checkpoint
    def draft(topic: str) -> str:
        did.append(topic)
        return f"{topic}!"

    return draft


def test_what_a_part_has_done_is_not_done_again_after_an_answer(database: SqliteDb) -> None:
    did: list[str] = []
    draft = counted(did)

    def publish(topic: str) -> str:
        text = draft(topic)
        return f"{text} {wait(question='Publish?', timeout=0)} {draft(topic)}"

    stage, executions = made(database, publish)
    waiting = stage.start("cats")
    assert [(each.name, each.value) for each in waiting.checkpoints] == [("draft:1", "cats!")]
    assert executions.input(waiting.id, value="yes").result == "cats! yes cats!"
    assert did == ["cats", "cats"], "two calls are two parts, each of them done once"


def test_a_part_that_is_given_something_else_is_done_again(database: SqliteDb) -> None:
    did: list[str] = []
    draft, told = counted(did), iter(["a", "b"])
    stage, executions = made(database, lambda: f"{draft(next(told))} {wait(question='?', timeout=0)}")
    assert executions.input(stage.start().id, value="x").result == "b! x"
    assert did == ["a", "b"]


def test_a_part_that_fails_is_done_again_and_what_came_before_is_not(database: SqliteDb) -> None:
    did: list[str] = []
    draft = counted(did)

    @checkpoint(name="send")
    async def broken(text: str) -> str:
        did.append(f"send {text}")
        if len(did) < 3:
            raise ValueError("no line")
        return text

    async def publish() -> str:
        return await broken(draft("cats"))

    stage, executions = made(database, publish)
    failed = stage.start()
    assert failed.status == "failed"
    host = stage.host()
    continue_run(host.store, ProgramLoader(host.store), failed.id, actor="ann")
    assert executions.resume(failed.id).result == "cats!"
    assert did == ["cats", "send cats!", "send cats!"]


def test_a_replay_begins_at_a_part(database: SqliteDb) -> None:
    did: list[str] = []
    draft = counted(did)

    @checkpoint
    def send(text: str) -> str:
        did.append(f"send {text}")
        return text

    stage, executions = made(database, lambda: send(draft("cats")))
    done = stage.start()
    assert executions.replay(done.id, from_="send").result == "cats!"
    assert did == ["cats", "send cats!", "send cats!"]
    assert executions.replay(done.id).result == "cats!"
    assert did[3:] == ["cats", "send cats!"], "from the flow itself everything is done"
    with pytest.raises(NotFound, match="Recorded checkpoints: draft:1, send:1"):
        executions.replay(done.id, from_="nowhere")


def test_a_replay_that_cannot_take_over_the_parts_is_not_recorded(
    database: SqliteDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    @checkpoint
    def send(text: str) -> str:
        return text

    def fail(*_given: object) -> None:
        raise Transient("The disk is full.")

    stage, executions = made(database, lambda: send("cats"))
    done = stage.start()
    monkeypatch.setattr(history, "copy_entries", fail)
    with pytest.raises(Transient):
        executions.replay(done.id, from_="send")
    assert [each.id for each in executions.list()] == [done.id]


@pytest.mark.parametrize(("given", "gives"), [({1, 2}, None), (1, {1, 2}), (1, float("nan")), (1, "x" * 1_000_001)])
def test_what_cannot_be_kept_is_refused(database: SqliteDb, given: object, gives: object) -> None:
    @checkpoint
    def part(_value: object) -> object:
        return gives

    stage, _ = made(database, lambda: part(given))
    failed = stage.start()
    assert failed.status == "failed"
    assert "JSON" in str(failed.error)
    assert failed.checkpoints == []


def test_a_killed_program_does_no_part_twice(database: SqliteDb, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import os, signal, sys
            from pathlib import Path
            from kneo.sdk.db.sqlite import SqliteDb
            from kneo.sdk.durable import Executions, checkpoint, flow

            LOG = Path({str(tmp_path / "log")!r})

            @checkpoint
            def part(name):
                with LOG.open("a") as log:
                    log.write(name + "\\n")
                return name

            @flow(database=SqliteDb(db_url={database.url!r}))
            def work():
                first = part("first")
                if sys.argv[1:] == ["die"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return first + part("second")

            if sys.argv[1:] == ["die"]:
                work.start()
            [run] = Executions([work]).list()
            print(Executions([work]).resume(run.id).result)
        """)
    )
    died = subprocess.run([sys.executable, str(program), "die"], check=False, timeout=240)
    assert died.returncode == -signal.SIGKILL
    again = subprocess.run([sys.executable, str(program)], check=True, capture_output=True, text=True, timeout=240)
    assert again.stdout == "firstsecond\n"
    assert (tmp_path / "log").read_text().split() == ["first", "second"]


def test_nothing_is_a_part_outside_a_step() -> None:
    with pytest.raises(Usage):
        counted([])("cats")


def test_an_answer_from_anywhere_waits_for_the_program_that_has_the_code(
    database: SqliteDb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    def publish(topic: str) -> str:
        begun.append(1)
        return f"{topic}: {wait(question='Publish?', timeout=0)}"

    stage, executions = made(database, publish)
    waiting = stage.start("cats")
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", database.url)
    assert kneo(["runs", "input", waiting.id, "--value", '"yes"', "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "running"
    assert answer["note"].startswith("The answer is recorded. The program that executes the workflow publish continues")
    assert executions.get(waiting.id).status == "running"
    assert executions.resume(waiting.id).result == "cats: yes"
    assert len(begun) == 2


def test_a_value_that_does_not_fit_is_refused_where_it_is_provided(database: SqliteDb) -> None:
    ask = Step("ask", executor=lambda _given: wait(question="How many?", schema=int))
    workflow = Workflow("w", [ask], db=database)
    paused = workflow.run("in")
    requirement = paused.active_requirements[0]
    with pytest.raises(DecisionNotAllowed):
        requirement.provide("three")
    assert not requirement.is_resolved
    requirement.provide(3)
    assert workflow.continue_run(paused).content == "3"


def test_a_flow_that_waits_leaves_the_database_to_other_programs(
    database: SqliteDb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, done = threading.Semaphore(0), []

    def publish(topic: str) -> str:
        begun.release()
        return f"{topic}: {wait(question='Publish?', timeout=None)}"

    stage, executions = made(database, publish)
    thread = threading.Thread(target=lambda: done.append(stage.start("cats").result), daemon=True)
    thread.start()
    assert begun.acquire(timeout=240)
    waiting = wait_for(lambda: executions.list(status="waiting"))[0]
    with wait_for_lock(database):
        pass
    other = Flow("other", lambda: "mine", database)
    assert other.start().result == "mine"
    task = waiting.pending_waits[0]
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", database.url)
    assert kneo(["human", "list", "--json"]) == 0
    [item] = json.loads(capsys.readouterr().out)["tasks"]
    request = item["request"]["request_id"]
    assert kneo(["task", "list"]) == 0
    assert task.wait_id in capsys.readouterr().out.replace("\n", "")
    assert kneo(["task", "decide", task.wait_id, "--request-id", request, "--provide", "yes"]) == 0
    thread.join(240)
    assert done == ["cats: yes"]


def wait_for(look: Callable[[], Sequence[Execution]]) -> Sequence[Execution]:
    """Look until there is something; the other thread makes it so."""
    return eventually(look)


def wait_for_lock(database: SqliteDb) -> contextlib.AbstractContextManager[None]:
    """Be the worker as another process would; the flow has to let go of the lock."""
    stack = contextlib.ExitStack()

    def is_taken() -> bool:
        if stack.enter_context(database.store.exclusive(WORKER_LOCK)):
            return True
        stack.close()
        return False

    eventually(is_taken)
    return stack


SERVED = """
import os
from pathlib import Path
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import checkpoint, flow, wait

@checkpoint
def look(topic):
    with Path("log").open("a") as log:
        log.write(topic + "\\n")
    return topic

@flow(database=SqliteDb(db_url=os.environ["KNEO_SERV_DATABASE_URL"]))
def publish(topic):
    return f"{look(topic)}: {wait(question='Publish?', timeout=0)}"

if __name__ == "__main__":
    print(publish.start("cats").id)
"""


def test_waiting_flows_go_on_by_themselves(tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"sqlite:///{tmp_path / 'flows.db'}")
    (tmp_path / "flows.py").write_text(SERVED)
    run_id = run_python([sys.executable, "flows.py"], cwd=tmp_path, env=machine.env).stdout.strip()
    try:
        machine.start("sdk", "serve", "flows.py", answers=False)
        service = machine.start("service", "serve", "--port", "0", "--workers", "0")
        machine.json("runs", "input", run_id, "--value", '"yes"', "--service-url", service.url)
        done = eventually(lambda: (run := machine.json("runs", "get", run_id))["status"] == "succeeded" and run)
        assert done["output_text"] == '"cats: yes"'
        assert (tmp_path / "log").read_text() == "cats\n"
    finally:
        machine.stop()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("x = 1", "defines no flow"),
        ("from kneo.sdk.durable import flow\n@flow\ndef f(): ...", "has no database"),
        ("import nothing_of_this_name", "cannot be imported"),
        (f"{SERVED}\n@flow(name='publish', database=publish.database)\ndef other(): ...", "two flows named publish"),
    ],
)
def test_a_program_that_cannot_be_served_is_refused(
    program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", f"sqlite:///{tmp_path / 'flows.db'}")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "program.py").write_text(program)
    assert kneo(["sdk", "serve", str(tmp_path / "program.py")]) == 2
    assert message in capsys.readouterr().err


def test_a_thread_of_a_step_may_wait(database: SqliteDb) -> None:
    answers: list[object] = []

    def work() -> str:
        with ThreadPoolExecutor(1) as pool:
            answers.append(pool.submit(lambda: wait(question="From a pool?", timeout=0)).result())
        alone = threading.Thread(target=lambda: answers.append(wait(question="From a thread?", timeout=0)))
        alone.start()
        alone.join()
        return "done"

    stage, executions = made(database, work)
    with quiet_threads():
        waiting = stage.start()
        assert [each.question for each in waiting.pending_waits] == ["From a pool?"]
        waiting = executions.input(waiting.id, value=1)
        assert [each.question for each in waiting.pending_waits] == ["From a thread?"]
        assert executions.input(waiting.id, value=2).result == "done"
    assert answers[-2:] == [1, 2]


def test_a_thread_from_before_a_step_belongs_to_no_step(database: SqliteDb) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert ended.wait(240)
        return "done"

    stage, _ = made(database, work)
    handle = stage.run()
    assert begun.wait(240)
    try:
        with pytest.raises(Usage, match="Only a step"):
            wait(question="?", timeout=0)
    finally:
        ended.set()
    assert handle.wait(240) == "done"


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Keep the question that ends a thread out of the test's warnings."""
    before, threading.excepthook = threading.excepthook, lambda _arguments: None
    try:
        yield
    finally:
        threading.excepthook = before


def test_a_started_flow_is_waited_for(database: SqliteDb, capfd: pytest.CaptureFixture[str]) -> None:
    stage, _ = made(database, lambda topic: f"{topic}: {wait(question='Publish?', metadata={'risk': 'low'})}")
    handle = stage.run("cats")
    eventually(lambda: handle.status == "waiting")
    with pytest.raises(TimeoutError):
        handle.wait(0.01)
    client = Client(stage)
    client.executions.input(handle.execution_id, value="yes")
    assert handle.wait(240) == "cats: yes"
    assert "Kneo: Waiting on `wait_condition:1` (type=external_input, timeout=600s)" in capfd.readouterr().err


def test_a_checkpoint_that_asked_is_neither_asked_nor_repeated_again(database: SqliteDb) -> None:
    paid: list[object] = []

    @checkpoint
    def inner(name: str) -> object:
        return wait(question=f"Pay {name}?", timeout=0)

    @checkpoint
    def pay(name: str) -> object:
        paid.append(inner(name))
        return paid[-1]

    stage, executions = made(database, lambda: [pay("a"), pay("b"), wait(question="Send?", timeout=0)])
    waiting = stage.start()
    for value, question in ((1, "Pay b?"), (2, "Send?")):
        waiting = executions.input(waiting.id, value=value)
        assert [each.question for each in waiting.pending_waits] == [question]
    done = executions.input(waiting.id, value=3)
    assert (done.result, paid) == ([1, 2, 3], [1, 2])
    assert [each.name for each in done.checkpoints] == ["inner:1", "pay:1", "inner:2", "pay:2"]


POLLING = """
import os
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import ask_question, flow

@flow(database=SqliteDb(db_url=os.environ["KNEO_SERV_DATABASE_URL"]))
def publish(summary):
    return f"{summary} {ask_question('What suffix should I add before publishing?')}"

print("Published:", publish("Durable."), flush=True)
"""


def test_an_answer_is_typed_at_the_terminal_of_the_program(tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"sqlite:///{tmp_path / 'flows.db'}")
    (tmp_path / "program.py").write_text(POLLING)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "program.py"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=machine.env
    )
    os.close(theirs)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            ready, _, _ = select.select([ours], [], [], 240)
            assert ready, seen
            seen += os.read(ours, 65_536).decode()

    try:
        until("Kneo: Waiting on `ask_question:1:")
        until("Answer, or leave it to: kneo runs input run_")
        os.write(ours, b"Verified by ops on call\n")
        until("Published: Durable. Verified by ops on call")
        assert process.wait(240) == 0
    finally:
        process.kill()
        process.wait(240)
        os.close(ours)


def test_a_program_without_a_terminal_is_answered_by_a_command(tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"sqlite:///{tmp_path / 'flows.db'}")
    (tmp_path / "program.py").write_text(POLLING)
    with subprocess.Popen(
        [sys.executable, "program.py"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=machine.env,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            assert "Kneo: Waiting on `ask_question:1:" in process.stderr.readline()
            [waiting] = eventually(lambda: machine.json("runs", "list", "--status", "paused")["runs"])
            machine.kneo("runs", "input", waiting["run_id"], "--value", '"Verified by ops on call"')
            assert process.stdout.readline() == "Published: Durable. Verified by ops on call\n"
            assert machine.json("runs", "get", waiting["run_id"])["status"] == "succeeded"
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
