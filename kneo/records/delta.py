"""Deltas: pieces of a model's reply on their way to readers. They are never stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelDelta:
    """A piece of a reply.

    Attributes:
        step_id: The path of the step.
        request: The number of the request in its conversation.
        offset: The characters of the reply before this piece. A higher one than expected shows that pieces were lost; 0 begins
            a reply anew.
    """

    run_id: str
    step_id: str
    request: int
    offset: int
    text: str
