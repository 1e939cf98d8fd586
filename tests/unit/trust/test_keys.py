from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kneo.errors import Invalid
from kneo.trust.keys import Algorithm, PrivateKey, PublicKey


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_what_a_key_signs_only_that_key_verifies(algorithm: Algorithm) -> None:
    key, other = PrivateKey.generate(algorithm), PrivateKey.generate(algorithm)
    signature = key.sign(b"payload")
    assert key.public.verify(b"payload", signature)
    assert not key.public.verify(b"payloae", signature)
    assert not other.public.verify(b"payload", signature)
    assert not key.public.verify(b"payload", b"")
    assert not key.public.verify(b"payload", signature + b"\0")


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("passphrase", [None, "öffne dich"])
def test_a_dumped_key_loads_as_the_same_key(algorithm: Algorithm, passphrase: str | None) -> None:
    key = PrivateKey.generate(algorithm)
    pem = key.dump(passphrase)
    assert (b"ENCRYPTED" in pem) == (passphrase is not None)
    again = PrivateKey.load(pem, passphrase)
    assert again.public == key.public
    assert again.public.verify(b"x", key.sign(b"x"))


def test_a_wrong_missing_or_needless_passphrase_is_refused() -> None:
    key = PrivateKey.generate()
    with pytest.raises(Invalid, match="passphrase"):
        PrivateKey.load(key.dump("one"), "two")
    with pytest.raises(Invalid, match="passphrase"):
        PrivateKey.load(key.dump("one"))
    with pytest.raises(Invalid, match="passphrase"):
        PrivateKey.load(key.dump(), "one")


def test_the_key_id_is_the_digest_of_the_der_public_key() -> None:
    public = PrivateKey.generate().public
    der = serialization.load_pem_public_key(public.pem.encode()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert public.keyid == "sha256:" + hashlib.sha256(der).hexdigest()


def test_one_point_spelled_two_ways_is_one_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    prefix = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    compressed = b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(prefix + point) + b"-----END PUBLIC KEY-----\n"
    plain = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert compressed != plain
    assert PublicKey.load(compressed) == PublicKey.load(plain)


@pytest.mark.parametrize(
    "pem", [b"", b"nonsense", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\0" * 9000]
)
def test_what_is_not_a_key_is_refused(pem: bytes) -> None:
    with pytest.raises(Invalid):
        PublicKey.load(pem)
    with pytest.raises(Invalid):
        PrivateKey.load(pem)


def test_other_kinds_of_keys_are_refused() -> None:
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with pytest.raises(Invalid, match="not supported"):
            PrivateKey.load(private)
        with pytest.raises(Invalid, match="not supported"):
            PublicKey.load(public)


def test_a_private_key_does_not_show_its_secret() -> None:
    key = PrivateKey.generate()
    assert "PRIVATE" not in repr(key)
    assert key.dump().decode().splitlines()[1] not in repr(key)


def test_text_that_is_not_even_unicode_is_refused() -> None:
    with pytest.raises(Invalid):
        PublicKey.load("-----BEGIN \ud800-----")
