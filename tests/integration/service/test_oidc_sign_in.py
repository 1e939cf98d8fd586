"""Signing in to the console at an issuer in this process, by a browser without script."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from console_pages import Browser
from oidc_issuer import OidcIssuer, rsa_key, running
from service_bench import Bench, listening, serving, url_of
from sqlalchemy import func, select, text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount
from starlette.testclient import TestClient

from kneo.clock import ManualClock, SystemClock
from kneo.errors import Forbidden, Invalid
from kneo.extensions.oidc import code_flow
from kneo.extensions.oidc.code_flow import BegunSignIn, CodeFlow, CodeResponse, CompletedSignIn, SignInRefused
from kneo.extensions.oidc.console import OidcRoutes
from kneo.extensions.oidc.people import identity_of
from kneo.records.sign_in import SIGN_IN_LIFETIME
from kneo.service import limits
from kneo.service.auth import configured, keyring
from kneo.service.callers import make_callers
from kneo.service.console.session import Sessions
from kneo.service.sign_in_providers import Identity
from kneo.settings import from_env
from kneo.store import oidc_people, tables
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.trust.keys import PrivateKey

SECRET = "s+cret"
ROLES = "operators=operator;reviewers=reviewer"


def variables(issuer: OidcIssuer, public_url: str) -> dict[str, str]:
    return {
        "KNEO_SERV_OIDC_ISSUER": issuer.url,
        "KNEO_SERV_OIDC_CLIENT_ID": "console",
        "KNEO_SERV_OIDC_CLIENT_SECRET": SECRET,
        "KNEO_SERV_OIDC_ROLES": ROLES,
        "KNEO_SERV_PUBLIC_URL": public_url,
    }


@pytest.fixture(scope="module")
def shared() -> Iterator[OidcIssuer]:
    with running(OidcIssuer()) as made:
        yield made


@pytest.fixture(scope="module")
def bench(shared: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("service")
    paths = [*sys.path]
    listener = listening()
    with serving(
        folder,
        f"sqlite:///{folder / 'kneo.sqlite'}",
        workers=0,
        listener=listener,
        **variables(shared, url_of(listener)),
    ) as made:
        yield made
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


@pytest.fixture
def keyed(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    """A store of an installation with a service key."""
    key = PrivateKey.generate()
    with closing(open_store(migrated_url, clock, lambda: key)) as store:
        yield store


@pytest.fixture
def issuer(shared: OidcIssuer) -> Iterator[OidcIssuer]:
    yield shared
    shared.person, shared.answer, shared.repeats_codes, shared.clock = {}, {}, False, SystemClock()


@pytest.fixture
def browser(bench: Bench) -> Iterator[Browser]:
    yield Browser(bench.url)
    Browser.close_all()


def to_issuer(browser: Browser, target: str = "/console/runs") -> str:
    """Open the form, follow its button, and return the address of the issuer."""
    page = browser.get(f"/console/login?next={target}")
    (start,) = [link for link in page.links if "/console/oidc/start" in link]
    response = browser.client.get(start)
    assert response.status_code == 303, response.text
    return response.headers["location"]


def back(url: str) -> str:
    """Sign in at the issuer, and return the address to which it sends the browser back."""
    response = httpx.get(url, timeout=240)
    assert response.status_code == 302, response.text
    return response.headers["location"]


def refused(browser: Browser, url: str, status: int = 401) -> str:
    page = browser.get(url, expect=status)
    assert "kneo_session" not in browser.client.cookies
    return page.text


def test_a_person_signs_in_works_and_signs_out(bench: Bench, issuer: OidcIssuer, browser: Browser) -> None:
    issuer.person = {"sub": "Ivy", "groups": ["operators", "red"]}
    url = to_issuer(browser)
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert url.startswith(f"{issuer.url}/authorize?")
    assert query["redirect_uri"] == f"{bench.url}/console/oidc/done"
    assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
    assert query["scope"] == "openid profile email"
    response = browser.client.get(back(url))
    assert (response.status_code, response.headers["location"]) == (303, "/console/runs")
    assert {*browser.client.cookies} == {"kneo_session"}, "neither a token nor the cookie of the sign-in is kept"
    session = next(line for line in response.headers.get_list("set-cookie") if line.startswith("kneo_session="))
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(session.split("; "))
    page = browser.get("/console/runs")
    assert "Ivy" in page.text
    assert browser.client.get("/v1/runs").status_code == 401, "a session is no key of the API"
    kept = httpx.Cookies(browser.client.cookies)
    browser.post(page.form("/logout").action, {})
    browser.client.cookies = kept
    assert browser.client.get("/console/runs").status_code == 303
    events = bench.get("/audit-events", actor="Ivy")["events"]
    facts = {event["event_type"]: event["metadata"] for event in events}
    assert facts["console.signed_in"].items() >= {"method": "oidc", "issuer": issuer.url, "subject": "Ivy"}.items()
    assert "console.signed_out" in facts


def test_a_response_counts_once(issuer: OidcIssuer, browser: Browser) -> None:
    url = back(to_issuer(browser))
    kept = httpx.Cookies(browser.client.cookies)
    assert browser.client.get(url).status_code == 303
    browser.client.cookies = kept
    assert "completed before" in refused(browser, url)


def test_a_response_counts_in_the_browser_that_began(bench: Bench, issuer: OidcIssuer, browser: Browser) -> None:
    """An attacker who sends the own response to another browser signs nobody in, and still has it."""
    url = back(to_issuer(browser))
    victim = Browser(bench.url)
    assert "begun no sign-in" in refused(victim, url)
    to_issuer(victim)
    assert "begun no such sign-in" in refused(victim, url)
    assert browser.client.get(url).status_code == 303


def test_two_tabs_of_one_browser(issuer: OidcIssuer, browser: Browser) -> None:
    first, second = back(to_issuer(browser)), back(to_issuer(browser))
    kept = httpx.Cookies(browser.client.cookies)
    assert browser.client.get(second).status_code == 303
    browser.client.cookies = kept
    assert browser.client.get(first).status_code == 303


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonce": "another"}, "another sign-in"),
        ({"nonce": None}, "another sign-in"),
        ({"aud": "another"}, "audience"),
        ({"aud": ["console", "another"]}, "another client"),
        ({"azp": "another"}, "another client"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"exp": 1}, "expired"),
        ({"key": rsa_key("other")}, "signed"),
        ({"groups": {"a": 1}}, "groups"),
    ],
)
def test_id_tokens_that_are_refused(
    issuer: OidcIssuer, browser: Browser, changes: dict[str, object], message: str
) -> None:
    issuer.person = changes
    assert message in refused(browser, back(to_issuer(browser)))


def test_without_a_role_nobody_signs_in(bench: Bench, issuer: OidcIssuer, browser: Browser) -> None:
    issuer.person = {"sub": "eve", "groups": ["strangers"]}
    assert "eve has no role here; groups of the token: strangers." in refused(browser, back(to_issuer(browser)), 403)
    with bench.store.read() as tx:
        assert oidc_people.find(tx, "eve") is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"error": "access_denied"}, "refused the sign-in: access_denied"),
        ({"error": "<b>call us</b>"}, "refused the sign-in: error"),
        ({"code": ""}, "no code"),
        ({"code": "x" * 5_000}, "no code"),
        ({"code": "invented"}, "invalid_grant"),
    ],
)
def test_responses_that_are_refused(
    issuer: OidcIssuer, browser: Browser, answer: dict[str, object], message: str
) -> None:
    issuer.answer = answer
    assert message in refused(browser, back(to_issuer(browser)))


def test_parameters_that_are_given_twice_or_not_at_all(bench: Bench, issuer: OidcIssuer, browser: Browser) -> None:
    url = back(to_issuer(browser))
    assert "twice" in refused(browser, f"{url}&code=other")
    assert "begun no such sign-in" in refused(browser, "/console/oidc/done")
    assert browser.client.get(url).status_code == 303
    refusals = bench.get("/audit-events", event_type="console.sign_in_refused", limit=50)["events"]
    assert "oidc" in {event["metadata"]["method"] for event in refusals}


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/console//evil.example", "/v1/runs"])
def test_a_sign_in_leads_to_no_other_site(issuer: OidcIssuer, browser: Browser, target: str) -> None:
    response = browser.client.get("/console/oidc/start", params={"next": target})
    assert browser.client.get(back(response.headers["location"])).headers["location"] == "/console/"


def test_the_host_of_a_request_is_not_where_the_issuer_sends_people(bench: Bench, issuer: OidcIssuer) -> None:
    response = httpx.get(
        f"{bench.url}/console/oidc/start",
        headers={"host": "localhost", "x-forwarded-host": "evil.example"},
        timeout=240,
    )
    query = parse_qs(urlsplit(response.headers["location"]).query)
    assert query["redirect_uri"] == [f"{bench.url}/console/oidc/done"]


def test_an_issuer_that_is_away_leaves_the_form(bench: Bench, browser: Browser, tmp_path: Path) -> None:
    with running(OidcIssuer()) as other:
        other.status = 500
        url = f"sqlite:///{tmp_path / 'kneo.sqlite'}"
        listener = listening()
        env = variables(other, url_of(listener))
        with serving(tmp_path, url, workers=0, listener=listener, **env) as second:
            page = Browser(second.url).get("/console/oidc/start", expect=503)
            assert "HTTP 500" in page.text
            assert page.form("/login"), "API keys still sign people in"


def test_without_an_issuer_there_is_no_button(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0) as plain:
        browser = Browser(plain.url)
        assert not [link for link in browser.get("/console/login").links if "oidc" in link]
        browser.get("/console/oidc/start", expect=404)
        Browser.close_all()


def test_refused_sign_ins_are_limited_and_recorded_within_limits(
    store: Store, issuer: OidcIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "monotonic", lambda: 1_000.0)
    settings = from_env(variables(issuer, "https://kneo.example.org"), tmp_path)
    sessions = Sessions(store, callers := make_callers(settings.oidc, store, keyring(configured(settings))))
    assert callers.people is not None
    routes = OidcRoutes(settings, callers.people, sessions, NoPages()).routes()

    def flood(number: int, address: Callable[[int], str]) -> Counter[int]:
        app, statuses = Starlette(routes=[Mount("/console", routes=routes)]), Counter[int]()
        for turn in range(number):
            client = TestClient(app, base_url="https://kneo.example.org", client=(address(turn), 1))
            statuses[client.get("/console/oidc/done?state=a&code=b").status_code] += 1
        return statuses

    def recorded() -> int:
        with store.read() as tx:
            found = text("SELECT count(*) FROM audit_events WHERE event_type = 'console.sign_in_refused'")
            return int(tx.connection.execute(found).scalar() or 0)

    assert flood(80, lambda turn: f"2001:db8::{turn:x}") == {401: 60, 429: 20}, "an IPv6 network is one caller"
    assert recorded() == 10
    assert flood(1, lambda _: "2001:db8::1:0:0:0:1") == {401: 1}, "another network is another caller"
    assert flood(100, lambda turn: f"203.0.113.{turn}") == {401: 100}
    assert recorded() == 60
    monkeypatch.setattr(limits, "monotonic", lambda: 1_060.0)
    assert flood(1, lambda _: "2001:db8::9") == {401: 1}
    assert recorded() == 61


class NoPages:
    """The form and the session of a sign-in without pages."""

    def show_form(self, request: Request, target: str, message: str = "", status: int = 200) -> HTMLResponse:
        assert request.url.path.startswith(target)
        return HTMLResponse(message, status)

    def enter(self, request: Request, token: str, target: str) -> Response:
        raise AssertionError(request.url, token, target)

    def check_transport(self, request: Request) -> None:
        """Accept each transport."""

    def is_secure(self, request: Request) -> bool:
        return request.url.scheme == "https"


def flow_of(store: Store, issuer: OidcIssuer, tmp_path: Path, **changes: str) -> CodeFlow:
    """Return sign-ins of a process on a database, with the key of this installation."""
    issuer.clock = store.clock
    settings = from_env(variables(issuer, "https://kneo.example.org") | changes, tmp_path)
    callers = make_callers(settings.oidc, store, keyring(configured(settings)))
    assert callers.people is not None
    return CodeFlow(callers.people, f"{settings.public_url}/console/oidc/done")


def begin(flow: CodeFlow, waiting: str, target: str) -> BegunSignIn:
    return asyncio.run(flow.begin(waiting, target))


def complete(flow: CodeFlow, waiting: str, response: CodeResponse) -> CompletedSignIn:
    return asyncio.run(flow.complete(waiting, response))


def response_of(url: str) -> CodeResponse:
    """Sign in at the issuer; return the parameters with which the browser comes back."""
    query = parse_qs(urlsplit(back(url)).query)
    return CodeResponse(error="", **{name: query.get(key, [""])[0] for name, key in RESPONSE.items()})


RESPONSE = {"state": "state", "code": "code", "issuer": "iss"}


def stored(store: Store) -> int:
    with store.read() as tx:
        rows = [tx.connection.execute(select(func.count()).select_from(each)) for each in (USED, tables.oidc_sign_ins)]
    return sum(row.scalar_one() for row in rows)


USED = tables.oidc_used_states


def test_a_waiting_sign_in_is_kept_by_its_browser_and_expires(
    keyed: Store, clock: ManualClock, issuer: OidcIssuer, tmp_path: Path
) -> None:
    flow = flow_of(keyed, issuer, tmp_path)
    begun = begin(flow, "", "/console/runs?status=paused")
    assert stored(keyed) == 0
    assert not any(secret in begun.waiting for secret in parse_qs(urlsplit(begun.url).query)["state"])
    response = response_of(begun.url)
    clock.advance(SIGN_IN_LIFETIME - timedelta(seconds=1))
    # Another process of the installation completes what one began.
    completed = complete(flow_of(keyed, issuer, tmp_path), begun.waiting, response)
    assert (completed.identity.name, completed.target, completed.waiting) == ("ann", "/console/runs?status=paused", "")
    late = begin(flow, "", "/console/")
    answer = response_of(late.url)
    clock.advance(SIGN_IN_LIFETIME)
    with pytest.raises(SignInRefused, match="older than ten minutes"):
        complete(flow, late.waiting, answer)


def test_a_state_is_used_once_also_by_two_requests_at_once(
    keyed: Store, issuer: OidcIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An issuer that accepts a code twice gives a second session to no one who has the cookie and the address."""
    issuer.repeats_codes = True
    flow = flow_of(keyed, issuer, tmp_path)
    begun = begin(flow, "", "/console/")
    response = response_of(begun.url)

    async def at_once() -> list[CompletedSignIn | BaseException]:
        requests = (flow.complete(begun.waiting, response) for _ in range(4))
        return await asyncio.gather(*requests, return_exceptions=True)

    outcomes = asyncio.run(at_once())
    assert Counter(type(each) for each in outcomes) == {CompletedSignIn: 1, SignInRefused: 3}
    with pytest.raises(SignInRefused, match="completed before"):
        complete(flow, begun.waiting, response)
    assert stored(keyed) == 1


def test_used_states_are_deleted_when_their_sign_ins_have_expired(
    keyed: Store, clock: ManualClock, issuer: OidcIssuer, tmp_path: Path
) -> None:
    flow = flow_of(keyed, issuer, tmp_path)
    for _ in range(3):
        begun = begin(flow, "", "/console/")
        complete(flow, begun.waiting, response_of(begun.url))
        clock.advance(SIGN_IN_LIFETIME)
    assert stored(keyed) == 1


def test_a_cookie_that_was_changed_or_belongs_to_another_sign_in_signs_nobody_in(
    keyed: Store, issuer: OidcIssuer, tmp_path: Path
) -> None:
    flow = flow_of(keyed, issuer, tmp_path)
    begun, other = begin(flow, "", "/console/"), begin(flow, "", "/console/")
    response = response_of(begun.url)
    changed = [
        begun.waiting[:at] + ("A" if begun.waiting[at] != "A" else "B") + begun.waiting[at + 1 :] for at in (0, 40, 90)
    ]
    foreign = begin(flow_of(keyed, issuer, tmp_path, KNEO_SERV_OIDC_CLIENT_ID="wiki"), "", "/console/")
    for cookie in (*changed, begun.waiting[:-9], other.waiting, foreign.waiting, "", ".", "x" * 100_000, "\xff"):
        with pytest.raises(SignInRefused, match="begun no such sign-in"):
            complete(flow, cookie, response)
    assert (complete(flow, begun.waiting, response)).identity.name == "ann"


def test_strangers_who_begin_sign_ins_push_no_one_out(
    sqlite_url: str, clock: ManualClock, issuer: OidcIssuer, tmp_path: Path
) -> None:
    key = PrivateKey.generate()
    with closing(open_store(sqlite_url, clock, lambda: key)) as store:
        flow = flow_of(store, issuer, tmp_path)
        begun = begin(flow, "", "/console/")

        async def strangers() -> None:
            for _ in range(500):
                await flow.begin("", "/console/")

        asyncio.run(strangers())
        assert stored(store) == 0
        assert complete(flow, begun.waiting, response_of(begun.url)).identity.name == "ann"


def test_a_browser_keeps_as_many_waiting_sign_ins_as_a_cookie_holds(
    keyed: Store, issuer: OidcIssuer, tmp_path: Path
) -> None:
    flow = flow_of(keyed, issuer, tmp_path)
    tabs = [begin(flow, "", "/console/")]
    for number in range(40):
        tabs.append(begin(flow, tabs[-1].waiting, f"/console/runs/{number}"))
        assert len(tabs[-1].waiting) <= code_flow.MAX_COOKIE_CHARS
    with pytest.raises(SignInRefused):
        complete(flow, tabs[-1].waiting, response_of(tabs[0].url))
    completed = complete(flow, tabs[-1].waiting, response_of(tabs[-3].url))
    assert completed.target == "/console/runs/37"
    completed = complete(flow, completed.waiting, response_of(tabs[-1].url))
    assert completed.target == "/console/runs/39"
    longest = begin(flow, "", "/console/find?q=" + "\u6f22" * 1_900)
    assert (complete(flow, longest.waiting, response_of(longest.url))).target == ""


def test_without_a_service_key_the_form_names_the_setting(
    keyless_store: Store, issuer: OidcIssuer, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match="KNEO_SERV_SERVICE_KEY is not set"):
        begin(flow_of(keyless_store, issuer, tmp_path), "", "/console/")


def test_a_session_ends_with_the_role_the_person_and_its_time(store: Store, clock: ManualClock, tmp_path: Path) -> None:
    with running(OidcIssuer()) as other:
        settings = from_env(variables(other, "https://kneo.example.org"), tmp_path)
        ring = keyring(configured(settings))
        callers = make_callers(settings.oidc, store, ring)
        people = callers.people
        assert people is not None
        now = int(clock.now().timestamp())

        def identity(**changes: object) -> Identity:
            return identity_of(other.claims(iat=now, exp=now + 60, **changes), settings.oidc)

        def sign_in() -> dict[str, str]:
            return {"kneo_session": Sessions(store, callers).sign_in_with_issuer(people, identity(), "")}

        cookies = sign_in()
        signed_in = Sessions(store, callers).find(cookies, secure=False)
        assert signed_in is not None
        assert signed_in.principal.may("runs:write")
        fewer = make_callers(replace(settings.oidc, roles=(("operators", ("runs:read",)),)), store, ring)
        signed_in = Sessions(store, fewer).find(cookies, secure=False)
        assert signed_in is not None
        assert not signed_in.principal.may("runs:write"), "roles of groups are those of now"
        none = make_callers(replace(settings.oidc, roles=(("others", ("admin",)),)), store, ring)
        assert Sessions(store, none).find(cookies, secure=False) is None
        with pytest.raises(Forbidden, match="no role"):
            people.admit(identity(groups=[]))
        assert Sessions(store, callers).find(cookies, secure=False) is None, (
            "a person who lost every role is signed out"
        )
        restarted = make_callers(settings.oidc, store, ring)
        assert restarted.people is not None
        with pytest.raises(Forbidden, match="newer token"):
            restarted.people.admit(identity())
        assert Sessions(store, restarted).find(cookies, secure=False) is None, "an older token brings no session back"
        now += 1
        restarted.people.admit(identity())
        assert Sessions(store, restarted).find(cookies, secure=False) is None, "a new role brings no old session back"
        cookies = sign_in()
        for _ in range(13):
            clock.advance(timedelta(minutes=59))
            found = Sessions(store, callers).find(cookies, secure=False)
        assert found is None
