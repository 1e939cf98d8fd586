"""DSSE v1 envelopes: a payload with its type and the signatures of several keys, and who signed.

What is signed is the pre-authentication encoding (``pae``) of the kind and the decoded bytes, so nothing needs a canonical
form. The envelope's own JSON is malleable: identity is the digest of the payload bytes, and a verifier uses the very buffer
whose signature it checked.

A threshold counts people, each once: a person with two keys is one. Keys are identified by their material; the key id in a
signature is only a hint.

Signed bytes are parsed strictly: one meaning per byte string, no unknown keys, every refusal ``Malformed``. For other tools an
envelope is exported as raw bytes (openssl) and in Sigstore's bundle format.

Source of the rules: the Dead Simple Signing Envelope specification, v1 (``protocol.md`` and ``envelope.md``).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel

from kneo.clock import isoformat, parse_time
from kneo.digest import DIGEST_PATTERN, Digest, digest_of
from kneo.errors import Invalid, KneoError
from kneo.names import visible
from kneo.spec.documents import ReadLimits
from kneo.spec.reading.reader import read_json
from kneo.trust.keys import KeyId, PublicKey, SigningKey

ENVELOPE_BYTES = 3_145_728
"""Largest envelope, checked before parsing: a bundle of 2 MiB in base64, and its signatures."""

_LIMITS = ReadLimits(max_bytes=ENVELOPE_BYTES)

SIGNATURES = 16
"""Most signatures in one envelope. Each costs a verification per trusted key."""

TYPE_CHARS = 200
KEYID_CHARS = 200

CLOCK_TOLERANCE = timedelta(minutes=5)
"""Tolerated difference between the clocks of signer and verifier."""


@dataclass(frozen=True)
class Signature:
    keyid: str
    """An unauthenticated hint of the signing key; may be empty."""

    sig: bytes


@dataclass(frozen=True)
class Envelope:
    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def digest(self) -> Digest:
        """Digest of the payload, independent of signatures."""
        return digest_of(self.payload)

    @property
    def signed_bytes(self) -> bytes:
        return pae(self.payload_type, self.payload)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding of a type and a payload. Lengths count bytes, not characters."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes, *, file: str = "envelope", max_bytes: int = ENVELOPE_BYTES) -> Envelope:
    """Parse an envelope without verification.

    Unknown fields are ignored, as the specification requires: they are not signed and never used.

    Raises:
        Invalid: too large, too many signatures (``LimitExceeded``), not strict JSON, or not an envelope (``Malformed``).
    """
    if len(data) > max_bytes:
        msg = f"{file}: {len(data)} bytes are too many for an envelope; the limit is {max_bytes} bytes."
        raise Invalid(msg, code="LimitExceeded")
    return read_envelope(read_strict(data, file=file), file=file)


def read_envelope(value: object, *, file: str = "envelope", may_be_unsigned: bool = False) -> Envelope:
    """Parse an envelope inside of another document, without verification.

    Args:
        value: The parsed JSON.
        file: The document's name in messages.
        may_be_unsigned: Whether an envelope without signatures is valid.

    Raises:
        Invalid: as ``parse_envelope``, but for the size, which the caller bounds.
    """
    fields = _object(value, file, "an envelope")
    signatures = fields.get("signatures")
    if not isinstance(signatures, list) or not (signatures or may_be_unsigned):
        msg = f"{file}: signatures must be a list with at least one entry."
        raise Invalid(msg, code="Malformed")
    if len(signatures) > SIGNATURES:
        msg = f"{file}: {len(signatures)} signatures are too many; the limit is {SIGNATURES}."
        raise Invalid(msg, code="LimitExceeded")
    return Envelope(
        payload_type=_text(fields, "payloadType", file, TYPE_CHARS),
        payload=_decoded(fields, "payload", file),
        signatures=tuple(_signature(item, f"{file}: signatures[{i}]") for i, item in enumerate(signatures)),
    )


def sign(payload_type: str, payload: bytes, key: SigningKey) -> Envelope:
    """Wrap a payload with one signature."""
    return add_signature(Envelope(payload_type, payload, ()), key)


def add_signature(envelope: Envelope, key: SigningKey) -> Envelope:
    """Add a signature to an envelope. A key that signs again replaces its signature.

    Raises:
        Invalid: the envelope is full.
    """
    others = tuple(s for s in envelope.signatures if s.keyid != key.keyid)
    if len(others) >= SIGNATURES:
        msg = f"This envelope has {len(others)} signatures already; the limit is {SIGNATURES}."
        raise Invalid(msg, code="LimitExceeded")
    mine = Signature(key.keyid, key.sign(envelope.signed_bytes))
    return replace(envelope, signatures=(*others, mine))


def serialise(envelope: Envelope) -> bytes:
    """Serialise an envelope deterministically: sorted, indented for readable diffs, with a final newline."""
    ordered = sorted(envelope.signatures, key=lambda s: (s.keyid, s.sig))
    value = {
        "payloadType": envelope.payload_type,
        "payload": base64.b64encode(envelope.payload).decode("ascii"),
        "signatures": [{"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode("ascii")} for s in ordered],
    }
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def decode_base64(text: str) -> bytes:
    """Decode standard or URL-safe base64, with one accepted text per value.

    A text that mixes the alphabets, lacks padding, contains line breaks or sets unused bits is refused.

    Raises:
        Invalid: anything else.
    """
    url_safe = "-" in text or "_" in text
    try:
        decoded = base64.b64decode(text.encode("ascii"), altchars=b"-_" if url_safe else None, validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        msg = "not base64"
        raise Invalid(msg, code="Malformed") from error
    again = base64.urlsafe_b64encode(decoded) if url_safe else base64.b64encode(decoded)
    if again.decode("ascii") != text:
        msg = "not base64 in its one exact spelling"
        raise Invalid(msg, code="Malformed")
    return decoded


def _object(value: object, where: str, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        msg = f"{where}: {what} must be a JSON object."
        raise Invalid(msg, code="Malformed")
    return value


def _text(fields: Mapping[str, object], name: str, where: str, limit: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= limit or visible(value) != value:
        msg = f"{where}: {name} must be a text of 1 to {limit} characters."
        raise Invalid(msg, code="Malformed")
    return value


def _decoded(fields: Mapping[str, object], name: str, where: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, str):
        msg = f"{where}: {name} must be a text in base64."
        raise Invalid(msg, code="Malformed")
    try:
        return decode_base64(value)
    except Invalid as error:
        msg = f"{where}: {name} is {error.message}."
        raise Invalid(msg, code="Malformed") from error


def _signature(item: object, where: str) -> Signature:
    fields = _object(item, where, "a signature")
    keyid = fields.get("keyid")
    if keyid is not None and (not isinstance(keyid, str) or len(keyid) > KEYID_CHARS):
        msg = f"{where}: keyid must be a text of at most {KEYID_CHARS} characters."
        raise Invalid(msg, code="Malformed")
    return Signature(keyid=keyid or "", sig=_decoded(fields, "sig", where))


@dataclass(frozen=True)
class TrustedKey:
    """A public key and its owner in the trust root."""

    public: PublicKey
    principal: str


@dataclass(frozen=True, order=True)
class Signer:
    """A person with a verified signature."""

    principal: str
    keyid: KeyId


def find_signers(envelope: Envelope, keys: Mapping[KeyId, TrustedKey]) -> tuple[Signer, ...]:
    """Return the signers of an envelope among these keys; each key once, sorted by person.

    This costs at most one verification per signature and key; the parsers of envelope and trust root bound both.
    """
    signed = envelope.signed_bytes
    signers: dict[KeyId, TrustedKey] = {}
    for signature in envelope.signatures:
        for key in _hinted_first(signature, keys):
            if key.public.keyid not in signers and key.public.verify(signed, signature.sig):
                signers[key.public.keyid] = key
                break
    return tuple(sorted(Signer(key.principal, keyid) for keyid, key in signers.items()))


def people(signers: Iterable[Signer]) -> frozenset[str]:
    """Return the distinct people among these signers."""
    return frozenset(signer.principal for signer in signers)


def _hinted_first(signature: Signature, keys: Mapping[KeyId, TrustedKey]) -> Iterator[TrustedKey]:
    hinted = keys.get(KeyId(signature.keyid))
    if hinted is not None:
        yield hinted
    yield from (key for key in keys.values() if key is not hinted)


NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
"""Names of bundles, environments, roles: safe as one path component, and equal on every file system."""

VERSION = r"[A-Za-z0-9](?:[A-Za-z0-9.+_-]{0,62}[A-Za-z0-9])?"

SEQUENCE_LIMIT = 2**53 - 1
"""Largest whole number that every JSON parser reads alike (RFC 8785)."""


class SignedRecord(BaseModel):
    """A part of a signed document. Keys are camelCase in files; unknown keys are refused, because they would be ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
        defer_build=True,
    )


def _time(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_time(value)
    except KneoError as error:
        raise ValueError(error.message) from error


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        msg = "a time needs a zone"
        raise ValueError(msg)
    return value


def _not_blank(value: str) -> str:
    if not value.strip() or visible(value) != value:
        msg = "must be printable text and not blank"
        raise ValueError(msg)
    return value


Time = Annotated[
    datetime,
    BeforeValidator(_time),
    AfterValidator(_aware),
    PlainSerializer(isoformat, return_type=str, when_used="json"),
]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Version = Annotated[str, Field(pattern=f"^{VERSION}$")]
DigestText = Annotated[Digest, Field(pattern=f"^{DIGEST_PATTERN.pattern}$")]
KeyIdText = Annotated[KeyId, Field(pattern=f"^{DIGEST_PATTERN.pattern}$")]
Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_not_blank)]
"""One printable line of text: a person's name, a reason, an address."""

T = TypeVar("T")
R = TypeVar("R", bound=SignedRecord)

Several = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in the file, a tuple in the record, so that a frozen record is immutable throughout."""


def read_strict(data: bytes, *, file: str) -> object:
    """Parse JSON that has exactly one meaning.

    Raises:
        Invalid: ``Malformed``: not JSON, a key twice, trailing text, too deep, or a number that is not exact.
    """
    try:
        return read_json(data, file=file, limits=_LIMITS).value
    except Invalid as error:
        raise Invalid(error.message, code="Malformed", hint=error.hint, **error.details) from error


def read_record(kind: type[R], value: object, *, file: str) -> R:
    """Validate a JSON value as a record, and name the invalid field.

    Raises:
        Invalid: ``Malformed``; the message names the file and the field.
    """
    try:
        # Python names are internal; files use camelCase only.
        return kind.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the top level"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        msg = f"{file}: {field[:200]}: {first['msg']}{more}."
        raise Invalid(msg, code="Malformed", file=file, field=field[:200]) from error


SIGSTORE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def export_pae(envelope: Envelope, keys: Iterable[PublicKey] = ()) -> Mapping[str, bytes]:
    """Return an envelope as files: the signed bytes, each signature, and the known public keys.

    ``openssl pkeyutl -verify -pubin -inkey KEY.pem -rawin -in pae.bin -sigfile KEY.sig`` checks an Ed25519 signature,
    ``openssl dgst -sha256 -verify KEY.pem -signature KEY.sig pae.bin`` one by P-256.
    """
    files = {"pae.bin": envelope.signed_bytes}
    for name, signature in _named(envelope):
        files[f"{name}.sig"] = signature.sig
    for key in keys:
        if any(signature.keyid == key.keyid for signature in envelope.signatures):
            files[f"{_short(key.keyid)}.pem"] = key.pem.encode("ascii")
    return files


def export_sigstore(envelope: Envelope) -> Mapping[str, bytes]:
    """Return an envelope as Sigstore bundles (v0.3), one for each signature, since that format carries exactly one.

    A bundle holds a hint of the key, not the key; the verifier has to have it.
    """
    return {f"{name}.sigstore.json": _sigstore(envelope, signature) for name, signature in _named(envelope)}


def _sigstore(envelope: Envelope, signature: Signature) -> bytes:
    value = {
        "mediaType": SIGSTORE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": signature.keyid}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(envelope.payload).decode("ascii"),
            "payloadType": envelope.payload_type,
            "signatures": [{"sig": base64.b64encode(signature.sig).decode("ascii"), "keyid": signature.keyid}],
        },
    }
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _named(envelope: Envelope) -> list[tuple[str, Signature]]:
    """Return a file name for each signature; the key hint is untrusted text, and used only where it is a key id."""
    named: dict[str, Signature] = {}
    for number, signature in enumerate(envelope.signatures):
        name = _short(signature.keyid)
        named[name if name and name not in named else f"signature-{number}"] = signature
    return list(named.items())


def _short(keyid: str) -> str:
    text = keyid.removeprefix("sha256:")
    return text[:16] if len(text) == 64 and text.isalnum() and text.isascii() else ""
