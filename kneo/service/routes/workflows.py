"""Going on with a paused run as workflow libraries do: with its requirements, resolved."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo.api.context import Principal
from kneo.errors import Invalid, KneoError, NotFound
from kneo.records.run import Run
from kneo.records.task import HumanTask
from kneo.runtime.engine.wait import SettledRun, read_settled_run
from kneo.service import requirements, responses, wire
from kneo.service.auth import require
from kneo.service.context import LegacyClient, Service, ServiceDep
from kneo.service.router import JsonResponse, Router, responds
from kneo.service.task_acts import MAX_BATCH, read_answer
from kneo.service.waiting import answered, taken
from kneo.service.wire import Json
from kneo.store.idempotency import AlreadyExecuted
from kneo.tasks.inbox import decide

router = Router(tags=["human tasks"])

Writer = Annotated[Principal, Depends(require("human:write"))]


class StepRequirement(BaseModel):
    """What is said about one question. What else a requirement was shown with may be sent back and changes nothing."""

    model_config = ConfigDict(extra="ignore")

    continuation_id: str | None = Field(default=None, description="Which question; or its key, or its step.")
    key: str | None = None
    step_id: str | None = Field(default=None, description="The path of the step that asks.")
    step_name: str | None = None
    confirmed: bool | None = None
    rejection_feedback: str | None = None
    user_input: dict[str, object] | None = None
    edited_output: object = None
    selected_choices: list[str] | None = None
    decision: str | None = Field(default=None, description="After an error: retry, skip or stop.")
    value: object = Field(default=None, description="What a step asked for in its middle.")
    subject_digest: str | None = Field(default=None, description="What was shown; another one now is refused.")


class ContinueRun(BaseModel):
    """A paused run's requirements, resolved. Those that say nothing stay open."""

    model_config = ConfigDict(extra="forbid")

    step_requirements: list[StepRequirement] = Field(min_length=1, max_length=MAX_BATCH)
    session_id: str | None = Field(default=None, description="The conversation it belongs to, to be sure.")
    stream: bool = Field(default=False, description="Not here: `GET /v1/runs/{run_id}/events` follows a run.")
    background: bool = Field(default=False, description="Answer at once; the run goes on by itself.")


@router.post(
    "/workflows/{workflow_id}/runs/{run_id}/continue",
    operation_id="continue_workflow_run",
    responses=responds(responses.WorkflowRunContinued),
)
async def continue_workflow_run(
    workflow_id: str, run_id: str, body: ContinueRun, service: ServiceDep, published: LegacyClient, principal: Writer
) -> Response:
    """Answer what a paused run requires, and go on with it; each answer counts as in the inbox, with its receipt.

    An answer that is refused stays with its reason in `refused` where another one was taken; else it is the error.
    """
    if body.stream:
        msg = "A run that goes on is followed elsewhere."
        raise Invalid(msg, code="stream_elsewhere", hint=f"GET /v1/runs/{run_id}/events")
    refused: list[Json] = []

    def put() -> HumanTask:
        return _put(workflow_id, run_id, body, service, principal, refused)

    if body.background:
        task = await taken(service.changes, put)
        found = await run_in_threadpool(read_settled_run, service.store, run_id)
    else:
        task, found = await answered(service.changes, put)
    return JsonResponse(_told(task, found, refused, published=published))


def _put(
    workflow_id: str, run_id: str, body: ContinueRun, service: Service, principal: Principal, refused: list[Json]
) -> HumanTask:
    """Take every answer that fits; return the last question that was answered."""
    found = read_settled_run(service.store, run_id)
    run, waiting = found.run, found.tasks
    if workflow_id not in {run.workflow_name, run.agent_name} or body.session_id not in {None, _session(run)}:
        msg = f"There is no run {run_id} of the workflow {workflow_id[:80]}{' in this session' if body.session_id else ''}."
        raise NotFound(msg, code="run_not_found")
    said = requirements.answered(run_id, waiting, [one.model_dump() for one in body.step_requirements])
    read = [(task, read_answer(answer, service.settings.limits.human_content_chars)) for task, answer in said]
    last: HumanTask | None = None
    for number, (task, answer) in enumerate(read):
        try:
            pin = service.settings.trust_root
            last = decide(service.store, task.id, answer, actor=principal.name, pin=pin)
        except AlreadyExecuted:
            raise
        except KneoError as error:
            if last is None and number == len(read) - 1:
                raise
            refused.append({"continuation_id": task.id, "key": task.key, "error": error.code, "message": str(error)})
    assert last is not None, "the last one was taken or raised"
    return last


def _session(run: Run) -> object:
    return run.metadata.get("session_id")


def _told(task: HumanTask, found: SettledRun, refused: list[Json], *, published: bool) -> Json:
    answer = wire.human_resumed(found.run, task, found.task, published=published)
    return answer | {
        "workflow_id": found.run.workflow_name,
        "content": answer["output_text"],
        "is_paused": bool(found.tasks),
        "step_requirements": [requirements.requirement(one) for one in found.tasks],
        "refused": refused,
    }
