"""Exploration of all states of a program, and the branches that they form."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b

from kneo.runtime.interpreter.node import DecisionContext, Execute, Frame, RunEnded
from kneo.runtime.interpreter.program import Program, actions, begin, open_questions, settle, waiting
from kneo.runtime.simulate.scenario import Privileged, Scenario, Transition

CONTEXT = DecisionContext(now=datetime(2000, 1, 1, tzinfo=UTC), seed="simulation", sampling_seed="simulation")
"""A fixed context: no time passes, and sampled questions are always asked."""


@dataclass(slots=True)
class ExploredState:
    """A state of the run, and its transitions.

    Attributes:
        state: The interpreter's state, or the end.
        agreed: Whether a person has agreed to anything before this state.
        doing: Kind and name of the next action: ``input``, ``step``, ``call`` (a step that continues after a decision about
            one of its tool calls), ``question`` or ``end``.
        ungated: The privileged call that happens next without any approval.
        ways: The labels of the transitions, each with the number of the next state.
        cut: Whether the simulation stopped here.
    """

    state: Frame | RunEnded
    agreed: bool
    doing: tuple[str, str] = ("end", "")
    ungated: str | None = None
    ways: list[tuple[str, int]] = field(default_factory=list)
    cut: bool = False


class Exploration:
    """All states that a program can reach, the nearest ones first.

    Args:
        program: The program.
        script: The possible outcomes.
        privileged: Calls that need an approval.
        limit: The largest number of states that are followed.
    """

    def __init__(self, program: Program, script: Scenario, privileged: Privileged, limit: int) -> None:
        self.points: list[ExploredState] = [ExploredState({}, agreed=False, doing=("input", "input"))]
        self.reached: set[str] = set()
        self.asked: set[tuple[str, str]] = set()
        self._program = program
        self._script = script
        self._privileged = privileged
        self._numbers: dict[bytes, int] = {}
        self._follow(limit)

    @property
    def cut(self) -> int:
        """The number of states that were found and not followed."""
        return sum(point.cut for point in self.points)

    def _follow(self, limit: int) -> None:
        ahead: deque[int] = deque()
        for label, text in self._script.inputs():
            self._lead(self.points[0], label, begin(self._program, text, CONTEXT), agreed=False, ahead=ahead)
        done = 0
        while ahead:
            point = self.points[ahead.popleft()]
            if isinstance(point.state, RunEnded):
                continue
            done += 1
            if done > limit:
                point.cut = True
                continue
            for way, after in self._next(point, point.state):
                self._lead(point, way.label, after, agreed=point.agreed or way.agreed, ahead=ahead)

    def _lead(
        self, point: ExploredState, label: str, state: Frame | RunEnded, *, agreed: bool, ahead: deque[int]
    ) -> None:
        state = state if isinstance(state, RunEnded) else open_questions(self._program, state, CONTEXT)
        key = _name(state, agreed=agreed)
        if key not in self._numbers:
            self._numbers[key] = len(self.points)
            self.points.append(ExploredState(state, agreed))
            ahead.append(self._numbers[key])
        point.ways.append((label, self._numbers[key]))

    def _next(self, point: ExploredState, state: Frame) -> Iterator[tuple[Transition, Frame | RunEnded]]:
        """Execute the first step, or else answer the first open question."""
        execute = next((one for one in actions(self._program, state) if isinstance(one, Execute)), None)
        if execute is not None:
            location = execute.ticket.rpartition(":")[0]
            point.doing = ("call" if execute.call_answers else "step", location)
            self.reached.add(execute.activity.path)
            call = self._privileged.get((execute.activity.kind, execute.activity.ref))
            point.ungated = call if not point.agreed else None
            ticket, ways = execute.ticket, self._script.results(execute)
        else:
            ask = next(iter(waiting(self._program, state).values()))
            point.doing = ("question", ask.key)
            tool = f"{ask.facts['tool']}." if ask.of_call else ""
            self.asked.add((ask.path, f"{tool}{ask.gate.position_id}"))
            ticket, ways = ask.ticket, self._script.answers(ask)
        for way in ways:
            if isinstance(way.outcome, RunEnded):
                yield way, way.outcome
            else:
                yield way, settle(self._program, state, ticket, way.outcome, CONTEXT)


def _name(state: Frame | RunEnded, *, agreed: bool) -> bytes:
    if isinstance(state, RunEnded):
        content: object = [state.status, state.output, state.error.type if state.error else None]
    else:
        content = _without_messages(state)
    return blake2b(json.dumps([content, agreed], sort_keys=True).encode(), digest_size=16).digest()


def _without_messages(state: object) -> object:
    """Return a state without the messages of participants: no decision depends on them."""
    if isinstance(state, Mapping):
        return {key: _without_messages(value) for key, value in state.items() if key != "messages"}
    return [_without_messages(value) for value in state] if isinstance(state, list) else state


@dataclass(frozen=True, slots=True)
class BranchOutcome:
    """One branch, from its beginning to its end.

    Attributes:
        choices: The decisions of the branch: kind, name, and the words that lead this way.
        ran: The locations of the steps that ran, in order.
        ungated: Locations of steps with a privileged call without any approval, and the call.
        status: The run's final status; None where the simulation stopped.
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
            "ungated": [{"step": location, "call": call} for location, call in self.ungated],
            "status": self.status,
            "error": self.error,
            "output": self.output,
        }


Fork = list[tuple[tuple[str, ...], int]]


@dataclass(slots=True)
class BranchMatrix:
    """The branches of an exploration.

    Attributes:
        count: The number of branches.
        forks: For each state: the words that lead to the same future, and a state that begins it.
    """

    points: Sequence[ExploredState]
    count: int = 0
    forks: list[Fork] = field(default_factory=list)

    @classmethod
    def of(cls, walk: Exploration) -> BranchMatrix:
        """Merge states with equal futures."""
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

    def outcomes(self) -> Iterator[BranchOutcome]:
        """Yield each branch; approvals come before rejections."""
        ahead: list[tuple[int, _Trail | None]] = [(0, None)]
        while ahead:
            number, trail = ahead.pop()
            fork = self.forks[number]
            if not fork:
                yield self._outcome(number, trail)
            for words, to in reversed(fork):
                ahead.append((to, _Trail(trail, self.points[number], words, chosen=len(fork) > 1)))

    def _outcome(self, number: int, trail: _Trail | None) -> BranchOutcome:
        passed = list(_links(trail))[::-1]
        end = self.points[number].state
        ended = end if isinstance(end, RunEnded) else None
        shown = [link for link in passed if link.chosen or link.point.doing[0] == "question"]
        return BranchOutcome(
            choices=tuple((*link.point.doing, link.words) for link in shown),
            ran=tuple(link.point.doing[1] for link in passed if link.point.doing[0] == "step"),
            ungated=tuple((link.point.doing[1], link.point.ungated) for link in passed if link.point.ungated),
            status=ended.status.value if ended else None,
            error=ended.error.type if ended and ended.error else None,
            output=ended.output if ended else None,
        )


@dataclass(frozen=True, slots=True)
class _Trail:
    """The path to a state, from the last step back."""

    before: _Trail | None
    point: ExploredState
    words: tuple[str, ...]
    chosen: bool


def _links(trail: _Trail | None) -> Iterator[_Trail]:
    while trail is not None:
        yield trail
        trail = trail.before


def _kind(point: ExploredState) -> object:
    if isinstance(point.state, RunEnded):
        return point.state.status, point.state.error.type if point.state.error else None
    return point.doing, point.ungated, point.cut


def _fork(point: ExploredState, futures: Sequence[int]) -> Fork:
    """Merge words that lead to the same future."""
    joined: dict[int, tuple[dict[str, None], int]] = {}
    for word, to in point.ways:
        joined.setdefault(futures[to], ({}, to))[0][word] = None
    return [(tuple(words), to) for words, to in joined.values()]


def _innermost_first(points: Sequence[ExploredState]) -> Iterator[int]:
    """Yield every state after the states that it leads to."""
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
