"""Webhooks: who may nudge, how often, and how little a nudge does. Over HTTP, on both databases."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from controller_bench import serving
from sqlalchemy import delete, insert, select

from kneo.runtime.engine.start import Starter
from kneo.service.app import create_app
from kneo.service.routes import hooks
from kneo.settings import from_env
from kneo.store import requests
from kneo.store.engine import Store

SECRET = "a shared secret"
PUSH = b'{"ref": "refs/heads/main", "repository": {"clone_url": "http://169.254.169.254/"}}'


@pytest.fixture
def http(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr(hooks, "_rate", hooks.Rate(hooks.PER_MINUTE))
    settings = replace(from_env({}, tmp_path), hook_secrets=dict.fromkeys(hooks.PROVIDERS, SECRET))
    with serving(create_app(settings, store, Starter(store, lambda spec: spec, pin=None))) as client:
        yield client


def _headers(name: str, body: bytes, delivery: str, secret: str = SECRET) -> dict[str, str]:
    provider = hooks.PROVIDERS[name]
    proof = secret if provider.token else provider.prefix + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {provider.signature: proof, provider.delivery: delivery}


def _asked(store: Store) -> list[str]:
    with store.read() as tx:
        return [item.actor for item in requests.open_requests(tx)]


@pytest.mark.parametrize("name", list(hooks.PROVIDERS))
def test_a_signed_delivery_asks_for_one_look(store: Store, http: httpx.Client, name: str) -> None:
    for number, delivery in enumerate(("1", "2", "2")):
        body = PUSH if number == 0 else PUSH + b"\n"
        answer = http.post(f"/v1/hooks/{name}", content=body, headers=_headers(name, body, delivery))
        assert (answer.status_code, answer.json()["duplicate"]) == (202, number == 2)
    assert _asked(store) == [f"hook:{name}"]


@pytest.mark.parametrize("name", list(hooks.PROVIDERS))
def test_a_delivery_without_the_secret_does_nothing(store: Store, http: httpx.Client, name: str) -> None:
    for headers in ({}, _headers(name, PUSH, "1", "another secret")):
        assert http.post(f"/v1/hooks/{name}", content=PUSH, headers=headers).status_code == 401
    changed = _headers("github", PUSH, "1")
    assert http.post("/v1/hooks/github", content=PUSH + b" ", headers=changed).status_code == 401
    assert _asked(store) == []


def test_a_huge_delivery_is_refused_before_anything_is_computed(store: Store, http: httpx.Client) -> None:
    body = b"x" * (hooks.BODY_BYTES + 1)
    assert http.post("/v1/hooks/github", content=body, headers=_headers("github", body, "1")).status_code == 413
    chunks = iter([b"x" * 65_536] * 5)
    assert http.post("/v1/hooks/github", content=chunks).status_code == 413
    assert _asked(store) == []


def test_nothing_in_a_delivery_is_followed(store: Store, http: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.setblocking(False)
        there = f"http://127.0.0.1:{inside.getsockname()[1]}/"
        names = ("clone_url", "ssh_url", "hooks_url", "statuses_url", "url")
        body = json.dumps({"repository": dict.fromkeys(names, there), "ref": "--upload-pack=touch owned"}).encode()
        for provider in hooks.PROVIDERS:
            answer = http.post(f"/v1/hooks/{provider}", content=body, headers=_headers(provider, body, "1"))
            assert answer.status_code == 202
        with pytest.raises(BlockingIOError):
            inside.accept()
    with store.read() as tx:
        assert all(there not in str(item.payload) for item in requests.open_requests(tx))
    assert len(_asked(store)) == len(hooks.PROVIDERS)


def test_a_delivery_is_not_kept_back_by_a_request_that_a_person_at_the_database_wrote(store: Store) -> None:
    assert requests.take_delivery(store, "github", ["1"])
    with store.write() as tx:
        (own,) = tx.connection.execute(select(requests.requests)).all()
        forged = own._asdict() | {"id": "ask_forged"}
        tx.connection.execute(delete(requests.requests))
        tx.connection.execute(insert(requests.requests).values(**forged))
    assert requests.take_delivery(store, "github", ["2"])
    with store.read() as tx:
        (asked,) = requests.open_requests(tx)
    assert asked.id != "ask_forged"


def test_a_captured_delivery_does_not_count_again_under_another_id(store: Store, http: httpx.Client) -> None:
    signed = [name for name, provider in hooks.PROVIDERS.items() if not provider.token]
    for name in signed:
        told = [
            http.post(f"/v1/hooks/{name}", content=PUSH, headers=_headers(name, PUSH, delivery)).json()["duplicate"]
            for delivery in ("1", "2", "", "body:3")
        ]
        assert told == [False, True, True, True], name
    assert len(_asked(store)) == len(signed)


def test_signed_deliveries_are_turned_away_when_there_are_too_many(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "_rate", hooks.Rate(2))

    def send(name: str, number: int) -> int:
        body = b"%d" % number
        return http.post(f"/v1/hooks/{name}", content=body, headers=_headers(name, body, str(number))).status_code

    assert [send("github", number) for number in range(3)] == [202, 202, 429]
    assert [send("gitlab", number) for number in range(3)] == [202, 202, 429]


def test_unsigned_deliveries_take_nothing_from_signed_ones(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_rate", hooks.Rate(2))
    codes = {http.post(f"/v1/hooks/{name}", content=b"{}").status_code for name in hooks.PROVIDERS for _ in range(5)}
    assert codes == {401}
    assert http.post("/v1/hooks/github", content=PUSH, headers=_headers("github", PUSH, "1")).status_code == 202


def test_a_provider_without_a_secret_is_not_there(store: Store, tmp_path: Path) -> None:
    app = create_app(from_env({}, tmp_path), store, Starter(store, lambda spec: spec, pin=None))
    with serving(app) as http:
        assert http.post("/v1/hooks/github", content=b"{}").status_code == 404
        assert http.post("/v1/hooks/nobody", content=b"{}").status_code == 404
