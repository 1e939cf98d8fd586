"""HTTP requests of tools over real connections: what is refused never reaches a server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from raw_web import RawWeb, WebCall, page, raw_web

from kneo.agents.addresses import HostRules
from kneo.agents.http import HttpClient, HttpFailed, WebRequest, WebResponse
from kneo.clock import SystemClock
from kneo.errors import Forbidden

T = TypeVar("T")
PATIENCE = 60.0
PUBLIC = "93.184.216.34"


def run(work: Coroutine[object, object, T]) -> T:
    return asyncio.run(work)


def client(web: RawWeb, *more: RawWeb, denied: tuple[str, ...] = (), max_bytes: int = 1_000_000) -> HttpClient:
    """A client for which servers on loopback are services that its environment names."""
    inside = frozenset(f"127.0.0.1:{each.port}" for each in (web, *more))
    rules = HostRules(allowed=("127.0.0.1",), denied=denied, inside=inside)
    return HttpClient(rules, max_bytes=max_bytes)


def url(web: RawWeb, path: str = "/x") -> str:
    return f"http://127.0.0.1:{web.port}{path}"


def refused(work: Coroutine[object, object, object]) -> str:
    with pytest.raises(Forbidden) as found:
        run(work)
    return found.value.code


# ---- responses ------------------------------------------------------------------------------------------------------


def test_a_response_is_returned_with_its_status_and_type() -> None:
    async def main() -> None:
        async with raw_web(lambda _: page(b'{"a": 1}', 201, content_type="Application/JSON; charset=utf-8")) as web:
            request = WebRequest(
                url=url(web, "/x?a=1"), method="POST", headers={"X-A": "1"}, secret_headers={"X-B": "2"}, body=b"hello"
            )
            response = await client(web).send(request, PATIENCE)
            assert response == WebResponse(status=201, media_type="application/json", body=b'{"a": 1}')
            (call,) = web.calls
            assert (call.method, call.target, call.body) == ("POST", "/x?a=1", b"hello")
            assert call.headers == {
                "host": f"127.0.0.1:{web.port}",
                "accept-encoding": "identity",
                "user-agent": "kneo",
                "x-a": "1",
                "x-b": "2",
                "content-length": "5",
            }

    run(main())


def test_a_body_is_cut_while_it_is_read() -> None:
    sent = 0

    def flood(_: WebCall) -> Iterator[bytes]:
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        while True:
            sent += 10_000
            yield b"2710\r\n" + b"x" * 10_000 + b"\r\n"

    async def main() -> None:
        async with raw_web(flood) as web:
            response = await client(web, max_bytes=50_000).send(WebRequest(url=url(web)), PATIENCE)
            assert response.body == b"x" * 50_000
            assert response.is_cut

    run(main())
    assert sent < 50_000_000


def test_headers_without_end_are_a_failure() -> None:
    def flood(_: WebCall) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield b"x-a: " + b"x" * 10_000 + b"\r\n"

    async def main() -> None:
        async with raw_web(flood) as web:
            with pytest.raises(HttpFailed):
                await client(web).send(WebRequest(url=url(web)), PATIENCE)

    run(main())


def test_a_server_that_never_answers_is_left_in_time() -> None:
    async def main() -> None:
        async with raw_web(lambda _: None) as web:
            with pytest.raises(HttpFailed, match=r"took longer than 0\.05 seconds"):
                await client(web).send(WebRequest(url=url(web)), 0.05)

    run(main())


def test_a_closed_port_and_a_compressed_body_are_failures() -> None:
    async def main() -> None:
        async with raw_web(lambda _: page(b"zip", content_encoding="gzip")) as web:
            with pytest.raises(HttpFailed, match="was not offered"):
                await client(web).send(WebRequest(url=url(web)), PATIENCE)
        with pytest.raises(HttpFailed, match="ConnectError"):
            await client(web).send(WebRequest(url=url(web)), PATIENCE)

    run(main())


# ---- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "0x7f000001", "2130706433", "127.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "0177.0.0.1"]
)
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    async def main() -> str:
        async with raw_web(lambda _: page(b"secret")) as web:
            rules = HostRules(allowed=("*", host.strip("[]")))
            try:
                await HttpClient(rules).send(WebRequest(url=f"https://{host}:{web.port}/"), PATIENCE)
            except Forbidden as error:
                return error.code
            except HttpFailed as error:  # a resolver that does not know this form
                return "address_denied" if "ConnectError" in str(error) else str(error)
            finally:
                assert web.connections == 0
            return "connected"

    assert run(main()) in {"address_denied", "url_denied"}


@pytest.mark.parametrize(
    "address", ["http://user@127.0.0.1:1/", "https://user@a.example/", "file:///etc/passwd", "ftp://a.example/"]
)
def test_credentials_and_other_schemes_are_refused(address: str) -> None:
    rules = HostRules(allowed=("*",), inside=frozenset({"127.0.0.1:1"}))
    assert refused(HttpClient(rules).send(WebRequest(url=address), PATIENCE)) == "url_denied"


def test_a_resolver_that_changes_its_answer_is_not_asked_twice() -> None:
    asked: list[str] = []
    connected: list[str] = []

    async def resolver(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return [PUBLIC] if len(asked) == 1 else ["127.0.0.1"]

    class Network(httpcore.AnyIOBackend):
        async def connect_tcp(self, host: str, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
            connected.append(host)
            raise httpcore.ConnectError("unreachable")

    made = HttpClient(HostRules(allowed=("a.example",)), resolver=resolver, network=Network())
    with pytest.raises(HttpFailed):
        run(made.send(WebRequest(url="https://a.example/"), PATIENCE))
    assert (asked, connected) == (["a.example"], [PUBLIC])
    assert refused(made.send(WebRequest(url="https://a.example/"), PATIENCE)) == "address_denied"
    assert connected == [PUBLIC]


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    async def resolver(_host: str, _port: int) -> Sequence[str]:
        return [PUBLIC, "169.254.169.254"]

    made = HttpClient(HostRules(allowed=("a.example",)), resolver=resolver)
    assert refused(made.send(WebRequest(url="https://a.example/"), PATIENCE)) == "address_denied"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with raw_web(lambda _: page(b"direct")) as web, raw_web(lambda _: page(b"proxied")) as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.delenv("NO_PROXY", raising=False)
            response = await client(web).send(WebRequest(url=url(web)), PATIENCE)
            assert (response.body, proxy.connections) == (b"direct", 0)

    run(main())


# ---- redirects ------------------------------------------------------------------------------------------------------


def test_a_redirect_is_followed_with_the_secrets_of_its_own_origin_only() -> None:
    async def main() -> None:
        async with raw_web(lambda _: page(b"there")) as other:
            targets = {"/a": "/b", "/b": url(other, "/c")}
            async with raw_web(lambda call: page(status=307, location=targets[call.target])) as web:
                request = WebRequest(
                    url=url(web, "/a"),
                    method="POST",
                    body=b"x",
                    headers={"Authorization": "plain", "Idempotency-Key": "k"},
                    secret_headers={"X-Token": "secret"},
                )
                response = await client(web, other).send(request, PATIENCE)
                assert response.body == b"there"
                assert [(call.target, call.headers.get("x-token")) for call in web.calls] == [
                    ("/a", "secret"),
                    ("/b", "secret"),
                ]
                (call,) = other.calls
                assert (call.method, call.body, call.headers["idempotency-key"]) == ("POST", b"x", "k")
                assert not {"x-token", "authorization"} & call.headers.keys()

    run(main())


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirected_post_becomes_a_get_without_a_body(status: int) -> None:
    async def main() -> None:
        answers = iter([page(status=status, location="/b"), page(b"done")])
        async with raw_web(lambda _: next(answers)) as web:
            request = WebRequest(url=url(web), method="POST", body=b"x", headers={"Content-Type": "text/plain"})
            assert (await client(web).send(request, PATIENCE)).body == b"done"
            assert [(call.method, call.body) for call in web.calls] == [("POST", b"x"), ("GET", b"")]
            assert "content-type" not in web.calls[1].headers

    run(main())


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://169.254.169.254/latest/meta-data/", "domain_denied"),
        ("http://metadata.internal/", "domain_denied"),
        ("//metadata.internal/", "domain_denied"),
        ("http://127.0.0.1:1/", "url_denied"),
        ("http://user@127.0.0.1/", "url_denied"),
        ("file:///etc/passwd", "url_denied"),
        ("gopher://127.0.0.1/", "url_denied"),
    ],
)
def test_each_redirect_is_checked(location: str, code: str) -> None:
    async def main() -> None:
        async with raw_web(lambda _: page(status=302, location=location)) as web:
            await client(web).send(WebRequest(url=url(web)), PATIENCE)

    assert refused(main()) == code


@pytest.mark.parametrize("name", ["169.254.169.254", "metadata.example"])
def test_a_redirect_to_the_metadata_address_is_refused_by_name_and_by_address(name: str) -> None:
    async def resolver(host: str, _port: int) -> Sequence[str]:
        return ["169.254.169.254"] if host == name else [host]

    async def main() -> None:
        async with raw_web(lambda _: page(status=302, location=f"https://{name}/")) as web:
            rules = HostRules(allowed=("*",), inside=frozenset({f"127.0.0.1:{web.port}"}))
            await HttpClient(rules, resolver=resolver).send(WebRequest(url=url(web)), PATIENCE)

    assert refused(main()) == "address_denied"


def test_redirects_end() -> None:
    async def main() -> int:
        async with raw_web(lambda _: page(status=302, location="/x")) as web:
            with pytest.raises(HttpFailed, match="more than 5 times"):
                await client(web).send(WebRequest(url=url(web)), PATIENCE)
            return len(web.calls)

    assert run(main()) == 6


# ---- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "a"),
        ("content-length", "1"),
        ("Proxy-X", "1"),
        ("A B", "1"),
        ("X-A", "1\r\nX-B: 2"),
        ("X-A", "☃"),
        ("", "1"),
    ],
)
def test_a_header_that_changes_the_request_is_refused(name: str, value: str) -> None:
    for request in (
        WebRequest(url="https://127.0.0.1/", headers={name: value}),
        WebRequest(url="https://127.0.0.1/", secret_headers={name: value}),
    ):
        assert refused(HttpClient(HostRules(allowed=("*",))).send(request, PATIENCE)) == "header_denied"


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "GET /x", ""])
def test_a_method_for_no_tool_is_refused(method: str) -> None:
    request = WebRequest(url="https://127.0.0.1/", method=method)
    assert refused(HttpClient(HostRules(allowed=("*",))).send(request, PATIENCE)) == "header_denied"


def test_secrets_are_not_in_what_is_printed() -> None:
    assert "hunter2" not in repr(WebRequest(url="https://a.example", secret_headers={"X": "hunter2"}, body=b"hunter2"))


# ---- certificates ---------------------------------------------------------------------------------------------------


def certificate(folder: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server for this host, and of a client that trusts its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = SystemClock().now()
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "tls.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + made.public_bytes(Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=made.public_bytes(Encoding.PEM).decode())


def test_the_certificate_has_to_be_of_the_host_though_an_address_is_connected_to(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path, "crm.example")

    async def resolver(_host: str, _port: int) -> Sequence[str]:
        return [PUBLIC]

    async def main() -> None:
        async with raw_web(lambda _: page(b"hello"), tls=server_tls) as web:

            class Network(httpcore.AnyIOBackend):
                async def connect_tcp(
                    self, host: str, port: int, *_: object, **__: object
                ) -> httpcore.AsyncNetworkStream:
                    assert (host, port) == (PUBLIC, 443)
                    return await super().connect_tcp("127.0.0.1", web.port)

            made = HttpClient(HostRules(allowed=("*",)), resolver=resolver, network=Network(), ssl_context=client_tls)
            response = await made.send(WebRequest(url="https://crm.example/"), PATIENCE)
            assert response.body == b"hello"
            assert web.calls[0].headers["host"] == "crm.example"
            with pytest.raises(HttpFailed, match=r"ConnectError.*certificate"):
                await made.send(WebRequest(url="https://evil.example/"), PATIENCE)
            untrusting = HttpClient(HostRules(allowed=("*",)), resolver=resolver, network=Network())
            with pytest.raises(HttpFailed, match=r"ConnectError.*certificate"):
                await untrusting.send(WebRequest(url="https://crm.example/"), PATIENCE)

    run(main())
