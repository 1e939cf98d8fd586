from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from kneo_process import eventually
from oidc_issuer import OidcIssuer, Response, jwk_of, rsa_key, running

from kneo.clock import ManualClock
from kneo.errors import KneoError
from kneo.extensions.oidc.discovery import (
    AGAIN,
    REFRESH,
    RETRY,
    IssuerCache,
    IssuerClient,
    IssuerKey,
    IssuerUnavailable,
)
from kneo.settings import OidcSettings

SECOND = timedelta(seconds=1)


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with running(OidcIssuer()) as made:
        yield made


def client(issuer: OidcIssuer) -> IssuerClient:
    return IssuerClient(OidcSettings(issuer=issuer.url))


@pytest.fixture
def cache(issuer: OidcIssuer, clock: ManualClock) -> IssuerCache:
    return IssuerCache(client(issuer).discover, clock)


def find(cache: IssuerCache, kid: str = "one") -> IssuerKey | None:
    return asyncio.run(cache.find_key(kid, "RS256"))


def fetches(issuer: OidcIssuer) -> int:
    return issuer.requests.count("/keys")


def test_keys_are_fetched_once(issuer: OidcIssuer, cache: IssuerCache) -> None:
    assert issuer.requests == []
    assert all(find(cache) is not None for _ in range(5))
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


def test_an_unknown_key_is_looked_for_once_a_minute(issuer: OidcIssuer, cache: IssuerCache, clock: ManualClock) -> None:
    find(cache)
    assert [find(cache, f"guess-{number}") for number in range(20)] == [None] * 20
    assert fetches(issuer) == 1, "strangers decide how often the issuer is asked"
    clock.advance(AGAIN)
    assert [find(cache, f"guess-{number}") for number in range(20)] == [None] * 20
    assert fetches(issuer) == 2


def test_a_rotated_key_is_found_and_a_withdrawn_one_is_refused(
    issuer: OidcIssuer, cache: IssuerCache, clock: ManualClock
) -> None:
    assert find(cache) is not None
    issuer.keys = [jwk_of(rsa_key("new"), kid="two")]
    clock.advance(AGAIN)
    assert find(cache, "two") is not None
    assert find(cache, "one") is None


def test_a_withdrawn_key_is_refused_after_ten_minutes_though_nobody_uses_a_new_one(
    issuer: OidcIssuer, cache: IssuerCache, clock: ManualClock
) -> None:
    assert find(cache) is not None
    issuer.keys = [jwk_of(rsa_key("new"), kid="two")]
    clock.advance(REFRESH)

    # The request that begins the fetch does not wait for it.
    eventually(lambda: find(cache) is None)


def test_keys_are_kept_while_the_issuer_is_away(issuer: OidcIssuer, cache: IssuerCache, clock: ManualClock) -> None:
    assert find(cache) is not None
    issuer.status = 500
    for _ in range(3):
        clock.advance(REFRESH)
        assert find(cache, "unknown") is None
        assert find(cache) is not None
    assert fetches(issuer) == 1
    assert len(issuer.requests) > 3


def test_an_issuer_that_is_away_at_first_is_asked_again(
    issuer: OidcIssuer, cache: IssuerCache, clock: ManualClock
) -> None:
    issuer.status = 503
    for _ in range(10):
        with pytest.raises(IssuerUnavailable, match="HTTP 503") as caught:
            find(cache)
        assert (caught.value.http_status, caught.value.code) == (503, "issuer_unavailable")
    assert len(issuer.requests) == 1
    issuer.status = 200
    clock.advance(RETRY)
    assert find(cache) is not None


def test_a_fetch_holds_no_other_request(issuer: OidcIssuer, cache: IssuerCache, clock: ManualClock) -> None:
    """While the issuer is slow, known keys are found at once, and the event loop goes on."""
    find(cache)
    clock.advance(AGAIN)
    slow, entered = threading.Event(), threading.Event()
    issuer.wait = lambda: (entered.set(), slow.wait(240))
    issuer.keys.append(jwk_of(rsa_key("new"), kid="two"))

    async def work() -> None:
        waiting = [asyncio.create_task(cache.find_key("two", "RS256")) for _ in range(5)]
        assert await asyncio.to_thread(entered.wait, 240)
        assert await cache.find_key("one", "RS256") is not None
        assert not any(task.done() for task in waiting)
        slow.set()
        assert all(await asyncio.gather(*waiting))

    asyncio.run(work())
    assert fetches(issuer) == 2


def test_a_request_that_is_gone_ends_no_fetch(issuer: OidcIssuer, cache: IssuerCache) -> None:
    slow, entered = threading.Event(), threading.Event()
    issuer.wait = lambda: (entered.set(), slow.wait(240))

    async def work() -> None:
        first, second = (asyncio.create_task(cache.find_key("one", "RS256")) for _ in range(2))
        assert await asyncio.to_thread(entered.wait, 240)
        first.cancel()
        slow.set()
        assert await second is not None

    asyncio.run(work())


def refusal(issuer: OidcIssuer) -> str:
    with pytest.raises(IssuerUnavailable) as caught:
        client(issuer).discover()
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"issuer": "https://evil.example"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"jwks_uri": None}, "jwks_uri"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        ({"jwks_uri": ["x"]}, "jwks_uri"),
        ({"jwks_uri": "https://[bad"}, "jwks_uri"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "authorization_endpoint"),
        ({"token_endpoint": "ftp://x/y"}, "token_endpoint"),
    ],
)
def test_discovery_documents_that_are_refused(issuer: OidcIssuer, changes: dict[str, object], message: str) -> None:
    issuer.discovery = changes
    assert message in refusal(issuer)


def test_an_issuer_with_tls_has_no_address_without() -> None:
    secure = IssuerClient(OidcSettings(issuer="https://login.example.org"))
    with pytest.raises(IssuerUnavailable, match="jwks_uri"):
        secure.endpoint({"jwks_uri": "http://login.example.org/keys"}, "jwks_uri")


def test_a_final_slash_belongs_to_the_issuer(issuer: OidcIssuer) -> None:
    with pytest.raises(IssuerUnavailable, match="another issuer"):
        IssuerClient(OidcSettings(issuer=f"{issuer.url}/")).discover()
    issuer.discovery = {"issuer": f"{issuer.url}/"}
    assert IssuerClient(OidcSettings(issuer=f"{issuer.url}/")).discover().keys


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b"\xff", b'{"keys": []}', b"[" * 100_000, b'{"a":' * 50_000, b" " * 300_000]
)
def test_bodies_that_are_refused(issuer: OidcIssuer, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(path: str, *_: object) -> Response:
        return 200, json.dumps(issuer.document()).encode() if path != "/keys" else body

    monkeypatch.setattr(issuer, "respond", respond)
    assert refusal(issuer)


def test_a_redirect_is_not_followed(issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "respond", lambda *_: (302, f"{issuer.url}/elsewhere".encode()))
    assert "302" in refusal(issuer)
    assert issuer.requests == ["/.well-known/openid-configuration"]


def test_an_issuer_that_does_not_listen(issuer: OidcIssuer, tmp_path: Path) -> None:
    away = OidcSettings(issuer="http://127.0.0.1:9")
    with pytest.raises(IssuerUnavailable, match="did not respond"):
        IssuerClient(away).discover()
    with pytest.raises(KneoError) as caught:
        IssuerClient(replace(away, ca_file=tmp_path / "missing.pem")).discover()
    assert caught.value.code == "invalid_setting"
