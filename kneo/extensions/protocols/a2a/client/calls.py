"""Calls of remote agents: one message, then reads of its task until the task ends or asks a question.

The id of the message is the idempotency key of the call. The id of the task is kept in the journal before it is read the first
time: a call that is interrupted afterwards continues to read it, and sends no second message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx
import jwt
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.helpers import get_text_parts, new_data_part, new_text_part
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    GetTaskRequest,
    Message,
    Part,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    Task,
    TaskState,
)
from a2a.utils.constants import TransportProtocol
from a2a.utils.errors import A2AError
from a2a.utils.signing import SignatureVerificationError, create_signature_verifier

from kneo.agents.http import HttpClient, HttpFailed, WebRequest
from kneo.agents.tool_calls.questions import answer_of
from kneo.agents.turn import GIVEN_UP, AnswerRequired, ToolCall
from kneo.errors import KneoError, Untrusted
from kneo.extensions.protocols.a2a.parts import IN_REPLY_TO, value_of
from kneo.records.task import DecisionKind
from kneo.spec.models.spec import RemoteAgent

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two reads of a task."""

MAX_LOST_READS = 20
"""Reads of a task in a row that may fail without an answer."""

CANCEL_SECONDS = 5.0
"""Time for the cancellation of a task whose result is not needed any more."""

MAX_ID_CHARS = 500

ANSWER_SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "minLength": 1, "maxLength": 20_000}},
    "required": ["answer"],
    "additionalProperties": False,
}

_WORKING = frozenset({TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_WORKING})
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class RemoteAgentFailed(KneoError):
    """A remote agent that has not done its task."""

    default_code = "remote_agent_failed"


async def call_agent(call: ToolCall, client: HttpClient, secrets: Mapping[str, str], seconds: float) -> object:
    """Send the arguments of a call, or the answer to a question of the agent, and return the agent's result.

    Args:
        call: The call.
        client: The client with the host rules of the agent that calls.
        secrets: The secret headers, filled in.
        seconds: Time for the call.

    Raises:
        AnswerRequired: the agent asks a question.
        Forbidden: the host or an address is refused.
        Untrusted: the agent's card has no signature by a key of the spec.
        HttpFailed: the agent is not reached, or its service refuses the request.
        RemoteAgentFailed: the agent has not done its task.
    """
    agent = call.tool.a2a
    assert agent is not None
    transport = CheckedTransport(client, agent.url, secrets, seconds)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
        return await _RemoteCall(call, agent, http).result(seconds)


class _RemoteCall:
    """One call: its client and its task."""

    def __init__(self, call: ToolCall, agent: RemoteAgent, http: httpx.AsyncClient) -> None:
        self._call, self._agent, self._http = call, agent, http
        self._client: Client | None = None
        self._task_id = ""

    async def result(self, seconds: float) -> object:
        """Return the result within a time; a task that is not done then is cancelled."""
        try:
            async with asyncio.timeout(seconds), self._failures():
                return await self._result()
        except TimeoutError:
            await self._cancel()
            msg = f"The remote agent {self._call.name} took longer than {seconds:g} s."
            raise RemoteAgentFailed(msg, code="remote_agent_timeout") from None
        except asyncio.CancelledError as error:
            if GIVEN_UP in error.args:
                await self._cancel()
            raise

    async def _result(self) -> object:
        card = await fetch_card(self._http, self._agent.url, self._agent.keys)
        config = ClientConfig(
            httpx_client=self._http,
            streaming=False,
            supported_protocol_bindings=[TransportProtocol.JSONRPC],
            accepted_output_modes=["text/plain", "application/json"],
        )
        self._client = ClientFactory(config).create(card)
        state = self._call.state
        if state is None:
            sent = await self._send([_part(self._call)], self._call.idempotency_key)
        else:
            self._task_id = str(state["task_id"])
            sent = await self._continue(state)
        if isinstance(sent, Message):
            return value_of(sent.parts)
        return self._outcome(await self._settled(sent))

    async def _continue(self, state: Mapping[str, object]) -> Task | Message:
        """Return the task of an earlier call of this method, after the answer to the question that it asked."""
        task = await self._settled(await self._read())
        decision = self._call.answer
        if decision is None or not _asks(task) or _question_id(task) != state.get("question_id"):
            # The agent's own people may have answered meanwhile.
            return task
        if decision.kind is DecisionKind.REJECTED:
            await self._cancel()
            msg = f"The remote agent {self._call.name} asked a question, and a person declined to answer it."
            raise RemoteAgentFailed(msg)
        value = answer_of(decision)
        text = value.get("answer") if isinstance(value, Mapping) else value
        number = _number(state) + 1
        try:
            return await self._send(
                [new_text_part(str(text))], f"{self._call.idempotency_key}:answer-{number}", task=task
            )
        except A2AError as error:
            raise self._question(task, number, f"The agent does not take the answer: {_text(error)}\n\n") from None

    def _outcome(self, task: Task) -> object:
        state, said = task.status.state, "\n".join(get_text_parts(task.status.message.parts))
        if state == TaskState.TASK_STATE_COMPLETED:
            parts = [part for artifact in task.artifacts for part in artifact.parts]
            return value_of(parts or task.status.message.parts)
        if _asks(task):
            asked = _number(self._call.state or {}) + (self._call.answer is not None)
            raise self._question(task, asked)
        name = TaskState.Name(state).removeprefix("TASK_STATE_").lower().replace("_", "-")
        msg = f"The remote agent {self._call.name} ended its task as {name}: {said or 'no message'}"
        hint = "Give the service's key in a2a.secret_headers." if state == TaskState.TASK_STATE_AUTH_REQUIRED else None
        raise RemoteAgentFailed(msg, hint=hint)

    def _question(self, task: Task, number: int, before: str = "") -> AnswerRequired:
        said = "\n".join(get_text_parts(task.status.message.parts)) or "The agent needs more input."
        prompt = f"{before}The remote agent {self._call.name} asks:\n{said}"
        state = {"task_id": task.id, "question_id": _question_id(task), "answers": number}
        return AnswerRequired(prompt, ANSWER_SCHEMA, state)

    async def _send(self, parts: Sequence[Part], message_id: str, *, task: Task | None = None) -> Task | Message:
        """Send a message once, and keep the id of the task that it begins."""
        message = Message(role=Role.ROLE_USER, parts=parts, message_id=message_id)
        if task is not None:
            message.task_id, message.context_id = task.id, task.context_id
            message.metadata.update({IN_REPLY_TO: _question_id(task)})
        request = SendMessageRequest(message=message, configuration=SendMessageConfiguration(return_immediately=True))
        assert self._client is not None
        async for event in self._client.send_message(request):
            if event.HasField("message"):
                return event.message
            await self._take(event.task)
            return event.task
        msg = f"The remote agent {self._call.name} gave no response to the message."
        raise RemoteAgentFailed(msg)

    async def _take(self, task: Task) -> None:
        if not 0 < len(task.id) <= MAX_ID_CHARS or self._task_id not in {"", task.id}:
            msg = f"The remote agent {self._call.name} responded with another task."
            raise RemoteAgentFailed(msg)
        if not self._task_id:
            self._task_id = task.id
            if task.status.state in _WORKING or _asks(task):
                await self._call.keep({"task_id": task.id})

    async def _read(self) -> Task:
        assert self._client is not None
        task = await self._client.get_task(GetTaskRequest(id=self._task_id, history_length=0))
        await self._take(task)
        return task

    async def _settled(self, task: Task) -> Task:
        """Read a task until it is not at work any more."""
        pause, lost = FIRST_PAUSE, 0
        while task.status.state in _WORKING:
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
            try:
                task, lost = await self._read(), 0
            except HttpFailed as error:
                lost += 1
                if not _may_pass(error) or lost > MAX_LOST_READS:
                    raise
        return task

    async def _cancel(self) -> None:
        if self._client is None or not self._task_id:
            return
        with suppress(Exception):
            async with asyncio.timeout(CANCEL_SECONDS):
                await self._client.cancel_task(CancelTaskRequest(id=self._task_id))

    @asynccontextmanager
    async def _failures(self) -> AsyncIterator[None]:
        """Turn what the library raises, also for responses that it cannot read, into an error of the call."""
        try:
            yield
        except (KneoError, AnswerRequired, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 - the library raises many kinds for a malformed response
            msg = f"The remote agent {self._call.name} failed: {_text(error)}"
            raise RemoteAgentFailed(msg) from None


def _part(call: ToolCall) -> Part:
    """Return the arguments as a message: the text of a tool without parameters, else data."""
    return new_data_part(dict(call.arguments)) if call.tool.parameters else new_text_part(str(call.arguments["input"]))


def _asks(task: Task) -> bool:
    return task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED


def _question_id(task: Task) -> str:
    return task.status.message.message_id[:MAX_ID_CHARS]


def _number(state: Mapping[str, object]) -> int:
    number = state.get("answers")
    return number if isinstance(number, int) else 0


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _may_pass(error: HttpFailed) -> bool:
    return error.code == "http_failed" or error.details.get("status") in _TRY_AGAIN


_ALGORITHMS = frozenset({"EdDSA", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"})
"""Signatures by a key pair; with a shared secret, each party that can check a card could sign one."""


async def fetch_card(http: httpx.AsyncClient, url: str, keys: Sequence[Mapping[str, object]]) -> AgentCard:
    """Fetch the card of an agent, and check its signature where keys are named.

    Raises:
        Untrusted: ``card_untrusted``: none of the keys has signed the card.
    """
    card = await A2ACardResolver(http, url).get_agent_card()
    if keys:
        check_signature(card, keys)
    return card


def check_signature(card: AgentCard, keys: Sequence[Mapping[str, object]]) -> None:
    """Refuse a card that none of the keys has signed. The addresses of keys in a signature are not read.

    Raises:
        Untrusted: ``card_untrusted``.
    """
    for key in keys:
        try:
            public = jwt.PyJWK(dict(key))
            if public.algorithm_name not in _ALGORITHMS:
                continue
            create_signature_verifier(partial(_always, public), [public.algorithm_name])(card)
        except (SignatureVerificationError, jwt.PyJWTError):
            continue
        return
    msg = f"No key of the spec has signed the card of the agent {card.name[:100]!r}."
    hint = "Compare tools.NAME.a2a.keys with the JSON Web Key Set of the service."
    raise Untrusted(msg, code="card_untrusted", hint=hint)


def _always(key: jwt.PyJWK, _kid: str | None, _jku: str | None) -> jwt.PyJWK:
    return key


_KEPT_HEADERS = frozenset({"accept", "content-type", "a2a-version", "a2a-extensions"})
"""Headers of the SDK's requests that are sent; the client writes its own."""


class CheckedTransport(httpx.AsyncBaseTransport):
    """Sends the requests of the SDK with the client of tools.

    Args:
        client: Checks hosts and addresses, follows redirects and bounds responses.
        url: The address of the agent; only its origin receives secrets.
        secret_headers: The headers with secrets.
        seconds: Time for one request.
    """

    def __init__(self, client: HttpClient, url: str, secret_headers: Mapping[str, str], seconds: float) -> None:
        self._client, self._secret_headers, self._seconds = client, secret_headers, seconds
        self._origin = _origin(httpx.URL(url))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its whole response.

        Raises:
            Forbidden: the host, an address or a header is refused.
            HttpFailed: no response came, one that is too long, or one of status 300 and above.
        """
        response = await self._client.send(
            WebRequest(
                url=str(request.url),
                method=request.method,
                headers={name: value for name, value in request.headers.items() if name.lower() in _KEPT_HEADERS},
                secret_headers=self._secret_headers if _origin(request.url) == self._origin else {},
                body=await request.aread() or None,
            ),
            self._seconds,
        )
        text = response.body.decode("utf-8", errors="replace")
        if response.is_cut:
            msg = f"The response of {request.url.host} has more than {len(response.body)} bytes."
            raise HttpFailed(msg, code="response_too_large")
        if response.status >= 300:
            msg = f"{request.url.host} answers {request.method} with the status {response.status}: {text}"
            raise HttpFailed(msg, code="http_status", status=response.status)
        headers = {"content-type": response.media_type or "application/json"}
        return httpx.Response(response.status, headers=headers, content=text.encode(), request=request)


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port
