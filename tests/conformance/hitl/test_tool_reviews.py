"""People around tool calls of agents: @tool with a confirmation, with arguments that people fill in, and carried out elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from model_server import Call, ModelServer, Reply, model_server

from kneo.embed.runs import WorkflowFailed
from kneo.errors import Conflict, KneoError
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.run.workflow import StepExecutorContinuedEvent, StepExecutorPausedEvent, WorkflowCompletedEvent
from kneo.sdk.tools import tool
from kneo.sdk.workflow import Condition, HumanReview, Loop, Parallel, Router, Step, Steps, ToolRequirement, Workflow
from kneo.sdk.workflow.requirements import WorkflowRunOutput


@pytest.fixture
def db(migrated_file: Callable[[str], Path]) -> Iterator[SqliteDb]:
    found = SqliteDb(migrated_file("workflow.db"))
    yield found
    found.close()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModelServer]]:
    """A model that calls tools, then answers; its address and key are those of the operator."""
    open_ = []

    def serve(*calls: Call | Sequence[Call], text: str = "Done.") -> ModelServer:
        turns = [Reply(calls=list(each) if isinstance(each, Sequence) else [each]) for each in calls]
        serving = model_server([*turns, Reply(text)])
        server = serving.__enter__()
        open_.append(serving)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        return server

    yield serve
    for serving in open_:
        serving.__exit__(None, None, None)


class Bank:
    """Tools, and the calls that reached them."""

    def __init__(self, **parameters: object) -> None:
        self.sent: list[tuple[int, str]] = []
        self.keys: list[str] = []

        @tool(**parameters)  # type: ignore[call-overload]
        def send_money(amount: int, to: str, key: str) -> str:
            """Send money."""
            self.sent.append((amount, to))
            self.keys.append(key)
            return f"sent {amount} to {to}"

        self.send_money = send_money


def agent(*tools: object) -> dict[str, object]:
    return {"model": {"provider": "openai", "name": "gpt-5-mini"}, "strategy": "react", "tools": list(tools)}


def paused(workflow: Workflow) -> tuple[WorkflowRunOutput, ToolRequirement]:
    output = workflow.run("go")
    assert isinstance(output, WorkflowRunOutput)
    assert output.is_paused
    assert output.pause_kind == "executor"
    (requirement,) = output.steps_requiring_executor_resolution
    assert isinstance(requirement, ToolRequirement)
    assert requirement.executor_requirements == (requirement,)
    assert not output.steps_requiring_confirmation
    assert not output.steps_requiring_user_input
    return output, requirement


SEND = Call("send_money", {"amount": 5, "to": "bob"})


def test_a_confirmed_call_is_made_once(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    server, bank = model(SEND), Bank(requires_confirmation=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    assert bank.sent == []
    assert requirement.requires_confirmation
    assert (requirement.tool_name, requirement.tool_args) == ("send_money", {"amount": 5, "to": "bob"})
    assert "send_money" in str(requirement.confirmation_message)
    requirement.confirm()
    output = workflow.continue_run(output)
    assert (output.content, bank.sent) == ("Done.", [(5, "bob")])
    assert bank.keys[0].startswith(f"{output.run_id}:")
    assert "sent 5 to bob" in server.requests[-1].text


def test_edited_arguments_are_those_of_the_call(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    model(SEND)
    bank = Bank(requires_confirmation=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    with pytest.raises(TypeError):
        requirement.edit("all of it")
    requirement.edit({"amount": 6, "to": "bob"})
    assert workflow.continue_run(output).content == "Done."
    assert bank.sent == [(6, "bob")]


def test_edited_arguments_that_do_not_fit_are_refused_and_the_question_stays(
    db: SqliteDb, model: Callable[..., ModelServer]
) -> None:
    model(SEND)
    bank = Bank(requires_confirmation=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    requirement.edit({"amount": "much", "to": "bob"})
    with pytest.raises(KneoError, match="amount"):
        workflow.continue_run(output)
    output = workflow.get_run(output.run_id)
    output.steps_requiring_executor_resolution[0].confirm()
    assert workflow.continue_run(output).content == "Done."
    assert bank.sent == [(5, "bob")]


def test_the_agent_is_told_of_a_rejection(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    server, bank = model(SEND), Bank(requires_confirmation=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    requirement.reject("bob is gone")
    assert workflow.continue_run(output).content == "Done."
    assert bank.sent == []
    assert "bob is gone" in server.requests[-1].text


@pytest.mark.parametrize("effect", ["stop", "fail"])
def test_a_rejection_ends_the_run_where_the_tool_says_so(
    db: SqliteDb, model: Callable[..., ModelServer], effect: str
) -> None:
    server, bank = model(SEND), Bank(requires_confirmation=True, on_reject=effect)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    requirement.reject("no")
    try:
        status = workflow.continue_run(output).status
    except WorkflowFailed as failed:
        status = failed.status
    assert str(status).lower() in {"cancelled", "failed"}
    assert (bank.sent, len(server.requests)) == ([], 1)


def test_a_person_fills_in_arguments(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    server = model(Call("send_money", {"amount": 5}))
    bank = Bank(user_input_fields=["to"])
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    assert requirement.requires_user_input
    assert not requirement.requires_confirmation
    with pytest.raises(ValueError, match="to"):
        requirement.provide_user_input({})
    requirement.provide_user_input({"to": "ann"})
    assert workflow.continue_run(output).content == "Done."
    assert bank.sent == [(5, "ann")]
    (declared,) = server.requests[0].body["tools"]
    assert declared["parameters"]["required"] == ["amount"]


def test_a_call_is_carried_out_elsewhere(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    server, bank = model(SEND), Bank(external_execution=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    assert requirement.external_execution_required
    requirement.set_external_execution_result({"receipt": "r-1"})
    assert workflow.continue_run(output).content == "Done."
    assert bank.sent == []
    assert "r-1" in server.requests[-1].text


def test_of_several_calls_each_is_answered_for_itself(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    server, bank = (
        model([SEND, Call("look", {"user": "u-1"}), Call("send_money", {"amount": 7, "to": "ann"})]),
        Bank(requires_confirmation=True),
    )
    looked = []

    def look(user: str) -> str:
        """Look a user up."""
        looked.append(user)
        return "found"

    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money, look))], db=db)
    output = workflow.run("go")
    assert looked == ["u-1"]
    first, second = output.steps_requiring_executor_resolution
    first.confirm()
    output = workflow.continue_run(output)
    assert output.is_paused
    assert bank.sent == [(5, "bob")]
    (second,) = output.steps_requiring_executor_resolution
    second.reject("enough")
    assert workflow.continue_run(output).content == "Done."
    assert (bank.sent, looked, len(server.requests)) == ([(5, "bob")], ["u-1"], 2)


def test_an_answer_counts_once_though_two_copies_have_it(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    model(SEND)
    bank = Bank(requires_confirmation=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    output, requirement = paused(workflow)
    copy = workflow.get_run(output.run_id)
    requirement.confirm()
    copy.steps_requiring_executor_resolution[0].confirm()
    assert workflow.continue_run(output).content == "Done."
    with pytest.raises((Conflict, ValueError)):
        workflow.continue_run(copy)
    assert bank.sent == [(5, "bob")]


@pytest.mark.parametrize("kind", ["Steps", "Condition", "Loop", "Router", "Parallel"])
def test_a_call_pauses_wherever_its_agent_stands(db: SqliteDb, model: Callable[..., ModelServer], kind: str) -> None:
    model(SEND)
    bank = Bank(requires_confirmation=True)
    step = Step("work", agent=agent(bank.send_money))
    container = {
        "Steps": lambda: Steps("group", [step]),
        "Condition": lambda: Condition("group", evaluator=lambda _: True, steps=[step]),
        "Loop": lambda: Loop("group", [step], max_iterations=1),
        "Router": lambda: Router("group", [step], selector=lambda _: "work"),
        "Parallel": lambda: Parallel(step, Step("other", executor=lambda _: "other"), name="group"),
    }[kind]()
    workflow = Workflow("pay", [container], db=db)
    output, requirement = paused(workflow)
    assert requirement.step_name == "work"
    requirement.confirm()
    assert not workflow.continue_run(output).is_paused
    assert bank.sent == [(5, "bob")]


def test_step_and_tool_are_asked_in_turn(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    model(SEND)
    bank = Bank(requires_confirmation=True)
    review = HumanReview(requires_confirmation=True, requires_output_review=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money), human_review=review)], db=db)
    kinds = []
    output = workflow.run("go")
    while output.is_paused:
        kinds.append(output.pause_kind)
        output.active_step_requirements[-1].confirm()
        output = workflow.continue_run(output)
    assert kinds == ["step", "executor", "step"]
    assert bank.sent == [(5, "bob")]


def test_events_tell_of_the_pause_inside_the_step(db: SqliteDb, model: Callable[..., ModelServer]) -> None:
    model(SEND)
    bank = Bank(requires_confirmation=True)
    workflow = Workflow("pay", [Step("work", agent=agent(bank.send_money))], db=db)
    events = list(workflow.run("go", stream=True))
    (event,) = [each for each in events if isinstance(each, StepExecutorPausedEvent)]
    assert event.step_name == "work"
    output = workflow.get_session().runs[-1]
    output.steps_requiring_executor_resolution[0].confirm()
    events = list(workflow.continue_run(output, stream=True))
    assert any(isinstance(each, StepExecutorContinuedEvent) for each in events)
    assert isinstance(events[-1], WorkflowCompletedEvent)


def test_two_tools_of_one_name_are_refused(db: SqliteDb) -> None:
    with pytest.raises(Conflict, match="send_money"):
        Workflow("pay", [Step("a", agent=agent(Bank().send_money)), Step("b", agent=agent(Bank().send_money))], db=db)
    with pytest.raises(TypeError, match="no tool"):
        Workflow("pay", [Step("a", agent=agent(5))], db=db)
