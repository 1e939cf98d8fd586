from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def test_what_is_no_key(kneo: Kneo, tmp_path: Path):
    (tmp_path / "x").write_text("hello")
    assert kneo("keys", "show", tmp_path / "x").status == 1
    assert kneo("keys", "show", tmp_path / "missing").status == 4
    assert kneo("keys", "generate").status == 2
    assert kneo("keys", "generate", "-o", tmp_path / "y", "--algorithm", "rsa").status == 2
