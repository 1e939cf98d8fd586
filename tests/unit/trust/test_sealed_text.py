"""Texts that a browser keeps: opened by the same key for the same purpose only, and unchanged."""

from __future__ import annotations

import secrets

import pytest

from kneo.trust.keys import Algorithm, PrivateKey
from kneo.trust.sealed_text import Seal

KEY = secrets.token_bytes(32)


def test_a_sealed_text_opens_with_its_key_and_purpose() -> None:
    seal = Seal(KEY, "notes")
    sealed = seal.close("Grüße")
    assert "Gr" not in sealed
    assert Seal(KEY, "notes").open(sealed) == "Grüße"
    assert sealed != seal.close("Grüße"), "each text has a nonce of its own"
    assert Seal(KEY, "letters").open(sealed) is None
    assert Seal(secrets.token_bytes(32), "notes").open(sealed) is None


@pytest.mark.parametrize("text", ["", "A", "é", "====", "A" * 37, "A" * 100_000])
def test_other_texts_do_not_open(text: str) -> None:
    assert Seal(KEY, "notes").open(text) is None


def test_a_changed_text_does_not_open() -> None:
    seal = Seal(KEY, "notes")
    sealed = seal.close("pay 5")
    changed = {sealed[:at] + ("A" if sealed[at] != "A" else "B") + sealed[at + 1 :] for at in range(len(sealed) - 1)}
    assert {seal.open(each) for each in changed | {sealed[:-2], sealed + "AAAA"}} == {None}


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_key_derives_one_secret_for_each_purpose(algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm)
    secret = key.derive("cookies")
    assert len(secret) == 32
    assert PrivateKey.load(key.dump()).derive("cookies") == secret
    assert key.derive("tokens") != secret
    assert PrivateKey.generate(algorithm).derive("cookies") != secret
