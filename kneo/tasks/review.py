"""Review statistics of gates: how fast people decide, how often they reject or edit, whether they agree. Pure.

Figures are of gates, never of people: they help to find questions that are not needed or cannot be decided well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from kneo.clock import parse_time
from kneo.records.task import REPLAYED, DecisionKind, Outcome
from kneo.tasks.schedule import TIMEOUT_POLICY

READ_CHARS_PER_SECOND = 48.0
"""Twice the 238 words (of six characters with their space) that adults read in a minute, silently, of non-fiction: the mean of
190 studies in M. Brysbaert, "How many words do we read per minute?", Journal of Memory and Language 109 (2019). A faster
review has not read it."""

OPENED_SECONDS = 3.0
"""Least seconds for opening and answering a question, however short it is: an estimate."""

JUDGED_FROM = 20
"""Answers by people that a judgement of a gate needs; fewer may be chance."""

ALWAYS_APPROVED, MOSTLY_QUICK = 0.95, 0.5

EDITS = 100
"""Edits that are compared with their subject, the newest of all gates; a comparison costs up to ten milliseconds."""

EDIT_CHARS = 20_000

CELLS = 40_000
"""Most pairs of words, or of lines, in one comparison, without the common beginning and end."""

PERSON = "person"

_TURN = re.compile(r"[#@]\d+")


@dataclass(frozen=True, kw_only=True)
class GateStatistics:
    """The statistics of one gate. Shares are from 0 to 1, of answers by people; None without answers."""

    gate: str
    """The key of its questions without the round of a loop or the attempt: ``draft.after``."""
    environment: str | None
    workflow_name: str | None
    position: str
    decided: int
    by_people: int
    by_deadline: int
    by_replay: int
    expired: int
    """Tasks without a decision whose deadline ended the run."""
    decisions: Mapping[str, int]
    """The number of answers, by decision."""
    median_seconds: float | None
    p90_seconds: float | None
    """Seconds from the question to the decision; nine of ten took no longer."""
    edited_share: float | None
    rejected_share: float | None
    edit_distance: float | None
    """Median share of the words (or lines, of long texts) that an edit changed."""
    edits_compared: int
    quick_share: float | None
    """Approvals that came before the subject could have been read; see ``is_quick``."""
    rubber_stamp: bool
    """See ``is_rubber_stamp``."""
    voted: int
    """Answers by several people."""
    agreement: float | None
    """Share of those in which all votes agreed."""


def edits_to_compare(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Choose the edits to compare with their subject."""
    edited = (one.id for one in outcomes if one.content is not None and _compares(one))
    return tuple(each for each, _ in zip(edited, range(EDITS), strict=False))


def _compares(one: Outcome) -> bool:
    return one.by == PERSON and max(one.shown_chars, len(one.content or "")) <= EDIT_CHARS


def review_gates(outcomes: Sequence[Outcome], shown: Mapping[str, str]) -> tuple[GateStatistics, ...]:
    """Compute the statistics of every gate, those with most answers first.

    Args:
        outcomes: The outcomes of tasks.
        shown: The subjects of edited tasks by task id, as ``edits_to_compare`` chose them.
    """
    gates: dict[tuple[str | None, str | None, str, str], list[Outcome]] = {}
    for one in outcomes:
        gates.setdefault((one.environment, one.workflow_name, _TURN.sub("", one.key), one.position), []).append(one)
    statistics = [_gate(*place, of_gate, shown) for place, of_gate in gates.items()]
    return tuple(sorted(statistics, key=lambda one: (-one.decided, one.gate)))


def _gate(
    environment: str | None,
    workflow_name: str | None,
    gate: str,
    position: str,
    all_of: Sequence[Outcome],
    shown: Mapping[str, str],
) -> GateStatistics:
    decided = [one for one in all_of if one.decision is not None]
    people = [one for one in decided if one.by == PERSON]
    replayed = sum(one.by == REPLAYED for one in decided)
    decisions = Counter(one.decision.value for one in people if one.decision is not None)
    seconds = sorted(_seconds(one) for one in people)
    approved = [one for one in people if one.decision is DecisionKind.APPROVED]
    quick = sum(map(is_quick, approved))
    distances = [
        distance
        for one in people
        if one.id in shown and (distance := edit_distance(shown[one.id], one.content or "")) is not None
    ]
    voted = [one for one in people if len(one.answers) > 1]
    return GateStatistics(
        gate=gate,
        environment=environment,
        workflow_name=workflow_name,
        position=position,
        decided=len(decided),
        by_people=len(people),
        by_deadline=sum(one.by == TIMEOUT_POLICY for one in decided),
        by_replay=replayed,
        expired=len(all_of) - len(decided),
        decisions=dict(sorted(decisions.items())),
        median_seconds=round(median(seconds), 3) if seconds else None,
        p90_seconds=round(seconds[ceil(0.9 * len(seconds)) - 1], 3) if seconds else None,
        edited_share=_share(decisions[DecisionKind.EDITED], len(people)),
        rejected_share=_share(decisions[DecisionKind.REJECTED], len(people)),
        edit_distance=round(median(distances), 4) if distances else None,
        edits_compared=len(distances),
        quick_share=_share(quick, len(approved)),
        rubber_stamp=is_rubber_stamp(len(people), len(approved), quick),
        voted=len(voted),
        agreement=_share(sum(len(set(one.answers)) == 1 for one in voted), len(voted)),
    )


def is_quick(one: Outcome) -> bool:
    """Return whether a decision came sooner than the subject can be read at twice the usual speed.

    The time counts from the opening of the task, not of the page, so that no careful review counts as quick.
    """
    return is_unread(_seconds(one), one.shown_chars)


def is_unread(seconds: float, shown_chars: int) -> bool:
    """Return whether a subject of so many characters cannot be read in a time; see ``is_quick``."""
    return seconds < max(OPENED_SECONDS, shown_chars / READ_CHARS_PER_SECOND)


def is_rubber_stamp(decided: int, approved: int, quick: int) -> bool:
    """Return whether a gate looks rubber-stamped.

    That is: 20 answers or more, at least 95 % of them plain approvals, and at least half of those given before the
    subject could have been read. Many approvals alone are no problem: the work may be good. Unread approvals are.
    """
    return decided >= JUDGED_FROM and approved >= ALWAYS_APPROVED * decided and quick >= MOSTLY_QUICK * approved


def edit_distance(before: str, after: str) -> float | None:
    """Return the share of words to insert, delete or replace to turn one text into the other: from 0 to 1, of the
    longer text.

    Long texts are compared by lines; ``None`` where that is too much work, too.
    """
    for parted in (str.split, str.splitlines):
        old, new = _trimmed(parted(before), parted(after))
        if len(old) * len(new) <= CELLS:
            longest = max(len(parted(before)), len(parted(after)), 1)
            return round(_levenshtein(old, new) / longest, 4)
    return None


def _trimmed(old: list[str], new: list[str]) -> tuple[list[str], list[str]]:
    """Remove the common beginning and end of two texts."""
    least = min(len(old), len(new))
    start = next((index for index in range(least) if old[index] != new[index]), least)
    least -= start
    end = next((index for index in range(least) if old[-1 - index] != new[-1 - index]), least)
    return old[start : len(old) - end], new[start : len(new) - end]


def _levenshtein(old: Sequence[str], new: Sequence[str]) -> int:
    row = list(range(len(new) + 1))
    for number, word in enumerate(old, 1):
        diagonal, row[0] = row[0], number
        for index, other in enumerate(new, 1):
            diagonal, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, diagonal + (word != other))
    return row[-1]


def _seconds(one: Outcome) -> float:
    return (parse_time(one.resolved_at) - parse_time(one.asked_at)).total_seconds()


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
