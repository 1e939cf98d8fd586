"""Tools that are HTTP requests: where arguments and secrets go, and what comes back."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import pytest
from raw_web import RawWeb, WebCall, page, raw_web
from rules_now import always, inside_prod
from tool_calls import KEY, backend_context, filtered, tool_call

from kneo.agents.http import HttpFailed
from kneo.agents.tools.http import HttpTools
from kneo.errors import Forbidden, KneoError
from kneo.redaction import REDACTED
from kneo.spec.policy import ToolRules

HERE = {"tools": {"permissions": {"allow_network": True, "allowed_domains": ["127.0.0.1"]}}}
PARAMETERS = {name: {} for name in ("id", "q", "tags", "amount", "note")}
SECRETS = {"CRM_TOKEN": "hunter2hunter2", "CRM_USER": "ann-of-crm", "OPENAI_API_KEY": "sk-1"}


def request(
    http: Mapping[str, object],
    arguments: Mapping[str, object] | None = None,
    answer: Callable[[WebCall], bytes] = lambda _: page(b"ok"),
    agent: Mapping[str, object] = HERE,
    secrets: Mapping[str, str] = SECRETS,
) -> tuple[object, RawWeb]:
    """Call a tool whose URL begins at a server on loopback, which its environment names."""

    async def main() -> tuple[object, RawWeb]:
        async with raw_web(answer) as web:
            tools = HttpTools(backend_context(secrets.get, inside_prod(web.port)))
            declared = {**http, "url": f"http://127.0.0.1:{web.port}{http['url']}"}
            made = tool_call(
                arguments,
                agent=agent,
                environment="prod",
                http=declared,
                parameters={"type": "object", "properties": PARAMETERS},
            )
            return await filtered(tools).call(made), web

    return asyncio.run(main())


def refused(http: Mapping[str, object], arguments: Mapping[str, object] | None = None, **more: object) -> KneoError:
    with pytest.raises(KneoError) as found:
        request(http, arguments, **more)  # type: ignore[arg-type]
    return found.value


# ---- requests -------------------------------------------------------------------------------------------------------


def test_arguments_stand_percent_encoded_in_path_and_query() -> None:
    http = {
        "url": "/users/{id}/orders?q={q}&fixed=1#{id}",
        "query": {"tag": "{tags}", "n": "<{amount}>", "x": "{note}"},
    }
    arguments = {"id": "a/b?c#d&é ..", "q": "a&b=c", "tags": ["x y", 2, True], "amount": 1.5}
    _, web = request(http, arguments)
    (call,) = web.calls
    assert call.method == "GET"
    assert call.target == (
        "/users/a%2Fb%3Fc%23d%26%C3%A9%20../orders?q=a%26b%3Dc&fixed=1&tag=x+y&tag=2&tag=true&n=%3C1.5%3E"
    )
    assert call.headers["idempotency-key"] == KEY


def test_arguments_stand_in_headers_and_body() -> None:
    http = {
        "method": "POST",
        "url": "/x",
        "headers": {"X-Id": "user {id}", "X-Note": "{note}"},
        "body": {
            "amount": "{amount}",
            "note": "{note}",
            "text": "for {id}",
            "list": ["{tags}", "{note}"],
            "{id}": "{other}",
        },
    }
    _, web = request(http, {"id": "u-1", "amount": 5, "tags": [1]})
    (call,) = web.calls
    assert call.headers["x-id"] == "user u-1"
    assert "x-note" not in call.headers
    assert call.headers["content-type"] == "application/json"
    assert json.loads(call.body) == {"amount": 5, "text": "for u-1", "list": [[1]], "{id}": "{other}"}


def test_without_a_body_the_arguments_that_stand_nowhere_else_are_sent() -> None:
    http = {"method": "PUT", "url": "/users/{id}", "query": {"q": "{q}"}}
    _, web = request(http, {"id": "u-1", "q": "x", "amount": 5, "note": None})
    assert json.loads(web.calls[0].body) == {"amount": 5, "note": None}
    _, web = request({"method": "DELETE", "url": "/users/{id}"}, {"id": "u-1", "amount": 5})
    assert web.calls[0].body == b""


def test_a_text_is_sent_as_text() -> None:
    http = {"method": "POST", "url": "/x", "body": "hello {id} {other}", "headers": {"Idempotency-Key": "mine"}}
    _, web = request(http, {"id": "é"})
    (call,) = web.calls
    assert call.body == "hello é {other}".encode()
    assert call.headers["content-type"] == "text/plain; charset=utf-8"
    assert call.headers["idempotency-key"] == KEY


@pytest.mark.parametrize(
    ("http", "arguments", "code"),
    [
        ({"url": "/users/{id}"}, {}, "argument_missing"),
        ({"url": "/users/{id}"}, {"id": None}, "argument_missing"),
        ({"url": "/users/{id}"}, {"id": ""}, "argument_invalid"),
        ({"url": "/users/{id}/x"}, {"id": ".."}, "argument_invalid"),
        ({"url": "/users/{id}{q}/x"}, {"id": ".", "q": "."}, "argument_invalid"),
        ({"url": "/users/{id}"}, {"id": ["a"]}, "argument_invalid"),
        ({"url": "/x", "query": {"q": "{q}"}}, {"q": {"a": 1}}, "argument_invalid"),
        ({"url": "/x", "headers": {"X-A": "{q}"}}, {"q": "a\r\nX-B: 1"}, "header_denied"),
        ({"url": "{id}/x"}, {"id": ".evil.example"}, "url_invalid"),
        ({"url": "@{id}/x"}, {"id": "evil.example"}, "url_invalid"),
    ],
)
def test_an_argument_never_changes_what_is_asked(
    http: dict[str, object], arguments: dict[str, object], code: str
) -> None:
    assert refused(http, arguments).code == code


@pytest.mark.parametrize(
    "url", ["{id}://a.example/", "https://{id}/", "https://{id}.example/", "https://a{id}", "//a.example/", "/x"]
)
def test_no_argument_stands_in_scheme_or_host(url: str) -> None:
    made = tool_call({"id": "https"}, agent=HERE, http={"url": url}, parameters={"properties": {"id": {}}})
    with pytest.raises(KneoError) as found:
        asyncio.run(HttpTools(backend_context(SECRETS.get)).call(made))
    assert found.value.code == "url_invalid"


# ---- hosts ----------------------------------------------------------------------------------------------------------


def test_only_domains_of_the_agent_and_services_of_the_environment_are_reached() -> None:
    other = {"tools": {"permissions": {"allow_network": True, "allowed_domains": ["a.example"]}}}
    assert refused({"url": "/x"}, agent=other).code == "domain_denied"
    assert refused({"url": "/x"}, agent={}).code == "domain_denied"

    async def main() -> None:
        async with raw_web(lambda _: page(b"ok")) as web:
            tools = HttpTools(backend_context(SECRETS.get, inside_prod(web.port)))
            for url, code in (
                (f"http://127.0.0.1:{web.port}/", "url_denied"),
                (f"https://127.0.0.1:{web.port}/", "address_denied"),
            ):
                with pytest.raises(Forbidden) as found:
                    await tools.call(tool_call(agent=HERE, environment="dev", http={"url": url}))
                assert found.value.code == code
            assert web.connections == 0

    asyncio.run(main())


# ---- secrets --------------------------------------------------------------------------------------------------------


def test_secrets_are_sent_and_never_come_back() -> None:
    http = {"url": "/x", "secret_headers": {"Authorization": "Bearer ${CRM_TOKEN}", "X-User": "${CRM_USER} {id}"}}

    def echo(call: WebCall) -> bytes:
        return page(json.dumps(call.headers).encode(), content_type="application/json")

    result, web = request(http, {"id": "u-1"}, echo)
    assert web.calls[0].headers["authorization"] == "Bearer hunter2hunter2"
    assert web.calls[0].headers["x-user"] == "ann-of-crm {id}"
    assert isinstance(result, dict)
    assert "hunter2" not in json.dumps(result)
    assert "ann-of-crm" not in json.dumps(result)
    assert result["host"].startswith("127.0.0.1")

    def escaped(call: WebCall) -> bytes:
        text = json.dumps(call.headers).replace("hunter2", "h\\u0075nter\\u0032").replace("ann-of", "ann\\-of")
        return page(f"<pre>{text}</pre>".encode())

    assert "nter" not in str(request(http, {"id": "u-1"}, escaped)[0])
    assert "-of-crm" not in str(request(http, {"id": "u-1"}, escaped)[0])

    error = refused(http, {}, answer=lambda call: page(json.dumps(call.headers).encode(), 500))
    assert error.code == "http_status"
    assert "500" in error.message
    assert "hunter2" not in str(error)


LONG = "Sk-" + 'aB3/+=x&y z"q\\' * 6
"""A secret that every encoding writes differently, and that is longer than what messages show of a text."""

ECHOED = {
    "redirect to a path": lambda secret: page(status=302, location=f"/{quote(secret, safe='')}/x"),
    "redirect to a part of a path": lambda secret: page(status=302, location=f"/{'x' * 150}/{quote(secret)}"),
    "redirect to a host": lambda _: page(status=302, location="https://hunter2HUNTER2.evil.example/"),
    "encoding": lambda secret: page(b"x", content_encoding=secret),
    "a line that is no header": lambda secret: f"HTTP/1.1 200 OK\r\n{secret}\r\n\r\n".encode(),
    "a status": lambda secret: page(secret.encode() * 30, status=500),
    "a status, cut within the secret": lambda secret: page(b"." * 990 + secret.encode(), status=500),
    "percent": lambda secret: page(f"/x?key={quote(secret, safe='')}&y={quote_plus(secret)}".encode()),
    "percent, in lower case": lambda secret: page("".join(f"%{byte:02x}" for byte in secret.encode()).encode()),
    "json in json": lambda secret: page(json.dumps(json.dumps({"key": secret})).encode()),
    "json by number": lambda secret: page("".join(f"\\u{ord(each):04X}" for each in secret).encode()),
    "html": lambda secret: page(html.escape(secret).encode()),
    "basic": lambda secret: page(b"Basic " + base64.b64encode(f"ann:{secret}".encode())),
    "base64, in a URL": lambda secret: page(base64.urlsafe_b64encode(f"token={secret}.".encode())),
    "a name": lambda secret: page(json.dumps({secret: [{"a": {secret: 1}}]}).encode(), content_type="application/json"),
    "a body that is cut": lambda secret: page(b"." * (1_000_000 - 12) + secret.encode()),
}


def letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize("secret", ["hunter2HUNTER2", LONG], ids=["short", "long"])
@pytest.mark.parametrize("place", ECHOED)
def test_a_secret_is_in_nothing_that_a_call_leads_to(place: str, secret: str) -> None:
    http = {"url": "/x", "method": "POST", "secret_headers": {"X-Key": "${CRM_TOKEN}"}}

    def answer(call: WebCall) -> bytes:
        if call.target != "/x":
            return b"HTTP/1.1 nonsense\r\n\r\n"
        return ECHOED[place](call.headers["x-key"])

    if place == "redirect to a host":
        secret = "hunter2HUNTER2"
    anywhere = {"tools": {"permissions": {"allow_network": True, "allowed_domains": ["127.0.0.1", "*.com"]}}}
    try:
        result, web = request(http, {}, answer, anywhere, {"CRM_TOKEN": secret})
        shown = result if isinstance(result, str) else json.dumps(result)
        assert web.calls
    except KneoError as error:
        shown = f"{error} {error.details}"
    for text in (shown, unquote(shown), unquote_plus(shown), html.unescape(shown), escaped_text(shown)):
        assert letters(secret)[:10] not in letters(text), shown[:3_000]
    encoded = [base64.b64encode(b"." * shift + secret.encode())[4:-4].decode() for shift in range(3)]
    assert not [each for each in encoded if each in shown or each.translate(URL_SAFE) in shown]


URL_SAFE = str.maketrans("+/", "-_")


def escaped_text(text: str) -> str:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)


def test_the_password_of_basic_authentication_is_hidden_alone_too() -> None:
    http = {"url": "/x", "secret_headers": {"Authorization": "Basic ${CRM_BASIC}"}}
    basic = base64.b64encode(b"ann-of-crm:correct-horse").decode()
    result, _ = request(http, {}, lambda _: page(b"ann-of-crm with correct-horse"), secrets={"CRM_BASIC": basic})
    assert result == f"ann-of-crm with {REDACTED}"


def test_what_is_no_secret_of_the_call_stays() -> None:
    http = {"url": "/x", "secret_headers": {"Authorization": "Bearer ${CRM_TOKEN}"}}
    body = {"Bearer": "hunter2 of 100%", "path": "C:\\x\\hunter2", "id": "ann-of-crm", "n": [1, None, True, 1.5]}
    result, _ = request(http, {}, lambda _: page(json.dumps(body).encode(), content_type="application/json"))
    assert result == body


def test_a_secret_that_is_not_set_or_belongs_to_a_provider_is_refused() -> None:
    def denied(name: str) -> KneoError:
        return refused({"url": "/x", "secret_headers": {"X-A": f"${{{name}}}"}})

    assert denied("MISSING").code == "secret_missing"
    assert "MISSING_FILE" in str(denied("MISSING"))
    assert denied("OPENAI_API_KEY").code == "secret_denied"


def test_a_secret_does_not_follow_a_redirect_to_another_origin() -> None:
    async def main() -> None:
        async with raw_web(lambda _: page(b"there")) as other:
            target = f"http://127.0.0.1:{other.port}/"
            async with raw_web(lambda _: page(status=302, location=target)) as web:
                inside = [f"127.0.0.1:{each.port}" for each in (web, other)]
                http = {"url": f"http://127.0.0.1:{web.port}/", "secret_headers": {"X-Token": "${CRM_TOKEN}"}}
                made = tool_call(agent=HERE, http=http)
                context = backend_context(SECRETS.get, always(ToolRules(inside=inside)))
                assert await HttpTools(context).call(made) == "there"
                assert web.calls[0].headers["x-token"] == "hunter2hunter2"
                assert "x-token" not in other.calls[0].headers

    asyncio.run(main())


# ---- responses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "media_type", "result"),
    [
        (b'{"a": [1, null]}', "application/json", {"a": [1, None]}),
        (b'{"a": 1}', "application/problem+json", {"a": 1}),
        (b'{"a": 1}', "text/plain", '{"a": 1}'),
        (b"{", "application/json", "{"),
        (b"NaN", "application/json", "NaN"),
        (b"[" * 100_000, "application/json", "[" * 100_000),
        (b"", "text/plain", {"status": 200}),
        (b"a\x00\xffb", "application/octet-stream", "a\ufffd\ufffdb"),
    ],
)
def test_a_response_is_json_where_it_says_so_and_text_otherwise(body: bytes, media_type: str, result: object) -> None:
    assert request({"url": "/x"}, answer=lambda _: page(body, content_type=media_type))[0] == result


def test_a_response_of_ten_megabytes_is_cut() -> None:
    result, _ = request({"url": "/x"}, answer=lambda _: page(b"x" * 10_000_000, content_type="application/json"))
    assert isinstance(result, str)
    assert result.endswith("x [cut: more than 1000000 bytes]")
    assert len(result) < 1_000_100


@pytest.mark.parametrize("status", [300, 400, 404, 500])
def test_another_status_is_a_failed_call(status: int) -> None:
    with pytest.raises(HttpFailed, match=f"status {status}: no such user"):
        request({"url": "/x"}, answer=lambda _: page(b"no such user", status))
