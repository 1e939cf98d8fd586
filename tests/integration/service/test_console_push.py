"""Subscribing browsers to notifications: who may, what is accepted, and each way in which a subscription ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from console_pages import Browser
from push_service import PushBrowser
from service_bench import Bench, serving

from kneo.extensions.push.keys import VapidKey
from kneo.service.app import _record_callers
from kneo.service.auth import APIKeyRecord, AuthConfig, hash_keys, keyring
from kneo.service.callers import Callers
from kneo.settings import PushSettings
from kneo.store import push_subscriptions
from kneo.store.engine import Store

KEY = VapidKey.generate()
VARIABLES = {
    "KNEO_SERV_VAPID_PRIVATE_KEY": KEY.pem.decode(),
    "KNEO_SERV_VAPID_SUBJECT": "mailto:ops@example.org",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("service")
    paths = [*sys.path]
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", workers=0, **VARIABLES) as made:
        yield made
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


@pytest.fixture(autouse=True)
def _cleared(bench: Bench) -> Iterator[None]:
    yield
    Browser.close_all()
    with bench.store.write() as tx:
        push_subscriptions.end_all(tx)


@pytest.fixture(scope="module")
def sessions(bench: Bench) -> dict[str, httpx.Cookies]:
    return {}


@pytest.fixture
def browse(bench: Bench, sessions: dict[str, httpx.Cookies]):
    """Opens a browser with the session of a role; each role signs in once, because sign-ins are limited."""

    def open_browser(role: str) -> Browser:
        browser = Browser(bench.url)
        if role not in sessions:
            browser.sign_in(f"{role}-key")
            sessions[role] = browser.client.cookies
        browser.client.cookies = httpx.Cookies(sessions[role])
        return browser

    return open_browser


def mine(store: Store, person: str) -> int:
    with store.read() as tx:
        return len(push_subscriptions.of_person(tx, person))


def events(bench: Bench, kind: str) -> list[dict]:
    found = bench.get("/audit-events", limit=200)["events"]
    return [event for event in found if event["event_type"] == f"console.notifications_{kind}"]


def test_a_browser_subscribes_and_stops(bench: Bench, browse) -> None:
    browser = browse("reviewer")
    page = browser.get("/console/me")
    assert KEY.public in page.html
    assert "PRIVATE" not in page.html
    form = page.form("/push")
    assert form.values() == {"endpoint": "", "p256dh": "", "auth": ""}
    subscription = PushBrowser().subscription
    response = browser.post(form.action, form.values(**subscription))
    assert response.headers["location"] == "/console/me"
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(response.headers["set-cookie"].split("; "))
    page = browser.get("/console/me")
    assert "Stop notifications in 1 browser" in page.text
    assert page.having("data-on")
    assert all(value not in page.html for value in subscription.values())
    # The same person elsewhere: this browser is not subscribed.
    assert not browse("reviewer").get("/console/me").having("data-on")
    started = events(bench, "started")[0]
    assert (started["actor"], started["metadata"]) == ("reviewer", {"push_service": "https://fcm.googleapis.com"})
    browser.post("/console/push/end", {})
    assert mine(bench.store, "reviewer") == 0
    assert not browser.get("/console/me").having("data-on")
    assert "kneo_push" not in browser.client.cookies
    assert events(bench, "ended")[0]["metadata"] == {"reason": "person", "count": 1}


def test_a_person_stops_notifications_in_all_browsers_and_in_no_others(bench: Bench, browse) -> None:
    for name, role in (("one", "reviewer"), ("two", "reviewer"), ("three", "approver")):
        browse(role).post("/console/push", PushBrowser(f"https://web.push.apple.com/{name}").subscription)
    assert mine(bench.store, "reviewer") == 2
    browse("reviewer").post("/console/push/end", {"where": "everywhere"})
    assert (mine(bench.store, "reviewer"), mine(bench.store, "approver")) == (0, 1)


def test_a_browser_that_subscribes_again_has_one_subscription(bench: Bench, browse) -> None:
    browser = browse("reviewer")
    for name in ("one", "two"):
        browser.post("/console/push", PushBrowser(f"https://web.push.apple.com/{name}").subscription)
    assert mine(bench.store, "reviewer") == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"endpoint": "https://evil.example/x"}, "not one that this service sends to"),
        ({"endpoint": "http://fcm.googleapis.com/x"}, "not one that this service sends to"),
        ({"endpoint": "https://fcm.googleapis.com@evil.example/x"}, "not one that this service sends to"),
        ({"endpoint": ""}, "not one that this service sends to"),
        ({"p256dh": "QUJD"}, "no P-256 key"),
        ({"auth": "QUJD"}, "no P-256 key"),
    ],
)
def test_what_no_browser_states_is_refused_and_not_repeated(bench: Bench, browse, changes, code: str) -> None:
    values = {**PushBrowser().subscription, **changes}
    response = browse("reviewer").post("/console/push", values, expect=400)
    assert code in response.text
    assert "evil.example" not in response.text
    assert mine(bench.store, "reviewer") == 0


def test_only_people_who_may_answer_subscribe_and_only_from_the_console(bench: Bench, browse) -> None:
    viewer = browse("viewer")
    assert "/console/push" not in viewer.get("/console/me").html
    viewer.post("/console/push", PushBrowser().subscription, expect=403)
    foreign = {"sec-fetch-site": "cross-site"}
    browse("reviewer").post("/console/push", PushBrowser().subscription, expect=403, **foreign)
    stranger = Browser(bench.url).client.post(
        "/console/push", data=PushBrowser().subscription, headers={"sec-fetch-site": "same-origin"}
    )
    assert stranger.status_code == 401
    with bench.store.read() as tx:
        assert not push_subscriptions.exist(tx)


def test_signing_out_ends_the_subscriptions_of_the_session_and_of_the_browser(bench: Bench) -> None:
    first, second = Browser(bench.url).sign_in("operator-key"), Browser(bench.url).sign_in("service-key")
    second.post("/console/push", PushBrowser().subscription)
    kept = second.client.cookies["kneo_push"]
    first.post("/console/logout", {})
    assert mine(bench.store, "service") == 1
    # The session in which the person subscribed has ended by itself; another one of the browser is signed out.
    second.client.cookies.delete("kneo_session")
    second.sign_in("service-key")
    assert mine(bench.store, "service") == 1
    second.post("/console/logout", {})
    assert mine(bench.store, "service") == 0
    assert "kneo_push" not in second.client.cookies
    # The session ends its subscriptions where the cookie is lost, too.
    second.sign_in("service-key")
    second.post("/console/push", PushBrowser().subscription)
    assert second.client.cookies["kneo_push"] != kept
    second.client.cookies.delete("kneo_push")
    second.post("/console/logout", {})
    assert mine(bench.store, "service") == 0
    assert events(bench, "ended")[0]["metadata"] == {"reason": "signed_out", "count": 1}


def test_another_person_who_signs_in_ends_the_subscription_of_the_browser(bench: Bench) -> None:
    browser = Browser(bench.url).sign_in("service-key")
    browser.post("/console/push", PushBrowser().subscription)
    browser.sign_in("approver-key")
    assert mine(bench.store, "service") == 0
    assert events(bench, "ended")[0]["metadata"] == {"reason": "another_person", "count": 1}


def ring(**roles: str) -> Callers:
    records = tuple(APIKeyRecord(name, f"{name}-key", roles=(role,)) for name, role in roles.items())
    return Callers(keyring(AuthConfig(True, records)))


def test_a_subscription_ends_with_its_key_with_the_scope_and_with_the_key_of_the_service(bench: Bench, browse) -> None:
    callers = ring(reviewer="reviewer", approver="approver")
    enabled = PushSettings(private_key=KEY.pem.decode(), subject="mailto:a@b")

    def record(settings: PushSettings = enabled) -> None:
        with bench.store.write() as tx:
            _record_callers(tx, callers, replace(bench.settings, push=settings))

    try:
        for role in ("reviewer", "approver"):
            endpoint = f"https://web.push.apple.com/{role}"
            browse(role).post("/console/push", PushBrowser(endpoint).subscription)
        record()
        assert (mine(bench.store, "reviewer"), mine(bench.store, "approver")) == (1, 1)
        callers.keyring.replace(ring(reviewer="viewer", approver="approver").keyring._keys)
        record()
        assert (mine(bench.store, "reviewer"), mine(bench.store, "approver")) == (0, 1)
        record(replace(enabled, private_key=""))
        assert mine(bench.store, "approver") == 0
    finally:
        with bench.store.write() as tx:
            _record_callers(tx, Callers(keyring(AuthConfig(True, _records()))), replace(bench.settings, push=enabled))


def _records() -> tuple[APIKeyRecord, ...]:
    roles = ("admin", "operator", "approver", "reviewer", "auditor", "service", "viewer")
    return tuple(APIKeyRecord(role, f"{role}-key", roles=(role,)) for role in roles)


def test_the_worker_script_has_the_scope_of_the_console_and_no_fetch_handler(bench: Bench) -> None:
    response = httpx.get(f"{bench.url}/console/push.js", timeout=240)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.headers["service-worker-allowed"] == "/console/"
    assert response.headers["cache-control"] == "no-cache"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert '"fetch"' not in response.text
    assert "caches" not in response.text


def test_without_a_key_there_are_no_notifications(tmp_path: Path) -> None:
    paths = [*sys.path]
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0) as plain:
        browser = Browser(plain.url).sign_in("reviewer-key")
        assert "/console/push" not in browser.get("/console/me").html
        assert "notifications.js" not in browser.get("/console/me").html
        browser.post("/console/push", PushBrowser().subscription, expect=404)
        assert browser.client.get("/console/push.js").status_code == 404
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


def test_digests_of_keys_are_those_with_the_scope() -> None:
    keys = ring(ann="reviewer", bob="viewer", root="admin").keyring
    wanted = hash_keys(AuthConfig(True, (APIKeyRecord("ann", "ann-key"), APIKeyRecord("root", "root-key"))))
    assert keys.digests_with("human:write") == {digest.hex() for digest in wanted}
