"""What a step is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Handed to a function that has a parameter named ``context``.

    ``idempotency_key`` is the same whenever the same attempt is repeated after a crash; hand it to whatever the
    function calls, so that an effect happens once.
    """

    run_id: str
    step_id: str
    attempt: int
    idempotency_key: str


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    text: str
    code_digest: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the trace should say about how it went; never content."""
