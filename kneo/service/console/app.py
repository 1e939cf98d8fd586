"""The application below ``/console``: its areas, sign-in before every page, and errors as pages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from kneo.api.operation import Principal
from kneo.errors import Forbidden, KneoError, NotFound, Unauthorized
from kneo.service.admission import Refusals
from kneo.service.auth import PRINCIPAL
from kneo.service.console import (
    access,
    audit_log,
    bundles,
    canaries,
    environments,
    grants,
    inbox,
    release_acts,
    run_page,
    runs,
    search,
    sign_in,
    task,
)
from kneo.service.console.page import Form, MenuEntry, Page, PageRequest, PageRoute, Pages, SeeOther, Shown
from kneo.service.console.parts import load_parts
from kneo.service.console.render import STATIC, STATIC_HASH, STATIC_TYPES, render, version_of
from kneo.service.console.security import HEADERS, HOME, check_same_origin
from kneo.service.console.session import Sessions, SignedIn
from kneo.service.console.sign_in import SignIn, is_secure, login_url
from kneo.service.context import Service, next_change
from kneo.service.events import Event, Events
from kneo.service.limits import Rate, peer_address
from kneo.service.problems import retry_after
from kneo.service.shared_reads import SharedRead, SharedReads
from kneo.store import marks
from kneo.store.change_feed import ChangeFeed
from kneo.store.marks import Marks, MarksChanged, numbered

log = logging.getLogger("kneo.service")

AREAS: tuple[Pages, ...] = (
    inbox.pages,
    task.pages,
    grants.pages,
    release_acts.pages,
    canaries.pages,
    environments.pages,
    access.pages,
    bundles.pages,
    runs.pages,
    run_page.pages,
    audit_log.pages,
    search.pages,
    sign_in.pages,
)
"""The pages of the console, in the order of the main navigation."""

LIVE_HEADER = "x-kneo-live"
"""The header with which the script asks for a page again."""

YEAR_SECONDS = 365 * 86_400


class Console:
    """The console of a service.

    Args:
        service: The parts of the service.
        areas: The pages.
    """

    def __init__(self, service: Service, areas: Sequence[Pages] = AREAS) -> None:
        self.service = service
        self.parts = load_parts()
        areas = (*areas, *(part.pages for part in self.parts))
        added = {name: content for part in self.parts for name, content in part.files.items()}
        self.files = {name: (content, version_of(content)) for name, content in added.items()}
        self.files |= {name: (content, STATIC_HASH) for name, content in STATIC.items()}
        self.sessions = Sessions(service.store, service.callers)
        self.rate = Rate(service.settings.http.rate_per_minute)
        self.refusals = Refusals(service.store)
        self.routes = [route for area in areas for route in area.routes]
        self.places = list(dict.fromkeys(area.place for area in areas if area.place is not None))
        self.has_search = any(route.path == "/find" for route in self.routes)

    def application(self) -> Starlette:
        """Return the application to mount at ``/console``."""
        entry = SignIn(self.service, self.sessions, self.render)
        return Starlette(
            routes=[
                *entry.routes(),
                Route("/static/{name}", self._static),
                *(route for part in self.parts for route in part.routes(self.service.settings)),
                Route("/live", self._live),
                *(Route(route.path, self._endpoint(route), methods=[route.method]) for route in self.routes),
            ],
            middleware=[Middleware(GZipMiddleware, minimum_size=500, compresslevel=5)],
            exception_handlers={KneoError: self._refuse, HTTPException: self._refuse_http, Exception: self._crash},
        )

    def _endpoint(self, route: PageRoute) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            if route.method != "GET":
                check_same_origin(request.headers, self.service.settings.public_url)
            form = Form.parse((await request.body()).decode(errors="replace")) if route.method != "GET" else Form()
            return await run_in_threadpool(self._serve, route, request, form)

        return serve

    async def _live(self, request: Request) -> Response:
        """Stream the marks to a browser that is signed in."""
        find = partial(self.sessions.find, dict(request.cookies), secure=self._is_secure(request))
        signed_in = await run_in_threadpool(find)
        if signed_in is None:
            raise Unauthorized("You are signed out.")
        events = live_events(
            self.service.reads,
            heartbeat=self.service.settings.http.stream_heartbeat_seconds,
            is_signed_in=lambda: find() is not None,
        )
        return self.service.streams.answer(events, signed_in.principal.name)

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.files:
            raise HTTPException(404)
        content, version = self.files[name]
        kept = f"public, max-age={YEAR_SECONDS}, immutable" if request.url.query == version else "no-cache"
        headers = {**HEADERS, "cache-control": kept}
        return Response(content, media_type=STATIC_TYPES[Path(name).suffix], headers=headers)

    def _is_secure(self, request: Request) -> bool:
        return is_secure(request, self.service.settings.public_url)

    def _serve(self, route: PageRoute, request: Request, form: Form) -> Response:
        signed_in = self.sessions.find(request.cookies, secure=self._is_secure(request))
        if signed_in is None:
            return self._ask_to_sign_in(request)
        request.scope[PRINCIPAL] = signed_in.principal
        try:
            self.rate.check(signed_in.principal.name)
            for scope in route.scopes:
                signed_in.principal.require(scope)
            page = self._page_request(request, signed_in, form)
            # Read before the page: a change in between refreshes the page once more, rather than never.
            known = vars(marks.numbered(self.service.store)) if route.method == "GET" else {}
            shown = route.function(page)
            if isinstance(shown, Page) and shown.problem is not None:
                self._record_refusal(route, request, signed_in.principal, shown.problem)
            return self._respond(route.place, page, shown, known)
        except KneoError as error:
            self._record_refusal(route, request, signed_in.principal, error)
            raise

    def _page_request(self, request: Request, signed_in: SignedIn, form: Form) -> PageRequest:
        query = request.url.query
        return PageRequest(
            context=self.service.context(signed_in.principal),
            signed_in=signed_in,
            path=dict(request.path_params),
            query=Form.parse(query),
            form=form,
            cookies=request.cookies,
            url=request.url.path + (f"?{query}" if query else ""),
            now=self.service.store.clock.now(),
            address=peer_address(request),
            secure=self._is_secure(request),
        )

    def _respond(self, place: MenuEntry | None, page: PageRequest, shown: Shown, known: Mapping[str, str]) -> Response:
        if isinstance(shown, Response):
            shown.headers.update({name: value for name, value in HEADERS.items() if name not in shown.headers})
            return shown
        if isinstance(shown, SeeOther):
            return RedirectResponse(shown.url, 303, headers=dict(HEADERS))
        values = {
            **self._frame(page, place.name if place is not None else ""),
            "live": shown.live,
            "live_known": known.get(shown.live, ""),
            "problem": shown.problem,
            **shown.values,
        }
        status = shown.problem.http_status if shown.problem is not None else 200
        return HTMLResponse(render(shown.template, values), status, headers=dict(HEADERS))

    def _frame(self, page: PageRequest, place: str) -> dict[str, object]:
        """Return the variables of the header, for a person who is signed in."""
        places = [each for each in self.places if page.may(each.scope)]
        return {
            "me": page.person,
            "has_session": page.signed_in.token_hash is not None,
            "place": place,
            "places": places,
            "areas": {each.name for each in places},
            "waiting": inbox.count_waiting(page),
            "has_search": self.has_search,
            "now": page.now,
            "here": page.url,
            "theme": sign_in.theme_of(page.cookies),
            "keys": page.cookies.get(sign_in.KEYS_COOKIE) != "off",
            "live": "",
            "live_known": "",
        }

    def render(self, request: Request, template: str, status: int = 200, **values: object) -> HTMLResponse:
        """Return a page without the header, for a person who is not signed in."""
        frame = {
            "me": "",
            "place": "",
            "live": "",
            "live_known": "",
            "keys": False,
            "theme": sign_in.theme_of(request.cookies),
        }
        return HTMLResponse(render(template, {**frame, **values}), status, headers=dict(HEADERS))

    def _ask_to_sign_in(self, request: Request) -> Response:
        if request.method == "GET" and LIVE_HEADER not in request.headers:
            return RedirectResponse(login_url(request), 303, headers=dict(HEADERS))
        msg = "You are signed out; nothing was changed."
        return self._error(request, Unauthorized(msg, hint="Sign in again, then repeat what you did."))

    def _record_refusal(self, route: PageRoute, request: Request, caller: Principal, error: KneoError) -> None:
        if error.recorded or not (isinstance(error, Forbidden) or route.method != "GET"):
            return
        self.refusals.record(
            f"console{route.path}",
            request.method,
            request.url.path,
            caller=caller.name,
            status=error.http_status,
            code=error.code,
            scopes=route.scopes,
        )

    async def _refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, KneoError)
        return await run_in_threadpool(self._error, request, error)

    async def _refuse_http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            problem: KneoError = NotFound("There is no such page.", hint="The address may be incomplete.")
        else:
            problem = KneoError(str(error.detail), code="http_error")
        return await run_in_threadpool(self._error, request, problem, error.status_code)

    async def _crash(self, request: Request, _error: Exception) -> Response:
        problem = KneoError("The console could not show this page.", hint="The log of the service has the details.")
        values = {"problem": problem, "sign_in_url": "", "shown_status": 500, "request_id": _request_id(request)}
        return self.render(request, "error.html", 500, **values)

    def _error(self, request: Request, error: KneoError, status: int | None = None) -> HTMLResponse:
        """Return an error as a page, with the header where a person is signed in."""
        status = error.http_status if status is None else status
        signed_in = self.sessions.find(request.cookies, secure=self._is_secure(request))
        headers = {**HEADERS, **retry_after(error)}
        values = {
            "problem": error,
            "shown_status": status,
            "sign_in_url": login_url(request) if status == 401 else "",
            "request_id": _request_id(request),
        }
        if signed_in is None:
            response = self.render(request, "error.html", status, **values)
            response.headers.update(headers)
            return response
        page = self._page_request(request, signed_in, Form())
        return HTMLResponse(render("error.html", {**self._frame(page, ""), **values}), status, headers=headers)


def _request_id(request: Request) -> str:
    """Return the id under which the log of the service has a request."""
    return str(request.scope.get("kneo.request_id", ""))


async def show_console(request: Request) -> Response:
    """Lead a browser at ``/`` to the console; a program finds nothing there."""
    if "text/html" not in request.headers.get("accept", ""):
        raise HTTPException(404, "Not Found")
    return RedirectResponse(HOME, 303)


PAUSE_SECONDS = 0.5
"""The shortest time between two events, which bounds how often pages are asked for."""


class MarksFeed(SharedRead):
    """The present marks.

    Args:
        changes: The change feed of the database.
    """

    def __init__(self, changes: ChangeFeed) -> None:
        super().__init__()
        self.marks: Marks | None = None
        """The marks; ``None`` before the first read."""
        self._changes = changes

    async def _read(self) -> bool:
        if await next_change(self._changes, MarksChanged(self.marks)) is None:
            return False
        self.marks = await run_in_threadpool(numbered, self._changes.store)
        return True


async def live_events(reads: SharedReads, *, heartbeat: float, is_signed_in: Callable[[], bool]) -> Events:
    """Stream the marks, first the present ones, until the session ends.

    Args:
        reads: The shared reads.
        heartbeat: Seconds after which the connection is kept open with a comment.
        is_signed_in: Returns whether the session still exists; asked before each event and comment.
    """
    known: Marks | None = None
    version = 0
    with reads.follow("marks", lambda: MarksFeed(reads.changes)) as feed:
        while not reads.stopping:
            is_changed = await feed.wait(version, heartbeat)
            if not await run_in_threadpool(is_signed_in):
                return
            if not is_changed:
                yield None
                continue
            version, now = feed.version, feed.marks
            if now is not None and now != known:
                known = now
                yield Event(name="marks", data=vars(now))
            await asyncio.sleep(PAUSE_SECONDS)
