"""What a hunt may spend, and what it found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from time import monotonic


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a hunt goes on: at least one case, then until the cases or the seconds are used up."""

    seed: int = 0
    cases: int | None = None
    seconds: float | None = None

    def seeds(self) -> Iterator[int]:
        """Yield the seed of each case; a case is made from its seed alone."""
        until = None if self.seconds is None else monotonic() + self.seconds
        for number in count():
            yield self.seed + number
            if self.cases is not None and number + 1 >= self.cases:
                return
            if until is not None and monotonic() > until:
                return


@dataclass(frozen=True)
class Finding:
    """A broken law. ``seed`` makes the case again: ``make hunt ONLY=name SEED=seed SECONDS=0``."""

    seed: int
    law: str
    facts: str


@dataclass
class Report:
    """What a hunt did: ``counts`` say how much of what was tried, so that an empty hunt is seen."""

    cases: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number
