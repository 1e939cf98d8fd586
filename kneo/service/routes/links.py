"""One-time links: create them, show their task, and answer once."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from kneo.errors import Invalid, InvalidValue, KneoError, NotFound
from kneo.records.task import DecisionKind, HumanTask, TaskLink
from kneo.runtime.engine.questions import as_it_stands
from kneo.service.context import Service, ServiceDep
from kneo.service.limits import Rate, TooMany, network_of, peer_address
from kneo.service.link_page import HEADERS, done_page, question_page, refused_page
from kneo.service.problems import refusal
from kneo.service.routing import JsonResponse
from kneo.tasks import links
from kneo.tasks.decisions import DecisionNotAllowed, DecisionRequest

pages = APIRouter(include_in_schema=False)

PER_MINUTE = 120
"""Requests for one link per minute. Counted by link, because behind a proxy all people share one address."""

WRONG_PER_MINUTE = 120
"""Requests with unknown tokens from one address per minute. Tokens cannot be guessed; this keeps attempts cheap."""

FIELDS = 50

_of_link = Rate(PER_MINUTE)
_wrong = Rate(WRONG_PER_MINUTE)


@pages.api_route("/h/{token}", methods=["GET", "HEAD"])
def look(token: str, request: Request, service: ServiceDep) -> Response:
    """Show the task of a link. Never decides: scanners of mail open links too."""

    def read() -> tuple[TaskLink, HumanTask]:
        _count(service, request, token)
        with service.store.read() as tx:
            link, task = links.look(tx, token)
            return link, as_it_stands(tx, task)

    try:
        link, task = read()
    except KneoError as error:
        return _refused(error)
    return HTMLResponse(question_page(task, link), headers=dict(HEADERS))


@pages.post("/h/{token}")
async def answer(token: str, request: Request, service: ServiceDep) -> Response:
    """Answer a task with a link, by the form of its page or as JSON."""
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    as_json = kind == "application/json"
    try:
        await run_in_threadpool(_count, service, request, token)
        fields = _json(body) if as_json else _form(body)
        decision = _answer(fields, service.settings.limits.human_content_chars)
        task = await run_in_threadpool(_decide, service, token, decision)
    except KneoError as error:
        return refusal(error) if as_json else _refused(error)
    if not as_json:
        return HTMLResponse(done_page(task), headers=dict(HEADERS))
    decided = task.decision.kind.value if task.decision else None
    return JsonResponse({"continuation_id": task.id, "status": task.status.value, "decision": decided})


def _count(service: Service, request: Request, token: str) -> None:
    """Count a request, by its link where one exists and else by the address of the caller.

    Raises:
        TooMany: the rate limit is reached.
        NotFound: ``link_not_found``.
    """
    with service.store.read() as tx:
        try:
            link = links.find_by_token(tx, token)
        except NotFound:
            link = None
    if link is not None:
        wait, what = _of_link.take(link.id), f"This link is used more than {_of_link.per_minute} times in a minute."
    else:
        wait, what = (
            _wrong.take(network_of(peer_address(request))),
            "Too many requests for unknown links from this address.",
        )
    if wait:
        raise TooMany(what, retry_after=max(1, round(wait + 0.5)))


def _decide(service: Service, token: str, decision: DecisionRequest) -> HumanTask:
    return links.answer(service.store, token, decision)


def _refused(error: KneoError) -> HTMLResponse:
    headers = dict(HEADERS)
    if "retry_after" in error.details:
        headers["retry-after"] = str(error.details["retry_after"])
    return HTMLResponse(refused_page(error.message, error.hint), error.http_status, headers=headers)


def _form(body: bytes) -> dict[str, object]:
    try:
        found = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=FIELDS)
    except ValueError as error:
        msg = "This body is not the form of the page."
        raise Invalid(msg) from error
    several = [option for option in found.pop("selected_option", []) if option]
    fields: dict[str, object] = {name: values[-1].replace("\r\n", "\n") for name, values in found.items() if values[-1]}
    if fields.get("decision") not in {"edited", "provided"}:
        fields.pop("content", None)  # An unchanged text is sent too, because the page shows it in an input.
    if fields.get("decision") == "selected":
        fields["selected_options"] = several
    return fields


def _json(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = "The body is not JSON."
        raise Invalid(msg) from error
    if not isinstance(value, dict):
        msg = "The body is not a JSON object."
        raise Invalid(msg)
    return value


class _Said(BaseModel):
    """An answer to a task by link, as form fields or JSON."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    decision: DecisionKind
    request_id: str
    expect_digest: str | None = None
    content: str | None = None
    selected_options: tuple[str, ...] = ()
    values: dict[str, object] | None = None
    comment: str | None = Field(default=None, max_length=2_000)


def _answer(fields: dict[str, object], limit: int) -> DecisionRequest:
    """Validate a submitted answer.

    Raises:
        NotAllowed: ``human_input_invalid``: a field is missing, unknown or of the wrong kind.
        Invalid: ``input_too_large``.
    """
    try:
        form = _Said.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:80]
        msg = f"{field or 'The answer'}: {first['msg']}."
        raise DecisionNotAllowed(msg, code="human_input_invalid", field=field) from error
    if len(form.content or "") > limit:
        msg = f"The text is {len(form.content or '')} characters long; at most {limit} are accepted."
        raise InvalidValue(msg, code="input_too_large", field="content", limit=limit)
    return DecisionRequest(
        request_id=form.request_id,
        decision=form.decision,
        content=form.content,
        selected_options=form.selected_options or None,
        values=form.values,
        comment=form.comment,
        expect_digest=form.expect_digest,
    )
