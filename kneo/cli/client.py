"""The backend over HTTP: calls of one service, repeated only where a repetition has no effect."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import httpx
from pydantic import TypeAdapter, ValidationError

from kneo.api.operation import Operation
from kneo.cli.backend import Json, P, Query, V
from kneo.cli.watch import POLL_SECONDS, is_last, poll, read_stream
from kneo.clock import sleep
from kneo.errors import Conflict, Forbidden, Invalid, KneoError, NotFound, Transient, Unauthorized, Untrusted
from kneo.names import shown
from kneo.service.published import own_word
from kneo.settings import Settings

RETRY_STATUS = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses of requests that had no effect. 500 is not one of them: such a request may have had half of its effect."""

IN_PROGRESS = "idempotency_key_in_progress"
"""The code of the conflict that passes: an earlier attempt of the same request still runs."""

UNTRUSTED = frozenset({"untrusted", "spec_tampered", "no_trust_root"})
"""Codes of refusals because of missing trust. Further ones are reasons of conditions, which alone begin with a capital letter."""

NAMED_KEYS = frozenset({"runs:create", "human:resume", "create_call"})
"""The operations that ``KNEO_SERV_IDEMPOTENCY_KEY`` is for, by the scope of their keys or their id: a start and an answer."""

MAX_WAIT_SECONDS = 30.0
"""The longest ``Retry-After`` that a command waits for; a longer one is shown as an error at once."""

NO_KEY = "Set KNEO_SERV_API_KEY, or name a profile that has a key with --profile NAME (kneo config profile set)."

_BY_STATUS: Mapping[int, type[KneoError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: Transient,
    503: Transient,
}


class ServiceBackend:
    """A client of one service.

    Args:
        url: The address of the service.
        key: The API key; empty for none.
        settings: Timeouts and retries, and the idempotency key of one start or answer.
    """

    def __init__(self, url: str, key: str, settings: Settings) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url: str | None = url.rstrip("/")
        self.rules = settings.http
        self.http = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=settings.client_timeout_seconds)

    def close(self) -> None:
        self.http.close()

    def call(self, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        request = operation.request(*args, **kwargs)
        body = request.body.model_dump(mode="json", exclude_unset=True) if request.body is not None else None
        key = self.rules.client_idempotency_key if (operation.key_scope or operation.id) in NAMED_KEYS else ""
        # The service finds an earlier call without a key by its content.
        named = key or ("" if operation.is_live else None)
        answer = self._send(request.method, request.path, query=cast("Query", request.query), body=body, key=named)
        try:
            return TypeAdapter(operation.view).validate_python(answer, context=own_word)
        except ValidationError as error:
            msg = f"{self.url} answered {operation.id} in an unexpected format: {error.error_count()} fields are not valid."
            hint = "Compare the versions of this command and of the service: kneo --version, GET /v1/healthz."
            raise Invalid(msg, code="service_mismatch", hint=hint) from error

    def with_key(self, key: str | None) -> ServiceBackend:
        other = copy.copy(self)
        other.rules = replace(self.rules, client_idempotency_key=key) if key is not None else self.rules
        return other

    def follow(self, run_id: str, *, until_pause: bool, deltas: bool = False) -> Iterator[Json]:
        """Read the stream of events; poll a service that has no streams."""
        last: object = None
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last)} if last is not None else {})
            try:
                query = {"deltas": "1"} if deltas else {}
                with self.http.stream("GET", f"/runs/{run_id}/events", params=query, headers=headers) as answer:
                    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                        break
                    for event in read_stream(answer.iter_lines()):
                        yield event
                        last = event.get("sequence", last)
                        if is_last(event, until_pause=until_pause):
                            return
                sleep(POLL_SECONDS)  # The service ended the stream, for example because it stops.
            except httpx.TransportError:
                self._send("GET", f"/runs/{run_id}")  # Retries, and raises where the service stays unreachable.
        yield from poll(partial(self._look, run_id), run_id, until_pause=until_pause)

    def _look(self, run_id: str, known: int) -> tuple[str, Sequence[Json]]:
        # A service without streams is an older one, whose responses may lack fields of the views.
        run = self._send("GET", f"/runs/{run_id}")
        trace = self._send("GET", f"/runs/{run_id}/trace", query={"limit": 1000, "offset": known})
        return str(run["status"]), cast("list[Json]", trace["events"])

    def as_signer(self, keyid: str | None) -> ServiceBackend:  # noqa: ARG002 - the service authenticates the caller
        return self

    def as_person(self, name: str) -> ServiceBackend:
        msg = (
            f"Nothing was decided as {shown(name)}: --as works on the local database alone, and a service answers here."
        )
        hint = "Without --as you decide as the owner of your API key. kneo task link create makes a link for another person."
        raise Forbidden(msg, code="as_person_refused", hint=hint)

    def follow_tasks(self, after: str | None) -> Iterator[Json]:
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after is not None else {})
            try:
                with self.http.stream("GET", "/human-tasks/stream", headers=headers, timeout=None) as answer:
                    if not answer.is_success:
                        answer.read()
                        _read(answer)
                    fields: dict[str, str] = {}
                    for line in answer.iter_lines():
                        if line:
                            name, _, value = line.partition(": ")
                            fields[name] = value
                            continue
                        # An empty line ends an event. An event that was cut off is sent again.
                        after = fields.get("id", after)
                        if "data" in fields:
                            event: Json = json.loads(fields["data"])
                            yield event
                        fields = {}
            except httpx.TransportError:
                self._send("GET", "/human-tasks/summary")  # raises after all retries

    def send(
        self, method: str, path: str, *, query: Query | None = None, body: Mapping[str, object] | None = None
    ) -> Json:
        """Send a request to any path below ``/v1``."""
        return self._send(method, path, query=query, body=body)

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> Json:
        """Send a request, and repeat it where that has no effect: under one idempotency key the service executes it
        once. Without a ``key`` it has one of its own, with an empty one none.

        Raises:
            Transient: no response, or none in time.
            KneoError: the error that the service responds with.
        """
        params = {name: value for name, value in (query or {}).items() if value is not None}
        key = f"kneo-cli-{uuid.uuid4()}" if key is None else key
        headers = {"Idempotency-Key": key} if key and method in {"POST", "PUT"} else {}
        left = self.rules.client_retries
        while True:
            wait = self.rules.client_backoff_seconds * (self.rules.client_retries - left + 1)
            try:
                answer = self.http.request(method, path, params=params, json=body, headers=headers)
            except httpx.TransportError as error:
                if left == 0:
                    raise self._unreachable(method, path, error) from error
            else:
                wait = max(wait, _retry_after(answer))
                if left == 0 or wait > MAX_WAIT_SECONDS or not _is_retryable(answer):
                    return _read(answer)
            left -= 1
            sleep(wait)

    def _unreachable(self, method: str, path: str, error: httpx.TransportError) -> Transient:
        if isinstance(error, httpx.ConnectError):
            msg, hint = f"Nothing answers at {self.url}.", "Start the service: kneo up"
            return Transient(msg, code="service_unreachable", hint=hint)
        msg = f"{self.url} did not answer {method} {path}: {error or type(error).__name__}."
        return Transient(msg, code="service_unreachable")


def _is_retryable(answer: httpx.Response) -> bool:
    """Return whether a repeated request may get another response."""
    return answer.status_code in RETRY_STATUS or (answer.status_code == 409 and _code(answer) == IN_PROGRESS)


def _code(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return ""
    return str(body.get("error")) if isinstance(body, dict) else ""


def _retry_after(answer: httpx.Response) -> float:
    """Return ``Retry-After`` in seconds; a date counts as none."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _read(answer: httpx.Response) -> Json:
    try:
        body = answer.json()
    except ValueError as error:
        msg = f"{answer.url.host} answered {answer.status_code} with something that is not JSON."
        raise Transient(
            msg, code="service_unreachable", hint="Check that this is the address of a Kneo service."
        ) from error
    if answer.is_success:
        return cast("Json", body)
    detail = body if isinstance(body, dict) else {}
    extra = {key: value for key, value in detail.items() if key not in {"error", "message", "detail", "code", "hint"}}
    code = str(detail.get("error") or "http_error")
    kind = _BY_STATUS.get(answer.status_code, Invalid)
    if kind is Forbidden and (code in UNTRUSTED or code[:1].isupper()):
        kind = Untrusted
    message = str(detail.get("message") or f"The service answered {answer.status_code} {answer.reason_phrase}.")
    hint = str(detail["hint"]) if detail.get("hint") else None
    # The message ends with the hint, for clients that show the message alone; here the hint has a line of its own.
    message = message.removesuffix(f" {hint}")
    if code == "unauthorized":
        hint = NO_KEY
    raise kind(message, code=code, hint=hint, **extra)
