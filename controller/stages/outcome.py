"""How a pass over one environment ended, as a value. Trouble with the machinery is an exception instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Ready:
    """What Git declares is what the registry serves."""

    changed: int
    state: ClassVar[str] = "Ready"


@dataclass(frozen=True)
class Reconciling:
    """Something has to happen first: a person, a window, time. Worth looking again."""

    reason: str
    message: str

    @property
    def state(self) -> str:
        """The word for it in one cell of a table."""
        return self.reason


@dataclass(frozen=True)
class Stalled:
    """Only a change of what Git declares can help; looking again without one is useless."""

    reason: str
    message: str

    @property
    def state(self) -> str:
        """The word for it in one cell of a table."""
        return self.reason


Outcome = Ready | Reconciling | Stalled
