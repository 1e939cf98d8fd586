"""Processes that log in to Git hosts: https with a private authority, a GitHub App, ssh. Their secrets show nowhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from config_repo import ConfigRepo
from git_hosts import BACKEND, TOKEN, GitHub, Server, SSHHost
from kneo_process import Machine, eventually

from kneo.clock import SystemClock

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(BACKEND is None, reason="needs git-http-backend")]

WATCHED_GIT = """#!/bin/sh
for word; do printf '%s\\n' "$word" >> "$(dirname "$0")/arguments"; done
exec {git} "$@"
"""


class Host:
    """A Git host that serves one config repository, and the variables that log in to it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.repo = ConfigRepo(folder / "served" / "origin", environments=("dev", "prod"))
        for name, value in {"uploadpack.allowFilter": "true", "http.receivepack": "true"}.items():
            self.repo.git("config", name, value)
        if kind == "ssh":
            self.server: Server | SSHHost = SSHHost(folder)
            self.variables = {
                "KNEO_SERV_GIT_SSH_KEY_FILE": str(self.server.key_file),
                "KNEO_SERV_GIT_KNOWN_HOSTS_FILE": str(self.server.known_hosts_file),
            }
            return
        self.server = Server(folder, ask_client=False)
        self.variables = {"KNEO_SERV_GIT_CA_FILE": str(self.server.cert)}
        if kind == "https":
            token = folder / "token"
            token.write_text(TOKEN + "\n")
            self.variables["KNEO_SERV_GIT_TOKEN_FILE"] = str(token)
        else:
            self.server.http.logins.clear()
            github = self.server.http.github = GitHub(folder, SystemClock())
            self.variables |= {
                "KNEO_SERV_GIT_GITHUB_APP_ID": github.app,
                "KNEO_SERV_GIT_GITHUB_INSTALLATION_ID": github.installation,
                "KNEO_SERV_GIT_GITHUB_APP_KEY_FILE": str(github.key_file),
            }

    @property
    def follow(self) -> tuple[str, ...]:
        return ("--repo", self.server.url(), "--trust-root", self.repo.pin)


@pytest.fixture(params=["https", "app", "ssh"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    if request.param == "ssh" and shutil.which("ssh") is None:
        pytest.skip("needs ssh")
    (tmp_path / "host").mkdir()
    host = Host(request.param, tmp_path / "host")
    yield host
    host.server.stop()


def machine_of(folder: Path, variables: Mapping[str, str]) -> Machine:
    machine = Machine(folder, f"sqlite:///{folder / 'kneo.sqlite'}", **variables)
    programs = folder / "programs"
    programs.mkdir()
    (programs / "git").write_text(WATCHED_GIT.format(git=shutil.which("git")))
    (programs / "git").chmod(0o700)
    machine.env["PATH"] = f"{programs}:{machine.env['PATH']}"
    return machine


@pytest.fixture
def machine(host: Host, tmp_path: Path) -> Iterator[Machine]:
    machine = machine_of(tmp_path / "work", host.variables)
    yield machine
    machine.stop()


def test_a_controller_plans_and_pushes_log_in_and_show_no_secret(host: Host, machine: Machine, tmp_path: Path) -> None:
    host.repo.release("dev", "mail", "1.0.0")
    machine.kneo("controller", "run", "--once", *host.follow)
    assert [item["version"] for item in machine.json("status", "dev")["releases"]] == ["1.0.0"]

    plan = machine.json("plan", *host.follow, "--ref", "main")
    assert [item["name"] for item in plan["environments"]] == ["dev", "prod"]

    clone = tmp_path / "clone"
    host.repo.git("clone", "-q", str(host.repo.folder), str(clone))
    host.repo.git("-C", str(clone), "remote", "set-url", "origin", host.server.url())
    promote = ("promote", "mail", "--from", "dev", "--to", "prod", "--branch", "promote-mail", "--push")
    pushed = machine.json(*promote, cwd=clone)
    assert host.repo.git("rev-parse", "promote-mail") == pushed["commit"]

    arguments = (machine.folder / "programs" / "arguments").read_text()
    assert "fetch" in arguments
    assert "push" in arguments
    files = [file for folder in (machine.folder, clone) for file in folder.rglob("*") if file.is_file()]
    assert [file for file in files if TOKEN.encode() in file.read_bytes()] == []


def test_a_service_that_follows_a_remote_logs_in(host: Host, machine: Machine) -> None:
    host.repo.release("dev", "mail", "1.0.0")
    process = machine.up(*host.follow, "--interval", "1s")
    eventually(lambda: [item for item in process.get("/environments")["environments"] if item["releases"]])
    assert process.terminate() == 0
    assert TOKEN not in process.log.read_text()


def test_without_credentials_it_says_which_setting_is_missing(host: Host, tmp_path: Path) -> None:
    kept = {name: value for name, value in host.variables.items() if name == "KNEO_SERV_GIT_CA_FILE"}
    machine = machine_of(tmp_path / "bare", kept)
    done = machine.kneo("controller", "run", "--once", *host.follow, expect=None)
    assert done.returncode in {1, 75}
    wanted = "KNEO_SERV_GIT_KNOWN_HOSTS_FILE" if isinstance(host.server, SSHHost) else "KNEO_SERV_GIT_TOKEN_FILE"
    assert wanted in done.stderr


@pytest.mark.parametrize("host", ["https"], indirect=True)
def test_a_token_that_is_rotated_counts_at_the_next_look(host: Host, machine: Machine) -> None:
    file = Path(host.variables["KNEO_SERV_GIT_TOKEN_FILE"])
    file.write_text("an-old-one\n")
    assert "KNEO_SERV_GIT_TOKEN_FILE" in machine.kneo("controller", "run", "--once", *host.follow, expect=75).stderr
    file.write_text(f"{TOKEN}\n")
    machine.kneo("controller", "run", "--once", *host.follow)


@pytest.mark.parametrize("host", ["ssh"], indirect=True)
def test_a_host_with_another_key_is_not_talked_to(host: Host, machine: Machine) -> None:
    assert isinstance(host.server, SSHHost)
    known = host.server.known_hosts_file
    name = known.read_text().split()[0]
    own = (host.server.folder / "authorized_keys").read_text().split()
    known.write_text(f"{name} {own[0]} {own[1]}\n")
    done = machine.kneo("controller", "run", "--once", *host.follow, expect=75)
    assert "KNEO_SERV_GIT_KNOWN_HOSTS_FILE" in done.stderr
    assert host.server.seen == []
