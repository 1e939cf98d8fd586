"""The mirror against a real Git server over https: tokens, certificates, redirects."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from git_hosts import BACKEND, TOKEN, Server

from kneo.controller.source.mirror import Mirror
from kneo.errors import Transient
from kneo.settings import GitCredentials

BUNDLE = "bundles/a/1.dsse.json"
pytestmark = pytest.mark.skipif(BACKEND is None, reason="needs git-http-backend")


@pytest.fixture(params=[False], ids=["server certificate"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    served = tmp_path / "served"
    served.mkdir()
    origin = served / "origin"
    commands = [
        ["git", "init", "-q", "-b", "main", str(origin)],
        ["git", "-C", str(origin), "add", "-A"],
        ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "x"],
        ["git", "-C", str(origin), "config", "uploadpack.allowFilter", "true"],
    ]
    subprocess.run(commands[0], check=True)
    (origin / BUNDLE).parent.mkdir(parents=True)
    (origin / BUNDLE).write_text("{}")
    for command in commands[1:]:
        subprocess.run(command, check=True)
    server = Server(tmp_path, ask_client=request.param)
    yield server
    server.stop()


@pytest.fixture
def credentials(server: Server, tmp_path: Path) -> GitCredentials:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    return GitCredentials(token_file=token, ca_file=server.cert)


def test_a_token_opens_the_door_and_shows_nowhere(server: Server, credentials: GitCredentials, tmp_path: Path) -> None:
    mirror = Mirror(server.url(), "main", tmp_path / "state", credentials)
    snapshot = mirror.fetch()
    mirror.accept(snapshot)
    assert snapshot.commit == mirror.poll()
    assert snapshot.read([BUNDLE]) == {BUNDLE: b"{}"}
    kept = [file.read_bytes() for file in (tmp_path / "state").rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in content for content in kept)


def refusal(mirror: Mirror) -> Transient:
    with pytest.raises(Transient) as refused:
        mirror.poll()
    assert refused.value.code == "FetchFailed"
    assert TOKEN not in str(refused.value)
    return refused.value


def test_a_wrong_or_missing_token_is_refused(server: Server, credentials: GitCredentials, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("x")
    assert "token" in str(refusal(Mirror(server.url(), "main", tmp_path / "s", GitCredentials(ca_file=server.cert))))
    bad = GitCredentials(token_file=wrong, ca_file=server.cert)
    assert "token" in str(refusal(Mirror(server.url(), "main", tmp_path / "s", bad)))


def test_an_unknown_certificate_is_refused(server: Server, credentials: GitCredentials, tmp_path: Path) -> None:
    mirror = Mirror(server.url(), "main", tmp_path / "s", GitCredentials(token_file=credentials.token_file))
    assert "certificate" in str(refusal(mirror))
    assert server.seen == []


def test_a_redirect_does_not_carry_the_token_along(server: Server, credentials: GitCredentials, tmp_path: Path) -> None:
    assert refusal(Mirror(server.url("moved"), "main", tmp_path / "s", credentials))
    assert all(path.startswith("/moved") for path in server.seen)


@pytest.mark.parametrize("server", [True], indirect=True, ids=["client certificate"])
def test_a_client_certificate_is_shown_to_who_asks(server: Server, credentials: GitCredentials, tmp_path: Path) -> None:
    mine = GitCredentials(
        token_file=credentials.token_file,
        ca_file=server.cert,
        client_cert_file=server.cert,
        client_key_file=server.key,
    )
    assert Mirror(server.url(), "main", tmp_path / "s", mine).poll()
    assert refusal(Mirror(server.url(), "main", tmp_path / "other", credentials))


def test_a_host_that_is_not_there_is_tried_again_later(tmp_path: Path) -> None:
    assert refusal(Mirror("https://127.0.0.1:9/origin", "main", tmp_path / "s"))
