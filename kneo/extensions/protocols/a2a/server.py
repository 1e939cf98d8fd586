"""The server of one agent over Agent2Agent: its methods are calls of the agent, its messages are bounded by the service.

The SDK parses and validates messages of version 1.0 and 0.3 and writes responses. Nothing is kept between two requests: tasks are
runs, which any process of the service can read.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from datetime import UTC
from typing import NoReturn

from a2a import types
from a2a.helpers import get_text_parts
from a2a.server.context import ServerCallContext
from a2a.server.events import Event
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_1_0, TransportProtocol
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    ExtendedAgentCardNotConfiguredError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from a2a.utils.signing import ProtectedHeader, create_agent_card_signer
from starlette.requests import Request
from starlette.responses import Response

from kneo.api.agents import AgentView
from kneo.clock import isoformat
from kneo.errors import Conflict, Invalid, KneoError, NotFound
from kneo.extensions.protocols.a2a.parts import IN_REPLY_TO, data_of
from kneo.extensions.protocols.a2a.tasks import STATES, context_of, output_of, status_of, task_of
from kneo.extensions.protocols.calls import AgentCalls, AgentMessage
from kneo.records.run import RunStatus
from kneo.runtime.engine.wait import SettledRun
from kneo.service.events import LimitedResponse
from kneo.trust.keys import PrivateKey

PAGE_SIZE, MAX_PAGE_SIZE = 50, 100
"""Tasks of a page where a request states no other number, and at most."""

MAX_OFFSET, MAX_TOKEN_CHARS = 10_000, 5
"""Tasks that can be listed, the most recently changed first; older ones are found by their context or by ``GET /v1/runs``."""


async def serve_request(request: Request, calls: AgentCalls, address: str) -> Response:
    """Respond to a message for an agent.

    Raises:
        KneoError: the caller may not send it, or the service cannot take it now.
    """
    handler = _Handler(calls, address)
    response = await JsonRpcDispatcher(handler, enable_v0_3_compat=True).handle_requests(request)
    if handler.refused is not None:
        raise handler.refused
    return LimitedResponse(response, calls.service.streams, calls.principal.name)


class _Handler(RequestHandler):
    """The methods of the protocol, for one request.

    Attributes:
        refused: The error that is a response of HTTP rather than one of the protocol.
    """

    def __init__(self, calls: AgentCalls, address: str) -> None:
        self.calls = calls
        self.address = address
        self.refused: KneoError | None = None

    @validate_request_params
    async def on_message_send(self, params: types.SendMessageRequest, context: ServerCallContext) -> types.Task:
        del context
        settled = await self._take(params, wait=not params.configuration.return_immediately)
        return task_of(settled, self.address, _history(params.configuration))

    @validate_request_params
    async def on_message_send_stream(
        self, params: types.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        del context
        answered = params.message.task_id
        after = (await self._find(answered)).run.trace_count if answered else 0
        settled = await self._take(params, wait=False)
        async with aclosing(self._events(settled, after, _history(params.configuration))) as events:
            async for event in events:
                yield event

    @validate_request_params
    async def on_get_task(self, params: types.GetTaskRequest, context: ServerCallContext) -> types.Task:
        del context
        return task_of(await self._read(params.id), self.address, _history(params))

    @validate_request_params
    async def on_cancel_task(self, params: types.CancelTaskRequest, context: ServerCallContext) -> types.Task:
        del context
        with self._refusing():
            settled = await self.calls.cancel(params.id)
        if settled.run.status is not RunStatus.CANCELLED:
            msg = f"{params.id} has ended: {settled.run.status}."
            raise TaskNotCancelableError(msg)
        return task_of(settled, self.address)

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: types.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        del context
        settled = await self._read(params.id)
        if settled.run.completed_at is not None:
            msg = f"{params.id} has ended; get the task."
            raise UnsupportedOperationError(msg)
        async with aclosing(self._events(settled, settled.run.trace_count, None)) as events:
            async for event in events:
                yield event

    @validate_request_params
    async def on_list_tasks(
        self, params: types.ListTasksRequest, context: ServerCallContext
    ) -> types.ListTasksResponse:
        del context
        size, offset = _page(params)
        size = min(size, self.calls.service.settings.limits.page_items)
        response = types.ListTasksResponse(page_size=size)
        state = STATES.get(params.status)
        if state is None:
            return response
        where = replace(
            state,
            session_id=params.context_id or None,
            updated_after=isoformat(params.status_timestamp_after.ToDatetime(UTC))
            if params.HasField("status_timestamp_after")
            else None,
        )
        with self._refusing():
            page, response.total_size = await self.calls.list_runs(where, limit=size, offset=offset)
        for settled in page:
            task = task_of(settled, self.address, _history(params))
            if not params.include_artifacts:
                task.ClearField("artifacts")
            response.tasks.append(task)
        if offset + size < min(response.total_size, MAX_OFFSET):
            response.next_page_token = str(offset + size)
        return response

    async def _refuse_push(self, params: object, context: ServerCallContext) -> NoReturn:
        """Refuse push notifications: the service sends no request to an address that a caller names."""
        del params, context
        raise PushNotificationNotSupportedError

    on_create_task_push_notification_config = _refuse_push
    on_get_task_push_notification_config = _refuse_push
    on_list_task_push_notification_configs = _refuse_push
    on_delete_task_push_notification_config = _refuse_push

    async def on_get_extended_agent_card(
        self, params: types.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> types.AgentCard:
        del params, context
        raise ExtendedAgentCardNotConfiguredError

    async def _take(self, params: types.SendMessageRequest, *, wait: bool) -> SettledRun:
        """Start a run, or answer the task of a run that the message names."""
        message = params.message
        if message.role != types.Role.ROLE_USER:
            msg = "A message to an agent has the role user."
            raise InvalidParamsError(msg)
        if params.configuration.HasField("task_push_notification_config"):
            raise PushNotificationNotSupportedError
        with self._refusing():
            if message.task_id:
                return await self._answer(message, wait=wait)
            return await self.calls.start(
                AgentMessage(
                    text=_text(message),
                    session_id=message.context_id or None,
                    metadata={"message_id": message.message_id, **_metadata(message)},
                    key=message.message_id,
                ),
                wait=wait,
            )

    async def _answer(self, message: types.Message, *, wait: bool) -> SettledRun:
        data = [one for one in data_of(message.parts) if isinstance(one, Mapping)]
        fields = dict(data[0]) if data else {}
        names = [fields.pop("continuation_id", None), fields.pop("key", None), fields.get("request_id")]
        named = next((str(name) for name in names if name is not None), None) or _replied_to(message)
        return await self.calls.answer(
            message.task_id, named, fields if data else _text(message), message.message_id, wait=wait
        )

    async def _read(self, run_id: str) -> SettledRun:
        with self._refusing():
            return await self.calls.read(run_id)

    async def _find(self, run_id: str) -> SettledRun:
        with self._refusing():
            return await self.calls.find(run_id)

    async def _events(self, settled: SettledRun, after: int, history: int | None) -> AsyncGenerator[Event]:
        """Yield the task, then its changes after a trace event, until it has ended or needs an answer."""
        yield task_of(settled, self.address, history)
        async with aclosing(self.calls.follow(settled.run.id, after)) as changes:
            async for change in changes:
                if isinstance(change, SettledRun):
                    for last in self._last_events(change):
                        yield last
                else:
                    yield self._progress(settled, change.name, change.data)

    def _progress(self, settled: SettledRun, name: str, data: Mapping[str, object]) -> types.TaskStatusUpdateEvent:
        update = types.TaskStatusUpdateEvent(task_id=settled.run.id, context_id=context_of(settled.run))
        update.status.CopyFrom(types.TaskStatus(state=types.TaskState.TASK_STATE_WORKING))
        update.metadata.update({"event": name, "step": str(data.get("step_id") or "")})
        return update

    def _last_events(self, settled: SettledRun) -> tuple[Event, ...]:
        run = settled.run
        context, output = context_of(run), output_of(run)
        status = types.TaskStatusUpdateEvent(
            task_id=run.id, context_id=context, status=status_of(settled, self.address)
        )
        if output is None:
            return (status,)
        return types.TaskArtifactUpdateEvent(
            task_id=run.id, context_id=context, artifact=output, last_chunk=True
        ), status

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Raise the protocol's error for an error; one that is no fault of the message becomes a response of HTTP."""
        try:
            yield
        except KneoError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: KneoError) -> A2AError:
        data: dict[str, object] = {"error": error.code, **({"hint": error.hint} if error.hint else {})}
        if isinstance(error, NotFound):
            return TaskNotFoundError(error.message, data)
        if isinstance(error, Invalid | Conflict):
            return InvalidParamsError(error.message, data)
        self.refused = error
        return UnsupportedOperationError(error.message, data)


def _text(message: types.Message) -> str:
    """Return the input that a message is: its texts, and its data as JSON.

    Raises:
        ContentTypeNotSupportedError: it has files.
    """
    if any(part.WhichOneof("content") not in {"text", "data"} for part in message.parts):
        msg = "A message has parts of text and data; files are not accepted."
        raise ContentTypeNotSupportedError(msg)
    data = (json.dumps(one, ensure_ascii=False, sort_keys=True) for one in data_of(message.parts))
    return "\n".join((*get_text_parts(message.parts), *data))


def _replied_to(message: types.Message) -> str | None:
    """Return the id of the request that a message names as the one it answers; see ``status_of``."""
    status_id = message.metadata.fields[IN_REPLY_TO].string_value if IN_REPLY_TO in message.metadata else ""
    return status_id.removeprefix(f"{message.task_id}.") or None


def _metadata(message: types.Message) -> dict[str, object]:
    """Return the metadata of a message, under a name of its own."""
    if not message.metadata:
        return {}
    part = types.Part()
    part.data.struct_value.CopyFrom(message.metadata)
    return {"message": data_of([part])[0]}


def _page(params: types.ListTasksRequest) -> tuple[int, int]:
    """Return the size of a page and the number of tasks before it.

    Raises:
        InvalidParamsError: the size or the token is not valid.
    """
    size, token = params.page_size if params.HasField("page_size") else PAGE_SIZE, params.page_token or "0"
    if not 1 <= size <= MAX_PAGE_SIZE:
        msg = f"page_size is {size}; a page has 1 to {MAX_PAGE_SIZE} tasks."
        raise InvalidParamsError(msg)
    if len(token) > MAX_TOKEN_CHARS or not (token.isascii() and token.isdigit()) or int(token) >= MAX_OFFSET:
        msg = "page_token is no next_page_token of this service."
        raise InvalidParamsError(msg)
    return size, int(token)


def _history(params: object) -> int | None:
    """Return how many messages of the history a caller wants; ``None`` where the request does not tell."""
    assert hasattr(params, "HasField")
    return getattr(params, "history_length", None) if params.HasField("history_length") else None


TEXT, JSON = "text/plain", "application/json"
KEY_SCHEME = "apiKey"


def signed_card(agent: AgentView, address: str, path: str, key: PrivateKey) -> dict[str, object]:
    """Return the card of an agent, signed.

    Args:
        agent: The agent.
        address: The address of this service.
        path: The path of the agent below it.
        key: The service key.
    """
    url = f"{address}{path}"
    bearer = types.HTTPAuthSecurityScheme(
        scheme="bearer", description="An API key with the scopes runs:read and runs:write."
    )
    card = types.AgentCard(
        name=agent.bundle,
        description=agent.description,
        version=agent.version,
        supported_interfaces=[
            types.AgentInterface(url=url, protocol_binding=TransportProtocol.JSONRPC.value, protocol_version=version)
            for version in (PROTOCOL_VERSION_1_0, PROTOCOL_VERSION_0_3)
        ],
        capabilities=types.AgentCapabilities(streaming=True, push_notifications=False, extended_agent_card=False),
        security_schemes={KEY_SCHEME: types.SecurityScheme(http_auth_security_scheme=bearer)},
        security_requirements=[types.SecurityRequirement(schemes={KEY_SCHEME: types.StringList(list=[])})],
        default_input_modes=[TEXT, JSON],
        default_output_modes=[TEXT],
        skills=[
            types.AgentSkill(
                id=agent.bundle,
                name=agent.agent_name,
                description=agent.description,
                tags=[agent.environment, agent.bundle],
            )
        ],
    )
    jwk = key.public.jwk()
    header: ProtectedHeader = {
        "kid": jwk["kid"],
        "alg": jwk["alg"],
        "jku": f"{address}/.well-known/jwks.json",
        "typ": "JOSE",
    }
    return agent_card_to_dict(create_agent_card_signer(key.dump(), header)(card))
