"""The turns that a run adds to its session."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import build_task

from kneo.records.agent_session import MEMORY_ENTRY, finished_turns
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import StepRecord
from kneo.records.task import Decision, DecisionKind, HumanTask

AT = "2026-01-31T00:00:00.000000+00:00"


def begun(conversation: str, text: str = "in") -> ConversationEntry:
    return ConversationEntry(
        conversation=conversation,
        name=MEMORY_ENTRY,
        number=0,
        kind=EntryKind.MEMORY,
        status=EntryStatus.DONE,
        body={"messages": [], "input": text},
        facts={"agent": "chat"},
        started_at=AT,
    )


def step(number: int, location: str, output: str | None, *, attempt: int = 0, run: str = "run_1") -> StepRecord:
    return StepRecord(
        run_id="run_1",
        sequence=number,
        step_id=location,
        kind="agent",
        attempt=attempt,
        status="completed" if output is not None else "failed",
        idempotency_key=f"{run}:{location}:{attempt}",
        input_text="in",
        output_text=output,
        error=None,
        code_digest=None,
        started_at=AT,
        completed_at=AT,
    )


def decided(subject: str, kind: DecisionKind, content: str | None = None) -> HumanTask:
    decision = Decision(kind=kind, content=content, selected_option=None, comment=None, actor="ann", by="person", at=AT)
    return build_task(subject=subject, decision=decision)


def added(steps: list[StepRecord], *entries: ConversationEntry, tasks: list[HumanTask] | None = None) -> list[str]:
    turns = finished_turns("run_1", steps, entries, tasks or [])
    return [f"{turn.user} > {turn.assistant}" for turn in turns]


def test_steps_of_agents_with_a_memory_are_added_in_their_order() -> None:
    steps = [step(1, "b", "B"), step(2, "silent", "S"), step(3, "a", "A")]
    assert added(steps, begun("a~0", "x"), begun("b~0", "y")) == ["y > B", "x > A"]


def test_a_step_that_failed_at_last_is_not_added() -> None:
    assert added([step(1, "a", "A"), step(2, "a", None, attempt=1)], begun("a~0")) == []
    assert added([step(1, "a", None), step(2, "a", "A", attempt=1)], begun("a~0")) == ["in > A"]


def test_the_conversation_after_the_last_review_counts() -> None:
    reviews = [begun(f"a~{number}", f"in {number}") for number in (0, 9, 10)]
    assert added([step(1, "a", "A")], *reviews) == ["in 10 > A"]


def test_rounds_are_added_each_and_repetitions_of_a_node_around_the_step_replace_it() -> None:
    rounds = [step(1, "loop#1/a", "1"), step(2, "loop#2/a", "2")]
    assert added(rounds, begun("loop#1/a~0"), begun("loop#2/a~0")) == ["in > 1", "in > 2"]
    again = [step(1, "box/a", "1"), step(2, "box/b", "2"), step(3, "box@1/a", "3"), step(4, "boxer/a", "4")]
    entries = [begun(f"{each.location}~0") for each in again]
    assert added(again, *entries) == ["in > 3", "in > 4"]
    inner = [step(1, "loop@1#1/a", "1"), step(2, "loop#1/a", "0"), step(3, "loop@1#2/a", "2")]
    assert added(inner, *(begun(f"{each.location}~0") for each in inner)) == ["in > 1", "in > 2"]


def test_texts_that_people_rejected_are_not_added_and_edited_ones_are_as_edited() -> None:
    steps = [step(1, "a", "draft"), step(2, "b", "other")]
    entries = [begun("a~0"), begun("b~0")]
    rejected, approved = decided("draft", DecisionKind.REJECTED), decided("draft", DecisionKind.APPROVED)
    edited = decided("draft", DecisionKind.EDITED, "better")
    assert added(steps, *entries, tasks=[rejected]) == ["in > other"]
    assert added(steps, *entries, tasks=[rejected, approved]) == ["in > draft", "in > other"]
    assert added(steps, *entries, tasks=[edited]) == ["in > better", "in > other"]
    assert added(steps, *entries, tasks=[edited, decided("better", DecisionKind.EDITED, "best")])[0] == "in > best"
    assert added(steps, *entries, tasks=[edited, decided("better", DecisionKind.REJECTED)]) == ["in > other"]
    assert added(steps, *entries, tasks=[decided("draft", DecisionKind.PROVIDED, " ")]) == ["in > other"]


def test_steps_that_a_fork_took_over_are_its_parents() -> None:
    steps = [step(1, "a", "A", run="run_0"), step(2, "b", "B")]
    assert added(steps, begun("a~0"), begun("b~0")) == ["in > B"]


@pytest.mark.parametrize(
    ("mode", "messages"),
    [
        ("auto", (("user", "in"), ("assistant", "A"))),
        ("never", ()),
        ("user_only", (("user", "in"),)),
        ("assistant_only", (("assistant", "A"),)),
    ],
)
def test_the_append_mode_of_the_agent_chooses_the_messages(mode: str, messages: tuple[tuple[str, str], ...]) -> None:
    entry = begun("a~0")
    entry = replace(entry, facts={**entry.facts, "append_mode": mode})
    [turn] = finished_turns("run_1", [step(1, "a", "A")], [entry], [])
    assert turn.messages == messages
