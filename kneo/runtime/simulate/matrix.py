"""Branches: what can be told apart by what happens, not by what was said on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kneo.runtime.decide import Ended
from kneo.runtime.simulate.walk import Point, Walk


@dataclass(frozen=True, slots=True)
class Outcome:
    """One branch, from its beginning to its end.

    Attributes:
        choices: What was decided on the way: the kind of thing, its name, and the words that all lead this way.
        ran: The places of the steps that ran, in order.
        ungated: Places of steps that called something privileged though nobody had agreed to anything, and the call.
        status: How the run ends; None where the simulation went no further.
    """

    choices: tuple[tuple[str, str, tuple[str, ...]], ...]
    ran: tuple[str, ...]
    ungated: tuple[tuple[str, str], ...]
    status: str | None
    error: str | None
    output: str | None

    def as_json(self) -> dict[str, object]:
        return {
            "choices": [{"kind": kind, "name": name, "any_of": list(words)} for kind, name, words in self.choices],
            "ran": list(self.ran),
            "ungated": [{"step": place, "call": call} for place, call in self.ungated],
            "status": self.status,
            "error": self.error,
            "output": self.output,
        }


Fork = list[tuple[tuple[str, ...], int]]


@dataclass(slots=True)
class Matrix:
    """The branches of a walk.

    Attributes:
        count: How many there are.
        forks: By point: the words that lead to the same future, and a point that begins it.
    """

    points: Sequence[Point]
    count: int = 0
    forks: list[Fork] = field(default_factory=list)

    @classmethod
    def of(cls, walk: Walk) -> Matrix:
        """Fold the states of a walk that can only go the same ways."""
        futures: list[int] = [-1] * len(walk.points)
        known: dict[object, int] = {}
        counts: list[int] = [0] * len(walk.points)
        forks: list[Fork] = [[] for _ in walk.points]
        for number in _innermost_first(walk.points):
            point = walk.points[number]
            forks[number] = _fork(point, futures)
            counts[number] = sum(counts[to] for _, to in forks[number]) or 1
            leads = tuple((words, futures[to]) for words, to in forks[number])
            future = (_kind(point), leads if len(leads) > 1 else tuple(to for _, to in leads))
            futures[number] = known.setdefault(future, len(known))
        return cls(points=walk.points, count=counts[0], forks=forks)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield each branch; what people agree to comes before what they refuse."""
        ahead: list[tuple[int, _Trail | None]] = [(0, None)]
        while ahead:
            number, trail = ahead.pop()
            fork = self.forks[number]
            if not fork:
                yield self._outcome(number, trail)
            for words, to in reversed(fork):
                ahead.append((to, _Trail(trail, self.points[number], words, chosen=len(fork) > 1)))

    def _outcome(self, number: int, trail: _Trail | None) -> Outcome:
        passed = list(_links(trail))[::-1]
        end = self.points[number].state
        ended = end if isinstance(end, Ended) else None
        shown = [link for link in passed if link.chosen or link.point.doing[0] == "question"]
        return Outcome(
            choices=tuple((*link.point.doing, link.words) for link in shown),
            ran=tuple(link.point.doing[1] for link in passed if link.point.doing[0] == "step"),
            ungated=tuple((link.point.doing[1], link.point.ungated) for link in passed if link.point.ungated),
            status=ended.status.value if ended else None,
            error=ended.error.type if ended and ended.error else None,
            output=ended.output if ended else None,
        )


@dataclass(frozen=True, slots=True)
class _Trail:
    """How a point was reached, from the last step back."""

    before: _Trail | None
    point: Point
    words: tuple[str, ...]
    chosen: bool


def _links(trail: _Trail | None) -> Iterator[_Trail]:
    while trail is not None:
        yield trail
        trail = trail.before


def _kind(point: Point) -> object:
    if isinstance(point.state, Ended):
        return point.state.status, point.state.error.type if point.state.error else None
    return point.doing, point.ungated, point.cut


def _fork(point: Point, futures: Sequence[int]) -> Fork:
    """Join the words that lead to the same future."""
    joined: dict[int, tuple[dict[str, None], int]] = {}
    for word, to in point.ways:
        joined.setdefault(futures[to], ({}, to))[0][word] = None
    return [(tuple(words), to) for words, to in joined.values()]


def _innermost_first(points: Sequence[Point]) -> Iterator[int]:
    """Yield every point after all that it leads to."""
    seen = {0}
    path: list[tuple[int, Iterator[tuple[str, int]]]] = [(0, iter(points[0].ways))]
    while path:
        number, ways = path[-1]
        following = next((to for _, to in ways if to not in seen), None)
        if following is None:
            path.pop()
            yield number
        else:
            seen.add(following)
            path.append((following, iter(points[following].ways)))
