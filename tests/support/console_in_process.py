"""Pages of the console without a service: a page function called on a store, and its template rendered."""

from __future__ import annotations

from dataclasses import replace

from operation_context import operation_context
from starlette.routing import Match, Route, Router

from kneo.service.console import inbox
from kneo.service.console.app import AREAS
from kneo.service.console.page import Form, Page, PageFunction, PageRequest
from kneo.service.console.render import render
from kneo.service.console.session import SignedIn
from kneo.store.engine import Store


def page_html(store: Store, function: PageFunction, query: str = "", **path: str) -> str:
    """Return the HTML of a page as a person with every scope sees it."""
    context = replace(operation_context(store), over_http=True)
    request = PageRequest(
        context=context,
        signed_in=SignedIn(context.principal),
        path=path,
        query=Form.parse(query),
        form=Form(),
        cookies={},
        url="/console/",
        now=store.clock.now(),
        address="127.0.0.1",
        secure=False,
    )
    shown = function(request)
    assert isinstance(shown, Page)
    frame = {
        "me": "ann",
        "has_session": True,
        "place": "",
        "places": [],
        "areas": set(),
        "waiting": inbox.count_waiting(request),
        "has_search": True,
        "now": request.now,
        "here": "/console/",
        "theme": "",
        "keys": True,
        "problem": shown.problem,
        "live": shown.live,
        "live_known": "",
    }
    return render(shown.template, {**frame, **shown.values})


_ROUTER = Router(
    [Route(each.path, each.function, name=each.path) for area in AREAS for each in area.routes if each.method == "GET"]
)


def page_at(store: Store, url: str) -> str:
    """Return the HTML of the page at an address below the console, as a person with every scope sees it."""
    path, _, query = url.partition("?")
    scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
    for route in _ROUTER.routes:
        match, found = route.matches(scope)
        if match is Match.FULL:
            return page_html(store, found["endpoint"], query, **found["path_params"])
    raise AssertionError(url)
