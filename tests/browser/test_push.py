"""Notifications in a browser: the states of the switch, and the script that shows them, under the content security policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from console_pages import signed_in
from kneo_process import eventually
from push_service import PushBrowser
from service_bench import Bench, serving

from kneo.extensions.push.keys import VapidKey
from kneo.settings import Limits
from kneo.store import push_subscriptions

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Visit = Callable[..., "Page"]

VARIABLES = {
    "KNEO_SERV_VAPID_PRIVATE_KEY": VapidKey.generate().pem.decode(),
    "KNEO_SERV_VAPID_SUBJECT": "mailto:ops@example.org",
}

# Chromium subscribes at a service on the Internet only; everything after that is the browser's own.
SUBSCRIBE = """
PushManager.prototype.subscribe = async function (options) {
  if (options.applicationServerKey.length !== 65 || !options.userVisibleOnly) throw new Error("other options");
  return {toJSON: () => (%s)};
};
"""


@pytest.fixture(scope="module")
def bench(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("service")
    paths = [*sys.path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "LIMITS", Limits())
        with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", workers=0, **VARIABLES) as made:
            yield made
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


def subscriptions(bench: Bench) -> list[str]:
    with bench.store.read() as tx:
        found = [push_subscriptions.find(tx, each) for each in push_subscriptions.of_person(tx, "reviewer").values()]
        return [each.endpoint for each in found if each is not None]


def test_a_browser_that_blocks_notifications_explains_it(visit: Visit) -> None:
    from playwright.sync_api import expect

    page = visit("reviewer", "/console/login")
    # Without a window, Chromium blocks notifications in some versions and asks for them in others.
    page.add_init_script("Object.defineProperty(Notification, 'permission', {get: () => 'denied'});")
    page.goto("/console/me")
    expect(page.get_by_role("button", name="Notify me in this browser")).to_be_disabled(timeout=120_000)
    expect(page.locator("#push-status")).to_contain_text("blocked", timeout=120_000)
    expect(page.get_by_role("button", name="Stop notifications in this browser")).to_be_hidden()


def test_the_notifications_of_a_person_are_accessible(bench: Bench, problems_of: Callable[..., list[object]]) -> None:
    assert problems_of(["/console/me"], "#push button:visible") == [], "switched off, or blocked by the browser"
    subscription = PushBrowser("https://web.push.apple.com/admin").subscription
    signed_in(bench.url, "admin").post("/console/push", subscription)
    assert problems_of(["/console/me"], "text=Stop notifications in 1 browser") == [], "switched on in a browser"


def test_without_script_there_is_no_switch(visit: Visit) -> None:
    page = visit("reviewer", "/console/me", java_script_enabled=False)
    assert page.locator("#push").is_hidden()


def test_a_browser_without_web_push_has_no_switch(visit: Visit) -> None:
    page = visit("reviewer", "/console/login")
    page.add_init_script("delete window.PushManager;")
    page.goto("/console/me")
    page.wait_for_load_state("load")
    assert page.locator("#push").is_hidden()


def test_a_person_switches_notifications_on_and_is_shown_one(bench: Bench, visit: Visit) -> None:
    from playwright.sync_api import expect

    page = visit("reviewer", "/console/login", permissions=["notifications"])
    subscription = PushBrowser("https://web.push.apple.com/one").subscription
    keys = {name: subscription[name] for name in ("p256dh", "auth")}
    page.add_init_script(SUBSCRIBE % json.dumps({"endpoint": subscription["endpoint"], "keys": keys}))
    page.goto("/console/me")
    page.get_by_role("button", name="Notify me in this browser").click(timeout=120_000)
    expect(page.get_by_role("button", name="Stop notifications in 1 browser")).to_be_visible(timeout=120_000)
    assert subscriptions(bench) == [subscription["endpoint"]]

    # A push message, as the browser gives it to the script.
    session = page.context.new_cdp_session(page)
    found: list[str] = []
    session.on(
        "ServiceWorker.workerRegistrationUpdated",
        lambda event: found.extend(each["registrationId"] for each in event["registrations"] if not each["isDeleted"]),
    )
    session.send("ServiceWorker.enable")
    eventually(lambda: page.evaluate("1") and found)
    origin = {"origin": bench.url, "registrationId": found[0]}
    session.send("ServiceWorker.deliverPushMessage", {**origin, "data": json.dumps({"task": "cont_1"})})
    session.send("ServiceWorker.deliverPushMessage", {**origin, "data": '{"task": "../../evil"}'})

    def shown() -> list[list[str]]:
        return page.evaluate(
            "async () => (await (await navigator.serviceWorker.ready).getNotifications())"
            ".map((each) => [each.title, each.tag, each.data])"
        )

    title = "A task waits for you"
    eventually(lambda: len(shown()) == 2)
    assert sorted(shown()) == [
        [title, "/console/inbox", "/console/inbox"],
        [title, "/console/inbox/cont_1", "/console/inbox/cont_1"],
    ]
    page.get_by_role("button", name="Stop notifications in 1 browser").click()
    expect(page.get_by_role("button", name="Stop notifications in 1 browser")).to_have_count(0, timeout=120_000)
    assert subscriptions(bench) == []
