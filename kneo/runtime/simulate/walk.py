"""Following a program through everything that may happen, each state once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b

from kneo.runtime.decide import Ask, Asked, Ended, Execute, Frame, Moment, actions, begin, settle, waiting
from kneo.runtime.program import Program
from kneo.runtime.simulate.script import Privileged, Script, Way

MOMENT = Moment(now=datetime(2000, 1, 1, tzinfo=UTC), seed="simulation", case="simulation")
"""Nothing depends on it: no time passes, and questions asked by chance are always asked."""


@dataclass(slots=True)
class Point:
    """A state of the run, and where it leads.

    Attributes:
        state: The interpreter's state, or the end.
        agreed: Whether a person has agreed to anything on the way here.
        doing: Kind (``input``, ``step``, ``question``) and name of what happens next.
        ungated: The privileged call that happens next though nobody has agreed to anything.
        ways: What may come of it, and the number of the point that leads to.
        cut: Whether the simulation went no further here.
    """

    state: Frame | Ended
    agreed: bool
    doing: tuple[str, str] = ("end", "")
    ungated: str | None = None
    ways: list[tuple[str, int]] = field(default_factory=list)
    cut: bool = False


class Walk:
    """All states that a program can come to, the nearest ones first.

    Args:
        program: What is simulated.
        script: What may happen.
        privileged: Calls that somebody must agree to.
        limit: The most states that are looked at.
    """

    def __init__(self, program: Program, script: Script, privileged: Privileged, limit: int) -> None:
        self.points: list[Point] = [Point({}, agreed=False, doing=("input", "input"))]
        self.reached: set[str] = set()
        self.asked: set[tuple[str, str]] = set()
        self._program = program
        self._script = script
        self._privileged = privileged
        self._numbers: dict[bytes, int] = {}
        self._follow(limit)

    @property
    def cut(self) -> int:
        """How many states were found and not followed."""
        return sum(point.cut for point in self.points)

    def _follow(self, limit: int) -> None:
        ahead: deque[int] = deque()
        for label, text in self._script.inputs():
            self._lead(self.points[0], label, begin(self._program, text, MOMENT), agreed=False, ahead=ahead)
        done = 0
        while ahead:
            point = self.points[ahead.popleft()]
            if isinstance(point.state, Ended):
                continue
            done += 1
            if done > limit:
                point.cut = True
                continue
            for way, after in self._next(point, point.state):
                self._lead(point, way.label, after, agreed=point.agreed or way.agreed, ahead=ahead)

    def _lead(self, point: Point, label: str, state: Frame | Ended, *, agreed: bool, ahead: deque[int]) -> None:
        state = state if isinstance(state, Ended) else self._all_asked(state)
        key = _name(state, agreed=agreed)
        if key not in self._numbers:
            self._numbers[key] = len(self.points)
            self.points.append(Point(state, agreed))
            ahead.append(self._numbers[key])
        point.ways.append((label, self._numbers[key]))

    def _all_asked(self, state: Frame) -> Frame:
        """Open every question: nothing can come of that but that they are open."""
        while True:
            ask = next((one for one in actions(self._program, state) if isinstance(one, Ask)), None)
            if ask is None:
                return state
            after = settle(self._program, state, ask.ticket, Asked(task_id=ask.ticket), MOMENT)
            assert not isinstance(after, Ended), "asking ends nothing"
            state = after

    def _next(self, point: Point, state: Frame) -> Iterator[tuple[Way, Frame | Ended]]:
        """Do what is first to be done, or else answer the first open question."""
        execute = next((one for one in actions(self._program, state) if isinstance(one, Execute)), None)
        if execute is not None:
            place = execute.ticket.rpartition(":")[0]
            point.doing = ("step", place)
            self.reached.add(execute.leaf.path)
            call = self._privileged.get((execute.leaf.kind, execute.leaf.ref))
            point.ungated = call if not point.agreed else None
            ticket, ways = execute.ticket, self._script.results(execute)
        else:
            ask = next(iter(waiting(self._program, state).values()))
            point.doing = ("question", ask.key)
            self.asked.add((ask.path, ask.gate.spot))
            ticket, ways = ask.ticket, self._script.answers(ask)
        for way in ways:
            if isinstance(way.outcome, Ended):
                yield way, way.outcome
            else:
                yield way, settle(self._program, state, ticket, way.outcome, MOMENT)


def _name(state: Frame | Ended, *, agreed: bool) -> bytes:
    if isinstance(state, Ended):
        told: object = [state.status, state.output, state.error.type if state.error else None]
    else:
        told = state
    return blake2b(json.dumps([told, agreed], sort_keys=True).encode(), digest_size=16).digest()
