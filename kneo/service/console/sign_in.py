"""Signing in and out, the page of the person who is signed in, and the settings that a browser keeps: theme and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol, cast
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from kneo.api.identity import get_me
from kneo.errors import Forbidden, Invalid
from kneo.extension_points import import_target
from kneo.records.sign_in import LIFETIME
from kneo.roles import SCOPES
from kneo.service.callers import is_loopback
from kneo.service.console.page import Form, Page, PageRequest, Pages
from kneo.service.console.parts import load_parts
from kneo.service.console.security import (
    HEADERS,
    HOME,
    PUSH,
    SESSION,
    check_same_origin,
    refuse_too_many,
    safe_next,
    set_cookie,
)
from kneo.service.console.session import Sessions, end, push_browser
from kneo.service.context import Service
from kneo.service.limits import Rate, peer_address
from kneo.service.sign_in_providers import IssuedPeople, find_provider
from kneo.settings import Settings

TRIES_PER_MINUTE = 10
"""Sign-ins that one address may try in a minute; an IPv6 network of 64 bits is one address."""

THEME_COOKIE, KEYS_COOKIE = "kneo_theme", "kneo_keys"
THEMES = ("light", "dark")

YEAR_SECONDS = 365 * 86_400

pages = Pages()


class SignInPages(Protocol):
    """The form of the sign-in, and the session that follows."""

    def show_form(self, request: Request, target: str, message: str = "", status: int = 200) -> HTMLResponse:
        """Show the form with a message."""
        ...

    def enter(self, request: Request, token: str, target: str) -> Response:
        """Give a session to the browser, and show a page."""
        ...

    def check_transport(self, request: Request) -> None:
        """Check that a cookie cannot be read on its way."""
        ...

    def is_secure(self, request: Request) -> bool:
        """Return whether the browser reaches the service over https."""
        ...


class SignInRoutes(Protocol):
    """The routes of a sign-in at an issuer."""

    issuer_name: str

    def routes(self) -> list[Route]:
        """Return the routes, below ``/console``."""
        ...

    def url(self, target: str) -> str:
        """Return the address at which a sign-in begins that leads to a page."""
        ...


class MakeSignInRoutes(Protocol):
    """Makes the routes of a sign-in provider."""

    def __call__(
        self, settings: Settings, people: IssuedPeople, sessions: Sessions, pages: SignInPages, /
    ) -> SignInRoutes: ...


class SignIn:
    """The routes that need no session.

    Args:
        service: The parts of the service.
        sessions: The browser sessions.
        render: Returns a page without the header.
    """

    def __init__(self, service: Service, sessions: Sessions, render: Callable[..., HTMLResponse]) -> None:
        self.settings = service.settings
        self.keyring = service.keyring
        self.sessions = sessions
        self.render = render
        self.tries = Rate(TRIES_PER_MINUTE)
        self.issuer = self._issuer(service)

    def _issuer(self, service: Service) -> SignInRoutes | None:
        people, settings = service.callers.people, service.settings
        provider = find_provider(settings.oidc) if people is not None and settings.oidc.client_id else None
        if people is None or provider is None:
            return None
        make = cast("MakeSignInRoutes", import_target(provider.routes))
        return make(settings, people, self.sessions, self)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/login", self.show, methods=["GET"]),
            Route("/login", self.accept, methods=["POST"]),
            Route("/link/{token}", self.use_link, methods=["GET"]),
            *(self.issuer.routes() if self.issuer is not None else ()),
        ]

    async def show(self, request: Request) -> Response:
        """Show the form."""
        return self.show_form(request, safe_next(request.query_params.get("next", HOME)))

    async def accept(self, request: Request) -> Response:
        """Sign a person in with an API key."""
        check_same_origin(request.headers, self.settings.public_url)
        self.check_transport(request)
        address = peer_address(request)
        if refused := refuse_too_many(self.tries, address):
            return refused
        form = Form.parse((await request.body()).decode(errors="replace"))
        target = safe_next(form.get("next", HOME))
        key, push = form.get("key").strip(), push_browser(request.cookies, secure=self.is_secure(request))
        token = await run_in_threadpool(self.sessions.sign_in_with_key, key, address, push)
        if token is None:
            await run_in_threadpool(self.sessions.record_refusal, "api_key", address)
            return self.show_form(request, target, "No person has this API key.", 401)
        return self.enter(request, token, target)

    async def use_link(self, request: Request) -> Response:
        """Sign a person in with a one-time link."""
        self.check_transport(request)
        if request.headers.get("sec-purpose", "").startswith("prefetch") or request.method == "HEAD":
            return Response(status_code=403, headers=dict(HEADERS))
        address = peer_address(request)
        if refused := refuse_too_many(self.tries, address):
            return refused
        link, push = request.path_params["token"], push_browser(request.cookies, secure=self.is_secure(request))
        token = await run_in_threadpool(self.sessions.sign_in_with_link, link, address, push)
        if token is None:
            await run_in_threadpool(self.sessions.record_refusal, "link", address)
            msg = "This link does not work: it was used before, or is older than ten minutes."
            return self.show_form(request, HOME, msg, 401)
        return self.enter(request, token, HOME)

    def show_form(self, request: Request, target: str, message: str = "", status: int = 200) -> HTMLResponse:
        """Show the form, with the ways to sign in that are configured."""
        return self.render(
            request,
            "login.html",
            status,
            next=target,
            message=message,
            is_open=not self.keyring.required,
            needs_key=bool(self.keyring.names),
            issuer=self.issuer.issuer_name if self.issuer is not None else "",
            issuer_url=self.issuer.url(target) if self.issuer is not None else "",
        )

    def enter(self, request: Request, token: str, target: str) -> Response:
        """Give a session to the browser, and show a page."""
        response = RedirectResponse(target, 303, headers=dict(HEADERS))
        set_cookie(response, SESSION, token, secure=self.is_secure(request), lasts=LIFETIME)
        return response

    def check_transport(self, request: Request) -> None:
        """Check that the cookie cannot be read on its way.

        Raises:
            Forbidden: ``https_required``.
        """
        host = (request.url.hostname or "").lower()
        if is_secure(request, self.settings.public_url) or is_loopback(host) or self.settings.http.console_plain_http:
            return
        msg = "Signing in over http:// from another machine would show your session to everyone on the way."
        hint = "Use https://, or localhost; KNEO_SERV_CONSOLE_PLAIN_HTTP=true allows it in a network that you trust."
        raise Forbidden(msg, code="https_required", hint=hint)

    def is_secure(self, request: Request) -> bool:
        """Return whether the browser reaches the service over https."""
        return is_secure(request, self.settings.public_url)


def is_secure(request: Request, public_url: str) -> bool:
    """Return whether the browser reaches the service over https, itself or through the proxy at the public address."""
    public = urlsplit(public_url)
    through_proxy = public.scheme == "https" and public.netloc.lower() == request.headers.get("host", "").lower()
    return request.url.scheme == "https" or through_proxy


def login_url(request: Request) -> str:
    """Return the address of the sign-in form, which leads back to the page of a request."""
    query = f"?{request.url.query}" if request.url.query else ""
    target = request.url.path + query if request.method == "GET" else HOME
    return f"/console/login?next={quote(safe_next(target), safe='/')}"


def theme_of(cookies: Mapping[str, str]) -> str:
    """Return the theme of a browser; empty for that of the system."""
    theme = cookies.get(THEME_COOKIE, "")
    return theme if theme in THEMES else ""


@pages.post("/logout")
def sign_out(request: PageRequest) -> Response:
    """End the session."""
    end(request.context.store, request.signed_in, push_browser(request.cookies, secure=request.secure))
    response = RedirectResponse("/console/login", 303)
    for name in (SESSION, PUSH):
        set_cookie(response, name, "", secure=request.secure, lasts=timedelta())
    return response


@pages.post("/theme")
def choose_theme(request: PageRequest) -> Response:
    """Keep a theme in the browser, or that of the system."""
    theme = request.form.get("theme")
    if theme and theme not in THEMES:
        msg = f"There is no theme {theme[:40]!r}."
        raise Invalid(msg, hint=f"Themes are {' and '.join(THEMES)}.")
    return _keep(request, THEME_COOKIE, theme)


@pages.post("/keys")
def choose_keys(request: PageRequest) -> Response:
    """Switch single-letter keys on or off in the browser."""
    return _keep(request, KEYS_COOKIE, "off" if request.form.get("keys") == "off" else "")


def _keep(request: PageRequest, cookie: str, value: str) -> Response:
    response = RedirectResponse(safe_next(request.form.get("next", HOME)), 303)
    response.set_cookie(
        cookie, value, max_age=YEAR_SECONDS if value else 0, path="/console", secure=request.secure, samesite="lax"
    )
    return response


@pages.get("/me")
def show_me(request: PageRequest) -> Page:
    """Show who the person is to Kneo."""
    me = request.call(get_me)
    scopes = [(name, SCOPES.get(name, "")) for name in me.scopes]
    sections = [part.section(request) for part in load_parts()]
    return Page("me.html", {"caller": me, "scopes": scopes, "sections": sections})
