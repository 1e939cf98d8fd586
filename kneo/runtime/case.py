"""What a run is about, for chances that are drawn once for it (``sample`` of a gate).

Chances are drawn from what the requester cannot draw again by starting the run again: the exact spec, environment, target
and input. The day is part of it, so that a run that is started every day with the same input is sampled like any other.
"""

from __future__ import annotations

from kneo.digest import digest_of, digest_of_json
from kneo.records.run import Run

CASE_INPUT = "case_input"
"""The key of a fork's metadata with the digest of the input that it was given in place of its parent's."""

_DATE_CHARS = len("2026-01-31")


def case_of(run: Run, *, new_input: str | None = None) -> str:
    """Name the case of a run; with ``new_input`` that of a fork of it."""
    changed = run.metadata.get(CASE_INPUT)
    if new_input is not None or not isinstance(changed, str):
        changed = input_digest(run.input_text if new_input is None else new_input)
    return name_case(run.spec_digest, run.environment, run.target, changed, run.created_at)


def name_case(spec_digest: str, environment: str | None, target: str, given: str, at: str) -> str:
    """Name the case of a run of a spec; ``given`` is the digest of its input."""
    day = at[:_DATE_CHARS]
    case = {"spec": spec_digest, "environment": environment, "target": target, "input": given, "day": day}
    return digest_of_json(case)


def input_digest(text: str) -> str:
    return digest_of(text.encode())
