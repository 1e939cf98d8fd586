"""What Git hosts are told: over real HTTP, as each of them wants to hear it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from config_repo import ConfigRepo
from controller_bench import Bench

from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.notify.delivery import Courier
from kneo.settings import NOTIFY_CHANNELS, Settings, from_env
from kneo.store.engine import Store

Heard = list[tuple[str, str, dict[str, object]]]


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


@pytest.fixture
def host() -> Iterator[tuple[str, Heard]]:
    """A Git host that writes down path, credentials and body of what it is sent."""
    heard: Heard = []

    class Host(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((self.path, self.headers.get("Authorization", ""), json.loads(body)))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/api/acme", heard
    server.shutdown()
    thread.join()
    server.server_close()


def settings_for(channel: str, address: str, folder: Path) -> Settings:
    return from_env({f"KNEO_SERV_NOTIFY_{channel.upper()}": address, "KNEO_SERV_NOTIFY_TOKEN": "t0ken"}, folder)


def told(bench: Bench, host: tuple[str, Heard], channel: str) -> Heard:
    """Release one bundle that holds and one that does not, and deliver what is to be said of it."""
    repo: ConfigRepo = bench.repo
    repo.bundle("mail", "1.0.0")
    repo.bundle("bank", "1.0.0")
    repo.tamper("bank", "1.0.0")
    repo.environment("prod", {"mail": "1.0.0", "bank": "1.0.0"})
    repo.commit("Release two")
    mirror = Mirror(str(repo.folder), "main", bench.folder / "mirrors")
    Reconciler(bench.store, mirror, repo.pin, channels=(channel,)).reconcile(bench.lease())
    address, heard = host
    courier = Courier(bench.store, settings_for(channel, address, bench.folder))
    assert [courier.deliver_due(), courier.deliver_due()] == [2, 0]
    return heard


@pytest.mark.parametrize(
    ("channel", "path", "good", "bad"),
    [
        ("github", "/api/acme/statuses/{commit}", "success", "failure"),
        ("gitea", "/api/acme/statuses/{commit}", "success", "failure"),
        ("gitlab", "/api/acme/statuses/{commit}", "success", "failed"),
        ("bitbucket", "/api/acme/commit/{commit}/statuses/build", "SUCCESSFUL", "FAILED"),
    ],
)
def test_each_host_hears_of_the_commit_in_its_own_words(
    bench: Bench, host: tuple[str, Heard], channel: str, path: str, good: str, bad: str
) -> None:
    heard = told(bench, host, channel)
    assert {body["state"] for _, _, body in heard} == {good, bad}
    for where, credentials, body in heard:
        assert (where, credentials) == (path.format(commit=bench.repo.head()), "Bearer t0ken")
        assert "prod" in str(body.get("context", body.get("name")))
        assert len(str(body["description"])) <= 140


def test_bitbucket_gets_what_it_insists_on(bench: Bench, host: tuple[str, Heard]) -> None:
    for _, _, body in told(bench, host, "bitbucket"):
        assert set(body) == {"key", "name", "state", "description", "url"}
        assert body["key"] == "kneo/prod"
        assert str(body["url"]).endswith(f"/commit/{bench.repo.head()}")


def test_only_hosts_are_shown_the_token(bench: Bench, host: tuple[str, Heard]) -> None:
    assert {credentials for _, credentials, _ in told(bench, host, "webhook")} == {""}
    assert "bitbucket" in NOTIFY_CHANNELS
