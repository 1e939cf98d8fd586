"""Signing keys: Ed25519, and ECDSA on P-256 for key services and tools without Ed25519.

No other algorithm is supported: each one more is an attack surface of every verifier.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kneo.digest import digest_of
from kneo.errors import Invalid

KeyId = NewType("KeyId", str)
"""``sha256:`` and the hex SHA-256 of the DER SubjectPublicKeyInfo: the name of key material, never a proof of it."""

PEM_BYTES = 8_192
"""Longest accepted PEM text. A P-256 key with a passphrase is under 500 bytes."""

_SSH = (b"ssh-", b"ecdsa-sha2-")

_FIELD = 2**255 - 19
_ORDER_EIGHT = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset({0, 1, _FIELD - 1, _ORDER_EIGHT, _FIELD - _ORDER_EIGHT})

_Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
_Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


class Algorithm(StrEnum):
    ED25519 = "ed25519"
    """Pure Ed25519 (RFC 8032), 64-byte signatures. The default."""

    P256 = "p256"
    """ECDSA on NIST P-256 over SHA-256, DER signatures."""


@dataclass(frozen=True)
class PublicKey:
    """A public key, which verifies signatures. Created by ``load`` only; equal when the material is."""

    algorithm: Algorithm
    pem: str
    """PEM SubjectPublicKeyInfo in the library's encoding."""

    keyid: KeyId
    _key: _Public = field(repr=False, compare=False)

    @classmethod
    def load(cls, pem: str | bytes) -> PublicKey:
        """Read a PEM SubjectPublicKeyInfo, or the one line of an SSH public key.

        Raises:
            Invalid: neither, too long, or a key of another algorithm.
        """
        data = _bounded(pem)
        read = serialization.load_ssh_public_key if data.startswith(_SSH) else serialization.load_pem_public_key
        try:
            key = read(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            msg = "This is not a public key in PEM form, nor one of SSH."
            hint = "A public key begins with -----BEGIN PUBLIC KEY-----, ssh-ed25519 or ecdsa-sha2-nistp256."
            raise Invalid(msg, code="invalid_key", hint=hint) from error
        return _public(key)

    def jwk(self) -> dict[str, str]:
        """Return the key as a JSON Web Key (RFC 7517), with its id."""
        names = {"kid": str(self.keyid), "use": "sig"}
        if isinstance(self._key, ed25519.Ed25519PublicKey):
            raw = self._key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(raw), "alg": "EdDSA", **names}
        numbers = self._key.public_numbers()
        x, y = (_base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "alg": "ES256", **names}

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Return whether the private half of this key signed exactly these bytes."""
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, data)
            else:
                self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class SigningKey(Protocol):
    """A private key, or a key service or device that signs with one."""

    @property
    def public(self) -> PublicKey: ...

    @property
    def keyid(self) -> KeyId: ...

    @property
    def algorithm(self) -> Algorithm: ...

    def sign(self, data: bytes) -> bytes:
        """Sign exactly these bytes."""
        ...


@dataclass(frozen=True)
class PrivateKey:
    """A private key in memory. Created by ``generate`` or ``load`` only; its secret never appears in ``repr``."""

    public: PublicKey
    _key: _Private = field(repr=False, compare=False)

    @property
    def keyid(self) -> KeyId:
        return self.public.keyid

    @property
    def algorithm(self) -> Algorithm:
        return self.public.algorithm

    @classmethod
    def generate(cls, algorithm: Algorithm = Algorithm.ED25519) -> PrivateKey:
        """Generate a key from the operating system's randomness."""
        if algorithm is Algorithm.ED25519:
            return _private(ed25519.Ed25519PrivateKey.generate())
        return _private(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, pem: bytes, passphrase: str | None = None) -> PrivateKey:
        """Parse PKCS#8 PEM.

        Raises:
            Invalid: not PEM, a wrong or missing passphrase, or a key of another algorithm.
        """
        secret = passphrase.encode() if passphrase else None
        try:
            key = serialization.load_pem_private_key(_bounded(pem), password=secret)
        except TypeError as error:
            msg = "This private key has a passphrase and none was given, or the other way round."
            raise Invalid(msg, code="invalid_key", hint="Set KNEO_SERV_KEY_PASSPHRASE, or unset it.") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            msg = "This is not a private key in PEM form, or its passphrase is another one."
            raise Invalid(msg, code="invalid_key", hint="It begins with -----BEGIN PRIVATE KEY-----.") from error
        return _private(key)

    def dump(self, passphrase: str | None = None) -> bytes:
        """Return this key as PKCS#8 PEM, encrypted where a passphrase is given. The caller protects it."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase.encode())
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    def derive(self, purpose: str) -> bytes:
        """Return a secret of 32 bytes for one purpose (HKDF-SHA256); it reveals neither this key nor the secret of another."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            secret = self._key.private_bytes_raw()
        else:
            secret = self._key.private_numbers().private_value.to_bytes(32)
        return HKDF(hashes.SHA256(), 32, salt=None, info=b"kneo " + purpose.encode()).derive(secret)

    def sign(self, data: bytes) -> bytes:
        """Sign exactly these bytes."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def is_weak_ed25519(key: bytes) -> bool:
    """Return whether an Ed25519 public key is a point of small order, or not in the encoding of RFC 8032.

    Signatures under such a key need no private key, and the library accepts them: its owner can deny every signature. All eight points of small order share five y coordinates.
    """
    y = int.from_bytes(key, "little") & (2**255 - 1)
    return y >= _FIELD or y in _SMALL_ORDER


def _bounded(pem: str | bytes) -> bytes:
    data = pem.encode("ascii", "replace") if isinstance(pem, str) else pem
    if len(data) > PEM_BYTES:
        msg = f"A key of {len(data)} bytes is too long; the limit is {PEM_BYTES} bytes."
        raise Invalid(msg, code="invalid_key")
    return data


def _public(key: object) -> PublicKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        algorithm = Algorithm.ED25519
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        if is_weak_ed25519(raw):
            msg = (
                "This Ed25519 key has a small order or a non-canonical encoding: signatures for it take no private key."
            )
            raise Invalid(msg, code="invalid_key", hint="Make a key with kneo keys generate.")
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        algorithm = Algorithm.P256
    else:
        msg = f"Keys of this kind ({type(key).__name__}) are not supported."
        raise Invalid(msg, code="invalid_key", hint="Use Ed25519 or ECDSA on P-256.")
    # The id comes from the library's encoding, so compressed and uncompressed points are one key.
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(algorithm=algorithm, pem=pem.decode("ascii"), keyid=KeyId(digest_of(der)), _key=key)


def _private(key: object) -> PrivateKey:
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        msg = f"Keys of this kind ({type(key).__name__}) are not supported."
        raise Invalid(msg, code="invalid_key", hint="Use Ed25519 or ECDSA on P-256.")
    return PrivateKey(public=_public(key.public_key()), _key=key)
