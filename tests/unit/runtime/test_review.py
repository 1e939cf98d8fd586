"""Figures about reviewing, from outcomes that are made up to have known ones."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kneo.cli.people.decisions import bar, duration
from kneo.clock import isoformat
from kneo.records.task import DecisionKind, Outcome, TaskStatus
from kneo.tasks.review import (
    EDITS,
    GateStatistics,
    edit_distance,
    edits_to_compare,
    is_quick,
    is_rubber_stamp,
    review_gates,
)

ASKED = datetime(2026, 1, 31, 12, tzinfo=UTC)


def outcome(number: int = 0, kind: str | None = "approved", *, seconds: float = 60, **more: object) -> Outcome:
    made = Outcome(
        id=f"cont_{number:04d}",
        environment="prod",
        workflow_name="release",
        key="draft.after",
        position="after",
        status=TaskStatus.APPLIED if kind else TaskStatus.EXPIRED,
        asked_at=isoformat(ASKED),
        resolved_at=isoformat(ASKED + timedelta(seconds=seconds)),
        shown_chars=100,
        decision=DecisionKind(kind) if kind else None,
        by="person" if kind else None,
        content="better" if kind == "edited" else None,
        answers=("a",),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def one(*outcomes: Outcome, shown: dict[str, str] | None = None) -> GateStatistics:
    (found,) = review_gates(outcomes, shown or {})
    return found


def test_times_are_those_of_people() -> None:
    people = [outcome(n, seconds=n) for n in range(1, 11)]
    found = one(*people, outcome(11, seconds=9_000, by="policy:timeout"), outcome(12, seconds=0, by="replay"))
    assert (found.median_seconds, found.p90_seconds) == (5.5, 9.0)
    assert (found.decided, found.by_people, found.by_deadline, found.by_replay) == (12, 10, 1, 1)


def test_shares_are_of_what_people_answered() -> None:
    kinds = ["approved"] * 5 + ["edited"] * 3 + ["rejected"] * 2
    found = one(*(outcome(n, kind) for n, kind in enumerate(kinds)), outcome(10, None))
    assert found.decisions == {"approved": 5, "edited": 3, "rejected": 2}
    assert (found.edited_share, found.rejected_share, found.expired) == (0.3, 0.2, 1)


def test_nothing_answered_is_no_share_of_anything() -> None:
    found = one(outcome(0, None))
    assert (found.decided, found.expired, found.rubber_stamp) == (0, 1, False)
    shares = (found.median_seconds, found.p90_seconds, found.edited_share, found.rejected_share, found.quick_share)
    assert {*shares, found.agreement, found.edit_distance} == {None}


def test_rounds_and_attempts_of_a_gate_are_one_gate() -> None:
    keys = ["draft.after", "draft#1.after", "draft#2@1.after", "loop#3/draft@2.after", "other.after"]
    found = review_gates([outcome(n, key=key) for n, key in enumerate(keys)], {})
    assert [(gate.gate, gate.decided) for gate in found] == [
        ("draft.after", 3),
        ("loop/draft.after", 1),
        ("other.after", 1),
    ]


def test_environments_and_workflows_are_told_apart() -> None:
    found = review_gates([outcome(0), outcome(1, environment="dev"), outcome(2, workflow_name=None)], {})
    assert {(gate.environment, gate.workflow_name) for gate in found} == {
        ("prod", "release"), ("dev", "release"), ("prod", None),
    }  # fmt: skip


def test_agreement_is_of_answers_that_several_gave() -> None:
    outcomes = [
        outcome(0, answers=("a", "a")),
        outcome(1, answers=("a", "b")),
        outcome(2, answers=("a", "a", "a")),
        outcome(3),
    ]
    found = one(*outcomes)
    assert (found.voted, found.agreement) == (3, 0.6667)


@pytest.mark.parametrize(
    ("before", "after", "distance"),
    [
        ("the quick brown fox", "the quick brown fox", 0.0),
        ("the quick brown fox", "the slow brown fox", 0.25),
        ("the quick brown fox", "something else altogether now", 1.0),
        ("", "all of it new", 1.0),
        ("\n".join(["a line of five words"] * 100), "\n".join(["a line of five words"] * 100), 0.0),
        ("a b c d e f g h", "a b x d e f h", 0.25),
        ("one two", "one two three four", 0.5),
        ("\n".join(f"line {n} of one" for n in range(150)), "\n".join(f"line {n} of two" for n in range(150)), 1.0),
        ("x\n" * 300, "y\n" * 300, None),
        ("word " * 5_000, "word " * 5_000, 0.0),  # one line
    ],
)
def test_how_far_an_edit_is_from_what_was_shown(before: str, after: str, distance: float | None) -> None:
    assert edit_distance(before, after) == distance


def test_the_distance_of_a_gate_is_the_median_of_its_edits() -> None:
    edits = [outcome(n, "edited", content=text) for n, text in enumerate(("a b c d", "a b c x", "a b x y"))]
    found = one(*edits, shown={edit.id: "a b c d" for edit in edits})
    assert (found.edit_distance, found.edits_compared) == (0.25, 3)


def test_only_so_many_edits_are_compared() -> None:
    edits = [outcome(n, "edited") for n in range(EDITS + 50)]
    assert edits_to_compare(edits) == tuple(edit.id for edit in edits[:EDITS])
    too_long = [outcome(0, "edited", shown_chars=30_000), outcome(1, "edited", content="x" * 30_000)]
    assert edits_to_compare([*too_long, outcome(2, "edited", by="replay"), outcome(3)]) == ()


@pytest.mark.parametrize(
    ("chars", "seconds", "quick"),
    [(0, 2.9, True), (0, 3.0, False), (4_800, 99, True), (4_800, 100, False), (100, 60, False)],
)
def test_quick_is_what_nobody_can_have_read(chars: int, seconds: float, quick: bool) -> None:
    assert is_quick(outcome(shown_chars=chars, seconds=seconds)) is quick


@pytest.mark.parametrize(
    ("answered", "approved", "quick", "stamp"),
    [
        (20, 20, 10, True),
        (19, 19, 19, False),  # may be chance
        (20, 20, 9, False),  # read
        (20, 18, 18, False),  # somebody says no
        (100, 95, 48, True),
        (100, 94, 94, False),
    ],
)
def test_a_rubber_stamp_is_nearly_always_yes_and_mostly_unread(
    answered: int, approved: int, quick: int, stamp: bool
) -> None:
    assert is_rubber_stamp(answered, approved, quick) is stamp


def test_a_gate_that_is_only_clicked_is_marked() -> None:
    assert one(*(outcome(n, seconds=1) for n in range(20))).rubber_stamp
    assert not one(*(outcome(n, seconds=60) for n in range(20))).rubber_stamp


@pytest.mark.parametrize(
    ("decisions", "drawn"),
    [
        ({}, ""),
        ({"approved": 8, "rejected": 8}, "█" * 8 + "░" * 8),
        ({"approved": 999, "edited": 1}, "█" * 15 + "▒"),
        ({"selected": 3}, "█" * 16),
        ({"approved": 1, "edited": 1, "rejected": 1}, "█" * 6 + "▒" * 5 + "░" * 5),
    ],
)
def test_the_picture_shows_every_kind_of_answer(decisions: dict[str, int], drawn: str) -> None:
    assert bar(decisions) == drawn


def test_durations_are_spelled_for_people() -> None:
    assert [duration(each) for each in (None, 0.4, 59, 90, 5_400, 172_800)] == [
        "",
        "0.4 s",
        "59 s",
        "1.5 m",
        "1.5 h",
        "2 d",
    ]
