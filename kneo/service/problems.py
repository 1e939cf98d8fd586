"""Errors as responses: flat and under ``detail`` at once, because clients of both shapes exist."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from kneo.errors import KneoError, Transient, Unauthorized
from kneo.records.run import RunStatus
from kneo.service.published import expects_published_words, published_word
from kneo.service.routing import JsonResponse
from kneo.settings import Settings

RETRY_AFTER_SECONDS = 5

RECORDED = "kneo.recorded"
"""The key in the ASGI scope of a request whose refusal is in the audit log already."""


def problem(
    status: int, code: str, message: str, details: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> JsonResponse:
    body: dict[str, object] = {"error": code, "message": message, **details}
    return JsonResponse({**body, "detail": body}, status_code=status, headers=dict(headers or {}))


def too_large(max_bytes: int) -> JsonResponse:
    message = f"The request is larger than {max_bytes} bytes."
    return problem(413, "payload_too_large", message, {"max_body_bytes": max_bytes})


def install(app: FastAPI) -> None:
    """Translate every exception of this service into a response."""
    app.add_exception_handler(KneoError, _refusal)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


def refusal(error: KneoError, challenge: str = "Bearer") -> JsonResponse:
    """Return the response to an error; its detail ``retry_after`` becomes the header, as the challenge does where no credential is accepted."""
    headers = {}
    details = dict(error.details)
    wait = details.pop("retry_after", RETRY_AFTER_SECONDS if isinstance(error, Transient) else None)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = challenge
    if wait is not None:
        headers["Retry-After"] = str(wait)
    if error.hint is not None:
        details["hint"] = error.hint
    return problem(error.http_status, error.code, str(error), details, headers)


def retry_after(error: KneoError) -> dict[str, str]:
    """Return the header ``Retry-After`` of an error that states the time to wait; no header for others."""
    wait = error.details.get("retry_after")
    return {"Retry-After": str(wait)} if wait is not None else {}


def crash() -> JsonResponse:
    """Return the response to a defect, without details; the log has them."""
    return problem(500, "internal_error", "Internal error; the log of the service has the details.", {})


async def _refusal(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, KneoError)
    request.scope[RECORDED] = error.recorded
    settings: Settings = request.app.state.service.settings
    if expects_published_words(settings.status_words, request.headers.get("user-agent", "")):
        statuses = {name: value for name, value in error.details.items() if isinstance(value, RunStatus)}
        error.details.update({name: published_word(status) for name, status in statuses.items()})
    return refusal(error)


async def _validation(_request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, RequestValidationError)
    # The input is left out: a response that repeats it would double it.
    fields = [{key: item[key] for key in ("type", "loc", "msg", "ctx") if key in item} for item in error.errors()]
    first = fields[0]
    where = ".".join(str(part) for part in first["loc"])
    message = f"{where}: {first['msg']}"
    if first["type"] == "json_invalid":
        message = f"The body is not JSON: {first['ctx']['error']}"
    body = {"error": "validation_error", "message": message, "detail": fields}
    return JsonResponse(jsonable_encoder(body, custom_encoder={Exception: str}), status_code=422)


async def _http(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 413:
        return too_large(request.app.state.service.settings.limits.body_bytes)
    codes = {404: "not_found", 405: "method_not_allowed"}
    return problem(error.status_code, codes.get(error.status_code, "http_error"), str(error.detail), {}, error.headers)
