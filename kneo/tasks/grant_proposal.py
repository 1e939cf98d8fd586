"""Drafts of standing grants from the answers of people. Pure; a person always ratifies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

from pydantic import Field

from kneo.records.task import DecisionKind
from kneo.spec.expression import ValuePath, evaluate, kind_of, parse
from kneo.tasks.review import JUDGED_FROM, is_rubber_stamp

MAX_VALUES = 5
"""Different texts of an argument that a condition lists."""


@dataclass(frozen=True, kw_only=True)
class AnsweredCall:
    """The answer of people to one call.

    Attributes:
        arguments: The arguments that were shown.
        decision: The decision.
        is_quick: Whether it came before the call could have been read.
        voters: Those who decided.
    """

    arguments: Mapping[str, object]
    decision: DecisionKind
    is_quick: bool
    voters: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GrantProposal:
    """A draft of a grant, and the figures behind it.

    Attributes:
        total: The sum of each number over the calls that it would have covered.
        answers: The answers of people for the present digest.
        approvals: Those that approve the call as it is.
        edited_share: The share of edits, of all answers.
        reviewers: The number of people who decided.
    """

    when: Annotated[str | None, Field(description="The condition; null where nothing is drafted.")]
    problem: Annotated[str | None, Field(description="Why nothing is drafted.")]
    total: Mapping[str, float]
    unbounded: Annotated[tuple[str, ...], Field(description="Arguments that the condition does not limit.")]
    answers: int
    approvals: int
    edited_share: float
    quick_share: Annotated[float, Field(description="Approvals that came before the call could have been read.")]
    reviewers: int
    covered: Annotated[int, Field(description="The approved calls that it would have covered.")]


def propose(calls: Sequence[AnsweredCall]) -> GrantProposal:
    """Draft a grant from the answers to the calls of one tool.

    The condition has the range of each number and the few values of each text in approvals that were neither edited nor quick.
    """
    approved = [call for call in calls if call.decision is DecisionKind.APPROVED]
    quick = sum(call.is_quick for call in approved)
    read = [call.arguments for call in approved if not call.is_quick]
    names = sorted(frozenset(chain.from_iterable(read)))
    terms = {name: tuple(_terms(name, [each.get(name) for each in read])) for name in names}
    when = " && ".join(term for name in names for term in terms[name]) or None
    problem = None
    if len(calls) < JUDGED_FROM:
        problem = f"There are {len(calls)} answers; a draft needs {JUDGED_FROM}."
    elif is_rubber_stamp(len(calls), len(approved), quick):
        problem = "Most approvals came before the call could have been read: read the calls first."
    elif when is None:
        problem = "No argument has a range or few values, so there is nothing to limit."
    elif any(call.decision is DecisionKind.REJECTED and _covers(when, call.arguments) is not False for call in calls):
        problem = "A call that a person rejected fits the draft."
    fitting = [call.arguments for call in approved if when is not None and _covers(when, call.arguments)]
    return GrantProposal(
        when=when if problem is None else None,
        problem=problem,
        total=dict(_totals(fitting)) if problem is None else {},
        unbounded=tuple(name for name in names if not terms[name]),
        answers=len(calls),
        approvals=len(approved),
        edited_share=_share(sum(call.decision is DecisionKind.EDITED for call in calls), len(calls)),
        quick_share=_share(quick, len(approved)),
        reviewers=len({voter for call in calls for voter in call.voters}),
        covered=len(fitting) if problem is None else 0,
    )


def _terms(name: str, values: Sequence[object]) -> Iterator[str]:
    """Yield the conditions on one argument; none where its values are of several kinds, missing or many."""
    path, kinds = str(ValuePath(("args", name))), {kind_of(value) for value in values}
    if kinds == {"number"}:
        numbers = [value for value in values if isinstance(value, int | float)]
        if min(numbers) >= 0:
            yield f"{path} >= 0"
            yield f"{path} <= {max(numbers)!r}"
    elif kinds == {"string"} and len(set(values)) <= MAX_VALUES:
        yield f"{path} in [{', '.join(_quoted(str(value)) for value in sorted(map(str, set(values))))}]"


def _quoted(text: str) -> str:
    # In double quotes: a shell quotes the condition with single ones.
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'


def _covers(when: str, arguments: Mapping[str, object]) -> bool | None:
    return evaluate(parse(when), {"args": arguments})


def _totals(calls: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, float]]:
    for name in sorted(frozenset(chain.from_iterable(calls))):
        values = [call.get(name) for call in calls]
        numbers = [value for value in values if isinstance(value, int | float) and kind_of(value) == "number"]
        if len(numbers) == len(values):
            yield name, float(sum(numbers))


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
