"""The console's frame: signing in and out, sessions, headers, errors as pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from console_pages import Browser, HtmlPage, signed_in
from kneo_process import eventually
from logged_causes import Causes
from service_bench import Bench, serving

from kneo.clock import ManualClock
from kneo.records.release import Hold
from kneo.service import access_log
from kneo.service.auth import APIKeyRecord, AuthConfig, configured, keyring
from kneo.service.callers import Callers
from kneo.service.console import sign_in
from kneo.service.console.app import AREAS
from kneo.service.console.render import STATIC
from kneo.service.console.session import Sessions, make_link
from kneo.store import marks, releases
from kneo.store.engine import Store

ROLES = ("admin", "operator", "approver", "reviewer", "auditor", "viewer", "service")


@pytest.fixture
def browse(bench: Bench) -> Iterator[Callable[[str], Browser]]:
    """Opens a browser that is signed in with the key of a role."""
    yield lambda role: signed_in(bench.url, role)
    Browser.close_all()


@pytest.fixture
def stranger(bench: Bench) -> Iterator[Browser]:
    """A browser that is not signed in."""
    yield Browser(bench.url)
    Browser.close_all()


@pytest.mark.parametrize("role", ROLES)
def test_every_page_that_a_role_may_see_is_linked_and_well_formed(browse: Callable[[str], Browser], role: str) -> None:
    browser = browse(role)
    first = browser.client.get("/console/", follow_redirects=True)
    assert first.status_code == 200, first.text
    pages = {"/console/help": browser.get("/console/help")}
    for link in [link for link in HtmlPage(first.text).links if link.startswith("/console/")]:
        if link.rstrip("/") != "/console":
            pages[link] = browser.get(link)
    assert any("/console/inbox" in page.links for page in pages.values())


def test_a_person_signs_in_with_a_key_and_out_again(bench: Bench, stranger: Browser) -> None:
    browser = stranger
    refused = browser.client.get("/console/inbox?show=all")
    assert refused.status_code == 303
    assert refused.headers["location"] == "/console/login?next=/console/inbox%3Fshow%3Dall"
    form = browser.get(refused.headers["location"]).form("/login")
    entered = browser.post(form.action, form.values(key="viewer-key"))
    assert entered.headers["location"] == "/console/inbox?show=all"
    cookie = entered.headers["set-cookie"]
    assert cookie.startswith("kneo_session=")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    page = browser.get("/console/inbox?show=all")
    assert "viewer" in page.text
    kept = httpx.Cookies(browser.client.cookies)
    browser.post(page.form("/logout").action, {})
    browser.client.cookies = kept
    assert browser.client.get("/console/inbox").status_code == 303, "the session lived on after signing out"
    events = {(event["event_type"], event["actor"]) for event in bench.get("/audit-events", limit=50)["events"]}
    assert {("console.signed_in", "viewer"), ("console.signed_out", "viewer")} <= events


@pytest.mark.parametrize(
    "target",
    [
        "/console/../../evil",
        "/console/%2e%2E/v1/runs",
        "/console/inbox/..",
        "/console/./inbox",
        "/console//evil.test",
        "/console/\\evil.test",
        "/console/a\u200bb",
        "https://evil.test/console/",
    ],
)
def test_a_form_leads_to_a_page_of_the_console_only(browse: Callable[[str], Browser], target: str) -> None:
    left = browse("viewer").post("/console/theme", {"theme": "dark", "next": target})
    assert left.headers["location"] == "/console/"


@pytest.mark.parametrize("target", ["/console/runs?q=a/../b", "/console/bundles/a..b", "/console/inbox#../x"])
def test_dots_of_a_query_or_a_name_lead_where_they_led(browse: Callable[[str], Browser], target: str) -> None:
    left = browse("viewer").post("/console/theme", {"theme": "dark", "next": target})
    assert left.headers["location"] == target


def test_a_session_is_no_key_of_the_api(browse: Callable[[str], Browser]) -> None:
    browser = browse("admin")
    assert browser.client.get("/v1/runs").status_code == 401
    assert browser.client.post("/v1/runs", json={}).status_code == 401


def test_wrong_keys_are_refused_recorded_and_limited(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0) as bench:
        browser = Browser(bench.url)
        statuses = [
            browser.client.post(
                "/console/login", data={"key": f"guess-{n}"}, headers={"sec-fetch-site": "same-origin"}
            ).status_code
            for n in range(12)
        ]
        assert statuses[:10] == [401] * 10
        assert 429 in statuses[10:]
        # A refusal costs no page, whatever was sent: strangers send as many as they like.
        bodies = {
            refused.content
            for sent in ({"key": "guess"}, {"key": "g", "next": "/console/runs"}, {"next": "x" * 3_000})
            for refused in [browser.client.post("/console/login", data=sent, headers={"sec-fetch-site": "same-origin"})]
            if (refused.status_code, refused.headers["cache-control"]) == (429, "no-store")
            if int(refused.headers["retry-after"]) >= 1
        }
        (page,) = bodies
        assert b"wait a minute" in page
        assert len(page) < 500, "a body that is compressed for each request"
        events = bench.get("/audit-events", event_type="console.sign_in_refused")["events"]
        assert 10 <= len(events) <= 12
        assert "guess" not in str(events)
        tried = (browser.client.get("/console/link/guess") for _ in range(40))
        refused = next(response for response in tried if response.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert not browser.client.cookies
        Browser.close_all()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"sec-fetch-site": "none"}, 303),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "OWN"}, 403),
        ({"origin": "OWN"}, 303),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_only_pages_of_the_console_send_forms(
    bench: Bench, browse: Callable[[str], Browser], headers: dict[str, str], status: int
) -> None:
    browser = browse("viewer")
    sent = {name: bench.url if value == "OWN" else value for name, value in headers.items()}
    response = browser.client.post("/console/theme", data={"theme": "dark"}, headers=sent)
    assert response.status_code == status, response.text
    assert ("set-cookie" in response.headers) == (status == 303)


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/console//evil.example", "/console/\\evil", "/v1/runs", "\t"]
)
def test_signing_in_leads_nowhere_else(browse: Callable[[str], Browser], target: str) -> None:
    kept = browse("viewer").post("/console/theme", {"theme": "light", "next": target})
    assert kept.headers["location"] == "/console/"


def test_a_theme_is_rendered_by_the_server(browse: Callable[[str], Browser]) -> None:
    browser = browse("viewer")
    assert "data-theme" not in browser.get("/console/help").html
    browser.post("/console/theme", {"theme": "dark", "next": "/console/help"})
    assert '<html lang="en" data-theme="dark">' in browser.get("/console/help").html
    browser.post("/console/theme", {"theme": "x"}, expect=400)


def test_an_unknown_page_is_a_page(stranger: Browser, browse: Callable[[str], Browser]) -> None:
    page = browse("viewer").get("/console/nothing-here", expect=404)
    assert "There is no such page" in page.text
    assert "/console/inbox" in page.links, "a person who is signed in keeps the navigation"
    assert "Not found" in stranger.get("/console/nothing-here", expect=404).text
    live = stranger.client.get("/console/inbox", headers={"x-kneo-live": "1"})
    assert live.status_code == 401


def test_an_error_in_a_page_is_logged_under_the_request_id_that_the_page_shows(
    browse: Callable[[str], Browser], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the cause, for the log alone")

    monkeypatch.setattr(sign_in, "get_me", replace(sign_in.get_me, function=fail))
    monkeypatch.setattr(access_log.log, "handlers", [logged := Causes("look-for-me-1")])
    page = browse("viewer").get("/console/me", expect=500, **{"x-request-id": "look-for-me-1"})
    assert "look-for-me-1" in page.text
    assert "the cause" not in page.html
    # The response leaves before the request is logged.
    eventually(lambda: logged.causes)
    assert logged.causes == ["the cause, for the log alone"]


def test_a_browser_at_the_root_is_led_to_the_console(bench: Bench) -> None:
    for path in ("/", "/console"):
        browser = httpx.get(f"{bench.url}{path}", headers={"accept": "text/html,*/*"}, timeout=240)
        assert (browser.status_code, browser.headers.get("location")) == (303, "/console/")
    assert httpx.get(f"{bench.url}/", timeout=240).status_code == 404


def test_static_files_are_kept_for_ever_under_their_hash(bench: Bench, stranger: Browser) -> None:
    page = stranger.get("/console/login")
    files = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', page.html)
    assert len(files) == 5
    for file in files:
        response = httpx.get(f"{bench.url}{file}", timeout=240)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{bench.url}/console/static/console.css", timeout=240).headers["cache-control"] == "no-cache"
    assert httpx.get(f"{bench.url}/console/static/%2e%2e%2fapp.py", timeout=240).status_code == 404


def test_the_script_and_the_stylesheet_stay_small() -> None:
    assert len(STATIC["console.js"]) <= 16_000
    assert len(STATIC["console.css"]) <= 40_000


def test_every_page_names_the_scope_that_it_needs_or_needs_none() -> None:
    open_to_all = {"/", "/help", "/logout", "/theme", "/keys", "/live", "/find", "/me", "/push/end"}
    routes = [route for area in AREAS for route in area.routes]
    assert {route.path for route in routes if not route.scopes} <= open_to_all
    assert len({(route.method, route.path) for route in routes}) == len(routes)


def ring(*names: str) -> AuthConfig:
    return AuthConfig(True, tuple(APIKeyRecord(name, f"{name}-key", roles=("admin",)) for name in names))


def test_a_session_ends_with_its_time_and_with_its_key(store: Store, clock: ManualClock) -> None:
    sessions = Sessions(store, Callers(keyring(ring("ann", "bob"))))
    token = sessions.sign_in_with_key("ann-key", "::1")
    assert token is not None

    def person(at: Sessions = sessions) -> str | None:
        found = at.find({"kneo_session": token}, secure=False)
        return found.principal.name if found else None

    for _ in range(20):
        clock.advance(timedelta(minutes=30))
        assert person() == "ann"
    assert person(Sessions(store, Callers(keyring(ring("bob"))))) is None, "the key left the keyring"
    clock.advance(timedelta(minutes=61))
    assert person() is None, "an hour without a request"

    token = sessions.sign_in_with_key("bob-key", "::1")
    assert token is not None
    for _ in range(23):
        clock.advance(timedelta(minutes=30))
        assert person() == "bob"
    clock.advance(timedelta(minutes=30))
    assert person() is None, "twelve hours"
    assert sessions.find({"kneo_session": "x"}, secure=False) is None
    assert sessions.find({}, secure=False) is None


def test_over_https_the_plain_cookie_does_not_count_nor_the_other_way_round(store: Store) -> None:
    sessions = Sessions(store, Callers(keyring(ring("ann", "mal"))))
    ann, mal = sessions.sign_in_with_key("ann-key", "::1"), sessions.sign_in_with_key("mal-key", "::1")
    assert ann is not None
    assert mal is not None

    def person(*, secure: bool, **cookies: str) -> str | None:
        found = sessions.find(
            {name.replace("Host_", "__Host-"): value for name, value in cookies.items()}, secure=secure
        )
        return found.principal.name if found is not None else None

    assert person(secure=True, kneo_session=mal) is None
    assert person(secure=True, Host_kneo_session=ann, kneo_session=mal) == "ann"
    assert person(secure=False, Host_kneo_session=ann, kneo_session=mal) == "mal"
    assert person(secure=False, Host_kneo_session=ann) is None


def test_a_link_signs_in_once_and_for_ten_minutes(store: Store, clock: ManualClock) -> None:
    keys = keyring(AuthConfig(True, (*ring("root").api_keys, APIKeyRecord("ann", "k", roles=("approver",)))))
    sessions = Sessions(store, Callers(keys))

    def link() -> str:
        path = make_link(store, keys, operator="op")
        assert path is not None
        return path.removeprefix("/console/link/")

    token = link()
    session = sessions.sign_in_with_link(token, "::1")
    assert session is not None
    found = sessions.find({"kneo_session": session}, secure=False)
    assert found is not None
    assert (found.principal.name, found.principal.scopes) == ("root", frozenset({"*"}))
    assert sessions.sign_in_with_link(token, "::1") is None, "the second use"
    path = make_link(store, keys, "Ann", operator="op")
    assert path is not None
    assert sessions.sign_in_with_link(path.rpartition("/")[2], "::1") is not None
    assert make_link(store, keys, "nobody", operator="op") is None
    late = link()
    clock.advance(timedelta(minutes=10))
    assert sessions.sign_in_with_link(late, "::1") is None, "ten minutes later"
    assert (
        make_link(store, keyring(AuthConfig(True, (APIKeyRecord("ann", "k", roles=("approver",)),))), operator="op")
        is None
    )


def test_without_keys_a_link_signs_in_as_the_operator(store: Store) -> None:
    keys = keyring(AuthConfig())
    sessions = Sessions(store, Callers(keys))
    path = make_link(store, keys, operator="mara")
    assert path is not None
    session = sessions.sign_in_with_link(path.rpartition("/")[2], "::1")
    assert session is not None
    found = sessions.find({"kneo_session": session}, secure=False)
    assert found is not None
    assert (found.principal.name, found.token_hash is None) == ("mara", False)
    anonymous = sessions.find({}, secure=False)
    assert anonymous is not None
    assert anonymous.principal.name == "anonymous"
    # Keys that are set later end the sessions of people without one.
    assert Sessions(store, Callers(keyring(ring("root")))).find({"kneo_session": session}, secure=False) is None


def test_a_link_over_http_signs_in_once_and_survives_a_prefetch(bench: Bench, stranger: Browser) -> None:
    link = make_link(bench.store, keyring(configured(bench.settings)), "auditor", operator="op")
    assert link is not None
    ahead = stranger.client.get(link, headers={"sec-purpose": "prefetch;prerender"})
    assert ahead.status_code == 403
    entered = stranger.client.get(link)
    assert (entered.status_code, entered.headers["location"]) == (303, "/console/")
    assert "auditor" in stranger.get("/console/help").text
    stranger.client.cookies.clear()
    assert "does not work" in stranger.get(link, expect=401).text


def test_marks_change_with_runs_and_tasks(bench: Bench, browse: Callable[[str], Browser], stranger: Browser) -> None:
    assert stranger.client.get("/console/live").status_code == 401
    with browse("viewer").client.stream("GET", "/console/live") as stream:
        marks = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
        first = next(marks)
        run = bench.paused()
        then = next(mark for mark in marks if mark["inbox"] != first["inbox"] and mark["runs"] != first["runs"])
        assert then.keys() == {"inbox", "runs", "environments"}
        assert run["run_id"] not in str(then), "marks state that something changed, never what"
        bench.post(f"/human-tasks/{run['continuation_id']}/comments", {"text": "hm"}, role="reviewer")
        assert next(mark for mark in marks if mark["inbox"] != then["inbox"])


def test_marks_change_with_environments(store: Store) -> None:
    before = marks.numbered(store)
    hold = Hold(environment="prod", bundle="refund", actor="ann", reason="x", until=None, since="", digest=None)
    store.transact(lambda tx: releases.put_hold(tx, hold))
    held = marks.numbered(store)
    assert held.environments != before.environments
    assert (held.inbox, held.runs) == (before.inbox, before.runs)
    store.transact(lambda tx: releases.delete_hold(tx, "prod", "refund"))
    assert marks.numbered(store) == before


def test_signing_in_from_other_machines_needs_https(tmp_path: Path) -> None:
    url = "https://kneo.example.org"
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0, KNEO_SERV_PUBLIC_URL=url) as bench:
        browser = Browser(bench.url)
        key = {"key": "viewer-key"}
        plain = browser.post("/console/login", key, expect=403, host="kneo.internal")
        assert "https://" in plain.text
        entered = browser.post("/console/login", key, host="kneo.example.org")
        cookie = entered.headers["set-cookie"]
        assert cookie.startswith("__Host-kneo_session=")
        assert {"Secure", "HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
        value = cookie.partition(";")[0].partition("=")[2]
        host = {"host": "kneo.example.org"}
        for name, status in (("__Host-kneo_session", 200), ("kneo_session", 303)):
            headers = {**host, "cookie": f"{name}={value}"}
            assert httpx.get(f"{bench.url}/console/help", headers=headers, timeout=240).status_code == status
        Browser.close_all()


def test_a_page_has_the_mark_from_before_it_was_read(bench: Bench, browse: Callable[[str], Browser]) -> None:
    known = {
        attrs["data-live-mark"]: attrs["data-live-known"]
        for attrs in browse("admin").get("/console/inbox").having("data-live-mark")
    }
    assert known == {"inbox": marks.numbered(bench.store).inbox}
    bench.paused()
    assert marks.numbered(bench.store).inbox != known["inbox"]
