"""Keys and messages of Web Push: the key that identifies a service to push services, and the encryption of RFC 8291."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kneo.errors import Invalid
from kneo.trust.keys import Algorithm, PrivateKey

CURVE = ec.SECP256R1()

POINT_BYTES, AUTH_BYTES, SALT_BYTES = 65, 16, 16

RECORD_BYTES = 4_096
"""The size of the only record of a message; push services accept no longer messages."""

MAX_TEXT_BYTES = RECORD_BYTES - 17
"""The longest text of a message: a record ends with a delimiter of one byte and a tag of 16."""


@dataclass(frozen=True)
class VapidKey:
    """The P-256 key with which a service identifies itself to push services (VAPID, RFC 8292).

    Attributes:
        public: The public key as browsers take it: an uncompressed point in base64url.
        pem: The private key in PKCS#8 PEM.
    """

    public: str
    pem: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> VapidKey:
        """Generate a key."""
        return cls.of(PrivateKey.generate(Algorithm.P256))

    @classmethod
    def load(cls, pem: str) -> VapidKey:
        """Read the value of ``KNEO_SERV_VAPID_PRIVATE_KEY``.

        Raises:
            Invalid: ``invalid_setting``: not a P-256 key in PEM without a passphrase. The message does not repeat it.
        """
        try:
            key = PrivateKey.load(pem.strip().encode())
        except Invalid:
            key = None
        if key is None or key.algorithm is not Algorithm.P256:
            msg = "KNEO_SERV_VAPID_PRIVATE_KEY must be a P-256 private key in PEM, without a passphrase."
            raise Invalid(msg, code="invalid_setting", hint="Make one: kneo keys vapid --output vapid.pem")
        return cls.of(key)

    @classmethod
    def of(cls, key: PrivateKey) -> VapidKey:
        """Return a P-256 key as a key of Web Push."""
        jwk = key.public.jwk()
        point = b"\x04" + decode_base64url(jwk["x"]) + decode_base64url(jwk["y"])
        return cls(base64.urlsafe_b64encode(point).rstrip(b"=").decode(), key.dump())


@dataclass(frozen=True)
class ReceiverKeys:
    """The keys of a browser's subscription, with which messages to it are encrypted."""

    public: ec.EllipticCurvePublicKey = field(repr=False)
    auth: bytes = field(repr=False)

    @classmethod
    def read(cls, p256dh: str, auth: str) -> ReceiverKeys:
        """Read the keys as a browser states them, in base64url.

        Raises:
            Invalid: ``invalid_subscription``: a text is no key. The message does not repeat it.
        """
        point, secret = decode_base64url(p256dh), decode_base64url(auth)
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point)
        except ValueError:
            public = None
        if public is None or len(point) != POINT_BYTES or len(secret) != AUTH_BYTES:
            msg = "The subscription has no P-256 key, or no secret of 16 bytes."
            raise Invalid(msg, code="invalid_subscription", hint="Send what the browser's subscription states.")
        return cls(public, secret)


def decode_base64url(text: str) -> bytes:
    """Decode base64url without padding; empty for any other text."""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""


def encrypt(
    text: bytes,
    receiver: ReceiverKeys,
    *,
    sender: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """Encrypt a message to a browser (RFC 8291), as a body with ``Content-Encoding: aes128gcm``.

    Args:
        text: At most ``MAX_TEXT_BYTES``.
        receiver: The keys of the browser's subscription.
        sender: The key of this message alone; generated where none is given.
        salt: 16 bytes of this message alone; generated where none are given.
    """
    assert len(text) <= MAX_TEXT_BYTES
    sender = sender or ec.generate_private_key(CURVE)
    salt = salt or secrets.token_bytes(SALT_BYTES)
    point = _point(sender.public_key())
    info = b"WebPush: info\0" + _point(receiver.public) + point
    secret = _derive(receiver.auth, sender.exchange(ec.ECDH(), receiver.public), info, 32)
    key = _derive(salt, secret, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _derive(salt, secret, b"Content-Encoding: nonce\0", 12)
    # 2 is the delimiter of the last record.
    sealed = AESGCM(key).encrypt(nonce, text + b"\x02", None)
    return salt + RECORD_BYTES.to_bytes(4, "big") + bytes([len(point)]) + point + sealed


def _derive(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
