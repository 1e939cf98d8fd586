"""Decisions by buttons in Slack. Slack signs each request (``v0``), and identifies the person: its administrators can act for anyone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qs

from fastapi import Request
from pydantic import BaseModel, ConfigDict
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo import registry
from kneo.api.decisions import TaskDecision, resume_human_task
from kneo.api.operation import Principal
from kneo.errors import Forbidden, Invalid, KneoError, NotFound, Unauthorized
from kneo.extensions.slack.app import SlackApp, find_app
from kneo.extensions.slack.channel import DECISIONS, VIA, allows_buttons
from kneo.json_text import parse_json
from kneo.notify.delivery import SECONDS
from kneo.records.task import DecisionKind, TaskStatus
from kneo.service.context import Service, ServiceDep
from kneo.service.problems import too_large
from kneo.service.routing import ApiRouter, JsonResponse, Responses
from kneo.store.engine import Tx
from kneo.tasks import inbox

router = ApiRouter(tags=["hooks"], errors={"answer_slack": (401, 404, 422)}, own_keys={"answer_slack"})

BODY_BYTES = 262_144
"""Largest body in bytes. The payload of a button has its message."""

WINDOW_SECONDS = 300
"""Seconds for which a request counts; Slack recommends five minutes."""

SCOPE = "human:write"

DECIDED: Responses = {200: {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}}


class Named(BaseModel):
    """An object of Slack with an id."""

    id: str
    team_id: str | None = None


class Action(BaseModel):
    """A button that was pressed."""

    action_id: str
    value: str | None = None


class Pressed(BaseModel):
    """The payload of a button."""

    team: Named
    user: Named
    channel: Named
    message: dict[str, object]
    actions: list[Action]


class Asked(BaseModel):
    """The question that a button decides, as its message shows it."""

    model_config = ConfigDict(extra="forbid")

    task: str
    request: str
    digest: str


@router.post("/chat/slack", operation_id="answer_slack", response_class=Response, responses=DECIDED)
async def answer_slack(request: Request, service: ServiceDep) -> JsonResponse:
    """Decide the question whose button a person pressed in Slack, as the person of that account. Slack signs the request."""
    secret = service.settings.slack_signing_secret
    if not secret:
        msg = "Buttons in Slack decide nothing here."
        raise NotFound(msg, code="hook_not_found", hint="Set KNEO_SERV_SLACK_SIGNING_SECRET.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            return too_large(BODY_BYTES)
    if not is_signed(secret, request.headers, body, service.store.clock.now().timestamp()):
        msg = "The signature of this request is not one of Slack for this app, or it is older than five minutes."
        raise Unauthorized(msg, code="hook_signature_invalid")
    pressed = _read(body)
    for action in pressed.actions:
        kind = action.action_id.removeprefix("kneo.")
        if action.action_id != kind and kind in set(DECISIONS) and action.value is not None:
            return await run_in_threadpool(_decide, service, pressed, DecisionKind(kind), action.value)
    return JsonResponse({})


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Return whether Slack signed a body with the secret of the app, within five minutes of now."""
    sent, offered = headers.get("x-slack-request-timestamp", ""), headers.get("x-slack-signature", "")
    if not (sent.isascii() and sent.isdecimal() and len(sent) <= 12) or abs(now - int(sent)) > WINDOW_SECONDS:
        return False
    signature = hmac.digest(secret.encode(), f"v0:{sent}:".encode() + body, hashlib.sha256).hex()
    return hmac.compare_digest(f"v0={signature}".encode(), offered.encode())


def _read(body: bytes) -> Pressed:
    try:
        fields = parse_qs(body.decode(), strict_parsing=True, max_num_fields=10)
        return Pressed.model_validate(parse_json(fields["payload"][0]))
    except (ValueError, KeyError) as error:
        msg = "The request is no payload of a button."
        raise Invalid(msg, code="invalid_payload") from error


def _decide(service: Service, pressed: Pressed, kind: DecisionKind, value: str) -> JsonResponse:
    app = find_app(service.settings, pressed.channel.id)
    try:
        asked = Asked.model_validate(parse_json(value))
    except ValueError as error:
        msg = "The button is none of this service."
        raise Invalid(msg, code="invalid_payload") from error
    try:
        with service.store.read() as tx:
            principal = find_principal(service, tx, asked.task, pressed)
        context = replace(service.context(principal), via=VIA)
        decision = TaskDecision(decision=kind, request_id=asked.request, expect_digest=asked.digest)
        resume_human_task.begin(context, asked.task, decision)
        with service.store.read() as tx:
            task = inbox.find(tx, asked.task)
        is_open = task.status in {TaskStatus.OPEN, TaskStatus.CLAIMED}
        text = f"{principal.name}: {kind}. {task.title}" + (" It waits for further people." if is_open else "")
        return _reply(app, pressed, text, everyone=not is_open)
    except KneoError as error:
        return _reply(app, pressed, f"Nothing was decided: {error.message}", everyone=False)


def find_principal(service: Service, tx: Tx, task_id: str, pressed: Pressed) -> Principal:
    """Return the person of the account that pressed a button, where the environment of the task lets buttons decide it.

    Raises:
        NotFound: there is no such task.
        Forbidden: ``not_a_candidate``: the account is of no person there; ``chat_not_allowed``; the person's key has no ``human:write``.
    """
    task = inbox.find(tx, task_id)
    if not allows_buttons(tx, task):
        msg = (
            f"{task.environment or 'The environment'} does not let buttons in Slack decide {task.id}. Use the console."
        )
        raise Forbidden(msg, code="chat_not_allowed")
    rules, account = registry.find_declared(tx, task.environment), f"{pressed.team.id}/{pressed.user.id}"
    people = rules.spec.people if rules is not None else {}
    names = [name for name, person in people.items() if person.slack == account]
    if len(names) != 1 or pressed.user.team_id not in {None, pressed.team.id}:
        msg = (
            f"Your account in Slack is that of no person, or not of one alone, in environments/{task.environment}.yaml."
        )
        raise Forbidden(msg, code="not_a_candidate")
    principal = service.callers.find(tx, names[0]) or Principal(names[0], frozenset({SCOPE}))
    principal.require(SCOPE)
    return principal


def _reply(app: SlackApp | None, pressed: Pressed, text: str, *, everyone: bool) -> JsonResponse:
    """Return the response; what became of the decision replaces the buttons, or is shown to the person alone."""
    response = JsonResponse({"text": text})
    if app is not None:
        shown: dict[str, object] = {
            "text": text,
            "blocks": [{"type": "section", "text": {"type": "plain_text", "text": text[:3000]}}],
        }
        method = "chat.update" if everyone else "chat.postEphemeral"
        to = {"ts": pressed.message.get("ts")} if everyone else {"user": pressed.user.id}
        response.background = BackgroundTask(app.request, method, {**shown, **to}, SECONDS)
    return response
