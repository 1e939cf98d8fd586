"""Recordings: ended runs with what stood for the outside, redacted, so that another version of their bundle can be rehearsed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kneo.digest import Digest, canonical_json, digest_of
from kneo.errors import Invalid
from kneo.redaction import redact, redact_text

Redaction: TypeAlias = Literal["personal", "secrets"]
"""What leaves no recording: secrets and personal data, or secrets alone."""

RecordedDecision: TypeAlias = Literal["approved", "rejected", "edited", "selected", "provided"]

Json = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class RecordedCall:
    """A tool call that was made, or a function step that ended.

    Attributes:
        path: The step.
        tool: The tool; None for a function step, whose ``arguments`` are its ``text``.
        result: The result as the model was shown it, the error of a call that failed, or the output of the step.
    """

    path: str
    tool: str | None
    arguments: Json
    result: object
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class RecordedQuestion:
    """A question to people, and their decision.

    Attributes:
        key: The key of the question without digests of arguments.
        subject_digest: SHA-256 of its redacted subject.
        decision: None where no person decided: the question timed out, or its run ended before.
        about_call: Whether a gate asked about one tool call.
        after: How many of the recorded calls had begun before it was asked.
    """

    key: str
    subject_digest: str
    decision: RecordedDecision | None = None
    timeout: bool = False
    content: object = None
    selected_option: str | None = None
    selected_options: list[str] | None = None
    values: Json | None = None
    arguments: Json | None = None
    feedback: str | None = None
    about_call: bool = False
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One ended run. Where ``unavailable`` says why, it cannot be rehearsed and has no content.

    Attributes:
        cost: USD; None where the price of a model is not known.
    """

    run_id: str
    bundle: str
    version: str
    target: str
    status: str
    input: str | None = None
    output: str | None = None
    calls: list[RecordedCall] = field(default_factory=list)
    questions: list[RecordedQuestion] = field(default_factory=list)
    cost: str | None = None
    started_at: str | None = None
    unavailable: str | None = None


_LABELS = re.compile(r"[:@][0-9a-f]{8}(?=[:@>+]|$)")
"""The digests of arguments in the key of a question about a call: they are of the arguments before redaction."""


def recorded_key(key: str) -> str:
    """Return the key of a question without digests of arguments."""
    return _LABELS.sub("", key)


def subject_digest(subject: str, redaction: Redaction) -> Digest:
    """Return the digest of a question's subject after redaction: what was redacted cannot be guessed from it.

    A subject of data, as that of a question about a call, is redacted as data, so that the names of its fields count.
    """
    try:
        content = json.loads(subject)
        if isinstance(content, Mapping):
            return digest_of(canonical_json(redacted_json(content, redaction)))
    except (ValueError, RecursionError, Invalid):
        pass  # a text
    return digest_of(redact_text(subject, personal=redaction == "personal").encode(errors="replace"))


def redacted_json(value: Mapping[str, object], redaction: Redaction) -> Json:
    """Return data without what a redaction removes."""
    found = redact(value, personal=redaction == "personal")
    assert isinstance(found, dict)
    return found
