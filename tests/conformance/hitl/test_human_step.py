"""Steps that ask people, in workflows built in Python: what their guide says, and what was found out about them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from kneo.clock import ManualClock
from kneo.errors import Conflict, Forbidden, Invalid, NotFound, Usage
from kneo.records.task import UNRESOLVED, DecisionKind
from kneo.sdk import HumanInterventionRequest, HumanInterventionRequiredError, Message, RunConfig, RunResult
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.workflow.types import HumanReview, gates
from kneo.sdk.workflows import HumanInTheLoopStep, Workflow, WorkflowBuilder, WorkflowFailed
from kneo.settings import from_env
from kneo.store import receipts, runs, tasks
from kneo.store.run_filter import RunFilter
from kneo.store.service_key import find_service_key
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide
from kneo.trust.receipt import find_receipts
from kneo.trust.receipt_check import check_receipts

ASK = WorkflowBuilder.human_step


@pytest.fixture
def database(migrated_file: Callable[[str], Path]) -> SqliteDb:
    found = SqliteDb(migrated_file("runs.db"))
    yield found
    found.close()


def writer(messages: list[Message], _config: RunConfig) -> str:
    return f"draft of {messages[0].content}"


async def publish(messages: list[Message], _config: RunConfig) -> str:
    return f"published {messages[-1].content}"


def flow(database: SqliteDb, *members: object) -> Workflow:
    return WorkflowBuilder.sequential(members, name="release-workflow", database=database)


# ---- the guide's examples ---------------------------------------------------------------------------------------


def test_an_inline_resolver_answers_within_the_run(database: SqliteDb) -> None:
    review = ASK("approval", "Approve this draft?", resolver=lambda request: "Approved by Alice")
    result = flow(database, writer, review, publish).run_sync("cats")
    assert result.output_text == "published Approved by Alice"
    assert [(m.role, m.name) for m in result.messages] == [
        ("user", None),
        ("assistant", "writer"),
        ("user", "approval"),
        ("assistant", "publish"),
    ]
    told = {"human_in_the_loop": True, "human_step": "approval", "human_prompt": "Approve this draft?"}
    assert told.items() <= result.metadata.items()


def test_without_a_resolver_the_run_waits(database: SqliteDb) -> None:
    workflow = flow(database, writer, ASK("approval", "Approve?", metadata={"risk": "high"}), publish)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        asyncio.run(workflow.run("cats", RunConfig({"tenant": "a"})))
    error = caught.value
    assert str(error) == 'Human input required for workflow step "approval".'
    assert (error.step_name, error.prompt) == ("approval", "Approve?")
    assert error.request.keys() == {"step_name", "prompt", "messages", "config", "metadata"}
    assert error.request["metadata"] == {"risk": "high"}
    assert error.request["config"]["metadata"] == {"tenant": "a"}
    assert error.request["messages"][-1]["content"] == "draft of cats"


def test_the_guides_sequential_example(database: SqliteDb) -> None:
    workflow = WorkflowBuilder.sequential(
        [
            writer,
            ASK(
                "editor_review",
                lambda messages, config: f"Approve this draft? {messages[-1].content}",
                resolver=lambda request: "Approved",
            ),
            publish,
        ],
        name="release-workflow",
        database=database,
    )
    result = workflow.run_sync("cats")
    assert result.metadata["human_prompt"] == "Approve this draft? draft of cats"
    assert result.metadata["workflow_steps"] == ["writer", "editor_review", "publish"]


# ---- what a resolver gets and may return ------------------------------------------------------------------------


def test_the_resolver_gets_everything(database: SqliteDb) -> None:
    seen: list[HumanInterventionRequest] = []

    async def resolver(request: HumanInterventionRequest) -> str:
        seen.append(request)
        return "yes"

    config = RunConfig({"tenant": "a"})
    flow(database, writer, ASK("q", "Fine?", resolver=resolver, metadata={"k": 1})).run_sync("cats", config)
    [request] = seen
    assert (request.step_name, request.prompt, request.config, request.metadata) == ("q", "Fine?", config, {"k": 1})
    assert [message.content for message in request.messages] == ["cats", "draft of cats"]


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ("said", "said"),
        (Message("user", "said"), "said"),
        ([Message("user", "one"), Message("user", "two")], "one\n\ntwo"),
        (RunResult([Message("user", "said")]), "said"),
    ],
)
def test_what_a_resolver_may_return(database: SqliteDb, returned: object, text: str) -> None:
    result = flow(database, ASK("q", "?", resolver=lambda _request: returned)).run_sync("in")
    assert result.output_text == text


def test_the_answer_enters_in_its_role(database: SqliteDb) -> None:
    step = ASK("q", "?", resolver=lambda _request: "said", response_role="assistant")
    assert flow(database, step).run_sync("in").messages[-1] == Message("assistant", "said", "q")


@pytest.mark.parametrize("returned", [False, 3, {"a": 1}, []])
def test_anything_else_is_a_type_error_and_the_question_stays(database: SqliteDb, returned: object) -> None:
    workflow = flow(database, ASK("q", "?", resolver=lambda _request: returned), publish)
    with pytest.raises(TypeError, match="resolver of q"):
        workflow.run_sync("in")
    with database.store.read() as tx:
        from kneo.store import tasks

        assert tasks.count_tasks(tx) == 1


def test_a_resolver_that_raises_is_heard(database: SqliteDb) -> None:
    def resolver(_request: HumanInterventionRequest) -> str:
        raise LookupError("nobody home")

    with pytest.raises(LookupError, match="nobody home"):
        flow(database, ASK("q", "?", resolver=resolver)).run_sync("in")


def test_none_leaves_it_to_somebody_else(database: SqliteDb) -> None:
    with pytest.raises(HumanInterventionRequiredError):
        flow(database, ASK("q", "?", resolver=lambda _request: None)).run_sync("in")


def test_a_prompt_may_be_async_and_must_be_a_text(database: SqliteDb) -> None:
    async def prompt(messages: list[Message], config: RunConfig) -> str:
        return f"{messages[-1].content}, {config.metadata['tenant']}?"

    seen: list[str] = []
    step = ASK("q", prompt, resolver=lambda request: seen.append(request.prompt) or request.prompt)
    flow(database, writer, step).run_sync("cats", RunConfig({"tenant": "a"}))
    assert seen == ["draft of cats, a?"]
    with pytest.raises(WorkflowFailed, match="expected a str"):
        flow(database, ASK("q", lambda _messages, _config: 3)).run_sync("in")


# ---- every family -----------------------------------------------------------------------------------------------


def question(request: HumanInterventionRequest) -> str:
    return f"{request.step_name} heard {request.messages[-1].content}"


def test_a_question_inside_a_workflow_names_where_it_stands(database: SqliteDb) -> None:
    inner = WorkflowBuilder.sequential([writer, ASK("q", "?")], name="inner")
    with pytest.raises(HumanInterventionRequiredError) as caught:
        flow(database, inner, publish).run_sync("cats")
    assert (caught.value.step_name, caught.value.step_path) == ("q", "inner/q")


def test_siblings_of_a_question_are_not_lost(database: SqliteDb) -> None:
    ran: list[str] = []

    def slow(_messages: list[Message], _config: RunConfig) -> str:
        ran.append("slow")
        return "slow said this"

    workflow = WorkflowBuilder.concurrent([ASK("q", "?"), slow], name="both", database=database)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        workflow.run_sync("in")
    result = asyncio.run(workflow.resume(caught.value.run_id, "yes"))
    assert ran == ["slow"]
    assert result.metadata["outputs"] == {"q": "yes", "slow": "slow said this"}


def test_those_beside_each_other_hear_the_same(database: SqliteDb) -> None:
    heard: dict[str, list[str]] = {}

    def listener(name: str) -> object:
        def listen(messages: list[Message], _config: RunConfig) -> str:
            heard[name] = [message.content for message in messages]
            return name

        return WorkflowBuilder.function_step(name, listen)

    both = WorkflowBuilder.concurrent([listener("a"), listener("b")], name="both")
    flow(database, writer, both, listener("c")).run_sync("cats")
    assert heard["a"] == heard["b"] == ["cats", "draft of cats"]
    assert sorted(heard["c"]) == ["a", "b", "cats", "draft of cats"] or heard["c"][-1] == "b"


@pytest.mark.parametrize("family", ["handoff", "group_chat"])
def test_people_take_their_turn(database: SqliteDb, family: str) -> None:
    make = getattr(WorkflowBuilder, family)
    workflow = make([writer, ASK("q", "?", resolver=question), publish], name="turns", database=database)
    assert workflow.run_sync("cats").output_text == "published q heard draft of cats"


def test_people_are_nodes_of_graphs(database: SqliteDb) -> None:
    workflow = WorkflowBuilder.graph(
        [writer, ASK("q", "?", resolver=question), publish],
        [("writer", "q"), ("q", "publish", {"type": "output_contains", "value": "heard"})],
        name="graph",
        start="writer",
        database=database,
    )
    assert workflow.run_sync("cats").output_text == "published q heard draft of cats"


def test_what_asks_people_cannot_be_streamed(database: SqliteDb) -> None:
    workflow = flow(database, ASK("q", "?"))
    assert not workflow.supports_streaming
    assert flow(database, writer).supports_streaming
    with pytest.raises(Usage):
        workflow.stream("in")


# ---- a run is a run ---------------------------------------------------------------------------------------------


def test_it_is_a_spec_like_any_other(database: SqliteDb) -> None:
    step = ASK("q", "Fine?", description="Look at it.")
    assert isinstance(step, HumanInTheLoopStep)
    spec = flow(database, writer, step).spec()
    assert [(each["id"], each["kind"]) for each in spec["workflow"]["steps"]] == [
        ("writer", "function"),
        ("q", "human"),
    ]
    assert spec["components"]["humans"]["q"]["prompt"] == "Fine?"


def test_it_goes_on_where_the_same_workflow_is_built_again(migrated_file: Callable[[str], Path]) -> None:
    ran: list[str] = []
    path = migrated_file("runs.db")

    def count(_messages: list[Message], _config: RunConfig) -> str:
        ran.append("counted")
        return "counted"

    def last(messages: list[Message], config: RunConfig) -> str:
        return " | ".join([*(message.content for message in messages), str(config.metadata.get("tenant"))])

    def built() -> Workflow:
        return flow(SqliteDb(path), count, ASK("q", "?"), last)

    first = built()
    with pytest.raises(HumanInterventionRequiredError) as caught:
        first.run_sync("in", RunConfig({"tenant": "a"}))
    first.database.close()
    second = built()
    result = asyncio.run(second.resume(caught.value.run_id, "yes", RunConfig({"tenant": "b"})))
    assert (result.output_text, ran) == ("in | counted | yes | b", ["counted"])
    second.database.close()


def test_an_answer_counts_once(database: SqliteDb) -> None:
    workflow = flow(database, ASK("q", "?"), publish)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        workflow.run_sync("in")
    assert asyncio.run(workflow.resume(caught.value.run_id, "yes")).output_text == "published yes"
    with pytest.raises(NotFound):
        asyncio.run(workflow.resume(caught.value.run_id, "no"))
    assert asyncio.run(workflow.resume(caught.value.run_id)).output_text == "published yes"


def test_an_answer_in_a_program_is_signed_like_any_other(database: SqliteDb) -> None:
    workflow = flow(database, ASK("q", "?"), publish)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        workflow.run_sync("in")
    asyncio.run(workflow.resume(caught.value.run_id, "yes"))
    with database.store.read() as tx:
        envelopes = [{"envelope": json.loads(found.envelope)} for found in receipts.of_run(tx, caught.value.run_id)]
    key = find_service_key(from_env({}).on(database.url))
    verdict = check_receipts(find_receipts({"receipts": envelopes}, file="receipts"), [key.public])
    assert (verdict.valid, [item.receipt.run for item in verdict.checked]) == (True, [caught.value.run_id])


def test_a_run_of_another_workflow_is_left_alone(database: SqliteDb) -> None:
    with pytest.raises(HumanInterventionRequiredError) as caught:
        flow(database, ASK("q", "?")).run_sync("in")
    other = WorkflowBuilder.sequential([writer], name="other", database=database)
    with pytest.raises(NotFound):
        asyncio.run(other.resume(caught.value.run_id, "yes"))


def test_whoever_executes_steps_elsewhere_is_not_disturbed(database: SqliteDb, monkeypatch) -> None:
    monkeypatch.setattr("kneo.embed.worker_lock.LOCK_WAIT_SECONDS", 0.05)
    with database.store.exclusive("worker") as held:
        assert held
        with pytest.raises(Conflict, match="Another process"):
            flow(database, writer).run_sync("in")
    with database.store.read() as tx:
        assert runs.count_runs(tx, RunFilter()) == 0


def test_two_participants_of_one_name_are_refused(database: SqliteDb) -> None:
    with pytest.raises(Usage, match="same name"):
        flow(database, writer, writer)


def test_what_cannot_take_part_is_refused(database: SqliteDb) -> None:
    with pytest.raises(Usage, match="int"):
        flow(database, 3)


def test_an_empty_answer_is_refused(database: SqliteDb) -> None:
    workflow = flow(database, ASK("q", "?", resolver=lambda request: ""), publish)
    with pytest.raises(Invalid, match="empty"):
        workflow.run_sync("in")


def test_the_role_of_an_answer_is_the_steps(database: SqliteDb) -> None:
    step = ASK("q", "?", resolver=lambda request: Message("system", "said"))
    assert flow(database, step).run_sync("in").messages[-1].role == "user"


# ---- the people of a question ------------------------------------------------------------------------------------

PEOPLE: dict[str, object] = {
    "assignee": "ann",
    "candidates": {"users": ["ann", "ben"], "exclude": ["requester"]},
    "quorum": 2,
    "timeout": 300,
    "on_timeout": "escalate",
    "escalate": [(60, "cat")],
    "remind": [30],
    "due": 120,
    "priority": 70,
    "notify": ["ops"],
}


@pytest.mark.parametrize("prompt", ["Publish?", lambda messages, config: "Publish?"])
def test_a_human_step_names_its_people_as_a_review_does(database: SqliteDb, prompt: object) -> None:
    [human] = flow(database, writer, ASK("q", prompt, **PEOPLE)).spec()["components"]["humans"].values()
    gate = gates("Step", "a", HumanReview(requires_confirmation=True, **PEOPLE))["review"]["before"]
    people = {name: value for name, value in gate.items() if name not in {"prompt", "on_reject"}}
    assert set(people) == {"timeout_seconds", *PEOPLE.keys()} - {"timeout"}
    assert people.items() <= human.items()


def test_the_people_of_a_human_step_answer_it(database: SqliteDb) -> None:
    seen = []
    workflow = flow(database, writer, ASK("q", "Publish?", resolver=seen.append, **PEOPLE), publish)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        workflow.run_sync("cats")
    store, task_id = database.store, caught.value.continuation_id
    with store.read() as tx:
        task = tasks.get(tx, task_id)
    assert (task.assignee, task.priority, task.quorum.approvals) == ("ann", 70, 2)
    said = DecisionRequest(request_id=task.request_id, decision=DecisionKind.PROVIDED, content="yes")
    with pytest.raises(Forbidden, match="ann, ben"):
        decide(store, task_id, said, actor="eve")
    assert decide(store, task_id, said, actor="ann").status in UNRESOLVED
    with pytest.raises(HumanInterventionRequiredError):
        asyncio.run(workflow.resume(caught.value.run_id))
    decide(store, task_id, said, actor="ben")
    assert asyncio.run(workflow.resume(caught.value.run_id)).output_text == "published yes"
    assert len(seen) == 2


def test_a_resolver_below_the_quorum_gives_one_vote(database: SqliteDb) -> None:
    workflow = flow(database, writer, ASK("q", "Publish?", quorum=2, resolver=lambda request: "yes"), publish)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        workflow.run_sync("cats")
    with database.store.read() as tx:
        task = tasks.get(tx, caught.value.continuation_id)
    assert len(task.votes) == 1
    said = DecisionRequest(request_id=task.request_id, decision=DecisionKind.PROVIDED, content="yes")
    decide(database.store, task.id, said, actor="another person")
    assert asyncio.run(workflow.resume(caught.value.run_id)).output_text == "published yes"


@pytest.mark.parametrize(("effect", "ends"), [("cancel", "cancelled"), ("fail", "expired"), ("skip", "succeeded")])
def test_the_deadline_of_a_human_step_has_its_effect(
    migrated_file: Callable[[str], Path], clock: ManualClock, effect: str, ends: str
) -> None:
    database = SqliteDb(migrated_file("timed.db"), clock=clock)
    workflow = flow(database, writer, ASK("q", "Publish?", timeout=300, on_timeout=effect), publish)
    with pytest.raises(HumanInterventionRequiredError) as caught:
        workflow.run_sync("cats")
    with pytest.raises(HumanInterventionRequiredError):
        asyncio.run(workflow.resume(caught.value.run_id))
    clock.advance(timedelta(seconds=301))
    with contextlib.suppress(WorkflowFailed):
        assert asyncio.run(workflow.resume(caught.value.run_id)).output_text == "published draft of cats"
    with database.store.read() as tx:
        run = runs.get(tx, caught.value.run_id)
    assert run.status == ends
    database.close()


def test_an_effect_of_a_deadline_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="on_timeout='explode' is none of approve"):
        ASK("q", "Publish?", timeout=300, on_timeout="explode")
