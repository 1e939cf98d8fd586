"""A loopback server of models: four wire formats, plain and streamed, from one script of replies.

OpenAI chat completions, OpenAI responses, Anthropic messages and Gemini generateContent. The reply is chosen by the number of
assistant turns in the request, so the server remembers nothing about conversations, and a client that crashed gets the same
reply again. Every request is recorded.

    with model_server([Reply(calls=[Call("pay", {"amount": 5})]), Reply("Paid.")]) as server:
        ...  # base_url=server.openai_url

    python tests/support/model_server.py script.json   # prints its address; the script is a list of replies as JSON
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

Format: TypeAlias = Literal["chat", "responses", "anthropic", "gemini"]
FORMATS: tuple[Format, ...] = ("chat", "responses", "anthropic", "gemini")

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A tool call of a reply. Without ``id`` the server makes one; Gemini sends none.

    ``written`` is the text of the arguments, where it is not that of ``arguments``; for formats that have a text.
    """

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    id: str | None = None
    written: str | None = None


@dataclass(frozen=True)
class Reply:
    """One reply, or with ``status`` an error.

    Attributes:
        finish: ``stop``, ``length`` or ``filter``; a reply with calls says so by itself. ``None``: the server gives no reason.
        usage: Input and output tokens.
        delay: Seconds before the first byte.
        together: Requests that have to wait for their replies at the same time before the first one gets its own.
        status: An HTTP status; other than 200 the provider's error body with ``text`` as its message.
        headers: Further headers, such as Retry-After.
        cut: Of a streamed reply: the number of events after which the stream ends.
        hard: Whether a cut stream ends with a closed connection instead of a proper last chunk.
        hold: Never send the rest: the connection stays open without bytes.
    """

    text: str = ""
    calls: Sequence[Call] = ()
    finish: str | None = "stop"
    usage: tuple[int, int] = (10, 5)
    delay: float = 0.0
    together: int = 0
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hard: bool = False
    hold: bool = False
    model: str | None = None
    """The model as reported; without it the one that was asked for."""

    @property
    def error(self) -> bool:
        return self.status != 200


def overloaded(seconds: float | None = None, status: int = 429) -> Reply:
    """Return an error that asks to come back later."""
    return Reply(
        "Too many requests.", status=status, headers={} if seconds is None else {"Retry-After": f"{seconds:g}"}
    )


@dataclass(frozen=True)
class ModelRequest:
    """A request as it arrived."""

    format: Format
    path: str
    headers: Mapping[str, str]
    body: Json
    model: str
    streamed: bool
    turns: int
    """How many assistant turns the request holds."""

    @property
    def key(self) -> str:
        """Return the key that the request was made with."""
        names = ("x-api-key", "x-goog-api-key", "api-key")
        found = next((self.headers[name] for name in names if name in self.headers), None)
        return found or self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def text(self) -> str:
        """Return the texts of the request as one, for conditions of scripts and assertions."""
        return json.dumps(self.body, ensure_ascii=False)


Turn: TypeAlias = Reply | Sequence[Reply]
"""The reply of one turn; of several, the first answers the first request with so many turns, the last all later ones."""

Script: TypeAlias = Sequence[Turn] | Callable[[ModelRequest], Reply]


class ModelServer:
    """The server, in a thread of its own, on a port of its own.

    Attributes:
        script: The replies; or for each model its replies; or a function of the request.
        requests: The requests in the order in which they arrived.
        connections: How many connections were made.
        most_at_once: The most requests that waited for their replies at one time.
    """

    def __init__(self, script: Script | Mapping[str, Script]) -> None:
        self.script = script
        self.requests: list[ModelRequest] = []
        self.port = 0
        self.connections = 0
        self.at_once = self.most_at_once = 0
        self._together = asyncio.Event()
        self._answered: Counter[tuple[str, int]] = Counter()
        self._handlers: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def base_url(self, wire: Format) -> str:
        """Return the base URL that the SDK of a format takes."""
        return self.openai_url if wire in {"chat", "responses"} else self.url

    def reply(self, request: ModelRequest) -> Reply:
        """Record a request and choose its reply."""
        with self._lock:
            self.requests.append(request)
            script = self.script
            if isinstance(script, Mapping):
                script = script.get(request.model, ())
            if callable(script):
                return script(request)
            if request.turns >= len(script):
                return Reply(f"The script has no turn {request.turns} for {request.model}.", status=400)
            turn = script[request.turns]
            if isinstance(turn, Reply):
                return turn
            number = self._answered[request.model, request.turns]
            self._answered[request.model, request.turns] += 1
            return turn[min(number, len(turn) - 1)]

    async def serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=2**24, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        ready()
        await stop.wait()
        server.close()
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._handlers.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; tell whether the connection stays."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "GET" and path.endswith("/models"):
            return await _send(writer, 200, json.dumps({"object": "list", "data": []}).encode())
        request = read_request(path, headers, json.loads(raw) if raw else {})
        if request is None:
            return await _send(writer, 404, b'{"error": {"message": "Not found."}}')
        reply = self.reply(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if reply.together:
                if self.at_once >= reply.together:
                    self._together.set()
                await self._together.wait()
            await asyncio.sleep(reply.delay)
        finally:
            self.at_once -= 1
        if reply.error:
            return await _send(writer, reply.status, json.dumps(error_body(request, reply)).encode(), reply.headers)
        if not request.streamed:
            if reply.hold:
                await asyncio.Event().wait()
            return await _send(writer, 200, json.dumps(body(request, reply)).encode(), reply.headers)
        return await _stream(writer, request, reply)


async def _send(
    writer: asyncio.StreamWriter, status: int, data: bytes, headers: Mapping[str, str] | None = None
) -> bool:
    lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
    writer.write(_head(status, lines) + data)
    await writer.drain()
    return True


async def _stream(writer: asyncio.StreamWriter, request: ModelRequest, reply: Reply) -> bool:
    lines = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **reply.headers}
    writer.write(_head(200, lines))
    for event in events(request, reply)[: reply.cut]:
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
    await writer.drain()
    if reply.hold:
        await asyncio.Event().wait()
    if reply.cut is not None and reply.hard:
        return False
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


# ---- the requests -----------------------------------------------------------------------------------------------

_GEMINI = re.compile(r"/v1beta/models/([^:]+):(generateContent|streamGenerateContent)")


def read_request(path: str, headers: Mapping[str, str], data: Json) -> ModelRequest | None:
    """Read a request of any format; ``None`` for a path that none of them has."""
    bare = path.partition("?")[0]
    gemini = _GEMINI.search(bare)
    made: tuple[Format, str, bool, int]
    if gemini:
        turns = _runs(each.get("role") == "model" for each in data["contents"])
        made = ("gemini", gemini[1], gemini[2] == "streamGenerateContent", turns)
    elif bare.endswith("/chat/completions"):
        turns = _runs(each["role"] == "assistant" for each in data["messages"])
        made = ("chat", data["model"], bool(data.get("stream")), turns)
    elif bare.endswith("/responses"):
        turns = 0 if isinstance(data["input"], str) else _runs(_is_output(each) for each in data["input"])
        made = ("responses", data["model"], bool(data.get("stream")), turns)
    elif bare.endswith("/messages"):
        turns = _runs(each["role"] == "assistant" for each in data["messages"])
        made = ("anthropic", data["model"], bool(data.get("stream")), turns)
    else:
        return None
    kind, model, streamed, turns = made
    return ModelRequest(kind, path, headers, data, model, streamed, turns)


def _is_output(item: Json) -> bool:
    return item.get("role") == "assistant" or item.get("type") in {"function_call", "reasoning"}


def _runs(flags: Iterator[bool]) -> int:
    """Count the runs of true: items of one turn, and turns without a word between them, are one."""
    count, before = 0, False
    for flag in flags:
        count, before = count + (flag and not before), flag
    return count


# ---- the replies ------------------------------------------------------------------------------------------------


def error_body(request: ModelRequest, reply: Reply) -> Json:
    """Return an error as the provider words it. As real ones do, a refused key is repeated in the message."""
    message = f"Incorrect API key provided: {request.key}." if reply.status == 401 and not reply.text else reply.text
    match request.format:
        case "anthropic":
            kinds = {401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}
            return {
                "type": "error",
                "error": {"type": kinds.get(reply.status, "invalid_request_error"), "message": message},
            }
        case "gemini":
            kinds = {401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
            return {
                "error": {
                    "code": reply.status,
                    "message": message,
                    "status": kinds.get(reply.status, "INVALID_ARGUMENT"),
                }
            }
        case _:
            kinds = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
            code = kinds.get(reply.status)
            return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def _calls(request: ModelRequest, reply: Reply) -> list[tuple[str, str, str]]:
    return [
        (
            f"call_{request.turns}_{number}" if call.id is None else call.id,
            call.name,
            json.dumps(dict(call.arguments)) if call.written is None else call.written,
        )
        for number, call in enumerate(reply.calls)
    ]


def body(request: ModelRequest, reply: Reply) -> Json:
    """Return a reply as one JSON body."""
    return {"chat": _chat, "responses": _responses, "anthropic": _anthropic, "gemini": _gemini}[request.format](
        request, reply
    )


_REASONS: Mapping[Format, Mapping[str, str]] = {
    "chat": {"stop": "stop", "length": "length", "filter": "content_filter", "calls": "tool_calls"},
    "responses": {"length": "max_output_tokens", "filter": "content_filter"},
    "anthropic": {"stop": "end_turn", "length": "max_tokens", "filter": "refusal", "calls": "tool_use"},
    "gemini": {"stop": "STOP", "length": "MAX_TOKENS", "filter": "SAFETY", "calls": "STOP"},
}


def _reason(request: ModelRequest, reply: Reply) -> str | None:
    if reply.finish is None:
        return None
    return _REASONS[request.format].get("calls" if reply.calls else reply.finish)


def _chat(request: ModelRequest, reply: Reply) -> Json:
    message: Json = {"role": "assistant", "content": reply.text or None}
    calls = _calls(request, reply)
    if calls:
        message["tool_calls"] = [
            {"id": each, "type": "function", "function": {"name": name, "arguments": arguments}}
            for each, name, arguments in calls
        ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": reply.model or request.model,
        "choices": [{"index": 0, "message": message, "finish_reason": _reason(request, reply), "logprobs": None}],
        "usage": _chat_usage(reply),
    }


def _chat_usage(reply: Reply) -> Json:
    given, made = reply.usage
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _responses(request: ModelRequest, reply: Reply) -> Json:
    output: list[Json] = []
    if reply.text:
        content = [{"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}]
        output.append(
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
        )
    output += [
        {
            "type": "function_call",
            "id": f"fc_{request.turns}_{number}",
            "call_id": each,
            "name": name,
            "arguments": arguments,
            "status": "completed",
        }
        for number, (each, name, arguments) in enumerate(_calls(request, reply))
    ]
    reason = _reason(request, reply)
    given, made = reply.usage
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "model": reply.model or request.model,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + made,
        },
    }


def _anthropic(request: ModelRequest, reply: Reply) -> Json:
    content: list[Json] = [{"type": "text", "text": reply.text}] if reply.text else []
    content += [
        {"type": "tool_use", "id": each, "name": name, "input": json.loads(arguments)}
        for each, name, arguments in _calls(request, reply)
    ]
    given, made = reply.usage
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": reply.model or request.model,
        "content": content,
        "stop_reason": _reason(request, reply),
        "stop_sequence": None,
        "usage": {"input_tokens": given, "output_tokens": made},
    }


def _gemini(request: ModelRequest, reply: Reply) -> Json:
    parts: list[Json] = [{"text": reply.text}] if reply.text else []
    parts += [{"functionCall": _gemini_call(call)} for call in reply.calls]
    candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
    reason = _reason(request, reply)
    if reason:
        candidate["finishReason"] = reason
    return {
        "candidates": [candidate],
        "usageMetadata": _gemini_usage(reply),
        "modelVersion": reply.model or request.model,
    }


def _gemini_call(call: Call) -> Json:
    return {"name": call.name, "args": dict(call.arguments), **({} if call.id is None else {"id": call.id})}


def _gemini_usage(reply: Reply) -> Json:
    given, made = reply.usage
    return {"promptTokenCount": given, "candidatesTokenCount": made, "totalTokenCount": given + made}


# ---- the same, as events ----------------------------------------------------------------------------------------


def events(request: ModelRequest, reply: Reply) -> list[bytes]:
    """Return a reply as the events of a stream."""
    makers = {
        "chat": _chat_events,
        "responses": _responses_events,
        "anthropic": _anthropic_events,
        "gemini": _gemini_events,
    }
    return makers[request.format](request, reply)


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def _data(value: Json, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n".encode()


def _chat_events(request: ModelRequest, reply: Reply) -> list[bytes]:
    base = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": reply.model or request.model,
    }

    def chunk(delta: Json, reason: str | None = None) -> bytes:
        return _data({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    made = [chunk({"role": "assistant", "content": ""})]
    made += [chunk({"content": piece}) for piece in _pieces(reply.text)]
    for number, (each, name, arguments) in enumerate(_calls(request, reply)):
        half = len(arguments) // 2
        first = {"index": number, "id": each, "type": "function", "function": {"name": name, "arguments": ""}}
        made.append(chunk({"tool_calls": [first]}))
        made += [
            chunk({"tool_calls": [{"index": number, "function": {"arguments": part}}]})
            for part in (arguments[:half], arguments[half:])
        ]
    reason = _reason(request, reply)
    if reason:
        made.append(chunk({}, reason))
    made.append(_data({**base, "choices": [], "usage": _chat_usage(reply)}))
    return [*made, b"data: [DONE]\n\n"]


def _responses_events(request: ModelRequest, reply: Reply) -> list[bytes]:
    whole = _responses(request, reply)
    begun = {**whole, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    made: list[tuple[str, Json]] = [("response.created", {"response": begun})]
    for index, item in enumerate(whole["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        empty = {**item, "status": "in_progress"} | (
            {"content": []} if item["type"] == "message" else {"arguments": ""}
        )
        made.append(("response.output_item.added", {"output_index": index, "item": empty}))
        if item["type"] == "message":
            part = {**item["content"][0], "text": ""}
            at["content_index"] = 0
            made.append(("response.content_part.added", {**at, "part": part}))
            made += [
                ("response.output_text.delta", {**at, "delta": each, "logprobs": []}) for each in _pieces(reply.text)
            ]
            made.append(("response.output_text.done", {**at, "text": reply.text, "logprobs": []}))
            made.append(("response.content_part.done", {**at, "part": item["content"][0]}))
        else:
            half = len(item["arguments"]) // 2
            made += [
                ("response.function_call_arguments.delta", {**at, "delta": part})
                for part in (item["arguments"][:half], item["arguments"][half:])
            ]
            done = {**at, "arguments": item["arguments"], "name": item["name"]}
            made.append(("response.function_call_arguments.done", done))
        made.append(("response.output_item.done", {"output_index": index, "item": item}))
    if reply.finish is not None:
        last = "response.incomplete" if whole["status"] == "incomplete" else "response.completed"
        made.append((last, {"response": whole}))
    return [
        _data({"type": name, "sequence_number": number, **value}, name) for number, (name, value) in enumerate(made)
    ]


def _anthropic_events(request: ModelRequest, reply: Reply) -> list[bytes]:
    whole = _anthropic(request, reply)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    made: list[Json] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(whole["content"]):
        is_text = block["type"] == "text"
        empty = {**block, "text": ""} if is_text else {**block, "input": {}}
        made.append({"type": "content_block_start", "index": index, "content_block": empty})
        if is_text:
            deltas = [{"type": "text_delta", "text": each} for each in _pieces(reply.text)]
        else:
            text = json.dumps(block["input"])
            half = len(text) // 2
            deltas = [{"type": "input_json_delta", "partial_json": each} for each in (text[:half], text[half:])]
        made += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        made.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    if reply.finish is not None:
        made.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": reply.usage[1]}})
    made.append({"type": "message_stop"})
    return [_data(event, event["type"]) for event in made]


def _gemini_events(request: ModelRequest, reply: Reply) -> list[bytes]:
    whole = _gemini(request, reply)
    parts: list[Json] = [{"text": each} for each in _pieces(reply.text)]
    parts += [{"functionCall": _gemini_call(call)} for call in reply.calls]
    made: list[Json] = [
        {
            "candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}],
            "modelVersion": whole["modelVersion"],
        }
        for part in parts
    ]
    last: Json = {"content": {"role": "model", "parts": [{"text": ""}]}, "index": 0}
    reason = _reason(request, reply)
    if reason:
        last["finishReason"] = reason
    made.append({"candidates": [last], "usageMetadata": whole["usageMetadata"], "modelVersion": whole["modelVersion"]})
    return [_data(event) for event in made]


# ---- starting it ------------------------------------------------------------------------------------------------


@contextmanager
def model_server(script: Script | Mapping[str, Script], *, port: int = 0) -> Iterator[ModelServer]:
    """Run a server in a thread."""
    server = ModelServer(script)
    server.port = port
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        try:
            loop.run_until_complete(server.serve(ready.set, stop))
        finally:
            loop.close()
            ready.set()

    thread = threading.Thread(target=run, name="model-server", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join()


def read_script(text: str) -> list[Turn] | dict[str, Script]:
    """Read a script: a list of replies, or for each model its list. A reply may itself be a list, one for each try."""
    value = json.loads(text)
    return {model: _turns(turns) for model, turns in value.items()} if isinstance(value, dict) else _turns(value)


def _turns(turns: Sequence[Any]) -> list[Turn]:
    return [[_reply(each) for each in turn] if isinstance(turn, list) else _reply(turn) for turn in turns]


def _reply(value: Json) -> Reply:
    known = {each.name for each in fields(Reply)}
    assert value.keys() <= known, f"unknown: {value.keys() - known}"
    calls = [Call(**call) for call in value.get("calls", ())]
    usage = value.get("usage", (10, 5))
    return Reply(**{**value, "calls": calls, "usage": (usage[0], usage[1])})


async def _main(script: str, port: int) -> None:
    server = ModelServer(read_script(script))
    server.port = port
    await server.serve(lambda: print(server.url, flush=True), asyncio.Event())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(Path(sys.argv[1]).read_text(), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
