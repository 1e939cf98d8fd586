"""What people are told of releases: everything once, whatever is found out how often, and whoever is killed meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from processes import start_python
from receivers import WebReceiver, web_receiver
from sqlalchemy import select, update

from kneo.controller.environment import DRIFT_INTERVAL
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.controller.stages.report import Ready
from kneo.notify.delivery import LEASE, Courier
from kneo.notify.outbox import FIRST_PAUSE
from kneo.registry import resolve
from kneo.settings import from_env
from kneo.store.engine import Store
from kneo.store.requests import ControllerRequest
from kneo.store.tables import metadata

CHANNEL = "webhook"
PEOPLE = {"bob": {"roles": ["approver"]}}

CHILD = """
import os, signal, sys
from pathlib import Path

from sqlalchemy import event

from kneo.clock import SystemClock
from kneo.notify.delivery import Courier
from kneo.settings import from_env
from kneo.store.migrate import open_store

url, address, folder = sys.argv[1:]
store = open_store(url, SystemClock())

def die(connection, cursor, statement, parameters, context, executemany):
    if statement.startswith("UPDATE outbox"):
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(store.engine, "before_cursor_execute", die)
settings = from_env({"KNEO_SERV_NOTIFY_WEBHOOK": address}, Path(folder))
Courier(store, settings).deliver_due()
"""


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


@pytest.fixture
def web() -> Iterator[WebReceiver]:
    with web_receiver() as receiver:
        yield receiver


def _reconciler(bench: Bench) -> Reconciler:
    """A controller as another process would have it: it remembers nothing."""
    mirror = Mirror(str(bench.repo.folder), "main", bench.folder / "mirrors")
    return Reconciler(bench.store, mirror, bench.repo.pin, service_key=bench.service_key.public, channels=(CHANNEL,))


def _look(bench: Bench) -> str:
    return _reconciler(bench).reconcile(bench.lease()).outcomes["prod"].state


def _deliver(bench: Bench, web: WebReceiver) -> list[tuple[str, str, str]]:
    """Deliver what is due and return what was heard by now: event, version and reason."""
    settings = from_env({"KNEO_SERV_NOTIFY_WEBHOOK": web.url}, bench.folder)
    courier = Courier(bench.store, settings)
    while courier.deliver_due():
        pass
    return [(str(item.body["event"]), str(item.body["version"]), str(item.body["reason"])) for item in web.received]


def test_each_change_is_told_once_however_often_it_is_looked_at(bench: Bench, web: WebReceiver) -> None:
    for version in ("1.0.0", "1.1.0"):
        bench.repo.release("prod", "mail", version)
        for _ in range(2):
            _look(bench)
    assert _deliver(bench, web) == [("release.promoted", "1.0.0", ""), ("release.promoted", "1.1.0", "")]
    bench.repo.git("revert", "--no-edit", "HEAD")
    bench.store.clock.advance(timedelta(minutes=1))
    assert _look(bench) == "Ready"
    bench.repo.git("revert", "--no-edit", "HEAD")
    bench.store.clock.advance(timedelta(minutes=1))
    assert _look(bench) == "Ready"
    # What happens again later is news again.
    assert _deliver(bench, web)[2:] == [("release.rolled_back", "1.0.0", ""), ("release.promoted", "1.1.0", "")]
    assert len({item.headers["Idempotency-Key"] for item in web.received}) == 4


def test_what_waits_is_told_once_for_each_reason(bench: Bench, web: WebReceiver) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals={"required": 1, "roles": ["approver"]}, people=PEOPLE)
    bench.repo.commit("Release mail")
    for number in range(3):
        assert _look(bench) == "AwaitingApproval"
        bench.repo.commit(f"Something else {number}")
    bench.decide("bob")
    assert _look(bench) == "Ready"
    waiting, promoted = _deliver(bench, web)
    assert waiting == ("release.waiting", "1.0.0", "AwaitingApproval")
    assert promoted == ("release.promoted", "1.0.0", "")
    assert web.received[0].body["who"] == ["bob"]


def test_a_rollback_by_hand_is_told_with_who_and_why(bench: Bench, web: WebReceiver) -> None:
    for version in ("1.0.0", "1.1.0"):
        bench.repo.release("prod", "mail", version)
        _look(bench)
    order = {"environment": "prod", "bundle": "mail", "reason": "it shouts"}
    asked = ControllerRequest(id="ask", kind="rollback", payload=order, actor="bob", status="open", result=None)
    _reconciler(bench).handlers["rollback"](asked, bench.lease())
    assert _deliver(bench, web)[-1] == ("release.rolled_back", "1.0.0", "")
    assert "requested by bob: it shouts" in str(web.received[-1].body["text"])


def test_what_was_changed_behind_our_back_is_told_once(bench: Bench, web: WebReceiver) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    _look(bench)
    _deliver(bench, web)
    with bench.store.write() as tx:
        tx.connection.execute(update(metadata.tables["bundles"]).values(payload=b"{}"))
    for _ in range(2):
        bench.store.clock.advance(DRIFT_INTERVAL)
        assert _look(bench) == "BundleTampered"
    assert _deliver(bench, web)[1:] == [("release.drifted", "1.0.0", "BundleTampered")]


def test_what_was_heard_and_not_marked_is_sent_again_under_the_same_key(
    bench: Bench, web: WebReceiver, migrated_url: str, tmp_path: Path
) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    _look(bench)
    child = start_python(CHILD, migrated_url, web.url, str(tmp_path))
    _, errors = child.communicate(timeout=240)
    assert child.returncode == -signal.SIGKILL, errors
    assert len(web.received) == 1
    # Nobody else delivers while the dead one's lease lasts.
    assert len(_deliver(bench, web)) == 1
    bench.store.clock.advance(LEASE + timedelta(minutes=1))
    first, again = (_deliver(bench, web), web.received)[1]
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"]
    assert first.body == again.body
    assert len(_deliver(bench, web)) == 2


def test_a_receiver_that_fails_is_tried_later_and_hears_everything_in_the_end(bench: Bench, web: WebReceiver) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    _look(bench)
    web.status = 503
    pause = FIRST_PAUSE
    for tried in range(1, 4):
        assert len(_deliver(bench, web)) == tried
        bench.store.clock.advance(pause - timedelta(seconds=1))
        assert len(_deliver(bench, web)) == tried
        bench.store.clock.advance(timedelta(seconds=1))
        pause *= 2
    web.status = 200
    assert len(_deliver(bench, web)) == 4
    bench.store.clock.advance(timedelta(days=1))
    assert len(_deliver(bench, web)) == 4
    assert len({item.headers["Idempotency-Key"] for item in web.received}) == 1


def test_what_is_retired_leaves_a_tombstone(bench: Bench, web: WebReceiver) -> None:
    names = [f"agent-{number}" for number in range(5)]
    for name in names:
        bench.repo.bundle(name, "1.0.0")
    bench.repo.environment("prod", dict.fromkeys(names, "1.0.0"))
    bench.repo.commit("Release five")
    _look(bench)
    digest = bench.release(names[0]).digest
    bench.repo.environment("prod", dict.fromkeys(names[1:], "1.0.0"))
    bench.repo.commit("Retire one")
    assert _look(bench) == "Ready"
    assert _deliver(bench, web)[-1] == ("release.retired", "1.0.0", "")
    rows = metadata.tables["releases"]
    with bench.store.read() as tx:
        retired = tx.connection.execute(select(rows).where(rows.c.bundle == names[0])).one()
        assert (retired.digest, retired.retired_at is not None) == (digest, True)
        assert tx.connection.execute(select(metadata.tables["bundles"])).all()
        with pytest.raises(Exception, match="is not released") as caught:
            resolve(tx, digest, "prod", pin=bench.repo.pin)
    assert caught.value.code == "bundle_not_approved"  # type: ignore[attr-defined]
    # Its history counts: what comes back has to follow it.
    bench.repo.bundle(names[0], "0.9.0", bench.repo.other_spec(), seq=1)
    bench.repo.environment("prod", {**dict.fromkeys(names[1:], "1.0.0"), names[0]: "0.9.0"})
    bench.repo.commit("Bring back something older")
    assert _look(bench) == "Equivocation"
    bench.repo.environment("prod", dict.fromkeys(names, "1.0.0"))
    bench.repo.commit("Bring back what there was")
    assert _reconciler(bench).reconcile(bench.lease()).outcomes["prod"] == Ready(1)
