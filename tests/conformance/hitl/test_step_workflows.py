"""Programs written for kern: the samples of its guide as printed with agents at a model, and what its steps share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from model_server import Call, ModelServer, Reply, model_server
from pydantic import BaseModel
from pydantic_ai import Agent as LibraryAgent
from pydantic_ai.models.test import TestModel

from kneo.clock import ManualClock
from kneo.errors import NotFound, Usage
from kneo.sdk import SequentialWorkflow
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import wait
from kneo.sdk.run.workflow import RunContentEvent
from kneo.sdk.tools import tool
from kneo.sdk.workflow import (
    Condition,
    HumanReview,
    Loop,
    OnTimeout,
    Parallel,
    Router,
    Step,
    StepInput,
    StepOutput,
    Steps,
    UserInputField,
    Workflow,
    WorkflowRunOutput,
)
from kneo.sdk.workflow.step import Primitive
from kneo.tasks.decisions import DecisionNotAllowed


@pytest.fixture
def db(migrated_file: Callable[[str], Path]) -> Iterator[SqliteDb]:
    opened = SqliteDb(migrated_file("workflow.db"))
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A model that numbers its replies in a conversation."""
    with model_server(lambda request: Reply(f"Reply {request.turns}.")) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        yield server


def agent(**settings: object) -> dict[str, object]:
    return {"model": {"provider": "openai", "name": "gpt-5-mini"}, **settings}


def step(name: str) -> Step:
    return Step(name, executor=lambda step_input: f"{name}({step_input.previous_step_content})")


def ran(workflow: Workflow, text: str = "in", **arguments: object) -> WorkflowRunOutput:
    output = workflow.run(text, **arguments)
    assert isinstance(output, WorkflowRunOutput)
    return output


# ---- the samples of the guide -----------------------------------------------------------------------------------


@pytest.mark.parametrize("confirmed", [True, False])
def test_the_sample_of_a_confirmation(folder: Path, model: ModelServer, confirmed: bool) -> None:
    from kneo.sdk.db.sqlite import SqliteDb
    from kneo.sdk.workflow import OnReject, Workflow
    from kneo.sdk.workflow.step import Step
    from kneo.sdk.workflow.types import HumanReview

    fetch_agent = process_agent = agent()

    workflow = Workflow(
        name="data_pipeline",
        db=SqliteDb(db_file="workflow.db"),  # Required for HITL
        steps=[
            Step(name="fetch_data", agent=fetch_agent),
            Step(
                name="process_data",
                agent=process_agent,
                human_review=HumanReview(
                    requires_confirmation=True,
                    confirmation_message="Process sensitive data?",
                    on_reject=OnReject.skip,
                ),
            ),
        ],
    )

    run_output = workflow.run("Process user data")

    assert run_output.is_paused
    if run_output.is_paused:
        for req in run_output.steps_requiring_confirmation:
            assert req.confirmation_message == "Process sensitive data?"
            req.confirm() if confirmed else req.reject()
        run_output = workflow.continue_run(run_output)
    assert not run_output.is_paused
    assert len(model.requests) == 1 + confirmed
    workflow.db.close()


def test_the_sample_of_the_databases(folder: Path) -> None:
    from kneo.sdk.db.postgres import PostgresDb  # PostgreSQL for production
    from kneo.sdk.db.sqlite import SqliteDb  # SQLite for development

    workflow = Workflow("w", [step("a")], db=SqliteDb(db_file="workflow.db"))
    assert ran(workflow).content == "a(in)"
    workflow.db.close()
    assert Workflow("w", [step("a")], db=PostgresDb(db_url="postgresql://localhost/kneo")).db.url.startswith(
        "postgresql"
    )


@pytest.mark.parametrize(("word", "content"), [("approve", "deployed"), ("reject", "in"), ("cancel", None)])
def test_the_sample_of_a_timeout(migrated_file: Callable[[str], Path], word: str, content: str | None) -> None:
    from kneo.sdk.workflow import OnTimeout
    from kneo.sdk.workflow.types import HumanReview

    class Deploys:
        name = "deploy_agent"

        def run(self, _message: str) -> str:
            return "deployed"

    deploy_agent = Deploys()
    clock = ManualClock(datetime(2026, 5, 1, tzinfo=UTC))
    approve_deploy = Step(
        name="approve_deploy",
        agent=deploy_agent,
        human_review=HumanReview(
            requires_confirmation=True,
            confirmation_message="Approve deployment?",
            timeout=300,  # 5 minutes
            on_timeout=OnTimeout(word),  # approve | reject | cancel
        ),
    )
    workflow = Workflow("w", [approve_deploy], db=SqliteDb(migrated_file("t.db"), clock=clock))
    output = ran(workflow)
    clock.advance(timedelta(seconds=301))
    after = workflow.get_run(output.run_id)  # a passed deadline is seen at once
    assert not after.is_paused
    settled = workflow.continue_run(run_id=output.run_id)
    assert (settled.status == "CANCELLED") if content is None else (settled.content == content)
    workflow.db.close()


def test_the_sample_of_a_stream(folder: Path) -> None:
    from kneo.sdk.run.workflow import StepExecutorPausedEvent, StepPausedEvent

    workflow = Workflow(
        "w", [Step("send", executor=lambda _: "sent", requires_confirmation=True)], db=SqliteDb(db_file="workflow.db")
    )
    paused = 0
    for event in workflow.run("input", stream=True):
        if isinstance(event, (StepPausedEvent, StepExecutorPausedEvent)):
            paused += 1

    session = workflow.get_session()
    run_output = session.runs[-1]

    if run_output.is_paused:
        run_output.step_requirements[-1].confirm()
        for event in workflow.continue_run(run_output, stream=True):  # noqa: B007 - as printed
            pass
    assert paused == 1
    assert workflow.get_run(run_output.run_id).content == "sent"
    workflow.db.close()


def test_the_sample_of_the_decorator(db: SqliteDb) -> None:
    from kneo.sdk.workflow.decorators import pause
    from kneo.sdk.workflow.types import UserInputField

    @pause(
        requires_user_input=True,
        user_input_message="Enter parameters:",
        user_input_schema=[
            UserInputField(name="threshold", field_type="float", required=True),
        ],
    )
    def process_data(step_input: StepInput) -> StepOutput:
        threshold = step_input.additional_data["user_input"]["threshold"]
        return StepOutput(content=f"Processed with threshold {threshold}")

    workflow = Workflow("w", [Step(name="process", executor=process_data)], db=db)
    output = ran(workflow)
    (requirement,) = output.steps_requiring_user_input
    assert requirement.user_input_message == "Enter parameters:"
    requirement.set_user_input(threshold=0.5)
    assert workflow.continue_run(output).content == "Processed with threshold 0.5"


# ---- agents and teams -------------------------------------------------------------------------------------------


class Verdict(BaseModel):
    good: bool
    why: str


@dataclass
class Response:
    content: object


class Team:
    """A team of another library: it has arun, and takes the session by name."""

    name = "reviewers"

    def __init__(self) -> None:
        self.sessions: list[tuple[str | None, object]] = []

    async def arun(self, message: str, *, session_id: str | None, session_state: dict[str, object]) -> Response:
        self.sessions.append((session_id, dict(session_state)))
        session_state["reviews"] = int(str(session_state.get("reviews", 0))) + 1
        return Response(content={"verdict": message})


def test_an_agent_of_another_library_gives_its_output(db: SqliteDb) -> None:
    library = LibraryAgent(TestModel(custom_output_args={"good": True, "why": "short"}), output_type=Verdict)
    assert json.loads(ran(Workflow("w", [Step("judge", agent=library)], db=db)).content or "") == {
        "good": True,
        "why": "short",
    }


@pytest.mark.parametrize("result", ["said", Response("said"), StepOutput("said")])
def test_any_object_with_run_is_an_agent(db: SqliteDb, result: object) -> None:
    class Agent:
        name = "any"

        def run(self, message: str) -> object:
            assert message == "in"
            return result

    assert ran(Workflow("w", [Step(agent=Agent())], db=db)).content == "said"


def test_a_team_runs_as_a_step(db: SqliteDb) -> None:
    team = Team()
    workflow = Workflow("w", [Step("review", team=team), Step("again", team=team)], db=db, session_id="s")
    assert json.loads(ran(workflow).content or "") == {"verdict": '{"verdict": "in"}'}
    assert team.sessions == [("s", {}), ("s", {"reviews": 1})]


def test_a_step_takes_one_runner() -> None:
    with pytest.raises(ValueError, match="one of agent, team and executor"):
        Step("a", agent=Team(), team=Team())
    with pytest.raises(ValueError, match="neither run nor arun"):
        Step("a", agent=object())
    with pytest.raises(ValueError, match="workflow of WorkflowBuilder"):
        Step("a", agent=SequentialWorkflow([lambda messages, config: "x"]))


def test_the_content_of_an_agent_arrives_while_it_is_written(db: SqliteDb, model: ModelServer) -> None:
    workflow = Workflow("w", [Step("write", agent=agent())], db=db)
    pieces = [event for event in workflow.run("in", stream=True) if isinstance(event, RunContentEvent)]
    assert "".join(piece.content for piece in pieces) == "Reply 0."
    assert {piece.step_name for piece in pieces} == {"write"}
    assert model.requests[0].streamed
    reviewed = Workflow("r", [Step("write", agent=agent(), requires_output_review=True)], db=db)
    assert not [event for event in reviewed.run("in", stream=True) if isinstance(event, RunContentEvent)]


# ---- sessions ---------------------------------------------------------------------------------------------------


def test_an_agent_with_a_memory_reads_the_session(db: SqliteDb, model: ModelServer) -> None:
    remembering = agent(memory={"policy": "full"})
    workflow = Workflow("w", [Step("chat", agent=remembering)], db=db, session_id="trip")
    ran(workflow, "My name is Ada.")
    ran(workflow, "What is my name?")
    assert "My name is Ada." in model.requests[-1].text
    ran(workflow, "Hello.", session_id="other")
    assert "Ada" not in model.requests[-1].text
    assert [run.content for run in workflow.get_session("trip").runs] == ["Reply 0.", "Reply 1."]


def count(step_input: StepInput, session_state: dict[str, object]) -> str:
    session_state["count"] = int(str(session_state.get("count", 0))) + 1
    session_state.pop("once", None)
    return f"{step_input.previous_step_content} {session_state['count']}"


def test_the_state_of_a_session_is_kept_from_run_to_run(migrated_file: Callable[[str], Path]) -> None:
    path = migrated_file("workflow.db")

    def built() -> Workflow:
        steps = [Step("one", executor=count), Step("two", executor=count)]
        state = {"count": 10, "once": True}
        return Workflow("w", steps, db=SqliteDb(path), session_id="s", session_state=state)

    first = built()
    assert ran(first).content == "in 11 12"
    first.db.close()
    second = built()
    assert ran(second).content == "in 13 14"
    assert second.get_session().session_state == {"count": 14}
    assert ran(second, session_id="t").content == "in 11 12"
    assert ran(second, session_state={"count": 0}).content == "in 1 2"
    second.db.close()


def test_a_session_continues_from_the_run_that_began_last(db: SqliteDb) -> None:
    steps = [Step("one", executor=count), Step("ask", executor=count, requires_confirmation=True)]
    workflow = Workflow("w", steps, db=db, session_id="s", session_state={})
    first, second = ran(workflow), ran(workflow)
    for paused in (second, first):
        (requirement,) = paused.step_requirements
        requirement.confirm()
        workflow.continue_run(paused)
    # The second run began last: the next one continues from its state, though the first one ended last.
    state = workflow.get_session().session_state
    assert state == {"count": 3}
    ran(workflow)
    assert workflow.get_session().session_state == {"count": 4}


@pytest.mark.parametrize(
    "parameters",
    [
        {"assignee": "ann"},
        {"timeout": 60},
        {"max_retries": 1},
        {"on_reject": "cancel"},
        {"output_review_message": "Fine?", "requires_confirmation": True},
        {"user_input_schema": [{"name": "a"}]},
        {"allow_multiple_selections": True},
    ],
    ids=min,
)
def test_a_parameter_without_its_question_is_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{min(parameters)}|has no else"):
        Step("a", executor=count, **parameters)


def test_a_step_that_is_repeated_begins_with_the_state_it_began_with(db: SqliteDb) -> None:
    def ask(step_input: StepInput, session_state: dict[str, object]) -> str:
        text = count(step_input, session_state)
        return f"{text} {wait(name='ok', question='Fine?', schema=bool, timeout=0)}"

    workflow = Workflow("w", [Step("a", executor=count), Step("b", executor=ask)], db=db)
    output = ran(workflow)
    output.step_requirements[-1].confirm()
    assert workflow.continue_run(output).content == "in 1 2 True"


def test_steps_at_the_same_time_keep_each_others_changes(db: SqliteDb) -> None:
    def change(key: str) -> Callable[[StepInput, dict[str, object]], str]:
        def execute(_step_input: StepInput, session_state: dict[str, object]) -> str:
            session_state[key] = True
            return key

        return execute

    names = ("a", "b", "c")
    workflow = Workflow("w", [Parallel(*[Step(name, executor=change(name)) for name in names])], db=db)
    ran(workflow)
    assert workflow.get_session().session_state == dict.fromkeys(names, True)


def test_a_state_that_cannot_be_stored_is_refused(db: SqliteDb) -> None:
    with pytest.raises(Usage, match="cannot be stored"):
        Workflow("w", [step("a")], db=db, session_state={"client": object()})
    with pytest.raises(Usage, match="the limit is"):
        ran(Workflow("w", [step("a")], db=db), session_state={"text": "x" * 1_000_001})


# ---- containers and requirements --------------------------------------------------------------------------------


def test_the_outputs_of_containers_are_found_by_name(db: SqliteDb) -> None:
    seen: dict[str, object] = {}

    def look(step_input: StepInput) -> str:
        for name in ("p", "group", "choice", "rounds", "if", "a", "nothing"):
            seen[name] = step_input.get_step_content(name)
        return "done"

    branches = Parallel(step("x"), Steps("group", [step("y"), step("z")]), name="p")
    steps = [
        step("a"),
        branches,
        Router("choice", [step("left"), step("right")], selector=lambda _: "right"),
        Loop("rounds", [step("r")], max_iterations=2),
        Condition("if", False, steps=[step("never")]),
        Step("look", executor=look),
    ]
    output = ran(Workflow("w", steps, db=db))
    assert seen["a"] == "a(in)"
    assert seen["p"] == {"x": "x(a(in))", "group": "z(y(a(in)))"}
    assert seen["group"] == "z(y(a(in)))"
    assert str(seen["choice"]).startswith("right(## x")
    assert str(seen["rounds"]).startswith("r(r(right(")
    assert seen["if"] is seen["nothing"] is None
    names = [result.step_name for result in output.step_results]
    assert (names[0], sorted(names[1:4]), names[4:]) == ("a", ["x", "y", "z"], ["right", "r", "r", "look"])


def test_an_edited_output_counts_for_its_own_round_alone(db: SqliteDb) -> None:
    drafts, seen = iter(range(1, 10)), list[list[object]]()

    def draft(_step_input: StepInput) -> str:
        return f"draft {next(drafts)}"

    def end(outputs: list[StepOutput]) -> bool:
        seen.append([output.content for output in outputs])
        return False

    def look(step_input: StepInput) -> str:
        return " | ".join(str(step_input.get_step_content(name)) for name in ("draft", "way", "rounds"))

    reviewed = Step("draft", executor=draft, requires_output_review=True, on_reject="retry")
    way = Router("way", [Step("a", executor=draft)], selector=lambda _: "a", requires_output_review=True)
    loop = Loop("rounds", [reviewed, way], max_iterations=2, end_condition=end)
    workflow = Workflow("w", [loop, Step("look", executor=look)], db=db)
    output = ran(workflow)
    for answer in ("reject", "edit", "edit", "confirm", "confirm"):
        (requirement,) = output.steps_requiring_output_review
        if answer == "edit":
            requirement.edit(f"edited {requirement.step_name}")
        else:
            getattr(requirement, answer)()
        continued = workflow.continue_run(output)
        assert isinstance(continued, WorkflowRunOutput)
        output = continued
    assert seen == [["edited draft", "edited way"], ["draft 4", "draft 5"]]
    assert output.content == "draft 4 | draft 5 | draft 5"
    assert [result.content for result in output.step_results] == [
        "draft 1",
        "edited draft",
        "draft 3",
        "draft 4",
        "draft 5",
        output.content,
    ]


def test_a_bool_question_is_confirmed_and_a_form_is_provided(db: SqliteDb) -> None:
    def execute(_step_input: StepInput) -> str:
        may = wait(name="may", question="May I?", schema=bool, timeout=0)
        form = wait(name="form", question="How?", schema=Verdict, timeout=0)
        assert isinstance(form, Verdict)
        return f"{may} {form.why}"

    workflow = Workflow("w", [Step("a", executor=execute)], db=db)
    output = ran(workflow)
    assert output.pause_kind == "executor"
    for requirement in output.step_requirements[-1].executor_requirements:
        requirement.confirm()
    output = workflow.continue_run(output)
    (requirement,) = output.steps_requiring_executor_resolution
    with pytest.raises(DecisionNotAllowed):
        requirement.provide_user_input({"good": "perhaps"})
    requirement.provide_user_input({"good": True, "why": "because"})
    assert workflow.continue_run(output).content == "True because"


def test_the_state_of_a_run_is_plain_values(db: SqliteDb) -> None:
    review = HumanReview(requires_confirmation=True, confirmation_message="Go?")
    workflow = Workflow("w", [step("a"), Step("b", executor=lambda _: "b", human_review=review)], db=db)
    values = json.loads(json.dumps(ran(workflow).to_dict()))
    assert (values["status"], values["is_paused"], values["pause_kind"]) == ("PAUSED", True, "step")
    assert values["step_results"] == [{"content": "a(in)", "step_name": "a", "success": True, "error": None}]
    (requirement,) = values["step_requirements"]
    assert (requirement["step_name"], requirement["message"], requirement["requires_confirmation"]) == (
        "b",
        "Go?",
        True,
    )


def test_the_states_of_calls_and_errors_are_plain_values(db: SqliteDb, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Workflow("e", [Step("a", executor=broken, on_error="pause")], db=db)
    (error,) = json.loads(json.dumps(ran(failing).to_dict()))["error_requirements"]
    assert (error["error_type"], error["error_message"]) == ("ValueError", "No.")

    @tool(requires_confirmation=True)
    def send(amount: int) -> str:
        return f"sent {amount}"

    with model_server([Reply(calls=[Call("send", {"amount": 5})]), Reply("Done.")]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        workflow = Workflow("t", [Step("pay", agent=agent(strategy="react", tools=[send]))], db=db)
        (call,) = json.loads(json.dumps(ran(workflow).to_dict()))["step_requirements"]
    assert (call["tool_name"], call["tool_args"]) == ("send", {"amount": 5})


# ---- operations on runs -----------------------------------------------------------------------------------------


def test_a_run_is_cancelled_with_its_questions(db: SqliteDb) -> None:
    workflow = Workflow("w", [Step("a", executor=lambda _: "a", requires_confirmation=True)], db=db)
    output = ran(workflow)
    cancelled = workflow.cancel_run(output.run_id)
    assert (cancelled.status, cancelled.is_paused, cancelled.active_requirements) == ("CANCELLED", False, [])
    output.step_requirements[-1].confirm()
    with pytest.raises(ValueError, match="not paused"):
        workflow.continue_run(output)
    assert workflow.cancel_run(output.run_id).status == "CANCELLED"
    with pytest.raises(NotFound):
        workflow.cancel_run("run_unknown")


def test_a_run_is_replayed_from_a_step_with_its_answers_and_its_state(db: SqliteDb) -> None:
    log: list[str] = []

    def execute(step_input: StepInput, session_state: dict[str, object]) -> str:
        log.append(str(step_input.previous_step_content))
        return count(step_input, session_state)

    review = HumanReview(requires_confirmation=True)
    steps = [
        Step("a", executor=execute),
        Step("b", executor=lambda step_input: step_input.previous_step_content, human_review=review),
        Step("c", executor=execute),
    ]
    workflow = Workflow("w", steps, db=db)
    output = ran(workflow)
    output.step_requirements[-1].confirm()
    assert workflow.continue_run(output).content == "in 1 2"
    again = workflow.replay(output.run_id, from_step="c")
    assert (again.content, log) == ("in 1 2", ["in", "in 1", "in 1"])
    assert again.run_id != output.run_id
    whole = workflow.replay(output.run_id)
    assert (whole.content, len(log)) == ("in 1 2", 5)  # the answer is used again
    assert workflow.replay(output.run_id, ask=["all"]).is_paused
    with pytest.raises(NotFound):
        workflow.replay(output.run_id, from_step="nowhere")


def test_the_people_of_a_question_are_said_in_the_program(migrated_file: Callable[[str], Path]) -> None:
    clock = ManualClock(datetime(2026, 5, 1, tzinfo=UTC))
    review = HumanReview(
        requires_confirmation=True,
        assignee="ann",
        candidates={"users": ["ann", "bob", "carl"], "exclude": ["requester"]},
        quorum=2,
        escalate=[(3600, "bob"), (7200, "carl")],
        remind=[600],
        due=1200,
        priority=80,
        timeout=86_400,
        on_timeout=OnTimeout.cancel,
    )
    workflow = Workflow(
        "w", [Step("a", executor=lambda _: "a", human_review=review)], db=SqliteDb(migrated_file("t.db"), clock=clock)
    )
    output = ran(workflow)
    task = output.step_requirements[-1].task
    assert (task.assignee, task.priority, task.quorum.approvals) == ("ann", 80, 2)
    assert task.candidates.users == ("ann", "bob", "carl")
    clock.advance(timedelta(seconds=3601))
    assert workflow.get_run(output.run_id).step_requirements[-1].task.assignee == "bob"
    clock.advance(timedelta(seconds=7201))
    assert workflow.get_run(output.run_id).step_requirements[-1].task.assignee == "carl"
    clock.advance(timedelta(days=1))
    assert not workflow.get_run(output.run_id).is_paused
    assert workflow.continue_run(run_id=output.run_id).status == "CANCELLED"
    workflow.db.close()


def broken(_step_input: StepInput) -> str:
    msg = "No."
    raise ValueError(msg)


LATE = {"timeout": 300, "on_timeout": OnTimeout.cancel}
POSITIONS: dict[str, Callable[[], Primitive]] = {
    "before": lambda: Step("a", executor=lambda _: "a", requires_confirmation=True, **LATE),
    "input": lambda: Step(
        "a", executor=lambda _: "a", requires_user_input=True, user_input_schema=[UserInputField("n")], **LATE
    ),
    "after": lambda: Step("a", executor=lambda _: "a", requires_output_review=True, **LATE),
    "error": lambda: Step("a", executor=broken, on_error="pause", **LATE),
    "each": lambda: Loop("l", [step("a")], requires_iteration_review=True, **LATE),
    "route": lambda: Router("r", [step("a"), step("b")], requires_user_input=True, **LATE),
    "condition": lambda: Condition("c", steps=[step("a")], requires_confirmation=True, **LATE),
    "group": lambda: Steps("s", [step("a")], requires_confirmation=True, **LATE),
}


@pytest.mark.parametrize("position", POSITIONS)
def test_every_pause_may_have_a_deadline(migrated_file: Callable[[str], Path], position: str) -> None:
    clock = ManualClock(datetime(2026, 5, 1, tzinfo=UTC))
    workflow = Workflow("w", [POSITIONS[position]()], db=SqliteDb(migrated_file("t.db"), clock=clock))
    output = ran(workflow)
    assert output.is_paused
    clock.advance(timedelta(seconds=299))
    assert workflow.get_session().runs[-1].is_paused
    clock.advance(timedelta(seconds=2))
    assert not workflow.get_session().runs[-1].is_paused
    assert workflow.continue_run(run_id=output.run_id).status == "CANCELLED"
    workflow.db.close()


def test_a_pause_at_a_tool_call_may_have_people_and_a_deadline(
    migrated_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    @tool(requires_confirmation=True, gate={"assignee": "ann", "timeout_seconds": 300, "on_timeout": "reject"})
    def send(amount: int) -> str:
        sent.append(amount)
        return "sent"

    clock = ManualClock(datetime(2026, 5, 1, tzinfo=UTC))
    with model_server([Reply(calls=[Call("send", {"amount": 5})]), Reply("Not sent.")]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        pay = Step("pay", agent=agent(strategy="react", tools=[send]))
        workflow = Workflow("w", [pay], db=SqliteDb(migrated_file("t.db"), clock=clock))
        output = ran(workflow)
        assert output.step_requirements[-1].task.assignee == "ann"
        clock.advance(timedelta(seconds=301))
        assert workflow.continue_run(run_id=output.run_id).content == "Not sent."
    assert sent == []
    with pytest.raises(ValueError, match="A tool with a gate has one of"):
        tool(gate={"assignee": "ann"})
    workflow.db.close()


def test_everything_runs_on_the_event_loop_of_the_program(db: SqliteDb) -> None:
    async def program() -> str | None:
        output = await Workflow("w", [Step("a", team=Team())], db=db).arun("in", session_state={"reviews": 1})
        assert isinstance(output, WorkflowRunOutput)
        return output.content

    assert asyncio.run(program()) == '{"verdict": "in"}'
