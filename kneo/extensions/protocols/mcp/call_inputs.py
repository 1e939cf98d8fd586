"""What a call asks of the person at a client: a link to the console for approvals, and forms for questions of the call's own tool.

An approval never comes through the client, which could accept for its user: what it answers to a link only decides whether it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mcp.server.context import ServerRequestContext
from mcp_types import (
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequiredResult,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from kneo.api.calls import answer_input_question, list_input_questions
from kneo.api.operation import Context
from kneo.extensions.protocols.mcp.server import RequestState, link_of
from kneo.records.run import Run
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.wait import SettledRun
from kneo.tasks.decisions import DecisionRequest

RequestContext = ServerRequestContext[object, object]

MAX_SHOWN = 100
"""Questions of one call that are shown at a client."""


class CallState(RequestState):
    """The state of a call that waits: the call, and the questions that the client was shown."""

    call_id: str
    shown: list[str]


def asks_at(context: RequestContext) -> tuple[bool, bool]:
    """Return whether a client opens links, and whether it shows forms."""
    capabilities = context.session.client_capabilities
    asks = capabilities.elicitation if capabilities is not None else None
    if asks is None or not (context.protocol_version in MODERN_PROTOCOL_VERSIONS or context.session.can_send_request):
        return False, False
    return asks.url is not None, asks.form is not None or asks.url is None


def find_requests(
    operations: Context, settled: SettledRun, *, links: str | None, forms: bool, shown: Sequence[str] = ()
) -> dict[str, ElicitRequest]:
    """Return what a client is to ask its person about a call, by the ids of the tasks.

    Args:
        operations: The context of operations for the caller.
        settled: The call.
        links: The address of the service, for clients that open links.
        forms: Whether the client shows forms.
        shown: The tasks that the client has shown.
    """
    inputs = {task.id for task in list_input_questions(operations, settled)} if forms else set()
    requests: dict[str, ElicitRequest] = {}
    for task in settled.tasks:
        if task.id in shown or task.is_for_caller or len(shown) + len(requests) >= MAX_SHOWN:
            continue
        if task.id in inputs:
            requests[task.id] = ElicitRequest(params=_form(task))
        elif links is not None:
            requests[task.id] = ElicitRequest(params=_link(task, links))
    return requests


def _form(task: HumanTask) -> ElicitRequestFormParams:
    return ElicitRequestFormParams(message=task.prompt, requested_schema=dict(task.answer_schema or {}))


def _link(task: HumanTask, address: str) -> ElicitRequestURLParams:
    message = f"{task.title}. Open the link to sign in and decide. Accepting here approves nothing; the call continues to wait."
    return ElicitRequestURLParams(message=message, url=link_of(task, address), elicitation_id=task.id)


async def ask_now(
    context: RequestContext, requests: Mapping[str, ElicitRequest], seconds: float
) -> Mapping[str, ElicitResult]:
    """Ask at a client of an earlier protocol version, by requests on its connection; in time unanswered ones have no response."""
    responses: dict[str, ElicitResult] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for key, request in requests.items():
                responses[key] = await context.session.send_request(request, ElicitResult)
    return responses


def required_inputs(run: Run, requests: Mapping[str, ElicitRequest], shown: Sequence[str]) -> InputRequiredResult:
    """Return the result that has a client ask, and send its request again."""
    state = CallState(call_id=run.id, shown=[*shown, *requests])
    return InputRequiredResult(input_requests=dict(requests), request_state=state.model_dump_json())


def take_responses(operations: Context, run: Run, responses: Mapping[str, object] | None) -> bool:
    """Give the responses of a client to the questions of the call's own tool; every other response changes nothing.

    Returns:
        Whether the client continues to wait: it declined and cancelled nothing.

    Raises:
        DecisionNotAllowed: an answer does not fit its form.
    """
    waits = True
    for task_id, response in (responses or {}).items():
        try:
            result = response if isinstance(response, ElicitResult) else ElicitResult.model_validate(response)
        except ValidationError:
            continue
        waits = waits and result.action == "accept"
        if result.action == "cancel":
            continue
        accepted = result.action == "accept"
        answer = DecisionRequest(
            decision=DecisionKind.PROVIDED if accepted else DecisionKind.REJECTED,
            content=dict(result.content or {}) if accepted else None,
        )
        answer_input_question(operations, run, task_id, answer)
    return waits
