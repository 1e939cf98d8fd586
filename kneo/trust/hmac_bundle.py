"""The older bundle format: one JSON file with a digest and an HMAC over it, ``kneo.spec.bundle`` version ``v1``.

Everyone with the key to verify such a bundle can also make one, so the signer is unknown. The format has no sequence number
either, so an old bundle looks like a new one. It is read and written byte for byte as the published tool does, and an
environment has to accept it explicitly (``signatures.accept: [hmac-v1]``).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from kneo.digest import digest_of
from kneo.errors import Invalid, Untrusted
from kneo.trust.dsse import ENVELOPE_BYTES, NAME, VERSION, Signer, read_strict
from kneo.trust.keys import KeyId
from kneo.trust.verify import HMAC, SEAL, UNSEQUENCED, SignatureTerms, VerifiedBundle

KIND = "kneo.spec.bundle"
FORMAT = "v1"
DIGEST_ALGORITHM = "SHA256"
SIGNATURE_ALGORITHM = "HMAC-SHA256"

_PLACE = re.compile(rf"bundles/({NAME})/({VERSION})")


@dataclass(frozen=True)
class HmacReport:
    """The result of a check, with the fields of the published tool."""

    digest_valid: bool
    signature_valid: bool
    errors: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return not self.errors


def hmac_path(name: str, version: str) -> str:
    """Return the repository path of a bundle in this format."""
    return f"bundles/{name}/{version}.json"


def sign_hmac_bundle(
    spec: Mapping[str, object],
    *,
    approved_by: str,
    environment: str | None,
    created_at: datetime,
    key: str,
    key_id: str,
) -> bytes:
    """Create the file of a spec.

    Args:
        spec: The spec as it is deployed.
        approved_by: The approver, unproven.
        environment: The environment of the bundle; None for any.
        created_at: The time of creation.
        key: The shared secret.
        key_id: The name of the environment variable with the key; the file says no more about the key.

    Raises:
        Invalid: the key is empty, or the spec has no JSON form.
    """
    body: dict[str, object] = {
        "kind": KIND,
        "version": FORMAT,
        "metadata": {"approved_by": approved_by, "environment": environment, "created_at": created_at.isoformat()},
        "spec": dict(spec),
        "digest": {"algorithm": DIGEST_ALGORITHM, "value": hashlib.sha256(_canonical(spec)).hexdigest()},
    }
    signature = {"algorithm": SIGNATURE_ALGORITHM, "key_id": key_id, "value": _hmac(body, key)}
    text = json.dumps({**body, "signature": signature}, indent=2, sort_keys=True, ensure_ascii=False)
    return text.encode()


def check_hmac_bundle(data: bytes, key: str, *, file: str = "bundle") -> HmacReport:
    """Check a file against the key, and report every error.

    Raises:
        Invalid: the file is too large or not a JSON object, or the key is empty.
    """
    _require_key(key)
    bundle = _read(data, file)
    body = {name: value for name, value in bundle.items() if name != "signature"}
    errors: list[str] = []
    if bundle.get("kind") != KIND:
        errors.append(f"kind must be {KIND}.")
    if bundle.get("version") != FORMAT:
        errors.append(f"version must be {FORMAT}.")
    spec = bundle.get("spec")
    if not isinstance(spec, dict):
        errors.append("spec must be an object.")
    digest_valid = isinstance(spec, dict) and _matches(
        bundle.get("digest"), DIGEST_ALGORITHM, hashlib.sha256(_canonical(spec)).hexdigest()
    )
    if not digest_valid:
        errors.append("The digest is not that of the spec.")
    signature_valid = _matches(bundle.get("signature"), SIGNATURE_ALGORITHM, _hmac(body, key))
    if not signature_valid:
        errors.append("The signature does not match: the bundle was changed, or signed with another key.")
    return HmacReport(digest_valid, signature_valid, tuple(errors))


def verify_hmac_bundle(
    data: bytes, *, key: str, signatures: SignatureTerms, path: str, environment: str
) -> VerifiedBundle:
    """Verify an HMAC bundle for an environment.

    1. The environment accepts this format, asks for no more than one signature, which is all it can carry, and there
       is a key.
    2. Kind, version, digest and signature are right.
    3. It stands at ``bundles/<name>/<version>.json``, which is all that names it.
    4. It was signed for this environment, or for none in particular.

    Its identity is the digest of the bytes that the HMAC covers.

    Raises:
        Invalid: ``Malformed``, ``LimitExceeded``.
        Untrusted: ``PolicyDenied``, ``ThresholdNotMet``, ``SignatureInvalid``, ``SubjectMismatch``.
    """
    # (1)
    if HMAC not in signatures.accept:
        msg = f"{path}: the environment {environment} does not accept bundles in the format {HMAC}."
        raise Untrusted(msg, code="PolicyDenied", hint="Sign it with a key of its own: kneo spec bundle sign --key.")
    if signatures.threshold != 1:
        msg = f"{path}: {signatures.threshold} signatures are needed, and an HMAC bundle can carry only one."
        raise Untrusted(
            msg, code="ThresholdNotMet", hint="Sign it with keys of their own: kneo spec bundle sign --key."
        )
    if not key:
        msg = f"{path} is a bundle in the older format, and this process has no key to check it with."
        hint = "Set KNEO_SERV_SPEC_SIGNING_KEY for every process, or sign it with a key of its own."
        raise Untrusted(msg, code="PolicyDenied", hint=hint)
    # (2)
    report = check_hmac_bundle(data, key, file=path)
    if not report.valid:
        raise Untrusted(f"{path}: {' '.join(report.errors)}", code="SignatureInvalid")
    # (3)
    place = _PLACE.fullmatch(path.removesuffix(".json").removesuffix(".dsse"))
    if place is None or not path.endswith(".json"):
        msg = f"{path} is not where a bundle stands; expected bundles/<name>/<version>.json."
        raise Untrusted(msg, code="SubjectMismatch")
    # (4)
    bundle = _read(data, path)
    meant_for, approved_by, key_id = _metadata(bundle, path)
    if meant_for not in {None, environment}:
        msg = f"{path}: signed for {meant_for}, not for {environment}."
        raise Untrusted(msg, code="SubjectMismatch", hint=f"Sign it with --env {environment}.")
    payload = _canonical({name: value for name, value in bundle.items() if name != "signature"})
    return VerifiedBundle(
        name=place[1],
        version=place[2],
        digest=digest_of(payload),
        seq=UNSEQUENCED,
        prev=None,
        spec=bundle["spec"],  # type: ignore[arg-type]  # step 2 found an object
        payload=payload,
        envelope=data,
        signers=(Signer(approved_by, KeyId(f"hmac:{key_id}")),),
        statement=None,
        seal=SEAL,
    )


def spec_in_hmac(payload: bytes) -> Mapping[str, object]:
    """Parse the spec of a verified bundle's payload, the bytes that the HMAC covers.

    Raises: Invalid: there is none.
    """
    spec = _read(payload, "bundle").get("spec")
    if not isinstance(spec, dict):
        msg = "bundle: spec must be an object."
        raise Invalid(msg, code="Malformed")
    return spec


def _read(data: bytes, file: str) -> Mapping[str, object]:
    if len(data) > ENVELOPE_BYTES:
        msg = f"{file}: {len(data)} bytes are too many for a bundle; the limit is {ENVELOPE_BYTES} bytes."
        raise Invalid(msg, code="LimitExceeded")
    value = read_strict(data, file=file)
    if not isinstance(value, dict):
        msg = f"{file}: a bundle must be a JSON object."
        raise Invalid(msg, code="Malformed")
    return value


def _metadata(bundle: Mapping[str, object], path: str) -> tuple[str | None, str, str]:
    metadata, signature = bundle.get("metadata"), bundle.get("signature")
    assert isinstance(signature, dict), "step 2 compared its value"
    fields = metadata if isinstance(metadata, dict) else {}
    meant_for, approved_by = fields.get("environment"), fields.get("approved_by")
    if not isinstance(approved_by, str) or not (meant_for is None or isinstance(meant_for, str)):
        msg = f"{path}: metadata must say approved_by and environment."
        raise Invalid(msg, code="Malformed")
    return meant_for, approved_by, str(signature.get("key_id", ""))


def _matches(claim: object, algorithm: str, value: str) -> bool:
    if not isinstance(claim, dict) or claim.get("algorithm") != algorithm:
        return False
    claimed = claim.get("value")
    return isinstance(claimed, str) and hmac.compare_digest(claimed.encode(), value.encode())


def _hmac(body: Mapping[str, object], key: str) -> str:
    _require_key(key)
    return hmac.new(key.encode(), _canonical(body), hashlib.sha256).hexdigest()


def _require_key(key: str) -> None:
    if not key:
        msg = "The signing key is empty."
        raise Invalid(msg, code="invalid_key", hint="Put it into the environment variable that --key-env names.")


def _canonical(value: Mapping[str, object]) -> bytes:
    """Serialise JSON as the published tool does, which differs from RFC 8785 in numbers and key order."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        msg = f"This spec cannot be written as JSON: {error}."
        raise Invalid(msg, code="Malformed", hint="Dates must be in quotes.") from error
