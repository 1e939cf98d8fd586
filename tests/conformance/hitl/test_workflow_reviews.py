"""People around steps, conditions, loops and routers: what the guide says, and each fault that was found, absent here."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from warm import run_python

from kneo.clock import ManualClock
from kneo.embed.runs import WorkflowFailed
from kneo.errors import Conflict, KneoError, Usage
from kneo.sdk.db.postgres import PostgresDb
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.run.workflow import (
    RouterContinuedEvent,
    RouterPausedEvent,
    StepOutputReviewEvent,
    StepPausedEvent,
    StepStartedEvent,
    WorkflowCompletedEvent,
    WorkflowPausedEvent,
)
from kneo.sdk.workflow import (
    Condition,
    HumanReview,
    Loop,
    OnError,
    OnReject,
    OnTimeout,
    Parallel,
    Router,
    RunStatus,
    Step,
    StepInput,
    StepOutput,
    Steps,
    UserInputField,
    Workflow,
    WorkflowRunOutput,
)
from kneo.sdk.workflow.decorators import pause

CONFIRM = HumanReview(requires_confirmation=True)


@pytest.fixture
def db(migrated_file: Callable[[str], Path]) -> SqliteDb:
    found = SqliteDb(migrated_file("workflow.db"))
    yield found
    found.close()


class Log(list):
    """Steps that note when they ran and say what they were given, and their name."""

    def step(self, name: str, review: HumanReview | None = None, **more: object) -> Step:
        def run(given: StepInput) -> StepOutput:
            self.append(name)
            feedback = given.additional_data.get("rejection_feedback")
            heard = f"[{feedback}]" if feedback else ""
            return StepOutput(f"{given.previous_step_content}{heard}>{name}")

        return Step(name, executor=run, human_review=review, **more)


@pytest.fixture
def log() -> Log:
    return Log()


def flow(db: SqliteDb | None, *steps: object) -> Workflow:
    return Workflow("flow", list(steps), db=db)


def only(output: WorkflowRunOutput) -> object:
    """Return the one question that is open."""
    [requirement] = output.active_requirements
    return requirement


def on(**review: object) -> HumanReview:
    return HumanReview(**review)


# ---- the guide's examples ---------------------------------------------------------------------------------------


def test_the_guides_confirmation(db: SqliteDb, log: Log) -> None:
    workflow = Workflow(
        name="data_pipeline",
        db=db,
        steps=[
            log.step("fetch_data"),
            log.step(
                "process_data",
                HumanReview(
                    requires_confirmation=True,
                    confirmation_message="Process sensitive data?",
                    on_reject=OnReject.skip,
                ),
            ),
        ],
    )
    run_output = workflow.run("Process user data")
    assert run_output.is_paused
    assert log == ["fetch_data"]
    assert (run_output.pause_kind, run_output.paused_step_name, run_output.paused_step_index) == (
        "step",
        "process_data",
        1,
    )
    assert [req.confirmation_message for req in run_output.steps_requiring_confirmation] == ["Process sensitive data?"]
    for req in run_output.steps_requiring_confirmation:
        req.confirm()
    run_output = workflow.continue_run(run_output)
    assert (run_output.status, run_output.content) == (RunStatus.completed, "Process user data>fetch_data>process_data")
    assert [result.step_name for result in run_output.step_results] == ["fetch_data", "process_data"]


def test_the_guides_timeout(db: SqliteDb, log: Log) -> None:
    review = HumanReview(
        requires_confirmation=True,
        confirmation_message="Approve deployment?",
        timeout=300,
        on_timeout=OnTimeout.approve,
    )
    output = flow(db, log.step("approve_deploy", review)).run("in")
    assert only(output).timeout_at is not None
    assert only(output).on_timeout == "approve"


def test_the_guides_pause_decorator(db: SqliteDb) -> None:
    @pause(
        requires_user_input=True,
        user_input_message="Enter parameters:",
        user_input_schema=[UserInputField(name="threshold", field_type="float", required=True)],
    )
    def process_data(step_input: StepInput) -> StepOutput:
        threshold = step_input.additional_data["user_input"]["threshold"]
        return StepOutput(content=f"Processed with threshold {threshold}")

    workflow = flow(db, Step(name="process", executor=process_data))
    output = workflow.run("in")
    [requirement] = output.steps_requiring_user_input
    assert requirement.user_input_message == "Enter parameters:"
    assert [field.name for field in requirement.user_input_schema] == ["threshold"]
    requirement.set_user_input(threshold=0.5)
    assert workflow.continue_run(output).content == "Processed with threshold 0.5"


def test_the_guides_streaming(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a"), log.step("b", CONFIRM))
    events = list(workflow.run("input", stream=True))
    assert [type(event) for event in events if isinstance(event, StepPausedEvent)] == [StepPausedEvent]
    run_output = workflow.get_session().runs[-1]
    assert run_output.is_paused
    run_output.steps_requiring_confirmation[0].confirm()
    for event in workflow.continue_run(run_output, stream=True):
        last = event
    assert (type(last), last.content) == (WorkflowCompletedEvent, "input>a>b")


# ---- before -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "status", "content"),
    [(OnReject.skip, RunStatus.completed, "in>a>c"), (OnReject.cancel, RunStatus.cancelled, None)],
)
def test_what_is_rejected_before_it_runs_never_runs(
    db: SqliteDb, log: Log, effect: OnReject, status: RunStatus, content: str | None
) -> None:
    workflow = flow(db, log.step("a"), log.step("b", on(requires_confirmation=True, on_reject=effect)), log.step("c"))
    output = workflow.run("in")
    only(output).reject()
    output = workflow.continue_run(output)
    assert output.status is status
    assert "b" not in log
    if content is None:
        assert "b" in output.content
    else:
        assert output.content == content


@pytest.mark.parametrize("make", [Step, Steps, Condition, Loop, Router])
def test_a_rejection_never_runs_what_it_rejects(make: type, log: Log) -> None:
    """on_reject=retry before something runs used to run it."""
    review = on(requires_confirmation=True, on_reject=OnReject.retry)
    with pytest.raises(ValueError, match="would run what was rejected"):
        primitive(make, log, review)


def primitive(make: type, log: Log, review: HumanReview | None) -> object:
    inner = [log.step("x"), log.step("y")]
    match make.__name__:
        case "Step":
            return log.step("p", review)
        case "Condition":
            return Condition("p", lambda _given: False, steps=inner[:1], else_steps=inner[1:], human_review=review)
        case "Loop":
            return Loop("p", inner, max_iterations=2, human_review=review)
        case "Router":
            return Router("p", inner, selector=lambda _given: "y", human_review=review)
        case _:
            return Steps("p", inner, human_review=review)


@pytest.mark.parametrize("make", [Step, Steps, Condition, Loop, Router])
@pytest.mark.parametrize("effect", [OnReject.skip, OnReject.cancel])
def test_every_primitive_can_be_rejected_before_it_runs(db: SqliteDb, log: Log, make: type, effect: OnReject) -> None:
    workflow = flow(db, primitive(make, log, on(requires_confirmation=True, on_reject=effect)), log.step("z"))
    output = workflow.run("in")
    assert (log, only(output).step_type) == ([], make.__name__)
    only(output).reject()
    output = workflow.continue_run(output)
    assert log == (["z"] if effect is OnReject.skip else [])
    assert output.status is (RunStatus.completed if effect is OnReject.skip else RunStatus.cancelled)


@pytest.mark.parametrize(
    ("make", "ran"),
    [
        (Step, ["p"]),
        (Steps, ["x", "y"]),
        (Condition, ["x"]),
        (Loop, ["x", "y", "x", "y"]),
        (Router, ["y"]),
    ],
)
def test_every_primitive_runs_when_it_is_confirmed(db: SqliteDb, log: Log, make: type, ran: list[str]) -> None:
    workflow = flow(db, primitive(make, log, CONFIRM))
    output = workflow.run("in")
    only(output).confirm()
    assert workflow.continue_run(output).status is RunStatus.completed
    assert log == ran


def test_at_a_condition_the_person_decides(db: SqliteDb, log: Log) -> None:
    """The evaluator used to be asked after all, and a confirmed condition could take its else branch."""
    workflow = flow(db, primitive(Condition, log, CONFIRM))
    output = workflow.run("in")
    only(output).confirm()
    workflow.continue_run(output)
    output = workflow.run("in")
    only(output).reject()
    workflow.continue_run(output)
    assert log == ["x", "y"]


def test_a_condition_without_a_question_asks_its_evaluator(db: SqliteDb, log: Log) -> None:
    assert flow(db, primitive(Condition, log, None)).run("in").content == "in>y"
    assert flow(db, Condition("c", True, steps=[log.step("x")])).run("in").content == "in>x"
    assert flow(db, Condition("c", False, steps=[log.step("x")])).run("in").content == "in"


# ---- input ------------------------------------------------------------------------------------------------------

FIELDS = [
    UserInputField("threshold", "float"),
    UserInputField("mode", "str", required=False, allowed_values=["fast", "accurate"]),
]


def asking(seen: list[object], **more: object) -> Step:
    def run(given: StepInput) -> str:
        seen.append(given.additional_data.get("user_input"))
        return "done"

    return Step("process", executor=run, human_review=on(requires_user_input=True, user_input_schema=FIELDS, **more))


@pytest.mark.parametrize(
    "values",
    [{}, {"threshold": "high"}, {"threshold": True}, {"threshold": 1, "mode": "slow"}, {"threshold": 1, "other": 2}],
)
def test_values_that_do_not_fit_are_kept_nowhere(db: SqliteDb, values: dict[str, object]) -> None:
    """They used to be stored and to count as the answer, so that the step ran with them."""
    seen: list[object] = []
    workflow = flow(db, asking(seen))
    output = workflow.run("in")
    with pytest.raises(ValueError, match="does not fit"):
        only(output).set_user_input(**values)
    assert only(output).user_input == {}
    with pytest.raises(ValueError, match="No requirement of the run"):
        workflow.continue_run(output)
    only(output).set_user_input(threshold=1)
    workflow.continue_run(output)
    assert seen == [{"threshold": 1}]


def test_values_are_checked_where_the_run_is_too(db: SqliteDb) -> None:
    seen: list[object] = []
    workflow = flow(db, asking(seen))
    output = workflow.run("in")
    only(output).set_user_input(threshold=1)
    only(output).answer.values["threshold"] = "tampered"
    with pytest.raises(KneoError) as caught:
        workflow.continue_run(output)
    assert caught.value.code == "human_input_invalid"
    assert seen == []


def test_confirmation_and_input_are_one_question(db: SqliteDb) -> None:
    seen: list[object] = []
    workflow = flow(db, asking(seen, requires_confirmation=True))
    output = workflow.run("in")
    with pytest.raises(ValueError, match="threshold is required"):
        only(output).confirm()
    only(output).set_user_input(threshold=0.5)
    assert not only(output).is_resolved
    only(output).confirm()
    workflow.continue_run(output)
    assert seen == [{"threshold": 0.5}]


def test_a_question_for_input_can_be_rejected(db: SqliteDb) -> None:
    """It used to be impossible."""
    seen: list[object] = []
    workflow = flow(db, asking(seen))
    output = workflow.run("in")
    only(output).reject()
    assert workflow.continue_run(output).status is RunStatus.completed
    assert seen == []


def test_an_agent_of_this_process_is_told_what_was_filled_in(db: SqliteDb) -> None:
    class Echo:
        name = "echo"

        def run(self, text: str) -> str:
            return text

    review = on(requires_user_input=True, user_input_schema=[UserInputField("tone")])
    workflow = flow(db, Step("write", agent=Echo(), human_review=review))
    output = workflow.run("in")
    only(output).set_user_input(tone="dry")
    assert workflow.continue_run(output).content == "in\n\nUser preferences:\n- tone: dry"


# ---- after ------------------------------------------------------------------------------------------------------

REVIEW = on(requires_output_review=True)
AGAIN = on(requires_output_review=True, on_reject=OnReject.retry, max_retries=2)


def test_an_output_is_looked_at_edited_or_discarded(db: SqliteDb, log: Log) -> None:
    def outcome(resolve: str, *said: str) -> str | None:
        workflow = flow(db, log.step("a"), log.step("b", REVIEW), log.step("c"))
        output = workflow.run("in")
        assert [each.step_output for each in output.steps_requiring_output_review] == ["in>a>b"]
        getattr(only(output), resolve)(*said)
        return workflow.continue_run(output).content

    assert outcome("confirm") == "in>a>b>c"
    assert outcome("edit", "mine") == "mine>c"
    assert outcome("reject") == "in>a>c"


def test_what_was_said_stays_readable(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a", AGAIN), routed(log))
    output = workflow.run("in")
    only(output).reject(feedback="shorter")
    assert (only(output).rejection_feedback, only(output).confirmed) == ("shorter", False)
    output = workflow.continue_run(output)
    only(output).edit("mine")
    output = workflow.continue_run(output)
    only(output).select("quick")
    workflow.continue_run(output)
    said = workflow.get_run(output.run_id).step_requirements
    assert [each.rejection_feedback for each in said] == ["shorter", None, None]
    assert [each.edited_output for each in said] == [None, "mine", None]
    assert [tuple(each.selected_choices) for each in said] == [(), (), ("quick",)]


def test_an_edit_may_be_anything(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a", REVIEW))
    output = workflow.run("in")
    only(output).edit({"score": 3})
    assert json.loads(workflow.continue_run(output).content) == {"score": 3}


def test_a_rejected_output_is_made_again_with_the_feedback(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a", AGAIN))
    output = workflow.run("in")
    only(output).reject(feedback="shorter")
    output = workflow.continue_run(output)
    assert (only(output).step_output, only(output).retry_count) == ("in[shorter]>a", 1)
    only(output).confirm()
    assert workflow.continue_run(output).content == "in[shorter]>a"


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_rejections_are_counted_and_none_means_none(db: SqliteDb, log: Log, limit: int) -> None:
    """max_retries=0 used to mean without end."""
    workflow = flow(db, log.step("a", on(requires_output_review=True, on_reject=OnReject.retry, max_retries=limit)))
    output = workflow.run("in")
    for _ in range(limit + 1):
        only(output).reject()
        output = workflow.continue_run(output)
    assert output.status is RunStatus.cancelled
    assert len(log) == limit + 1


def test_two_edits_do_not_leak_into_each_other(db: SqliteDb, log: Log) -> None:
    """The first edit used to be applied again to the later output that was confirmed."""
    workflow = flow(db, log.step("a", REVIEW), log.step("b", REVIEW))
    output = workflow.run("in")
    only(output).edit("mine")
    output = workflow.continue_run(output)
    only(output).confirm()
    assert workflow.continue_run(output).content == "mine>b"


@pytest.mark.parametrize(("judge", "asked"), [(lambda out: "€" in out.content, True), (lambda out: False, False)])
def test_a_predicate_says_which_outputs_are_looked_at(db: SqliteDb, judge: object, asked: bool) -> None:
    workflow = flow(db, Step("a", executor=lambda given: "5 €", human_review=on(requires_output_review=judge)))
    assert workflow.run("in").is_paused is asked


def test_a_predicate_that_fails_asks(db: SqliteDb, log: Log) -> None:
    """It used to let the output through."""
    workflow = flow(db, log.step("a", on(requires_output_review=lambda output: 1 / 0)))
    assert workflow.run("in").is_paused


def test_confirmation_and_review_are_two_pauses(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a", on(requires_confirmation=True, requires_output_review=True)))
    output = workflow.run("in")
    assert (len(output.steps_requiring_confirmation), log) == (1, [])
    only(output).confirm()
    output = workflow.continue_run(output)
    assert (len(output.steps_requiring_output_review), log) == (1, ["a"])
    assert [each.is_open for each in output.step_requirements] == [False, True]


# ---- loops ------------------------------------------------------------------------------------------------------


def test_each_round_of_a_loop_is_looked_at_once(db: SqliteDb, log: Log) -> None:
    """With two steps in it, a loop used to end early and unreviewed after one rejection."""
    review = on(requires_iteration_review=True, on_reject=OnReject.retry, max_retries=9)
    loop = Loop("l", [log.step("x"), log.step("y"), log.step("z")], max_iterations=5, human_review=review)
    workflow = flow(db, loop, log.step("end"))
    output = workflow.run("in")
    for number in range(1, 5):
        assert log == ["x", "y", "z"] * number
        only(output).reject(feedback=str(number))
        output = workflow.continue_run(output)
    only(output).confirm()
    assert workflow.continue_run(output).status is RunStatus.completed
    assert log == ["x", "y", "z"] * 5 + ["end"]


def test_the_next_round_hears_why(db: SqliteDb, log: Log) -> None:
    loop = Loop("l", [log.step("x")], human_review=on(requires_iteration_review=True, on_reject=OnReject.retry))
    workflow = flow(db, loop)
    output = workflow.run("in")
    only(output).reject(feedback="more")
    assert only(workflow.continue_run(output)).step_output == "in>x[more]>x"


def test_the_edited_round_is_what_flows_on(db: SqliteDb, log: Log) -> None:
    """The step after a loop used to be given the output that was edited away."""
    workflow = flow(db, Loop("l", [log.step("x")], human_review=on(requires_iteration_review=True)), log.step("end"))
    output = workflow.run("in")
    only(output).edit("mine")
    assert workflow.continue_run(output).content == "mine>end"


def test_an_end_condition_ends_a_loop(db: SqliteDb, log: Log) -> None:
    seen: list[list[object]] = []

    def good(outputs: list[StepOutput]) -> bool:
        seen.append([each.content for each in outputs])
        return len(seen) == 2

    loop = Loop("l", [log.step("x"), log.step("y")], max_iterations=9, end_condition=good)
    assert flow(db, loop).run("in").content == "in>x>y>x>y"
    assert seen == [["in>x", "in>x>y"], ["in>x>y>x", "in>x>y>x>y"]]


# ---- routers ----------------------------------------------------------------------------------------------------


def routed(log: Log, **more: object) -> Router:
    return Router("r", [log.step("quick"), log.step("deep")], human_review=on(requires_user_input=True, **more))


def test_a_person_chooses_the_way(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, routed(log, user_input_message="Which analysis?"), log.step("end"))
    output = workflow.run("in")
    [requirement] = output.steps_requiring_route
    assert (list(requirement.available_choices), requirement.task.prompt) == (["quick", "deep"], "Which analysis?")
    requirement.select("deep")
    assert workflow.continue_run(output).content == "in>deep>end"


def test_an_unknown_way_is_refused(db: SqliteDb, log: Log) -> None:
    """It used to run nothing and complete."""
    workflow = flow(db, routed(log))
    output = workflow.run("in")
    with pytest.raises(ValueError, match="sideways is none of the choices"):
        only(output).select("sideways")
    with pytest.raises(ValueError, match="one choice"):
        only(output).select("quick", "deep")
    assert log == []


def test_several_ways_run_in_the_order_they_were_chosen(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, routed(log, allow_multiple_selections=True))
    output = workflow.run("in")
    only(output).select_multiple(["deep", "quick"])
    assert workflow.continue_run(output).content == "in>deep>quick"


def test_a_selector_may_return_a_step(db: SqliteDb, log: Log) -> None:
    quick, deep = log.step("quick"), log.step("deep")
    router = Router("r", [quick, deep], selector=lambda given: deep if given.input == "hard" else quick)
    assert flow(db, router).run("hard").content == "hard>deep"
    assert flow(db, router).run("easy").content == "easy>quick"


def test_a_rejected_way_is_chosen_again_and_counted(db: SqliteDb, log: Log) -> None:
    """The count used to stay at nought, so that the limit never applied."""
    review = on(requires_output_review=True, on_reject=OnReject.retry, max_retries=1)
    workflow = flow(db, Router("r", [log.step("x"), log.step("y")], selector=lambda given: "x", human_review=review))
    output = workflow.run("in")
    only(output).reject(feedback="no")
    output = workflow.continue_run(output)
    only(output).select("y")
    output = workflow.continue_run(output)
    assert (only(output).step_output, only(output).retry_count) == ("in[no]>y", 1)
    only(output).reject()
    assert workflow.continue_run(output).status is RunStatus.cancelled


def test_the_edited_output_of_a_router_flows_on(db: SqliteDb, log: Log) -> None:
    review = on(requires_output_review=lambda output: ">x" in output.content)
    router = Router("r", [log.step("x"), log.step("y")], selector=lambda given: given.input, human_review=review)
    workflow = flow(db, router, log.step("end"))
    output = workflow.run("x")
    only(output).edit("mine")
    assert workflow.continue_run(output).content == "mine>end"
    assert not workflow.run("y").is_paused


# ---- everywhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["Steps", "Condition", "Loop", "Router", "Parallel"])
@pytest.mark.parametrize("review", [CONFIRM, REVIEW], ids=["confirm", "review"])
def test_a_question_pauses_wherever_it_stands(db: SqliteDb, log: Log, container: str, review: HumanReview) -> None:
    """A guarded step inside any container used to run unasked."""
    inner = log.step("guarded", review)
    made = {
        "Steps": lambda: Steps("p", [inner]),
        "Condition": lambda: Condition("p", True, steps=[inner]),
        "Loop": lambda: Loop("p", [inner], max_iterations=1),
        "Router": lambda: Router("p", [inner], selector=lambda given: "guarded"),
        "Parallel": lambda: Parallel(inner, log.step("sibling"), name="p"),
    }[container]()
    workflow = flow(db, made, log.step("end"))
    output = workflow.run("in")
    assert output.is_paused
    assert only(output).step_id == "p/guarded"
    assert "end" not in log
    assert ("guarded" in log) is (review is REVIEW)
    only(output).confirm()
    assert workflow.continue_run(output).status is RunStatus.completed
    assert "guarded" in log


def test_questions_beside_each_other_are_answered_in_any_order(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, Parallel(log.step("a", CONFIRM), log.step("b", CONFIRM), log.step("c"), name="p"))
    output = workflow.run("in")
    assert (len(output.active_requirements), log) == (2, ["c"])
    second = next(each for each in output.active_requirements if each.step_name == "b")
    second.confirm()
    output = workflow.continue_run(output)
    assert (output.is_paused, log) == (True, ["c", "b"])
    only(output).confirm()
    assert workflow.continue_run(output).status is RunStatus.completed
    assert sorted(log) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        ("Steps", "requires_user_input"),
        ("Steps", "requires_output_review"),
        ("Condition", "requires_output_review"),
        ("Loop", "requires_output_review"),
        ("Step", "requires_iteration_review"),
        ("Parallel", "requires_confirmation"),
        ("Parallel", "requires_output_review"),
    ],
)
def test_what_means_nothing_there_is_refused_with_what_does(log: Log, make: str, asked: str) -> None:
    review = {asked: True, **({"user_input_schema": FIELDS} if asked == "requires_user_input" else {})}
    inner = [log.step("x")]
    made = {
        "Step": lambda: Step("p", executor=lambda given: "", **review),
        "Parallel": lambda: Parallel(*inner, **review),
        "Condition": lambda: Condition("p", True, steps=inner, **review),
        "Loop": lambda: Loop("p", inner, **review),
        "Steps": lambda: Steps("p", inner, **review),
    }[make]
    with pytest.raises(ValueError, match="supported there: "):
        made()


@pytest.mark.parametrize("words", [{"on_timeout": "explode"}, {"on_reject": "explode"}, {"on_error": "explode"}])
def test_words_nobody_knows_are_refused(words: dict[str, str]) -> None:
    """An unknown on_timeout used to be accepted and to cancel."""
    with pytest.raises(ValueError, match="is none of"):
        HumanReview(requires_confirmation=True, **words)


def test_parameters_may_stand_at_the_primitive(db: SqliteDb, log: Log) -> None:
    step = Step("a", executor=lambda given: "done", requires_confirmation=True, confirmation_message="Go?")
    assert only(flow(db, step).run("in")).confirmation_message == "Go?"
    with pytest.raises(ValueError, match="human_review"):
        Step("a", executor=lambda given: "", human_review=CONFIRM, requires_confirmation=True)
    with pytest.raises(TypeError, match="requires_magic"):
        Step("a", executor=lambda given: "", requires_magic=True)


# ---- errors -----------------------------------------------------------------------------------------------------


def failing(times: int, ran: list[int], review: HumanReview | None = None) -> Step:
    def run(_given: StepInput) -> str:
        ran.append(1)
        if len(ran) <= times:
            raise LookupError("gone")
        return "found"

    return Step("fetch", executor=run, human_review=review)


def test_a_failure_fails_by_default(db: SqliteDb) -> None:
    with pytest.raises(WorkflowFailed, match="gone") as caught:
        flow(db, failing(9, [])).run("in")
    assert caught.value.error_type == "LookupError"


def test_a_failure_may_be_skipped(db: SqliteDb, log: Log) -> None:
    assert flow(db, failing(9, [], on(on_error=OnError.skip)), log.step("a")).run("in").content == "in>a"


def test_a_person_may_have_a_failed_step_tried_again_a_number_of_times(db: SqliteDb, log: Log) -> None:
    """There used to be no end to it, and the count stayed at nought."""
    ran: list[int] = []
    workflow = flow(db, failing(9, ran, on(on_error=OnError.pause, max_retries=1)), log.step("a"))
    output = workflow.run("in")
    [error] = output.steps_with_errors
    assert (error.error_message, error.error_type, error.retry_count) == ("gone", "LookupError", 0)
    assert output.pause_kind == "step"
    error.retry()
    output = workflow.continue_run(output)
    [error] = output.steps_with_errors
    assert (error.retry_count, len(ran)) == (1, 2)
    with pytest.raises(ValueError, match="cannot retry any more"):
        error.retry()
    error.skip()
    assert workflow.continue_run(output).content == "in>a"


def test_a_retry_that_works_goes_on(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, failing(1, [], on(on_error=OnError.pause)), log.step("a"))
    output = workflow.run("in")
    output.steps_with_errors[0].retry()
    assert workflow.continue_run(output).content == "found>a"


# ---- time -------------------------------------------------------------------------------------------------------

START = datetime(2026, 1, 1, tzinfo=UTC)


def timed(
    migrated: Callable[[str], Path], log: Log, effect: OnTimeout
) -> tuple[ManualClock, Workflow, WorkflowRunOutput]:
    clock = ManualClock(START)
    db = SqliteDb(migrated("timed.db"), clock=clock)
    review = on(requires_confirmation=True, timeout=300, on_timeout=effect)
    workflow = flow(db, log.step("a", review))
    return clock, workflow, workflow.run("in")


@pytest.mark.parametrize(
    ("effect", "ran", "status"),
    [
        (OnTimeout.approve, ["a"], RunStatus.completed),
        (OnTimeout.skip, [], RunStatus.completed),
        (OnTimeout.reject, [], RunStatus.completed),
        (OnTimeout.cancel, [], RunStatus.cancelled),
    ],
)
def test_silence_has_its_effect(
    migrated_file: Callable[[str], Path], log: Log, effect: OnTimeout, ran: list[str], status: RunStatus
) -> None:
    clock, workflow, output = timed(migrated_file, log, effect)
    clock.advance(timedelta(seconds=301))
    assert workflow.continue_run(run_id=output.run_id).status is status
    assert log == ran


@pytest.mark.parametrize("effect", [OnTimeout.approve, OnTimeout.cancel])
def test_an_answer_that_comes_too_late_changes_nothing(
    migrated_file: Callable[[str], Path], log: Log, effect: OnTimeout
) -> None:
    clock, workflow, output = timed(migrated_file, log, effect)
    clock.advance(timedelta(seconds=301))
    only(output).reject() if effect is OnTimeout.approve else only(output).confirm()
    with pytest.raises(Conflict) as caught:
        workflow.continue_run(output)
    assert caught.value.code == "human_task_expired"


@pytest.mark.parametrize(("said", "ran"), [("confirm", ["a"]), ("reject", [])])
def test_an_answer_in_time_stands_whatever_the_clock_says_later(
    migrated_file: Callable[[str], Path], log: Log, said: str, ran: list[str]
) -> None:
    """The policy used to override a decision that was recorded already."""
    clock, workflow, output = timed(migrated_file, log, OnTimeout.cancel if said == "confirm" else OnTimeout.approve)
    getattr(only(output), said)()
    workflow._answer(output, None, None, None)  # recorded, and then this process was gone
    clock.advance(timedelta(days=1))
    assert workflow.continue_run(run_id=output.run_id).status is RunStatus.completed
    assert log == ran


# ---- once -------------------------------------------------------------------------------------------------------


def test_stale_copies_of_a_paused_run_run_it_once(db: SqliteDb, log: Log) -> None:
    """Both copies used to continue, and the step ran twice."""
    workflow = flow(db, log.step("a", CONFIRM), log.step("b", CONFIRM))
    first = workflow.run("in")
    second = workflow.get_run(first.run_id)
    only(first).confirm()
    only(second).confirm()
    workflow.continue_run(first)
    with pytest.raises(Conflict) as caught:
        workflow.continue_run(second)
    assert caught.value.code == "human_task_decided"
    assert log == ["a"]


def test_continuing_needs_an_answer(db: SqliteDb, log: Log) -> None:
    """What was not resolved used to be dropped, and the run completed."""
    workflow = flow(db, log.step("a", CONFIRM))
    output = workflow.run("in")
    with pytest.raises(ValueError, match=r"No requirement of the run .* is resolved\. Open: a"):
        workflow.continue_run(output)
    assert workflow.get_run(output.run_id).is_paused


def test_what_is_not_paused_cannot_be_continued(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a"))
    with pytest.raises(ValueError, match="is not paused"):
        workflow.continue_run(workflow.run("in"))


def test_requirements_a_caller_sends_do_not_replace_the_stored_ones(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a", CONFIRM), log.step("b", CONFIRM))
    output = workflow.run("in")
    with pytest.raises(ValueError, match="is resolved"):
        workflow.continue_run(run_id=output.run_id, step_requirements=[])
    forged = only(output)
    forged.confirm()
    forged.answer = type(forged.answer)(**{**vars(forged.answer), "expect_digest": "sha256:" + "0" * 64})
    with pytest.raises(Conflict) as caught:
        workflow.continue_run(run_id=output.run_id, step_requirements=[forged])
    assert caught.value.code == "subject_changed"
    assert log == []


def test_a_workflow_without_a_database_continues_too(log: Log) -> None:
    """It used to fail with a session that could not be found."""
    workflow = flow(None, log.step("a", CONFIRM))
    output = workflow.run("in")
    only(output).confirm()
    assert workflow.continue_run(output).content == "in>a"


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from kneo.sdk.db.sqlite import SqliteDb
    from kneo.sdk.workflow import HumanReview, Step, Workflow

    def note(text):
        with open("log", "a") as file:
            file.write(text + "\\n")

    def charge(given):
        note(f"charge {given.idempotency_key}")
        return "charged"

    def send(given):
        note(f"send {given.idempotency_key}")
        if sys.argv[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return "sent"

    steps = [Step("charge", executor=charge, human_review=HumanReview(requires_confirmation=True)), Step("send", executor=send)]
    workflow = Workflow("pay", steps, db=SqliteDb("pay.db"), session_id="payments")
    if sys.argv[1] == "die":
        output = workflow.run("in")
        output.steps_requiring_confirmation[0].confirm()
        workflow.continue_run(output)
    print(workflow.continue_run(run_id=workflow.get_session().runs[-1].run_id).content)
    """
)


def test_what_was_done_before_a_crash_is_not_done_again(tmp_path: Path, migrated_file: Callable[[str], Path]) -> None:
    """Continuing after a crash used to charge twice."""
    (tmp_path / "pay.py").write_text(KILLED)
    migrated_file("pay.db")

    def run(what: str) -> subprocess.CompletedProcess[str]:
        return run_python([sys.executable, "pay.py", what], cwd=tmp_path)

    assert run("die").returncode == -signal.SIGKILL
    assert run("again").stdout == "sent\n"
    done = (tmp_path / "log").read_text().split("\n")
    assert [line.split()[0] for line in done if line] == ["charge", "send", "send"]
    assert done[1] == done[2], "the repeated attempt carries the same key"


# ---- doors ------------------------------------------------------------------------------------------------------


def test_everything_has_an_async_twin(db: SqliteDb, log: Log) -> None:
    async def story() -> list[object]:
        workflow = flow(db, log.step("a", CONFIRM))
        output = await workflow.arun("in")
        only(output).confirm()
        ended = await workflow.acontinue_run(output)
        events = [event.event async for event in await workflow.arun("again", stream=True)]
        return [ended.content, events]

    assert asyncio.run(story()) == ["in>a", ["WorkflowStarted", "StepPaused", "WorkflowPaused"]]


def test_events_come_in_order_and_by_their_names(db: SqliteDb, log: Log) -> None:
    workflow = flow(db, log.step("a"), routed(log), log.step("b", REVIEW))
    first = list(workflow.run("in", stream=True))
    assert [event.event for event in first] == [
        "WorkflowStarted",
        "StepStarted",
        "StepCompleted",
        "RouterPaused",
        "WorkflowPaused",
    ]
    assert isinstance(first[1], StepStartedEvent)
    assert isinstance(first[-1], WorkflowPausedEvent)
    [paused] = [event for event in first if isinstance(event, RouterPausedEvent)]
    assert paused.available_choices == ("quick", "deep")
    output = workflow.get_session().runs[-1]
    only(output).select("quick")
    second = list(workflow.continue_run(output, stream=True))
    assert [event.event for event in second][:2] == ["RouterContinued", "StepStarted"]
    assert any(isinstance(event, RouterContinuedEvent) for event in second)
    assert any(isinstance(event, StepOutputReviewEvent) and event.message for event in second)


def test_runs_belong_to_sessions(db: SqliteDb, log: Log) -> None:
    workflow = Workflow("flow", [log.step("a", CONFIRM)], db=db, session_id="mine")
    mine = workflow.run("in")
    theirs = workflow.run("in", session_id="theirs")
    assert [run.run_id for run in workflow.get_session().runs] == [mine.run_id]
    assert [run.run_id for run in workflow.get_session("theirs").runs] == [theirs.run_id]
    only(theirs).confirm()
    with pytest.raises(ValueError, match="session"):
        workflow.continue_run(theirs, session_id="mine")


def test_steps_hear_of_each_other_and_of_what_the_run_was_told(db: SqliteDb) -> None:
    seen: dict[str, object] = {}

    def look(given: StepInput) -> dict[str, object]:
        seen.update(first=given.get_step_content("first"), input=given.input, told=dict(given.additional_data))
        return {"ok": True}

    workflow = flow(db, Step("first", executor=lambda given: "one"), look)
    output = workflow.run({"q": 1}, additional_data={"tenant": "a"})
    assert seen == {"first": "one", "input": '{"q": 1}', "told": {"tenant": "a"}}
    assert json.loads(output.content) == {"ok": True}


def test_names_are_unique_beside_each_other(log: Log) -> None:
    with pytest.raises(ValueError, match="Two primitives"):
        flow(None, log.step("a"), log.step("a"))


def test_runs_are_kept_in_either_database(migrated_url: str, log: Log) -> None:
    def made() -> Workflow:
        path = migrated_url.removeprefix("sqlite:///")
        db = SqliteDb(path) if path != migrated_url else PostgresDb(migrated_url)
        return flow(db, log.step("a"), Parallel(log.step("b", CONFIRM), log.step("c", REVIEW), name="p"), log.step("d"))

    first = made()
    output = first.run("in")
    for requirement in output.active_requirements:
        requirement.confirm()
    first.db.close()
    second = made()
    assert second.continue_run(output).content == "## b\n\nin>a>b\n\n## c\n\nin>a>c>d"
    assert log == ["a", "c", "b", "d"]
    second.db.close()


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:///x"])
def test_a_database_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(Usage):
        PostgresDb(url)


def test_a_workflow_without_a_session_reads_its_own_runs(db: SqliteDb, log: Log) -> None:
    mine, other = (Workflow("flow", [log.step("a")], db=db) for _ in range(2))
    run = mine.run("in")
    assert [each.run_id for each in mine.get_session().runs] == [run.run_id]
    assert other.get_session().runs == []
    assert [each.run_id for each in other.get_session(run.session_id).runs] == [run.run_id]


def test_a_workflow_is_a_step_of_another_one(db: SqliteDb, log: Log) -> None:
    inner = Workflow("inner", [log.step("a"), log.step("b", CONFIRM)])
    workflow = flow(db, inner, log.step("c"))
    paused = workflow.run("in")
    assert paused.active_requirement.step_id == "inner/b"
    paused.steps_requiring_confirmation[0].confirm()
    assert workflow.continue_run(paused).content == "in>a>b>c"
    for around in ({"agent": inner}, {"executor": inner}):
        with pytest.raises(ValueError, match="workflow"):
            Step("around", **around)
    with pytest.raises(ValueError, match="called"):
        flow(db, "no step at all")


def test_the_step_behind_a_parallel_gets_what_every_branch_said(db: SqliteDb, log: Log) -> None:
    seen: list[StepInput] = []

    def after(given: StepInput) -> str:
        seen.append(given)
        return "done"

    nested = Parallel(log.step("c"), log.step("d"), name="inner")
    workflow = flow(db, Parallel(log.step("a"), log.step("b"), nested, name="p"), Step("after", executor=after))
    assert workflow.run("in").content == "done"
    assert all(f"in>{name}" in seen[0].previous_step_content for name in "abcd")
    assert [seen[0].get_step_content(name) for name in "abcd"] == ["in>a", "in>b", "in>c", "in>d"]
    review = HumanReview(requires_confirmation=True)
    asks = flow(db, Parallel(log.step("a"), log.step("b"), name="p"), log.step("after", review)).run("in")
    assert "in>a" in asks.active_requirement.step_input
    assert "in>b" in asks.active_requirement.step_input


def test_a_run_that_failed_is_not_continued_as_if_it_waited(db: SqliteDb) -> None:
    def broken(_given: StepInput) -> str:
        raise RuntimeError("no")

    workflow = flow(db, Step("broken", executor=broken))
    with pytest.raises(WorkflowFailed) as failed:
        workflow.run("in")
    with pytest.raises(ValueError, match="not paused; it is failed"):
        workflow.continue_run(run_id=failed.value.run_id)
