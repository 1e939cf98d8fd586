"""Signing in to the console at the OpenID Connect issuer: to the issuer, and back."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from kneo.errors import KneoError
from kneo.extensions.oidc.code_flow import CodeFlow, CodeResponse, SignInRefused
from kneo.extensions.oidc.discovery import IssuerUnavailable
from kneo.extensions.oidc.people import OidcPeople
from kneo.records.sign_in import SIGN_IN_LIFETIME
from kneo.service.console.page import Form
from kneo.service.console.security import HEADERS, HOME, SIGN_INS, read_cookie, refuse_too_many, safe_next, set_cookie
from kneo.service.console.session import Sessions, push_browser
from kneo.service.console.sign_in import SignInPages
from kneo.service.limits import Rate, peer_address
from kneo.service.problems import retry_after
from kneo.settings import Settings

START, DONE = "/console/oidc/start", "/console/oidc/done"

STEPS_PER_MINUTE = 60
"""Begun and completed sign-ins of one address in a minute; an IPv6 network of 64 bits is one address."""


class OidcRoutes:
    """The routes of a sign-in at the issuer.

    Args:
        settings: The client at the issuer, and the public address, to which the issuer sends browsers back.
        people: The people of the issuer.
        sessions: The browser sessions.
        pages: The form of the sign-in.
    """

    def __init__(self, settings: Settings, people: OidcPeople, sessions: Sessions, pages: SignInPages) -> None:
        self.public_url = settings.public_url
        self.issuer_name = urlsplit(settings.oidc.issuer).netloc
        self.people = people
        self.sessions = sessions
        self.pages = pages
        self.flow = CodeFlow(people, settings.public_url + DONE)
        self.steps = Rate(STEPS_PER_MINUTE)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/oidc/start", self.start, methods=["GET"]), Route("/oidc/done", self.done, methods=["GET"])]

    def url(self, target: str) -> str:
        """Return the address at which a sign-in begins: the public one, where the issuer sends the browser back to."""
        return f"{self.public_url}{START}?next={quote(target, safe='/')}"

    async def start(self, request: Request) -> Response:
        """Send the browser to the issuer."""
        self.pages.check_transport(request)
        if refused := refuse_too_many(self.steps, peer_address(request)):
            return refused
        target = safe_next(request.query_params.get("next", HOME))
        try:
            begun = await self.flow.begin(self._waiting(request), target)
        except KneoError as error:
            return self._refuse(request, error)
        response = RedirectResponse(begun.url, 303, headers=dict(HEADERS))
        self._keep(request, response, begun.waiting)
        return response

    async def done(self, request: Request) -> Response:
        """Take the browser back from the issuer, and start a session."""
        self.pages.check_transport(request)
        address = peer_address(request)
        if refused := refuse_too_many(self.steps, address):
            return refused
        try:
            waiting = self._waiting(request)
            if not waiting:
                msg = "This browser has begun no sign-in, or it is older than ten minutes."
                raise SignInRefused(msg, hint="Sign in again, and allow cookies of this site.")
            completed = await self.flow.complete(waiting, _response(Form.parse(request.url.query)))
            push = push_browser(request.cookies, secure=self.pages.is_secure(request))
            identity = completed.identity
            token = await run_in_threadpool(self.sessions.sign_in_with_issuer, self.people, identity, address, push)
        except IssuerUnavailable as error:
            return self._refuse(request, error)
        except KneoError as error:
            await run_in_threadpool(self.sessions.record_refusal, "oidc", address)
            return self._refuse(request, error)
        response = self.pages.enter(request, token, safe_next(completed.target))
        self._keep(request, response, completed.waiting)
        return response

    def _refuse(self, request: Request, error: KneoError) -> Response:
        message = f"{error.message} {error.hint}" if error.hint else error.message
        response = self.pages.show_form(request, HOME, message, error.http_status)
        response.headers.update(retry_after(error))
        return response

    def _waiting(self, request: Request) -> str:
        return read_cookie(request.cookies, SIGN_INS, secure=self.pages.is_secure(request))

    def _keep(self, request: Request, response: Response, waiting: str) -> None:
        set_cookie(response, SIGN_INS, waiting, secure=self.pages.is_secure(request), lasts=SIGN_IN_LIFETIME)


def _response(query: Form) -> CodeResponse:
    """Read the parameters of the issuer.

    Raises:
        SignInRefused: a parameter is given twice.
    """
    values = {}
    for name in ("state", "code", "error", "iss"):
        found = query.all(name)
        if len(found) > 1:
            msg = f"The response of the issuer has the parameter {name} twice."
            raise SignInRefused(msg)
        values[name] = found[0] if found else ""
    return CodeResponse(state=values["state"], code=values["code"], error=values["error"], issuer=values["iss"])
