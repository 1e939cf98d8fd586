"""Who a request comes from: the client that a trusted proxy names, and nobody else's word."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from service_bench import serving

from kneo.background import background
from kneo.cli.serve.service import Server
from kneo.errors import Invalid
from kneo.settings import from_env

PEER = "127.0.0.1"
"""The address from which the tests ask."""


async def echo(scope, receive, send):
    """Respond with what an application learns about the caller."""
    if scope["type"] != "http":
        return
    body = json.dumps({"client": scope["client"][0], "scheme": scope["scheme"]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def listening(trusted: str, folder: Path) -> Iterator[str]:
    settings = from_env({"KNEO_SERV_TRUSTED_PROXIES": trusted, "HOME": str(folder)}, folder)
    app = echo
    app.state = SimpleNamespace()
    server = Server(app, settings.http, shutdown_seconds=1)

    def stop() -> None:
        server.should_exit = True

    with (
        socket.create_server((PEER, 0)) as listener,
        background("server", lambda: server.run(sockets=[listener]), stop),
    ):
        yield f"http://{PEER}:{listener.getsockname()[1]}"


SPOOFED = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("trusted", "headers", "client", "scheme"),
    [
        ("", SPOOFED, PEER, "http"),
        ("10.0.0.0/8", SPOOFED, PEER, "http"),
        (PEER, {}, PEER, "http"),
        (PEER, SPOOFED, "203.0.113.9", "https"),
        ("127.0.0.0/8", SPOOFED, "203.0.113.9", "https"),
        # What the client wrote stands left of what the proxy appended.
        (PEER, {"x-forwarded-for": "192.0.2.1, 203.0.113.9"}, "203.0.113.9", "http"),
        # Two proxies: the inner one appended the outer one.
        (f"{PEER},10.0.0.7", {"x-forwarded-for": "192.0.2.1, 203.0.113.9, 10.0.0.7"}, "203.0.113.9", "http"),
        (PEER, {"x-forwarded-for": "203.0.113.9, 10.0.0.7"}, "10.0.0.7", "http"),
        (PEER, {"x-forwarded-proto": "gopher"}, PEER, "http"),
    ],
)
def test_only_a_trusted_proxy_names_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str, headers: dict[str, str], client: str, scheme: str
) -> None:
    # A variable of the HTTP server, which Kneo does not read.
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with listening(trusted, tmp_path) as url:
        assert httpx.get(url, headers=headers, timeout=240).json() == {"client": client, "scheme": scheme}


@pytest.mark.parametrize("text", ["*", "proxy.example.org", "10.0.0.7/8", "10.0.0.0/33", "10.0.0.7 10.0.0.8"])
def test_what_is_no_address_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid, match="KNEO_SERV_TRUSTED_PROXIES must list addresses or networks"):
        from_env({"KNEO_SERV_TRUSTED_PROXIES": text}, tmp_path)


def test_the_access_log_and_the_console_know_the_client_behind_the_proxy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("INFO", logger="kneo_serv.service"),
        serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0, KNEO_SERV_TRUSTED_PROXIES=PEER) as bench,
    ):
        answer = httpx.post(
            f"{bench.url}/console/login",
            data={"key": "admin-key"},
            headers={**SPOOFED, "host": "kneo.example.org", "origin": "https://kneo.example.org"},
            timeout=240,
        )
        assert answer.status_code == 303, answer.text
        assert "secure" in answer.headers["set-cookie"].lower()
        refused = httpx.post(
            f"{bench.url}/console/login",
            data={"key": "admin-key"},
            headers={"host": "kneo.example.org", "origin": "http://kneo.example.org"},
            timeout=240,
        )
        assert refused.status_code == 403
    assert [record.client_ip for record in caplog.records if record.msg.startswith("%s")] == ["203.0.113.9", PEER]
