"""Errors as answers: flat and under ``detail`` at once, because both shapes have readers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kneo.errors import KneoError, Transient, Unauthorized

log = logging.getLogger("kneo.service")

RETRY_AFTER_SECONDS = 5


def problem(
    status: int, code: str, message: str, details: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body: dict[str, object] = {"error": code, "message": message, **details}
    return JSONResponse(jsonable_encoder({**body, "detail": body}), status_code=status, headers=dict(headers or {}))


def too_large(max_bytes: int) -> JSONResponse:
    message = f"The request is larger than {max_bytes} bytes."
    return problem(413, "payload_too_large", message, {"max_body_bytes": max_bytes})


def install(app: FastAPI) -> None:
    """Translate every exception of this service into an answer."""
    app.add_exception_handler(KneoError, _refusal)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _crash)


async def _refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, KneoError)
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Transient):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return problem(error.http_status, error.code, str(error), error.details, headers)


async def _validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The offending input is left out: echoing it back would double whatever was sent.
    fields = [{key: item[key] for key in ("type", "loc", "msg", "ctx") if key in item} for item in error.errors()]
    first = fields[0]
    where = ".".join(str(part) for part in first["loc"])
    body = {"error": "validation_error", "message": f"{where}: {first['msg']}", "detail": fields}
    return JSONResponse(jsonable_encoder(body, custom_encoder={Exception: str}), status_code=422)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 413:
        return too_large(request.app.state.service.settings.limits.body_bytes)
    codes = {404: "not_found", 405: "method_not_allowed"}
    return problem(error.status_code, codes.get(error.status_code, "http_error"), str(error.detail), {}, error.headers)


async def _crash(_request: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", exc_info=error)
    return problem(500, "internal_error", "The service failed on this request; its log says why.", {})
