"""A GitHub App's tokens, from a server that answers as GitHub's API does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from git_hosts import BACKEND, TOKEN, GitHub, Server

from kneo.clock import ManualClock, SystemClock
from kneo.controller.source.address import parse_address
from kneo.controller.source.github_app import InstallationTokens, api_of
from kneo.controller.source.mirror import Mirror
from kneo.errors import Invalid, Transient
from kneo.settings import GitCredentials

pytestmark = pytest.mark.skipif(BACKEND is None, reason="needs git-http-backend")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path, ask_client=False)
    server.http.logins.clear()
    yield server
    server.stop()


@pytest.fixture
def github(server: Server, clock: ManualClock, tmp_path: Path) -> GitHub:
    server.http.github = GitHub(tmp_path, clock)
    return server.http.github


@pytest.fixture
def credentials(server: Server, github: GitHub) -> GitCredentials:
    return GitCredentials(
        ca_file=server.cert,
        github_app_id=github.app,
        github_installation_id=github.installation,
        github_app_key_file=github.key_file,
    )


@pytest.fixture
def tokens(server: Server, credentials: GitCredentials, clock: ManualClock) -> InstallationTokens:
    return InstallationTokens(credentials, parse_address(server.url("team/acme.git")), clock=clock)


def test_a_token_reads_one_repository_and_is_used_until_shortly_before_its_end(
    tokens: InstallationTokens, github: GitHub, clock: ManualClock
) -> None:
    first = tokens.token()
    assert github.asked == [{"repositories": ["acme"], "permissions": {"contents": "read"}}]
    clock.advance(timedelta(minutes=54))
    assert tokens.token() == first
    clock.advance(timedelta(minutes=2))
    assert tokens.token() != first
    assert len(github.asked) == 2


def test_a_token_that_the_host_refused_is_not_used_again(tokens: InstallationTokens, github: GitHub) -> None:
    first = tokens.token()
    tokens.forget()
    assert tokens.token() != first


def test_a_push_asks_for_the_permission_to_write(
    server: Server, credentials: GitCredentials, clock: ManualClock, github: GitHub
) -> None:
    InstallationTokens(credentials, parse_address(server.url("acme")), write=True, clock=clock).token()
    assert github.asked == [{"repositories": ["acme"], "permissions": {"contents": "write"}}]


@pytest.mark.parametrize(
    ("changed", "status", "hint"),
    [
        ({"github_app_id": "another"}, 401, "GITHUB_APP_ID"),
        ({"github_installation_id": "12"}, 404, "GITHUB_INSTALLATION_ID"),
    ],
)
def test_a_refused_app_is_told_what_to_check(
    server: Server, credentials: GitCredentials, clock: ManualClock, changed: dict[str, str], status: int, hint: str
) -> None:
    tokens = InstallationTokens(replace(credentials, **changed), parse_address(server.url("acme")), clock=clock)
    with pytest.raises(Transient, match=f"HTTP {status}") as refused:
        tokens.token()
    assert refused.value.code == "FetchFailed"
    assert hint in str(refused.value.hint)


def test_a_key_file_with_something_else_is_named_and_not_shown(
    server: Server, credentials: GitCredentials, clock: ManualClock, tmp_path: Path
) -> None:
    for content in (b"s3cret", b"", b"-----BEGIN RSA PRIVATE KEY-----\ns3cret\n-----END RSA PRIVATE KEY-----\n"):
        key = tmp_path / "other.pem"
        key.write_bytes(content)
        tokens = InstallationTokens(
            replace(credentials, github_app_key_file=key), parse_address(server.url("acme")), clock=clock
        )
        with pytest.raises(Invalid, match=str(key)) as refused:
            tokens.token()
        assert "s3cret" not in str(refused.value)


def test_an_api_with_an_unknown_certificate_is_not_asked(
    server: Server, credentials: GitCredentials, clock: ManualClock
) -> None:
    tokens = InstallationTokens(replace(credentials, ca_file=None), parse_address(server.url("acme")), clock=clock)
    with pytest.raises(Transient, match="did not answer"):
        tokens.token()
    assert server.seen == []


def test_an_answer_that_is_no_token_is_refused(tokens: InstallationTokens, github: GitHub) -> None:
    for answer in (
        {},
        {"token": "a b", "expires_at": "2026-01-31T13:00:00Z"},
        {"token": "x", "expires_at": "soon"},
        [],
        None,
    ):
        github.answer = lambda *_, answer=answer: (
            (201, answer) if isinstance(answer, dict) and "token" in answer else (200, answer)
        )  # type: ignore[method-assign]
        with pytest.raises(Transient):
            tokens.token()


def test_the_api_is_that_of_the_repositorys_host() -> None:
    assert api_of(parse_address("https://github.com/acme/config.git")) == "https://api.github.com"
    assert api_of(parse_address("https://acme.ghe.com/acme/config")) == "https://api.acme.ghe.com"
    assert api_of(parse_address("https://git.acme.test:8443/acme/config")) == "https://git.acme.test:8443/api/v3"


def test_a_mirror_logs_in_with_a_token_of_the_app(server: Server, credentials: GitCredentials, tmp_path: Path) -> None:
    server.http.github = GitHub(tmp_path, SystemClock())
    key = replace(credentials, github_app_key_file=server.http.github.key_file)
    mirror = Mirror(server.url(), "main", tmp_path / "state", key)
    with pytest.raises(Transient) as refused:
        mirror.poll()
    assert "not found" in str(refused.value)  # it was let in, and there is no repository
    assert [login.partition(":")[0] for login in server.logins] == ["x-access-token"]
    kept = [file.read_bytes() for file in (tmp_path / "state").rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in content for content in kept)
