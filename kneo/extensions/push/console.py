"""Subscribing a browser to notifications (Web Push), and ending its subscription.

A subscription belongs to a person and to a browser, which is known by a cookie of its own: it outlasts the session, whose end
without a request is no reason to stop notifications, and it ends when the person signs out or another person signs in.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from kneo.clock import new_id
from kneo.digest import hash_text
from kneo.errors import Forbidden, Invalid, NotFound, Unauthorized
from kneo.extensions.push.addresses import push_service
from kneo.extensions.push.keys import ReceiverKeys, VapidKey
from kneo.records.sign_in import PushSubscription
from kneo.service.auth import Keyring
from kneo.service.console.page import PageRequest, Pages
from kneo.service.console.render import STATIC_TYPES, compile_template, version_of
from kneo.service.console.security import HEADERS, HOME, PUSH, set_cookie
from kneo.service.console.session import NOTIFICATIONS_ENDED, TOKEN_BYTES, push_browser
from kneo.settings import PushSettings, Settings
from kneo.store import audit, browser_sessions, push_subscriptions
from kneo.store.engine import Tx

SCOPE = "human:write"
"""The scope that a person needs to subscribe; without it no task waits for the person."""

ME = "/console/me"

YEAR = timedelta(days=365)

_FOLDER = Path(__file__).parent

_WORKER = (_FOLDER / "static" / "push.js").read_bytes()

_SWITCH = (_FOLDER / "static" / "notifications.js").read_bytes()

_section = compile_template((_FOLDER / "templates" / "section.html").read_text())

pages = Pages()


@dataclass(frozen=True)
class PushState:
    """The notifications of a person.

    Attributes:
        public_key: The key that the browser states when it subscribes.
        is_on: Whether this browser has a subscription of the person.
        browsers: The number of browsers with one.
    """

    public_key: str
    is_on: bool
    browsers: int


def push_state(request: PageRequest) -> PushState | None:
    """Return the notifications of the person; ``None`` where the person cannot subscribe."""
    settings = request.context.settings.push
    if not settings.private_key or request.signed_in.token_hash is None or not request.may(SCOPE):
        return None
    browser = push_browser(request.cookies, secure=request.secure)
    with request.context.store.read() as tx:
        mine = push_subscriptions.of_person(tx, request.person)
    return PushState(VapidKey.load(settings.private_key).public, browser in mine, len(mine))


@pages.post("/push", scope=SCOPE)
def subscribe(request: PageRequest) -> Response:
    """Store the subscription of the browser."""
    settings, session_hash = request.context.settings.push, request.signed_in.token_hash
    _check_enabled(settings)
    if session_hash is None:
        msg = "Notifications belong to a person, and this service has no keys."
        raise Forbidden(msg, hint="Sign in with a link: kneo service sign-in-link.")
    endpoint, p256dh, auth = (request.form.get(name) for name in ("endpoint", "p256dh", "auth"))
    _check(settings, endpoint, p256dh, auth)
    token = secrets.token_urlsafe(TOKEN_BYTES)

    def work(tx: Tx) -> None:
        push_subscriptions.lock(tx)
        session = browser_sessions.find(tx, session_hash)
        if session is None:
            msg = "You are signed out; nothing was changed."
            raise Unauthorized(msg)
        subscription = PushSubscription(
            id=new_id("psh", tx.now),
            browser_hash=hash_text(token),
            session_hash=session_hash,
            person=request.person,
            key_hash=session.key_hash,
            endpoint=endpoint,
            p256dh=p256dh,
            auth=auth,
            created_at=tx.at,
        )
        push_subscriptions.put(tx, subscription, replaced=push_browser(request.cookies, secure=request.secure))
        facts = {"push_service": push_service(endpoint, settings.hosts)}
        audit.record(tx, "console.notifications_started", actor=request.person, metadata=facts)

    request.context.store.transact(work)
    response = RedirectResponse(ME, 303)
    set_cookie(response, PUSH, token, secure=request.secure, lasts=YEAR)
    return response


def _check(settings: PushSettings, endpoint: str, p256dh: str, auth: str) -> None:
    """Check what a browser states about its subscription. The messages repeat none of it.

    Raises:
        Invalid: ``push_service_not_allowed`` or ``invalid_subscription``.
    """
    if push_service(endpoint, settings.hosts) is None:
        msg = "The push service of this browser is not one that this service sends to."
        hint = "Its operator allows push services in KNEO_SERV_PUSH_HOSTS."
        raise Invalid(msg, code="push_service_not_allowed", hint=hint)
    ReceiverKeys.read(p256dh, auth)


@pages.post("/push/end")
def unsubscribe(request: PageRequest) -> Response:
    """End the subscription of the browser, or those of all browsers of the person."""
    browser, everywhere = (
        push_browser(request.cookies, secure=request.secure),
        request.form.get("where") == "everywhere",
    )

    def work(tx: Tx) -> None:
        mine = push_subscriptions.of_person(tx, request.person)
        ended = [each for known, each in mine.items() if everywhere or known == browser]
        for each in ended:
            push_subscriptions.end(tx, each)
        if ended:
            audit.record(
                tx, NOTIFICATIONS_ENDED, actor=request.person, metadata={"reason": "person", "count": len(ended)}
            )

    request.context.store.transact(work)
    response = RedirectResponse(ME, 303)
    set_cookie(response, PUSH, "", secure=request.secure, lasts=YEAR)
    return response


def _check_enabled(settings: PushSettings) -> None:
    if not settings.private_key:
        msg = "This service sends no notifications to browsers."
        raise NotFound(msg, hint="Its operator sets KNEO_SERV_VAPID_PRIVATE_KEY.")


class WebPushConsole:
    """The part of Web Push in the console: the switch of a person, and the script that shows notifications."""

    pages = pages
    files: Mapping[str, bytes] = {"notifications.js": _SWITCH}

    def routes(self, settings: Settings) -> Sequence[Route]:
        """Return the route of the script, which a browser keeps without a session; a service that sends nothing has none."""

        async def respond(_request: Request) -> Response:
            _check_enabled(settings.push)
            headers = {**HEADERS, "cache-control": "no-cache", "service-worker-allowed": HOME}
            return Response(_WORKER, media_type=STATIC_TYPES[".js"], headers=headers)

        return [Route("/push.js", respond)]

    def section(self, request: PageRequest) -> str:
        """Return the switch of notifications; empty where the person cannot subscribe."""
        state = push_state(request)
        version = version_of(_SWITCH)
        return _section({"push": state, "version": version}) if state is not None else ""

    def check(self, settings: Settings) -> None:
        """Check the key: a service with one that cannot be used does not start.

        Raises:
            Invalid: ``invalid_setting``.
        """
        if settings.push.private_key:
            VapidKey.load(settings.push.private_key)

    def keep(self, tx: Tx, settings: Settings, keyring: Keyring) -> None:
        """End the subscriptions of removed API keys, of keys without the scope, and without a key of the service all."""
        if settings.push.private_key:
            reason, ended = "key_removed", push_subscriptions.keep_keys(tx, keyring.digests_with(SCOPE))
        else:
            reason, ended = "disabled", push_subscriptions.end_all(tx)
        if ended:
            audit.record(tx, NOTIFICATIONS_ENDED, actor=None, metadata={"reason": reason, "count": ended})


PART = WebPushConsole()
