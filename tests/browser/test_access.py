"""Two teams in a browser: no page, link, form, title, response or stream of the console shows one team what the other one has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from difflib import unified_diff
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from access_house import MADE_UP, House, declare, filled, opened, without_ids
from console_pages import Browser as PlainBrowser
from console_pages import signed_in

from kneo.service.console.app import AREAS
from kneo.service.console.page import PageRoute
from kneo.service.console.parts import load_parts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Response

Visit = Callable[[str], "Page"]

ROLES = ("operator", "auditor", "approver")
"""Roles that together have every scope of a page."""

TEXTS = ("their", "flow", "bundle", "session", "team")
"""Parts of the names of both environments, which are searched for."""

LINKS = """() => [
    ...[...document.querySelectorAll("a[href]")].map(each => each.getAttribute("href")),
    ...[...document.forms].filter(form => form.getAttribute("method") !== "post").map(
        form => form.getAttribute("action") + "?" + new URLSearchParams(new FormData(form))),
].map(each => new URL(each, location).href.split("#")[0])"""
"""The addresses to which a page leads, and those to which its forms lead as they are."""

SEND = """async (path) => {
    const body = new URLSearchParams({reason: "x", decision: "approved"})
    const answer = await fetch(path, {method: "POST", body})
    return [answer.status, await answer.text()]
}"""

STREAM = """async (path) => {
    const reader = (await fetch(path)).body.pipeThrough(new TextDecoderStream()).getReader()
    let text = ""
    while (!text.includes("event: marks")) text += (await reader.read()).value
    reader.cancel()
    return text
}"""

STORED = """async (path) => {
    const found = await Promise.all(["force-cache", "only-if-cached", "default"].map(
        cache => fetch(path, {cache, mode: "same-origin"}).then(answer => answer.text()).catch(() => "")))
    const caches_ = await Promise.all((await caches.keys()).map(async name => (await (await caches.open(name)).keys()).map(each => each.url)))
    return JSON.stringify([found, caches_, {...localStorage}, {...sessionStorage}])
}"""
"""What a browser has stored of an address, and of the whole console."""


def routes() -> Iterator[PageRoute]:
    """Yield the route table of the console, with the parts of extensions."""
    for pages in (*AREAS, *(part.pages for part in load_parts())):
        yield from pages.routes


@pytest.fixture(scope="module")
def house(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with opened(tmp_path_factory.mktemp("teams")) as made:
        yield made


@pytest.fixture
def visit(chromium: Browser, house: House) -> Iterator[Visit]:
    """Opens a page as a role. Browsers note each refusal in the page's console, so it is not looked at here."""
    contexts: list[BrowserContext] = []

    def open_page(role: str) -> Page:
        context = chromium.new_context(base_url=house.bench.url)
        contexts.append(context)
        cookies = signed_in(house.bench.url, role).client.cookies
        context.add_cookies([{"name": one, "value": value, "url": house.bench.url} for one, value in cookies.items()])
        page = context.new_page()
        page.goto("/console/help")
        return page

    yield open_page
    for context in contexts:
        context.close()
    PlainBrowser.close_all()


class Received:
    """A page, and the responses that the browser receives for it."""

    def __init__(self, page: Page) -> None:
        from playwright.sync_api import Error

        self.page = page
        self._error = Error
        self._responses: list[Response] = []
        page.on("response", lambda response: self._responses.append(response))  # noqa: PLW0108 - a method of a list is refused

    def open(self, path: str) -> tuple[int, str]:
        """Open an address; return its status, and all that the browser shows and receives."""
        self._responses.clear()
        try:
            answer = self.page.goto(path)
        except self._error:  # a browser downloads it; a page that cannot be opened cannot be asked for either
            downloaded = self.page.context.request.get(path)
            return downloaded.status, f"{downloaded.headers}\n{downloaded.text()}"
        assert answer is not None
        texts = [self.page.title(), self.page.content(), self.page.inner_text("body")]
        for response in self._responses:
            texts += [response.url, json.dumps(response.headers)]
            if response.request.resource_type in {"document", "fetch", "xhr"} and response.status < 300:
                texts.append(response.text())
        # The word is the name of an environment, and stands in one sentence.
        return answer.status, "\n".join(texts).replace("keep theirs", "")


def marks(values: dict[str, str]) -> list[str]:
    """Return the texts that name an environment or what it has."""
    return [each for each in values.values() if len(each) > 8 and each not in MADE_UP.values()] + [values["name"]]


def shape(address: str) -> str:
    """Return the address without what differs among equal pages: the times of a filter."""
    parts = urlsplit(address)
    query = sorted((name, value) for name, value in parse_qsl(parts.query) if name not in {"from", "to", "after"})
    return f"{parts.path}?{urlencode(query)}" if query else parts.path


@pytest.mark.parametrize("role", ROLES)
def test_every_page_that_the_console_leads_to_names_nothing_of_another_team(
    house: House, visit: Visit, role: str
) -> None:
    page = visit(role)
    received, hidden = Received(page), marks(house.theirs)
    known = {**MADE_UP, **house.mine}
    waiting = [f"/console{filled(each.path, known)}" for each in routes() if each.method == "GET"]
    waiting += [f"/console/find?q={text}" for text in TEXTS]
    seen: set[str] = set()
    shown = 0
    while waiting:
        address = waiting.pop()
        if shape(address) in seen or "/logout" in address:
            continue
        seen.add(shape(address))
        status, text = received.open(address)
        assert status in {200, 403, 404, 422, 503}, (address, status)
        shown += status == 200
        asked = dict(parse_qsl(urlsplit(address).query)).get("q", "")
        text = text.replace(f"q={asked}", "").replace(f">{asked}<", "").replace(f'"{asked}"', "") if asked else text
        for mark in hidden:
            assert mark not in text, (address, mark)
        if status == 200:
            links = [urlsplit(each) for each in page.evaluate(LINKS)]
            waiting += [
                each._replace(scheme="", netloc="").geturl() for each in links if each.path.startswith("/console")
            ]
    assert shown > 20, seen
    assert house.mine["run_id"] in " ".join(seen)


@pytest.mark.parametrize("role", ROLES)
def test_an_address_or_form_of_another_team_is_a_made_up_one(house: House, visit: Visit, role: str) -> None:
    page, made_up = visit(role), {**house.theirs, **MADE_UP}
    for route in routes():
        if "{" not in route.path:
            continue
        answers = []
        for values in (house.theirs, made_up):
            path = f"/console{filled(route.path, values)}"
            if route.method == "GET":
                answer = page.goto(path)
                assert answer is not None
                status, text = answer.status, f"{page.title()} {page.content()} {page.inner_text('body')}"
            else:
                status, text = page.evaluate(SEND, path)
            answers.append((status, re.sub(r"Request \w{32}", "", without_ids(text, values))))
        assert answers[0][0] in {403, 404}, (route.path, answers[0][0])
        assert answers[0] == answers[1], (route.path, *unified_diff(*(text.splitlines() for _, text in answers), n=0))


def test_live_marks_are_equal_for_all_and_name_nothing(house: House, visit: Visit) -> None:
    streams = []
    for role in ("operator", "admin"):
        text = visit(role).evaluate(STREAM, "/console/live")
        streams.append(json.loads(re.search(r"event: marks\ndata: (.*)", text)[1]))
    assert streams[0] == streams[1]
    assert all(re.fullmatch(r"[0-9a-f]{64,}", mark) for mark in streams[0].values()), streams


def test_what_a_browser_has_stored_shows_nothing_once_access_has_ended(house: House, visit: Visit) -> None:
    page = visit("operator")
    paths = [f"/console/runs/{house.mine['run_id']}", f"/console/inbox/{house.mine['continuation_id']}"]
    for path in paths:
        page.goto(path)
        assert house.mine["run_id"] in page.content()
    declare(house.repo, "mine", access=[{"who": {"users": ["viewer"]}, "may": ["viewer"]}])
    house.accept("Narrow access")
    page.go_back()
    page.go_forward()
    for path in ("/console/runs", *paths):
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == (200 if path == "/console/runs" else 404)
        stored = page.evaluate(STORED, path)
        shown = f"{stored} {page.content()}".replace(path.rpartition("/")[2], "")
        for mark in marks(house.mine):
            assert mark not in shown, (path, mark)
