"""Tokens of an OpenID Connect issuer as credentials of the API: a real service, and an issuer in this process."""

from __future__ import annotations

import asyncio
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from kneo_process import eventually
from oidc_issuer import AUDIENCE, Json, OidcIssuer, jwk_of, rsa_key, running
from service_bench import PUBLISH, Bench, serving, spec_of

from kneo.cli.compose import make_starter
from kneo.cli.main import run as command
from kneo.clock import ManualClock
from kneo.errors import Invalid
from kneo.service.app import create_app
from kneo.settings import from_env
from kneo.store import oidc_people, project_metadata
from kneo.store.engine import Store

ROLES = "operators=operator;reviewers=reviewer;boss=admin;metrics=runs:read"


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with running(OidcIssuer()) as made:
        yield made


@pytest.fixture(scope="module")
def bench(issuer: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("service")
    paths = [*sys.path]
    variables = {
        "KNEO_SERV_OIDC_ISSUER": issuer.url,
        "KNEO_SERV_OIDC_AUDIENCE": AUDIENCE,
        "KNEO_SERV_OIDC_ROLES": ROLES,
    }
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", **variables) as made:
        yield made
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


def ask(
    bench: Bench, token: str, path: str = "/v1/me", method: str = "GET", body: object = None, *, expect: int = 200
) -> Json:
    with httpx.Client(base_url=bench.url, timeout=240) as client:
        response = client.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == expect, response.text
    return response.json() if response.headers["content-type"].startswith("application/json") else {}


def test_a_token_is_a_person_with_the_roles_of_the_groups(bench: Bench, issuer: OidcIssuer) -> None:
    me = ask(bench, issuer.token(sub="ada", groups=["operators", "unrelated"]))
    assert (me["name"], me["groups"]) == ("ada", ["operators", "unrelated"])
    assert "runs:write" in me["scopes"]
    assert "human:write" not in me["scopes"]
    both = ask(bench, issuer.token(sub="ada", groups=["operators", "reviewers"]))
    assert {"runs:write", "human:write"} <= {*both["scopes"]}


def test_the_header_of_api_keys_takes_a_token(bench: Bench, issuer: OidcIssuer) -> None:
    headers = {"X-Kneo-Api-Key": issuer.token(sub="ada")}
    assert httpx.get(f"{bench.url}/v1/me", headers=headers, timeout=240).json()["name"] == "ada"


def test_without_a_role_everything_is_refused(bench: Bench, issuer: OidcIssuer) -> None:
    for groups in (None, [], ["strangers"], ["Operators"], ["operators "]):
        token = issuer.token(sub="eve", groups=groups)
        for path in ("/v1/me", "/v1/runs", "/metrics"):
            assert ask(bench, token, path, expect=403)["error"] == "no_role"
    with bench.store.read() as tx:
        assert oidc_people.find(tx, "eve") is None, "people without a role are not recorded"


def test_tokens_that_are_refused_say_why_and_are_recorded(bench: Bench, issuer: OidcIssuer) -> None:
    for changes, word in (({"aud": "other"}, "audience"), ({"iss": "https://x"}, "issuer"), ({"exp": 1}, "expired")):
        answer = ask(bench, issuer.token(**changes), expect=401)
        assert answer["error"] == "invalid_token"
        assert word in answer["message"]
    assert ask(bench, issuer.token(key=rsa_key("other")), expect=401)["error"] == "invalid_token"
    assert ask(bench, "a.b.c", expect=401)["error"] == "invalid_token"
    assert ask(bench, issuer.token(groups={"a": 1}), expect=401)["error"] == "invalid_token"
    assert ask(bench, "x" * 20, expect=401)["error"] == "unauthorized"
    assert ask(bench, f"{issuer.token(filler='y' * 20_000)}", expect=401)["error"] == "invalid_token"
    refusals = bench.get("/audit-events", event_type="request.refused", limit=50)["events"]
    assert "invalid_token" in {event["metadata"]["error"] for event in refusals}
    assert issuer.token().partition(".")[0] not in str(refusals)


def test_api_keys_work_as_before(bench: Bench) -> None:
    assert bench.get("/me", role="viewer")["name"] == "viewer"
    assert bench.get("/me", role="viewer")["groups"] == []


def test_one_name_is_one_person_and_keeps_the_spelling_of_the_key(bench: Bench, issuer: OidcIssuer) -> None:
    """The requester of a run may not answer it, by whichever credential the person comes; scopes are the credential's."""
    me = ask(bench, issuer.token(sub="Reviewer", groups=["operators"]))
    assert me["name"] == "reviewer"
    assert "human:write" not in me["scopes"]
    human = {"board": {"description": "Release?", "candidates": {"exclude": ["requester"]}}}
    spec = spec_of({"id": "approve", "kind": "human", "ref": "board"}, PUBLISH, humans=human)
    order = {"input": "hi", "spec": spec}
    run = ask(bench, issuer.token(sub="ＲＥＶＩＥＷＥＲ", groups=["operators"]), "/v1/runs", "POST", order)
    refused = bench.answer(run, role="reviewer", expect=403)
    assert refused["error"] == "separation_of_duties"
    assert bench.answer(run, role="approver")["status"] == "succeeded"


def test_the_audit_log_names_issuer_and_subject(bench: Bench, issuer: OidcIssuer) -> None:
    for _ in range(3):
        ask(bench, issuer.token(sub="ivy", groups=["operators", "red"]))
    ask(bench, issuer.token(sub="ivy", groups=["operators"], iat=int(issuer.claims()["iat"]) + 1))
    events = bench.get("/audit-events", event_type="oidc.person_recorded", actor="ivy")["events"]
    facts = [event["metadata"] for event in events]
    assert {fact["issuer"] for fact in facts} == {issuer.url}
    assert {fact["subject"] for fact in facts} == {"ivy"}
    assert sorted(fact["groups"] for fact in facts) == [["operators"], ["operators", "red"]]


def test_an_older_token_brings_no_group_back(bench: Bench, issuer: OidcIssuer) -> None:
    now = int(issuer.claims()["iat"])
    old = issuer.token(sub="max", groups=["operators", "board"], iat=now - 50)
    assert ask(bench, issuer.token(sub="max", groups=["operators"], iat=now))["groups"] == ["operators"]
    assert ask(bench, old)["groups"] == ["operators"]
    assert ask(bench, issuer.token(sub="max", groups=[], iat=now - 10), expect=403)["error"] == "no_role"
    assert ask(bench, issuer.token(sub="max", groups=["operators"], iat=now))["groups"] == ["operators"]
    ask(bench, issuer.token(sub="max", groups=[], iat=now + 1), expect=403)
    with bench.store.read() as tx:
        assert oidc_people.find(tx, "max") is None, "a person who lost every role is not known any more"
    older = issuer.token(sub="max", groups=["operators", "red"], iat=now)
    assert "newer token" in ask(bench, older, expect=403)["message"]
    with bench.store.read() as tx:
        assert oidc_people.find(tx, "max") is None


def test_many_requests_with_one_new_token(bench: Bench, issuer: OidcIssuer) -> None:
    token, statuses = issuer.token(sub="zoe", groups=["operators"]), []

    def work() -> None:
        statuses.append(ask(bench, token)["name"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert statuses == ["zoe"] * 8
    events = bench.get("/audit-events", event_type="oidc.person_recorded", actor="zoe")["events"]
    assert len(events) == 1


def test_a_service_that_starts_says_whose_tokens_it_accepts(bench: Bench, issuer: OidcIssuer) -> None:
    ask(bench, issuer.token(sub="ada", groups=["operators"]))

    def start(**changes: object) -> None:
        settings = replace(bench.settings, **changes)
        create_app(settings, bench.store, make_starter(settings, bench.store, executes=lambda: True))

    def known() -> tuple[bool, bool]:
        with bench.store.read() as tx:
            return project_metadata.has_issuer(tx), oidc_people.find(tx, "ada") is not None

    assert known() == (True, True)
    start()
    assert known() == (True, True)
    start(oidc=replace(bench.settings.oidc, issuer="https://other.example"))
    assert known() == (True, False), "people of another issuer are not those of this one"
    start(oidc=replace(bench.settings.oidc, issuer=""))
    assert known() == (False, False)
    start()
    with pytest.raises(Invalid, match="unknown role or scope 'king'"):
        start(oidc=replace(bench.settings.oidc, roles=(("a", ("king",)),)))


def test_a_service_without_keys_needs_a_token(issuer: OidcIssuer, bench: Bench) -> None:
    settings = replace(bench.settings, api_keys="", admin_api_key="")
    app = create_app(settings, bench.store, make_starter(settings, bench.store, executes=lambda: True))
    transport = httpx.ASGITransport(app=app)

    async def status(**headers: str) -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://kneo.example") as client:
            return (await client.get("/v1/me", headers=headers)).status_code

    assert asyncio.run(status()) == 401
    assert asyncio.run(status(Authorization="Bearer admin-key")) == 401
    assert asyncio.run(status(Authorization=f"Bearer {issuer.token()}")) == 200


def test_a_slow_issuer_holds_no_request_with_an_api_key(bench: Bench, issuer: OidcIssuer) -> None:
    """A service that has no keys of the issuer yet serves API keys while it fetches them."""
    slow, entered = threading.Event(), threading.Event()
    with running(OidcIssuer()) as other:
        other.wait = lambda: (entered.set(), slow.wait(240))
        variables = {
            "KNEO_SERV_OIDC_ISSUER": other.url,
            "KNEO_SERV_OIDC_AUDIENCE": AUDIENCE,
            "KNEO_SERV_OIDC_ROLES": ROLES,
        }
        folder = bench.folder / "slow"
        with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", workers=0, **variables) as second:
            names: list[object] = []
            waiting = threading.Thread(target=lambda: names.append(ask(second, other.token())["name"]))
            waiting.start()
            assert entered.wait(240)
            assert second.get("/me", role="viewer")["name"] == "viewer"
            assert names == []
            slow.set()
            waiting.join(240)
            assert names == ["ann"]
            other.keys = [jwk_of(rsa_key("new"), kid="new")]
            assert ask(second, other.token(key=rsa_key("new"), kid="new"), expect=401)["error"] == "invalid_token"


def test_a_stream_ends_when_its_token_expires(
    bench: Bench, issuer: OidcIssuer, store: Store, clock: ManualClock
) -> None:
    http = replace(bench.settings.http, stream_heartbeat_seconds=0.05)
    settings = replace(bench.settings, http=http)
    app = create_app(settings, store, make_starter(settings, store, executes=lambda: True))
    now = int(clock.now().timestamp())
    headers = {"Authorization": f"Bearer {issuer.token(iat=now, exp=now + 600)}"}

    async def follow() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://kneo.example") as client:
            reading = asyncio.create_task(client.get("/v1/human-tasks/stream", headers=headers))
            await asyncio.to_thread(eventually, lambda: app.state.service.streams.open)
            await asyncio.sleep(0.2)
            assert not reading.done()
            clock.advance(timedelta(seconds=660))
            return await asyncio.wait_for(reading, 240)

    assert asyncio.run(follow()).status_code == 200


PAGE = (Path(__file__).parents[3] / "docs/operations/oidc.md").read_text()


def test_the_settings_of_the_guide_are_settings(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    blocks = "".join(block.partition("```")[0] for block in PAGE.split("```sh\n")[1:3])
    lines = blocks.replace("/run/secrets/oidc-client", str(tmp_path / "secret")).splitlines()
    settings = from_env(dict(shlex.split(line)[0].split("=", 1) for line in lines), tmp_path)
    assert (settings.oidc.client_id, settings.oidc.client_secret) == ("kneo-console", "s3cret")
    assert (settings.oidc.audience, settings.oidc.name_claim) == ("kneo", "preferred_username")
    assert dict(settings.oidc.roles)["platform"] == ("admin",)


def test_the_commands_of_the_guide_send_a_token(
    bench: Bench,
    issuer: OidcIssuer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    get_token, from_variable, from_file = PAGE.split("```sh\n")[3].partition("```")[0].splitlines()
    assert get_token == 'export KNEO_SERV_API_KEY="$(get-token)"'
    token = issuer.token(sub="ada", groups=["operators"])
    monkeypatch.setenv("KNEO_SERV_API_KEY", token)
    words = [bench.url if word.startswith("https://") else word for word in shlex.split(from_variable)]
    assert command([*words[1:], "--json"]) == 0
    monkeypatch.delenv("KNEO_SERV_API_KEY")
    (tmp_path / "token").write_text(f"{token}\n")
    variable, _, path = from_file.partition(" ")[0].partition("=")
    assert (variable, path) == ("KNEO_SERV_API_KEY_FILE", "/run/secrets/token")
    monkeypatch.setenv(variable, str(tmp_path / "token"))
    assert command([*words[1:], "--json"]) == 0
    (tmp_path / "token").write_text(issuer.token(exp=1))
    capsys.readouterr()
    assert command(words[1:]) == 3
    assert "expired" in capsys.readouterr().err
