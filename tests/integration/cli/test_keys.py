import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kneo.extensions.push.keys import VapidKey
from kneo.service.auth import configured, key_digest, keyring
from kneo.settings import from_env
from kneo.trust.keys import PrivateKey

Kneo = Callable[..., Any]


@pytest.mark.parametrize("algorithm", ["ed25519", "p256"])
def test_generate_and_show(algorithm: str, kneo: Kneo, tmp_path: Path):
    path = tmp_path / "keys" / "ann.pem"
    made = kneo("keys", "generate", "--output", path, "--algorithm", algorithm, "--principal", "ann", "--json")
    assert made.status == 0
    assert made.json == {
        "file": str(path),
        "keyid": PrivateKey.load(path.read_bytes()).keyid,
        "algorithm": algorithm,
        "public": PrivateKey.load(path.read_bytes()).public.pem,
        "principal": "ann",
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in made.out
    shown = kneo("keys", "show", path, "--json")
    assert shown.json["keyid"] == made.json["keyid"]
    (tmp_path / "ann.pub").write_text(str(made.json["public"]))
    assert kneo("keys", "show", tmp_path / "ann.pub", "--json").json["keyid"] == made.json["keyid"]
    assert str(made.json["keyid"]) in kneo("keys", "show", path).out


def test_nothing_is_overwritten(kneo: Kneo, tmp_path: Path):
    path = tmp_path / "ann.pem"
    assert kneo("keys", "generate", "-o", path).status == 0
    before = path.read_bytes()
    again = kneo("keys", "generate", "-o", path)
    assert again.status == 5
    assert str(path) in again.err
    assert path.read_bytes() == before


def test_passphrase(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "ann.pem"
    monkeypatch.setenv("KNEO_SERV_KEY_PASSPHRASE", "open sesame")
    assert kneo("keys", "generate", "-o", path).status == 0
    assert b"ENCRYPTED" in path.read_bytes()
    assert kneo("keys", "show", path).status == 0
    monkeypatch.setenv("KNEO_SERV_KEY_PASSPHRASE", "other")
    refused = kneo("keys", "show", path)
    assert refused.status == 1
    assert str(path) in refused.err
    monkeypatch.delenv("KNEO_SERV_KEY_PASSPHRASE")
    assert kneo("keys", "show", path).status == 1


def test_the_key_of_notifications_is_one_that_a_service_takes(kneo: Kneo, tmp_path: Path):
    path = tmp_path / "vapid.pem"
    made = kneo("keys", "vapid", "--output", path, "--json")
    assert made.status == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert VapidKey.load(path.read_text()).public == made.json["public"]
    assert kneo("keys", "vapid", "--output", path).status == 5
    said = kneo("keys", "vapid", "--output", tmp_path / "other.pem").out
    assert "BEGIN PRIVATE KEY" not in said
    assert "KNEO_SERV_VAPID_PRIVATE_KEY_FILE" in said


def test_what_is_no_key(kneo: Kneo, tmp_path: Path):
    (tmp_path / "x").write_text("hello")
    assert kneo("keys", "show", tmp_path / "x").status == 1
    assert kneo("keys", "show", tmp_path / "missing").status == 4
    assert kneo("keys", "generate").status == 2
    assert kneo("keys", "generate", "-o", tmp_path / "y", "--algorithm", "rsa").status == 2


def test_an_api_key_is_printed_once_with_an_entry_that_holds_its_digest(kneo: Kneo, tmp_path: Path):
    made = kneo("keys", "api-key", "ann", "--role", "approver,human:link", "--json").json
    assert len(made["key"]) > 40
    assert made["key"] not in made["entry"]
    ring = keyring(configured(from_env({"KNEO_SERV_API_KEYS": made["entry"]}, tmp_path)))
    principal = ring.find(made["key"])
    assert principal is not None
    assert (principal.name, principal.may("human:link")) == ("ann", True)
    assert ring.find(made["entry"].split(":", 1)[1].rsplit(":", 2)[0]) is None
    assert kneo("keys", "api-key", "ann", "--role", "approver", "--json").json["key"] != made["key"]


def test_the_entry_of_an_existing_key(kneo: Kneo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("k" * 24 + "\n"))
    made = kneo("keys", "api-key", "ci", "--role", "service", "--stdin")
    assert made.out == f"entry  ci:{key_digest('k' * 24)}:service\n"


@pytest.mark.parametrize("text", ["short\n", "", "k" * 2_000, "two" * 10 + "\n" + "lines" * 10])
def test_a_key_that_can_be_guessed_gets_no_digest(kneo: Kneo, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    refused = kneo("keys", "api-key", "ci", "--role", "service", "--stdin")
    assert (refused.status, "24 to 1000" in refused.err) == (1, True)


@pytest.mark.parametrize(("name", "role"), [("ann", "king"), ("a;b", "admin"), ("", "admin"), ("a:b", "admin")])
def test_an_entry_that_no_service_accepts_is_refused(kneo: Kneo, name: str, role: str):
    refused = kneo("keys", "api-key", name, "--role", role)
    assert (refused.status, refused.out) == (1, "")
