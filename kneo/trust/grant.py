"""The terms of a standing grant: the statement that its voters sign, each with a key of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo.digest import Digest, digest_of
from kneo.errors import Invalid, Untrusted
from kneo.trust import dsse
from kneo.trust.answer import PAYLOAD_BYTES
from kneo.trust.statement import PAYLOAD_TYPE, read_statement, write_statement

GRANT_TYPE = "urn:kneo:attestation:grant:v1"

Text = Annotated[str, Field(max_length=20_000)]
Count = Annotated[int, Field(ge=1, le=dsse.SEQUENCE_LIMIT)]


class GrantTerms(dsse.SignedRecord):
    """The terms of a grant, about the digest of a bundle. Names are camelCase in files."""

    grant: Text
    """The id of the grant."""

    environment: Text
    bundle: Text
    bundle_digest: dsse.DigestText
    tool: Text
    when: Text | None
    """The condition of a call; null covers every call."""

    uses: Count
    uses_per_day: Count | None
    uses_per_run: Count | None
    total: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    expires: dsse.Time
    reason: Text


@dataclass(frozen=True)
class TermsStatement:
    """The signed bytes and their parsed content."""

    payload: bytes
    terms: GrantTerms

    @property
    def digest(self) -> Digest:
        return digest_of(self.payload)


def build_terms(terms: GrantTerms) -> TermsStatement:
    """Return terms as a statement to sign."""
    predicate = terms.model_dump(mode="json", by_alias=True)
    return TermsStatement(write_statement(GRANT_TYPE, terms.bundle, terms.bundle_digest, predicate), terms)


def parse_terms(payload: bytes, *, file: str = "grant") -> TermsStatement:
    """Parse the terms of a grant; no signature is verified here.

    Raises:
        Invalid: ``LimitExceeded``, or ``Malformed``: not a statement with the terms of a grant and nothing else.
    """
    if len(payload) > PAYLOAD_BYTES:
        msg = f"{file}: {len(payload)} bytes are too many; the limit is {PAYLOAD_BYTES} bytes."
        raise Invalid(msg, code="LimitExceeded")
    statement = read_statement(payload, GRANT_TYPE, file=file)
    terms = dsse.read_record(GrantTerms, statement.predicate, file=f"{file}: predicate")
    if (statement.subject_name, statement.subject_digest) != (terms.bundle, terms.bundle_digest):
        msg = f"{file}: its subject is not the bundle that it is about."
        raise Invalid(msg, code="Malformed", field="subject")
    return TermsStatement(payload, terms)


def open_terms(envelope: dsse.Envelope) -> TermsStatement:
    """Parse signed terms without verification.

    Raises:
        Invalid: as ``parse_terms`` says, or the envelope has another kind or more than one signature.
    """
    if envelope.payload_type != PAYLOAD_TYPE or len(envelope.signatures) != 1:
        msg = f"grant: signed terms are one {PAYLOAD_TYPE} with one signature."
        raise Invalid(msg, code="Malformed", field="signatures")
    return parse_terms(envelope.payload)


def check_terms(envelope: dsse.Envelope, terms: GrantTerms) -> None:
    """Check that signed terms are those of a grant.

    Raises:
        Invalid: as ``open_terms`` says.
        Untrusted: ``SubjectMismatch``, with the field that differs.
    """
    signed = open_terms(envelope).terms
    for name, about in GrantTerms.model_fields.items():
        if getattr(signed, name) != getattr(terms, name):
            field = about.alias or name
            msg = f"The signed terms differ from those of the grant: {field}."
            raise Untrusted(msg, code="SubjectMismatch", field=field, hint="Read the grant again, and sign its terms.")


_SHOWN = {
    "id": "grant",
    "environment": "environment",
    "bundle": "bundle",
    "digest": "bundleDigest",
    "tool": "tool",
    "when": "when",
    "uses": "uses",
    "uses_per_day": "usesPerDay",
    "uses_per_run": "usesPerRun",
    "total": "total",
    "expires_at": "expires",
}
"""The fields of a grant as it is shown, and those of its terms."""


def read_grant(value: object, *, file: str) -> tuple[str, TermsStatement]:
    """Return the id and the terms of a grant as ``kneo grant show --json`` writes it.

    Raises:
        Invalid: ``Malformed``: it is none.
        Untrusted: ``SubjectMismatch``: what it shows differs from its terms.
    """
    terms = value.get("terms") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(terms, dict):
        msg = f"{file}: this is no grant."
        raise Invalid(msg, code="Malformed", hint="kneo grant show ID --json writes one.")
    for shown, field in _SHOWN.items():
        if value.get(shown) != terms.get(field):
            msg = f"{file}: {shown} differs from the terms of the grant."
            raise Untrusted(msg, code="SubjectMismatch", field=shown)
    statement = build_terms(dsse.read_record(GrantTerms, terms, file=f"{file}: terms"))
    if value.get("terms_digest") != statement.digest:
        msg = f"{file}: terms_digest is not that of the terms."
        raise Untrusted(msg, code="SubjectMismatch", field="terms_digest")
    return statement.terms.grant, statement
