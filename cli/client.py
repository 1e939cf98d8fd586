"""The service as a backend: HTTP, with retries only where repeating is harmless."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import cast

import httpx

from cli.backend import Json, Query
from kneo.clock import sleep
from kneo.errors import Conflict, Forbidden, Invalid, KneoError, NotFound, Transient, Unauthorized

RETRIES = 2
BACKOFF_SECONDS = 0.25
RETRY_STATUS = frozenset({408, 425, 429, 502, 503, 504})

_BY_STATUS: Mapping[int, type[KneoError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    503: Transient,
}


class ServiceBackend:
    """Talks to one service.

    Args:
        url: Its address.
        key: The API key to present; empty for none.
        timeout_seconds: How long one answer may take.
    """

    def __init__(self, url: str, key: str, timeout_seconds: float) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self.http = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=timeout_seconds)

    def close(self) -> None:
        self.http.close()

    def start_run(self, order: Mapping[str, object]) -> Json:
        return self._send("POST", "/runs", body=order)

    def runs(self, query: Query) -> Json:
        return self._send("GET", "/runs", query=query)

    def run(self, run_id: str) -> Json:
        return self._send("GET", f"/runs/{run_id}")

    def trace(self, run_id: str) -> Json:
        return self._send("GET", f"/runs/{run_id}/trace", query={"limit": 1000})

    def checkpoints(self, run_id: str) -> Json:
        return self._send("GET", f"/runs/{run_id}/checkpoints")

    def past(self, run_id: str, view: str) -> Json:
        return self._send("GET", f"/runs/{run_id}/{view}")

    def checkpoint_diff(self, run_id: str, before: int | None, after: int | None) -> Json:
        query = {"from_sequence": before, "to_sequence": after}
        return self._send("GET", f"/runs/{run_id}/checkpoints/diff", query=query)

    def continue_run(self, run_id: str) -> Json:
        return self._send("POST", f"/runs/{run_id}/continue")

    def fork(self, run_id: str, order: Mapping[str, object]) -> Json:
        return self._send("POST", f"/runs/{run_id}/fork", body=order)

    def cancel(self, run_id: str) -> Json:
        return self._send("POST", f"/runs/{run_id}/cancel")

    def tasks(self, query: Query) -> Json:
        return self._send("GET", "/human-tasks", query=query)

    def task(self, continuation_id: str) -> Json:
        return self._send("GET", f"/human-tasks/{continuation_id}")

    def resume(self, continuation_id: str, answer: Mapping[str, object]) -> Json:
        return self._send("POST", f"/human-tasks/{continuation_id}/resume", body=answer)

    def spec(self, verb: str, body: Mapping[str, object]) -> Json:
        """Let the service validate, compile or explain a spec."""
        return self._send("POST", f"/specs/{verb}", body=body)

    def environments(self) -> Json:
        return self._send("GET", "/environments")

    def environment(self, name: str) -> Json:
        return self._send("GET", f"/environments/{name}")

    def history(self, name: str, bundle: str | None) -> Json:
        return self._send("GET", f"/environments/{name}/history", query={"bundle": bundle})

    def reconcile(self, name: str | None) -> Json:
        return self._send("POST", f"/environments/{name or '-'}/reconcile")

    def audit_events(self, query: Query) -> Json:
        return self._send("GET", "/audit-events", query=query)

    def send(
        self, method: str, path: str, *, query: Query | None = None, body: Mapping[str, object] | None = None
    ) -> Json:
        """Ask for any path below ``/v1``."""
        return self._send(method, path, query=query, body=body)

    def _send(
        self, method: str, path: str, *, query: Query | None = None, body: Mapping[str, object] | None = None
    ) -> Json:
        params = {name: value for name, value in (query or {}).items() if value is not None}
        headers = {"Idempotency-Key": f"kneo-cli-{uuid.uuid4()}"} if method == "POST" else {}
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES or method != "GET"
            try:
                answer = self.http.request(method, path, params=params, json=body, headers=headers)
            except httpx.ConnectError as error:
                if attempt < RETRIES:
                    sleep(BACKOFF_SECONDS * (attempt + 1))
                    continue
                msg = f"Nothing answers at {self.url}."
                raise Transient(msg, code="service_unreachable", hint="Is the service up? kneo up") from error
            except httpx.TransportError as error:
                if not last:
                    sleep(BACKOFF_SECONDS * (attempt + 1))
                    continue
                msg = f"{self.url} did not answer {method} {path}: {error or type(error).__name__}."
                raise Transient(msg, code="service_unreachable") from error
            if answer.status_code in RETRY_STATUS and not last:
                sleep(BACKOFF_SECONDS * (attempt + 1))
                continue
            return _read(answer)
        raise AssertionError


def _read(answer: httpx.Response) -> Json:
    try:
        body = answer.json()
    except ValueError as error:
        msg = f"{answer.url.host} answered {answer.status_code} with something that is not JSON."
        raise Transient(msg, code="service_unreachable", hint="Is that a Kneo service?") from error
    if answer.is_success:
        return cast("Json", body)
    detail = body if isinstance(body, dict) else {}
    extra = {key: value for key, value in detail.items() if key not in {"error", "message", "detail", "code", "hint"}}
    kind = _BY_STATUS.get(answer.status_code, Invalid)
    message = str(detail.get("message") or f"The service answered {answer.status_code} {answer.reason_phrase}.")
    raise kind(message, code=str(detail.get("error") or "http_error"), **extra)
