"""One-time links: show their task on a page without scripts, and answer it once."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from json import JSONDecodeError

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from kneo.api.decisions import TaskDecision, with_calls
from kneo.api.task_views import HumanTaskView
from kneo.errors import Invalid, InvalidValue, KneoError, NotFound
from kneo.json_text import parse_json
from kneo.records.task import DecisionKind, HumanTask, TaskLink
from kneo.runtime.engine.questions import as_it_stands
from kneo.service.console import task_words
from kneo.service.console.answer_form import ARGUMENTS, FIELDS, VALUES, decision_of, form_values
from kneo.service.console.page import Form
from kneo.service.console.render import STATIC, render
from kneo.service.context import Service, ServiceDep
from kneo.service.limits import Rate, network_of, peer_address
from kneo.service.problems import refusal, retry_after
from kneo.service.routing import JsonResponse
from kneo.store import runs
from kneo.tasks import links
from kneo.tasks.decisions import DecisionNotAllowed, DecisionRequest

SHOWN_CHARS = 50_000
"""Most characters of a subject that the page shows; the inbox has all of it."""

STYLE = STATIC["console.css"].decode()

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex, nofollow",
    "cross-origin-opener-policy": "same-origin",
}
"""Headers that keep the page from loading, leaking or storing content."""


def question_page(
    task: HumanTask, link: TaskLink, edit_limit: int, typed: Form | None = None, problem: KneoError | None = None
) -> str:
    """Return the page of a task for the person of the link, with the form that answers it.

    Args:
        task: The task.
        link: The link.
        edit_limit: Most characters of an edit.
        typed: The fields of a form that was refused, which are shown again.
        problem: The error that refused it.
    """
    view = HumanTaskView.of(task)
    values = {
        **form_values(view, typed or Form(), edit_limit=edit_limit, shown_chars=SHOWN_CHARS),
        "me": link.person,
        "keys": False,
        "now": None,
        "problem": problem,
        "expires_at": link.expires_at,
        "silence": task_words.silence(view.timeout),
        "whole_text": "",
        "may_read_content": False,
    }
    return _page("link_task.html", task.headline, values)


def done_page(task: HumanTask) -> str:
    """Return the page after an answer."""
    decision = task.decision
    if decision is not None:
        text = f"{decision.kind.value} by {decision.actor} at {decision.at}"
    else:
        text = "Your answer is recorded; more approvals are required."
    return _page("link_closed.html", "Thank you", {"role": "status", "text": f"{task.headline}: {text}", "more": ()})


@lru_cache(maxsize=32)
def refused_page(message: str, hint: str | None) -> str:
    """Return the page of a link that does not work; it states that nothing was decided.

    Pages are kept: strangers ask for unknown links as often as they like, and there are few refusals.
    """
    values = {"role": "alert", "text": message, "more": (hint, "Nothing was decided.")}
    return _page("link_closed.html", "This link did not work", values)


def _page(template: str, title: str, values: Mapping[str, object]) -> str:
    return render(template, {"title": title, "style": Markup(STYLE), **values})  # noqa: S704 - a file of the package


pages = APIRouter(include_in_schema=False)

PER_MINUTE = 120
"""Requests for one link per minute. Counted by link, because behind a proxy all people share one address."""

WRONG_PER_MINUTE = 120
"""Requests with unknown tokens from one address per minute. Tokens cannot be guessed; this keeps attempts cheap."""

_of_link = Rate(PER_MINUTE)
_wrong = Rate(WRONG_PER_MINUTE)


@pages.api_route("/h/{token}", methods=["GET", "HEAD"])
def look(token: str, request: Request, service: ServiceDep) -> Response:
    """Show the task of a link. Never decides: scanners of mail open links too."""
    try:
        _count(service, request, token)
        return _question(service, token)
    except KneoError as error:
        return _refused(error)


@pages.post("/h/{token}")
async def answer(token: str, request: Request, service: ServiceDep) -> Response:
    """Answer a task with a link, by the form of its page or as JSON."""
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return await run_in_threadpool(
        _answer_json if kind == "application/json" else _answer_form, token, service, request, body
    )


def _answer_json(token: str, service: Service, request: Request, body: bytes) -> Response:
    try:
        _count(service, request, token)
        task = links.answer(service.store, token, _answer(_json(body), service.settings.limits.human_content_chars))
    except KneoError as error:
        return refusal(error)
    decided = task.decision.kind.value if task.decision else None
    return JsonResponse({"continuation_id": task.id, "status": task.status.value, "decision": decided})


def _answer_form(token: str, service: Service, request: Request, body: bytes) -> Response:
    """Answer with the form of the page; a refused answer shows the page with what was typed, while the link works."""
    typed = Form()
    try:
        _count(service, request, token)
        typed = _form(body)
        task, _ = _look(service, token)
        decision = decision_of(HumanTaskView.of(task), typed)
        task = links.answer(service.store, token, decision.checked(service.settings.limits.human_content_chars))
    except (InvalidValue, DecisionNotAllowed) as error:
        return _question(service, token, typed, error)
    except KneoError as error:
        return _refused(error)
    return HTMLResponse(done_page(task), headers=dict(HEADERS))


def _question(
    service: Service, token: str, typed: Form | None = None, problem: KneoError | None = None
) -> HTMLResponse:
    task, link = _look(service, token)
    page = question_page(task, link, service.settings.limits.human_content_chars, typed, problem)
    return HTMLResponse(page, problem.http_status if problem is not None else 200, headers=dict(HEADERS))


def _look(service: Service, token: str) -> tuple[HumanTask, TaskLink]:
    with service.store.read() as tx:
        link, task = links.look(tx, token)
        run = runs.get(tx, task.run_id)
        # The person of a link is a candidate of its task.
        return with_calls(tx, as_it_stands(tx, task), run, may_read_content=False, is_candidate=True), link


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
        _of_link.check(link.id, f"This link is used more than {_of_link.per_minute} times in a minute.")
    else:
        address = network_of(peer_address(request))
        _wrong.check(address, "Too many requests for unknown links from this address.")


def _refused(error: KneoError) -> HTMLResponse:
    headers = {**HEADERS, **retry_after(error)}
    return HTMLResponse(refused_page(error.message, error.hint), error.http_status, headers=headers)


def _form(body: bytes) -> Form:
    """Return the fields of the page's form.

    Raises:
        Invalid: the body is not that form.
    """
    try:
        form = Form.parse(body.decode())
    except UnicodeDecodeError as error:
        msg = "This body is not the form of the page."
        raise Invalid(msg) from error
    unknown = [name for name, _ in form.fields if name not in FIELDS and not name.startswith((VALUES, ARGUMENTS))]
    if unknown:
        msg = f"The form of the page has no field {unknown[0][:40]!r}."
        raise Invalid(msg, code="invalid_form")
    return form


def _json(body: bytes) -> dict[str, object]:
    try:
        value = parse_json(body)
    except JSONDecodeError as error:
        msg = f"The body is not JSON: {error.msg}"
        raise Invalid(msg) from error
    if not isinstance(value, dict):
        msg = "The body is not a JSON object."
        raise Invalid(msg)
    return value


class _LinkAnswer(BaseModel):
    """An answer to a task by link, as form fields or JSON."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    decision: DecisionKind
    request_id: str
    expect_digest: str | None = None
    content: str | None = None
    selected_options: list[str] | None = None
    values: dict[str, object] | None = None
    comment: str | None = Field(default=None, max_length=2_000)


def _answer(fields: dict[str, object], limit: int) -> DecisionRequest:
    """Validate a submitted answer.

    Raises:
        DecisionNotAllowed: ``human_input_invalid``: a field is missing, unknown or of the wrong kind.
        Invalid: ``input_too_large``.
    """
    try:
        answer = _LinkAnswer.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:80]
        msg = f"{field or 'The answer'}: {first['msg']}."
        raise DecisionNotAllowed(msg, code="human_input_invalid", field=field) from error
    chosen = {**answer.model_dump(), "selected_options": answer.selected_options or None}
    return TaskDecision.model_validate(chosen).checked(limit)
