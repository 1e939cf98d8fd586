"""Signed bundles for other tools: raw bytes for openssl, and Sigstore's bundle format for its verifiers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping

from kneo.trust.dsse import Envelope, Signature
from kneo.trust.keys import PublicKey

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
