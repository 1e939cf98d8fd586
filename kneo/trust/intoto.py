"""in-toto Statements (v1): a predicate of one type about one subject."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from kneo.digest import Digest, canonical_json
from kneo.errors import Invalid
from kneo.trust.reading import Line, Several, SignedRecord, read_record, read_strict

STATEMENT_TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _DigestSet(SignedRecord):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Subject(SignedRecord):
    name: Line
    digest: _DigestSet


class Statement(SignedRecord):
    """A statement with an unparsed predicate."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subjects: Annotated[Several[_Subject], Field(min_length=1, max_length=1, alias="subject")]
    predicate_type: Line
    predicate: dict[str, JsonValue]

    @property
    def subject_name(self) -> str:
        return self.subjects[0].name

    @property
    def subject_digest(self) -> Digest:
        return Digest(f"sha256:{self.subjects[0].digest.sha256}")


def read_statement(payload: bytes, predicate_type: str, *, file: str) -> Statement:
    """Parse a statement of one kind about one subject.

    Raises:
        Invalid: ``Malformed``: not a statement, with unknown fields, or of another kind.
    """
    statement = read_record(Statement, read_strict(payload, file=file), file=file)
    if statement.predicate_type != predicate_type:
        msg = f"{file}: predicateType is {statement.predicate_type}, expected {predicate_type}."
        raise Invalid(msg, code="Malformed")
    return statement


def write_statement(predicate_type: str, name: str, digest: str, predicate: dict[str, JsonValue]) -> bytes:
    """Return a statement about one subject in RFC 8785 form."""
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )
