"""What a step is given and what it gives back."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


class Cancelled(Exception):
    """The run was cancelled or taken over; whatever the step still returns is discarded."""


class CancelToken:
    """Tells work that runs in a thread that nobody waits for it any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not beyond the cancellation; say whether it came."""
        return self._event.wait(seconds)

    def raise_if_cancelled(self) -> None:
        """Stop here when nobody waits any more.

        Raises:
            Cancelled: nobody does.
        """
        if self.is_cancelled:
            raise Cancelled


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Handed to a function that has a parameter named ``context``.

    ``idempotency_key`` is the same whenever the same attempt is repeated after a crash; hand it to whatever the
    function calls, so that an effect happens once. ``previous_output`` and ``feedback`` are there when a person sent
    an earlier result back.
    """

    run_id: str
    step_id: str
    attempt: int
    idempotency_key: str
    previous_output: str | None = None
    feedback: str | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    """What people filled in right before this step, by field."""
    implementations: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 that the run's environment pins modules to."""
    token: CancelToken = field(default_factory=CancelToken, compare=False)


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    text: str
    code_digest: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the trace should say about how it went; never content."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """What conditions of type ``metadata_equals`` may ask for."""
