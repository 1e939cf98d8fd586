"""Requests that are refused by their head: too large, for another host, from another site."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from service_bench import APPROVE, DRAFT, Bench, serving, spec_of

from kneo.errors import Invalid
from kneo.service.callers import check_reachable
from kneo.settings import from_env

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
RUN = {"input": "hi", "spec": spec_of(DRAFT, APPROVE)}


@pytest.fixture(scope="module")
def open_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A service without keys."""
    folder, paths = tmp_path_factory.mktemp("open"), [*sys.path]
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", KNEO_SERV_API_KEYS="") as made:
        yield made
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


@pytest.fixture(scope="module")
def hosted_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A service with keys that is asked by one name."""
    folder, paths = tmp_path_factory.mktemp("hosted"), [*sys.path]
    variables = {"KNEO_SERV_ALLOWED_HOSTS": "kneo.example.org", "KNEO_SERV_OPEN_PAGES": "metrics"}
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", **variables) as made:
        yield made
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


def port_of(bench: Bench) -> str:
    return bench.url.rpartition(":")[2]


def ask(bench: Bench, method: str = "GET", path: str = "/v1/runs", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value.replace("PORT", port_of(bench)) for name, value in headers.items()}
    return httpx.request(
        method, f"{bench.url}{path}", headers=named, json=RUN if method == "POST" else None, timeout=240
    )


def code(answer: httpx.Response) -> str:
    return str(answer.json().get("error", "")) if answer.status_code >= 400 else ""


@pytest.mark.parametrize(
    "name", ["Host", "Authorization", "X-Kneo-Api-Key", "Idempotency-Key", "Origin", "Content-Type"]
)
def test_a_header_that_decides_is_there_once(bench: Bench, name: str) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", int(port_of(bench)), timeout=60)) as connection:
        connection.putrequest("GET", "/v1/runs", skip_host=True)
        for header, value in (("Host", "127.0.0.1"), ("Authorization", "Bearer admin-key"), (name, "another")):
            connection.putheader(header, value)
        if name not in {"Host", "Authorization"}:
            connection.putheader(name.lower(), "another")
        connection.endheaders()
        response = connection.getresponse()
        refused = json.loads(response.read())
    assert (response.status, refused["error"]) == (400, "repeated_header")
    assert name.lower() in refused["message"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:PORT",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "[::1",
        "10.0.0.7:PORT",
        "0.0.0.0",
        "",
    ],
)
def test_without_keys_a_foreign_host_is_refused(open_bench: Bench, host: str) -> None:
    before = ask(open_bench).json()["total"]
    for method, path in (("GET", "/v1/runs"), ("POST", "/v1/runs"), ("GET", "/openapi.json"), ("GET", "/metrics")):
        assert code(ask(open_bench, method, path, Host=host)) == "host_not_allowed", (method, path)
    assert ask(open_bench).json()["total"] == before


@pytest.mark.parametrize(
    "host", ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST", "localhost.:PORT", "[::1]:PORT", "127.8.9.1"]
)
def test_without_keys_this_machine_is_answered(open_bench: Bench, host: str) -> None:
    assert ask(open_bench, Host=host).status_code == 200
    assert ask(open_bench, "POST", Host=host).status_code == 200


def test_an_orchestrator_may_probe_by_any_name(open_bench: Bench) -> None:
    for path in ("/livez", "/v1/livez", "/healthz", "/readyz"):
        assert ask(open_bench, "GET", path, Host="10.0.0.7:8000").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://127.0.0.1:PORT", "Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
    ],
)
def test_without_keys_a_page_of_another_site_changes_nothing(open_bench: Bench, headers: dict[str, str]) -> None:
    task = open_bench.paused()["continuation_id"]
    before = ask(open_bench).json()["total"]
    for path in ("/v1/runs", f"/v1/human-tasks/{task}/claim", "/runs"):
        refused = ask(open_bench, "POST", path, **headers)
        assert (refused.status_code, code(refused)) == (403, "origin_not_allowed"), path
    assert ask(open_bench).json()["total"] == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:PORT"},
        {"Origin": "http://127.0.0.1:PORT", "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
    ],
)
def test_without_keys_commands_and_own_pages_are_answered(open_bench: Bench, headers: dict[str, str]) -> None:
    assert ask(open_bench, "POST", **headers).status_code == 200


def test_a_link_on_another_page_may_be_followed_and_nothing_else_read(open_bench: Bench) -> None:
    followed = ask(open_bench, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert followed.status_code == 200
    assert code(ask(open_bench, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")) == "origin_not_allowed"


def test_with_keys_the_key_decides(bench: Bench) -> None:
    key = {"Authorization": "Bearer operator-key"}
    foreign = {"Host": "kneo.internal", "Origin": "https://portal.internal", "Sec_Fetch_Site": "cross-site"}
    assert ask(bench, "POST", **foreign, **key).status_code == 200
    assert ask(bench, "POST", **foreign).status_code == 401


def test_with_keys_hosts_may_be_listed(hosted_bench: Bench) -> None:
    key = {"Authorization": "Bearer operator-key"}
    assert ask(hosted_bench, Host="kneo.example.org", **key).status_code == 200
    assert ask(hosted_bench, Host="Kneo.Example.org:8443", **key).status_code == 200
    assert code(ask(hosted_bench, Host="evil.test", **key)) == "host_not_allowed"
    assert code(ask(hosted_bench, **key)) == "host_not_allowed"


PAGES = ("/openapi.json", "/docs", "/redoc", "/docs/oauth2-redirect", "/metrics")


def test_with_keys_pages_beside_the_api_need_one(bench: Bench) -> None:
    for path in PAGES:
        refused = ask(bench, "GET", path)
        assert (refused.status_code, code(refused)) == (401, "unauthorized"), path
        assert ask(bench, "GET", path, Authorization="Bearer viewer-key").status_code == 200, path
        assert ask(bench, "GET", path, Authorization="Bearer another-key").status_code == 401, path


def test_without_keys_pages_are_open(open_bench: Bench) -> None:
    assert {ask(open_bench, "GET", path).status_code for path in PAGES} == {200}


def test_a_page_may_be_opened(hosted_bench: Bench) -> None:
    statuses = {path: ask(hosted_bench, "GET", path, Host="kneo.example.org").status_code for path in PAGES}
    assert {path for path, status in statuses.items() if status == 200} == {"/metrics"}


@pytest.mark.parametrize("where", ["one header", "many headers", "path", "query"])
def test_a_large_head_is_refused(bench: Bench, where: str) -> None:
    url, headers = f"{bench.url}/v1/runs", {"Authorization": "Bearer viewer-key"}
    if where == "one header":
        headers["X-Large"] = "x" * 33_000
    elif where == "many headers":
        headers |= {f"X-Large-{number}": "x" * 100 for number in range(330)}
    elif where == "path":
        url += "/" + "x" * 33_000
    else:
        url += "?q=" + "x" * 33_000
    answer = httpx.get(url, headers=headers, timeout=240)
    assert answer.status_code in {400, 431}
    honest = httpx.get(
        f"{bench.url}/v1/runs", headers={"Authorization": "Bearer viewer-key", "X-Trace": "x" * 16_000}, timeout=240
    )
    assert honest.status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "kneo.example.org", ""])
def test_a_service_without_keys_listens_on_this_machine_only(host: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no API keys") as refused:
        check_reachable(from_env({}, tmp_path), host)
    assert refused.value.code == "keys_required"
    check_reachable(from_env({"KNEO_SERV_API_KEYS": "ann:key:admin"}, tmp_path), host)
    check_reachable(from_env({"KNEO_SERV_ALLOW_ANONYMOUS": "true"}, tmp_path), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_without_keys_this_machine_may_be_listened_on(host: str, tmp_path: Path) -> None:
    check_reachable(from_env({}, tmp_path), host)


@pytest.mark.parametrize(
    "variables",
    [
        {"KNEO_SERV_ALLOWED_HOSTS": "https://kneo.example.org"},
        {"KNEO_SERV_ALLOWED_HOSTS": "kneo.example.org:8000"},
        {"KNEO_SERV_OPEN_PAGES": "everything"},
        {"KNEO_SERV_MAX_HEADER_BYTES": "0"},
        {"KNEO_SERV_REQUEST_TIMEOUT_SECONDS": "0"},
    ],
)
def test_settings_that_make_no_sense_are_refused(variables: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=next(iter(variables))):
        from_env(variables, tmp_path)
