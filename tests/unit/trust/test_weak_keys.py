"""Keys for which signatures can be made without a private key are refused wherever a key is read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kneo.digest import digest_of
from kneo.errors import Invalid
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import PrivateKey, PublicKey, is_weak_ed25519
from kneo.trust.root import parse_root, root_payload
from kneo.trust.root_edit import add_key, first_root

P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P
TORSION_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
"""One coordinate of two of the points of order eight."""


def _spelled(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


SMALL = {
    "neutral": _spelled(1),
    "order 2": _spelled(P - 1),
    "order 4": _spelled(0),
    "order 4, other": _spelled(0, 1),
    "order 8": _spelled(TORSION_Y),
    "order 8, negative": _spelled(TORSION_Y, 1),
    "order 8, other": _spelled(P - TORSION_Y),
    "order 8, other negative": _spelled(P - TORSION_Y, 1),
}
SECOND_SPELLINGS = {
    "neutral with a sign": _spelled(1, 1),
    "neutral and the prime": _spelled(P + 1),
    "zero and the prime": _spelled(P),
    "order 2 with a sign": _spelled(P - 1, 1),
    "three and the prime": _spelled(P + 3),
    "the largest number": _spelled(2**255 - 1),
}
WEAK = SMALL | SECOND_SPELLINGS


def _pem(raw: bytes) -> bytes:
    key = Ed25519PublicKey.from_public_bytes(raw)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _ssh(raw: bytes) -> bytes:
    return Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def test_these_are_the_points_whose_order_divides_eight() -> None:
    """Doubled three times, a point of small order is the neutral one; there are eight of them."""
    for raw in SMALL.values():
        y = int.from_bytes(raw, "little") & (2**255 - 1)
        for _ in range(3):
            square_x = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
            y = (y * y + square_x) * pow(1 - D * square_x * y * y, P - 2, P) % P
        assert y == 1
    assert len(set(SMALL.values())) == 8


@pytest.mark.parametrize("name", WEAK)
@pytest.mark.parametrize("spell", [_pem, _ssh])
def test_a_weak_key_is_refused_however_it_is_spelled(name: str, spell: object) -> None:
    assert callable(spell)
    with pytest.raises(Invalid) as refused:
        PublicKey.load(spell(WEAK[name]))
    assert refused.value.code == "invalid_key"


def test_the_neutral_key_would_verify_what_nobody_signed() -> None:
    """The reason: this is what the library says, and why the key has to be refused before it is asked."""
    signature = _spelled(1) + bytes(32)
    Ed25519PublicKey.from_public_bytes(_spelled(1)).verify(signature, b"whatever")


def test_a_trust_root_with_a_weak_key_does_not_read() -> None:
    mine = PrivateKey.generate()
    document = first_root({"root": [TrustedKey(mine.public, "ann")]}, expires=datetime(2030, 1, 1, tzinfo=UTC))
    other = PrivateKey.generate().public
    payload = root_payload(add_key(document, other, principal="carl", roles=["root"])).decode()
    pem = _pem(SMALL["neutral"])
    weak = Ed25519PublicKey.from_public_bytes(SMALL["neutral"])
    keyid = digest_of(weak.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    swapped = payload.replace(other.keyid, keyid).replace(
        other.pem.replace("\n", "\\n"), pem.decode().replace("\n", "\\n")
    )
    assert swapped != payload
    assert parse_root(payload.encode())
    with pytest.raises(Invalid, match="small order"):
        parse_root(swapped.encode())


def test_every_key_that_somebody_made_is_fine() -> None:
    for _ in range(200):
        raw = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        assert not is_weak_ed25519(raw)
        assert PublicKey.load(_pem(raw)).pem.encode() == _pem(raw)
