from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kneo.controller.source.address import check_ref, git_environment, git_options, parse_address, redact, write_askpass
from kneo.controller.source.git import check_version
from kneo.errors import Invalid
from kneo.settings import GitCredentials

HTTPS, SSH = parse_address("https://example.org:8443/team/repo.git"), parse_address("git@example.org:team/repo.git")


@pytest.mark.parametrize(
    ("text", "protocol", "url"),
    [
        ("https://example.org/team/repo.git", "https", None),
        ("https://example.org:8443/~x/repo", "https", None),
        ("https://[::1]:8443/repo", "https", None),
        ("ssh://git@example.org/repo.git", "ssh", None),
        ("ssh://git@example.org:2222/repo.git", "ssh", None),
        ("git@example.org:team/repo.git", "ssh", "ssh://git@example.org/team/repo.git"),
    ],
)
def test_addresses_we_use(text: str, protocol: str, url: str | None) -> None:
    address = parse_address(text)
    assert (address.protocol, address.url) == (protocol, url or text)


def test_a_folder_the_operator_named(tmp_path: Path) -> None:
    assert parse_address(str(tmp_path)).path == tmp_path
    assert parse_address(f"file://{tmp_path}").url == str(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "repo",
        "../repo",
        "/nonexistent/repo",
        "/tmp/../etc",
        "/tmp\n/x",
        "http://example.org/repo",
        "git://example.org/repo",
        "ftp://example.org/repo",
        "ext::sh -c touch% /tmp/x",
        "--upload-pack=touch /tmp/x",
        "-oProxyCommand=x",
        "ssh://-oProxyCommand=x/repo",
        "ssh://git@-oProxyCommand=x/repo",
        "git@-oProxyCommand=x:repo",
        "ssh://git@example.org/-oProxyCommand=x",
        "git@example.org:--upload-pack=x/y",
        "https://ann:hunter2@example.org/repo",
        "https://hunter2@example.org/repo",
        "ssh://git:hunter2@example.org/repo",
        "https://example.org/a/../../b",
        "https://example.org/a b",
        "https://example.org/a\nb",
        "https://example.org/a;b",
        "https://example.org/a?b",
        "https://example.org/repo\n",
        "https://" + "a" * 3000 + "/x",
        "fd::3",
    ],
)
def test_addresses_we_do_not_use(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_address(text)
    assert "hunter2" not in str(refused.value)


def test_secrets_in_messages_are_hidden() -> None:
    said = "fatal: unable to access 'https://ann:hunter2@example.org/x'\x1b[31m and ssh://t0ken@host/"
    assert redact(said) == "fatal: unable to access 'https://***@example.org/x'\\u001b[31m and ssh://***@host/"


@pytest.mark.parametrize("ref", ["main", "release/1.2", "refs/pull/7/head", "HEAD", "feature-x_y", "a+b"])
def test_refs_we_use(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    "ref",
    ["", "-x", "--upload-pack=x", "a..b", "a//b", "/a", "a/", "a.lock", "a.lock/b", "a@{1}", "a~1", "a^", "a:b", "a b",
     "a\n", "+main", "main:refs/heads/x", ".a", "a/.b", "a.", "*", "a*", "a" * 300, "refs/heads/-x"],
)  # fmt: skip
def test_refs_we_do_not_use(ref: str) -> None:
    with pytest.raises(Invalid):
        check_ref(ref)


def test_an_old_git_is_refused() -> None:
    check_version(b"git version 2.39.5\n")
    check_version(b"git version 2.51.0 (Apple Git-1)\n")
    check_version(b"git version 3.0.1\n")
    for said in (b"git version 2.38.9\n", b"git version 1.99.0\n", b"", b"hello"):
        with pytest.raises(Invalid):
            check_version(said)


def test_ssh_understands_what_we_tell_it(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    known, key = folder / "known hosts", folder / "deploy'key"
    known.write_text("")
    key.write_text("")
    credentials = GitCredentials(known_hosts_file=known, ssh_key_file=key)
    command = git_environment(credentials, SSH, tmp_path / "askpass")["GIT_SSH_COMMAND"]
    done = subprocess.run(
        ["/bin/sh", "-c", f"{command} -G git@example.org"], capture_output=True, text=True, check=True
    )
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert said["userknownhostsfile"] in {str(known), f'"{known}"'}
    assert said["globalknownhostsfile"] == "/dev/null"
    assert said["identityfile"] == str(key)
    assert said["stricthostkeychecking"] in {"yes", "true"}
    assert said["batchmode"] == "yes"
    assert said["identitiesonly"] == "yes"
    assert said["forwardagent"] == "no"


def test_an_unknown_host_is_never_trusted_on_first_use(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="known_hosts"):
        git_environment(GitCredentials(), SSH, tmp_path)


def test_credentials_go_where_they_belong(tmp_path: Path) -> None:
    token, ca = tmp_path / "token", tmp_path / "ca.pem"
    token.write_text("s3cret\n")
    ca.write_text("")
    credentials = GitCredentials(token_file=token, ca_file=ca)
    environment = git_environment(credentials, HTTPS, tmp_path / "askpass")
    assert environment["KNEO_GIT_TOKEN_FILE"] == str(token)
    assert "s3cret" not in repr(environment) + repr(credentials) + repr(git_options(credentials))
    assert git_environment(credentials, parse_address(str(tmp_path)), tmp_path / "askpass") == {}
    assert git_options(credentials) == ("-c", f"http.sslCAInfo={ca}")


def test_the_askpass_program_answers_for_one_host_only(tmp_path: Path) -> None:
    token, askpass = tmp_path / "token", tmp_path / "askpass"
    token.write_text("s3cret\n")
    write_askpass(askpass)
    environment = dict(git_environment(GitCredentials(token_file=token, username="me"), HTTPS, askpass))

    def ask(question: str) -> str:
        return subprocess.run([askpass, question], check=False, env=environment, capture_output=True, text=True).stdout

    assert ask("Username for 'https://example.org:8443': ") == "me\n"
    assert ask("Password for 'https://me@example.org:8443': ") == "s3cret\n"
    for other in (
        "example.org",
        "example.org:84430",
        "example.org.evil.test:8443",
        "evil.test",
        "evil.test/@example.org:8443",
    ):
        assert ask(f"Username for 'https://{other}': ") + ask(f"Password for 'https://me@{other}': ") == "", other
    environment = dict(git_environment(GitCredentials(), HTTPS, askpass, "ghs_1"))
    assert ask("Username for 'https://example.org:8443': ") == "x-access-token\n"
    assert ask("Password for 'https://x-access-token@example.org:8443': ") == "ghs_1\n"


def test_a_credential_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for credentials in (GitCredentials(ca_file=tmp_path / "no.pem"), GitCredentials(client_key_file=tmp_path)):
        with pytest.raises(Invalid, match=str(tmp_path)):
            git_options(credentials)
