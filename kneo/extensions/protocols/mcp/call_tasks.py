"""Calls as tasks of MCP: the extension ``io.modelcontextprotocol/tasks`` for clients of version 2026-07-28.

A task is a call: its id is that of the run, and any process of the service answers about it. A task of another caller is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    InputResponse,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from kneo.api.calls import CallView, cancel_call, find_own_call, wait_for_call
from kneo.api.operation import Context
from kneo.errors import Conflict, KneoError, NotFound
from kneo.extensions.protocols.mcp.call_inputs import RequestContext, asks_at, find_requests, take_responses
from kneo.records.run import Run
from kneo.runtime.engine.wait import read_settled_run

EXTENSION = "io.modelcontextprotocol/tasks"

POLL_MS = 5_000
"""Milliseconds after which a client asks again."""

MAX_RESPONSES = 100
"""Responses of one request."""


class TaskRequest(RequestParams):
    """The parameters of ``tasks/get`` and ``tasks/cancel``."""

    task_id: str


class TaskUpdate(TaskRequest):
    """The parameters of ``tasks/update``."""

    input_responses: Annotated[dict[str, InputResponse], Field(max_length=MAX_RESPONSES)]


def takes_tasks(context: RequestContext) -> bool:
    """Return whether the client of a request takes a task instead of a result."""
    capabilities = context.session.client_capabilities
    extensions = (capabilities.extensions if capabilities is not None else None) or {}
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS and EXTENSION in extensions


def task_of(view: CallView, run: Run, url: str | None) -> dict[str, object]:
    """Return a call that has not ended as a task. It has no time to live: retention counts from the end of a call."""
    message = f"Waiting for approval: {url}" if url is not None else f"The call is {view.status}."
    return {
        "taskId": view.id,
        "status": "working",
        "statusMessage": message,
        "createdAt": view.created_at,
        "lastUpdatedAt": run.updated_at or view.created_at,
        "ttlMs": None,
        "pollIntervalMs": POLL_MS,
    }


def created_task(view: CallView, run: Run, url: str | None) -> dict[str, object]:
    """Return the result of ``tools/call`` that names the task of a call."""
    return {"resultType": "task", **task_of(view, run, url)}


@dataclass(frozen=True)
class CallTasks:
    """The methods of the extension for one caller.

    Args:
        operations: The context of operations for the caller.
        result_of: Returns what ``tools/call`` returns for a call.
        url_of: Returns the link at which people decide a call; ``None`` where it asks none.
        is_gone: Returns whether the client has gone; the result of a call is then not taken for returned.
    """

    operations: Context
    result_of: Callable[[CallView], CallToolResult]
    url_of: Callable[[CallView], str | None]
    is_gone: Callable[[], bool]

    def add_to(self, server: Server[object]) -> None:
        """Serve the methods, and name the extension among the capabilities."""
        server.extensions = {**server.extensions, EXTENSION: {}}
        server.add_request_handler("tasks/get", TaskRequest, self.get)
        server.add_request_handler("tasks/update", TaskUpdate, self.update)
        server.add_request_handler("tasks/cancel", TaskRequest, self.cancel)

    async def get(self, context: RequestContext, params: TaskRequest) -> dict[str, object]:
        """Return the task, with its result where the call has ended, or the forms of the call's own tool."""
        run = await self._find(context, params.task_id)
        settled = await run_in_threadpool(read_settled_run, self.operations.store, run.id)
        if self.is_gone():
            raise MCPError(INTERNAL_ERROR, "The client has gone.")
        view = await run_in_threadpool(wait_for_call(self.operations, run, 0).view, settled)
        task = task_of(view, settled.run, self.url_of(view))
        if view.status == "ended":
            return _ended(task, view, self.result_of(view))
        forms = asks_at(context)[1]
        requests = await run_in_threadpool(find_requests, self.operations, settled, links=None, forms=forms)
        if not requests:
            return task
        dumped = {key: each.model_dump(by_alias=True, mode="json", exclude_none=True) for key, each in requests.items()}
        return {**task, "status": "input_required", "inputRequests": dumped}

    async def update(self, context: RequestContext, params: TaskUpdate) -> dict[str, object]:
        """Give the responses to the questions of the call's own tool; others change nothing."""
        run = await self._find(context, params.task_id)
        try:
            await run_in_threadpool(take_responses, self.operations, run, params.input_responses)
        except KneoError as error:
            raise MCPError(INVALID_PARAMS, error.message) from error
        return {}

    async def cancel(self, context: RequestContext, params: TaskRequest) -> dict[str, object]:
        """End the call, unless it has ended."""
        run = await self._find(context, params.task_id)
        with suppress(Conflict):
            await run_in_threadpool(cancel_call, self.operations, run.id)
        return {}

    async def _find(self, context: RequestContext, task_id: str) -> Run:
        if not takes_tasks(context):
            required: dict[str, object] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
            raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "Missing required client capability", required)
        try:
            return await run_in_threadpool(find_own_call, self.operations, task_id)
        except NotFound as error:
            raise MCPError(INVALID_PARAMS, error.message) from error


def _ended(task: Mapping[str, object], view: CallView, result: CallToolResult) -> dict[str, object]:
    if view.error is not None and view.error.type == "cancelled":
        return {**task, "status": "cancelled", "statusMessage": view.error.message}
    dumped = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return {
        **task,
        "status": "completed",
        "statusMessage": f"The outcome is {view.outcome or 'failed'}.",
        "result": dumped,
    }
