"""Notifications in browsers: from the transaction that asks to a real push service over https, and the browser that decrypts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine
from push_service import PushBrowser, PushService, push_service
from sqlalchemy import text

from kneo.clock import ManualClock, new_id
from kneo.extensions.push.delivery import WebPush
from kneo.extensions.push.keys import VapidKey
from kneo.notify import delivery as http
from kneo.notify.delivery import Courier
from kneo.notify.outbox import ATTEMPTS
from kneo.records.sign_in import MAX_FAILURES, PushSubscription
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.timers import tick
from kneo.settings import WEB_PUSH, from_env
from kneo.store import audit, project_metadata, push_subscriptions
from kneo.store.engine import Store
from kneo.tasks.lifecycle import is_asked

KEY = VapidKey.generate()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PushService]:
    with push_service(tmp_path) as made:
        monkeypatch.setenv("SSL_CERT_FILE", str(made.cert))
        http._tls.cache_clear()
        yield made
    http._tls.cache_clear()


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "steps", "def publish(text): return text\n")


@pytest.fixture
def courier(store: Store, service: PushService, tmp_path: Path) -> Callable[..., Courier]:
    def make(hosts: str | None = None) -> Courier:
        env = {
            "KNEO_SERV_VAPID_PRIVATE_KEY": KEY.pem.decode(),
            "KNEO_SERV_VAPID_SUBJECT": "mailto:ops@example.org",
            "KNEO_SERV_PUSH_HOSTS": hosts or service.host,
        }
        settings = from_env(env, cwd=tmp_path)
        push = WebPush(store, settings.push, VapidKey.load(settings.push.private_key), is_asked)
        return Courier(store, settings, channels={WEB_PUSH: push}, seconds=240)

    return make


def subscribe(store: Store, browser: PushBrowser, person: str = "ann") -> str:
    subscription_id = new_id("psh", store.clock.now())
    row = PushSubscription(
        id=subscription_id,
        browser_hash=subscription_id,
        session_hash=subscription_id,
        person=person,
        key_hash=None,
        created_at="",
        **browser.subscription,
    )
    with store.write() as tx:
        push_subscriptions.put(tx, row, "")
    return subscription_id


def ask(engine: Engine, **human: object) -> HumanTask:
    run = engine.run(
        [{"id": "q", "kind": "human", "ref": "asked"}], "the secret plan", asked={"description": "Release?", **human}
    )
    [task] = engine.open(run)
    return task


def deliver(courier: Courier) -> None:
    while courier.deliver_due():
        pass


def rows(store: Store) -> list[tuple[str, str | None]]:
    with store.read() as tx:
        found = tx.connection.execute(text("SELECT status, error FROM outbox WHERE channel = 'web-push' ORDER BY id"))
        return [tuple(row) for row in found]


def ends(store: Store) -> list[object]:
    with store.read() as tx:
        events = audit.events(tx, event_type="console.notifications_ended")
    return [each.event.metadata["reason"] for each in events]


def test_a_browser_is_notified_with_the_id_of_the_task_alone(
    engine: Engine, courier, service: PushService, store: Store
) -> None:
    browser = service.browser()
    subscribe(store, browser)
    task = ask(engine, assignee="ann", prompt="Is the secret plan fine?")
    deliver(courier())
    [pushed] = service.received
    assert pushed.path == "/push/one"
    assert pushed.text(browser) == {"task": task.id}
    headers = {name: pushed.headers[name] for name in ("Content-Encoding", "TTL", "Urgency")}
    assert headers == {"Content-Encoding": "aes128gcm", "TTL": "86400", "Urgency": "high"}
    assert len(pushed.headers["Topic"]) == 32
    assert task.id not in str(pushed.headers)
    assert pushed.headers["Authorization"].endswith(f"k={KEY.public}")
    claims = pushed.claims(f"https://{service.host}")
    lasts = int(claims["exp"]) - store.clock.now().timestamp()
    assert (claims["sub"], lasts) == ("mailto:ops@example.org", 12 * 3600)
    assert rows(store) == [("sent", None)] * 2


def test_each_browser_of_each_person_who_is_asked_is_notified_once(
    engine: Engine, courier, service: PushService, store: Store
) -> None:
    for name, person in (("one", "ann"), ("two", "ann"), ("three", "bob"), ("four", "eve")):
        subscribe(store, service.browser(name), person)
    ask(engine, candidates={"users": ["Ann", "bob"], "exclude": ["requester"]})  # bob started the run
    deliver(courier())
    assert sorted(each.path for each in service.received) == ["/push/one", "/push/two"]


def test_everyone_is_notified_of_a_task_that_names_nobody(
    engine: Engine, courier, service: PushService, store: Store
) -> None:
    for name in ("ann", "eve"):
        subscribe(store, service.browser(name), name)
    ask(engine)
    deliver(courier())
    assert sorted(each.path for each in service.received) == ["/push/ann", "/push/eve"]


def test_without_a_subscription_nothing_is_written(engine: Engine, store: Store) -> None:
    ask(engine, assignee="ann")
    assert rows(store) == []


def test_reminders_are_notified_too(
    engine: Engine, courier, service: PushService, store: Store, clock: ManualClock
) -> None:
    browser = service.browser()
    subscribe(store, browser)
    task = ask(engine, assignee="ann", remind=["1h"])
    clock.advance(timedelta(hours=1))
    tick(store)
    deliver(courier())
    assert [each.text(browser) for each in service.received] == [{"task": task.id}] * 2
    assert len({each.headers["Topic"] for each in service.received}) == 1


def test_a_task_that_was_decided_meanwhile_is_not_notified(
    engine: Engine, courier, service: PushService, store: Store
) -> None:
    subscribe(store, service.browser())
    task = ask(engine, assignee="ann")
    engine.answer(task, DecisionKind.APPROVED, actor="ann")
    deliver(courier())
    assert service.received == []
    assert rows(store) == [("dropped", None)]


def test_a_person_who_is_removed_before_the_delivery_is_not_notified(
    engine: Engine, courier, service: PushService, store: Store, clock: ManualClock
) -> None:
    subscribe(store, service.browser())
    ask(engine, assignee="ann")
    service.status = 503
    deliver(courier())
    assert len(service.received) == 1
    with store.write() as tx:
        project_metadata.put_key_names(tx, {"bob"})
    clock.advance(timedelta(hours=1))
    deliver(courier())
    assert len(service.received) == 1
    assert rows(store)[-1] == ("dropped", None)


@pytest.mark.parametrize("status", [404, 410])
def test_a_push_service_ends_a_subscription(
    engine: Engine, courier, service: PushService, store: Store, status: int
) -> None:
    subscribe(store, service.browser())
    ask(engine, assignee="ann")
    service.status = status
    deliver(courier())
    assert len(service.received) == 1
    assert rows(store)[-1] == ("dropped", f"answered {status}")
    assert ends(store) == ["gone"]
    with store.read() as tx:
        assert not push_subscriptions.exist(tx)


def test_a_failed_delivery_is_repeated_and_messages_that_are_given_up_end_the_subscription(
    engine: Engine, courier, service: PushService, store: Store, clock: ManualClock
) -> None:
    mine = subscribe(store, service.browser())
    service.status = 500
    for given_up in range(1, MAX_FAILURES + 1):
        task = ask(engine, assignee="ann")
        for _ in range(ATTEMPTS):
            deliver(courier())
            clock.advance(timedelta(hours=1))
        assert len(service.received) == given_up * ATTEMPTS
        engine.answer(task, DecisionKind.APPROVED, actor="ann")
        with store.read() as tx:
            assert (push_subscriptions.find(tx, mine) is None) == (given_up == MAX_FAILURES)
    assert ends(store) == ["failed"]


def test_a_redirect_is_not_followed(engine: Engine, courier, service: PushService, store: Store) -> None:
    subscribe(store, service.browser())
    ask(engine, assignee="ann")
    service.status, service.location = 307, f"https://{service.host}/elsewhere"
    deliver(courier())
    assert [each.path for each in service.received] == ["/push/one"]
    assert rows(store)[-1] == ("waiting", "answered 307")


def test_a_push_service_that_is_not_allowed_any_more_is_sent_nothing(
    engine: Engine, courier, service: PushService, store: Store
) -> None:
    subscribe(store, service.browser())
    ask(engine, assignee="ann")
    deliver(courier("fcm.googleapis.com"))
    assert service.received == []
    assert ends(store) == ["host_not_allowed"]


def test_the_address_and_the_keys_of_a_browser_are_in_no_message_log_or_event(
    engine: Engine, courier, service: PushService, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    browser = service.browser("capability")
    subscribe(store, browser)
    ask(engine, assignee="ann")
    service.status = 500
    with caplog.at_level("DEBUG", "kneo"):
        deliver(courier())
    with store.read() as tx:
        found = tx.connection.execute(text("SELECT payload, error FROM outbox")).all()
        events = audit.events(tx)
    written = f"{found} {events} {[record.getMessage() for record in caplog.records if record.name.startswith('kneo')]}"
    assert "/push/" not in written
    assert all(value not in written for value in browser.subscription.values())
