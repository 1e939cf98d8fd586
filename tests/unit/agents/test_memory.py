"""A turn with a memory whose process ends before or after any write sees one past, and asks its summariser for it once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from agent_turns import NEVER, House, Interrupted, house, scripted_model, spec_of
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from kneo.clock import ManualClock
from kneo.records.agent_session import Role, SessionMessage, SessionSummary

POINTS = 14
"""The points before and after each write of the turn below, and some more."""


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.agents.loop.recorded_model", scripted_model)


@dataclass
class History:
    """The session of a run, in memory."""

    messages: list[SessionMessage] = field(default_factory=list)
    kept: SessionSummary | None = None

    def add(self, *texts: str) -> None:
        for text in texts:
            number = len(self.messages) + 1
            role: Role = "user" if number % 2 else "assistant"
            message = SessionMessage(
                number=number, agent="root", role=role, text=text, run_id="run_0", created_at="2026-01-31T00:00:00Z"
            )
            self.messages.append(message)

    def newest(self, agent: str, *, after: int = 0, limit: int) -> Sequence[SessionMessage]:
        return [each for each in self.messages if each.agent == agent and each.number > after][-limit:]

    def count(self, agent: str) -> int:
        return len(self.newest(agent, limit=NEVER))

    def summary(self, agent: str) -> SessionSummary | None:
        assert agent == "root"
        return self.kept

    async def keep_summary(self, last: SessionMessage, text: str) -> None:
        if self.kept is None or self.kept.number < last.number:
            self.kept = SessionSummary(number=last.number, text=text)


def remembering(clock: ManualClock, history: History) -> House:
    scribe = {"name": "scribe", "model": {"provider": "openai", "name": "m"}}
    memory = {"policy": "summary", "max_messages": 4, "summarizer": {"ref": "scribe"}}
    spec = spec_of(agent={"memory": memory}, components={"agents": {"scribe": scribe}})
    made = house("Unused.", [("look", {})], "Done.", spec=spec, others={"scribe": ["They met."]}, clock=clock)
    made.turn = replace(made.turn, session=history)
    return made


def prompts(messages: Sequence[ModelMessage]) -> list[str]:
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    return [str(part.content) for part in parts if isinstance(part, UserPromptPart)]


@pytest.mark.parametrize("loses_power", [False, True])
@pytest.mark.parametrize("point", range(POINTS))
def test_a_turn_that_is_interrupted_has_one_past(clock: ManualClock, point: int, *, loses_power: bool) -> None:
    history = History()
    history.add("one", "1", "two", "2", "three", "3")
    made = remembering(clock, history)
    made.journal.interruptions, made.journal.loses_power = [point], loses_power
    for _ in range(3):
        try:
            result = asyncio.run(made.take())
            break
        except Interrupted:
            continue
    assert result.text == "Done."
    asked = [messages for agent, messages, _ in made.script.requests if agent == "root"]
    expected = ["Summary of the earlier conversation:\nThey met.", "three", "Do it."]
    assert {tuple(prompts(messages)) for messages in asked} == {tuple(expected)}
    assert history.kept == SessionSummary(number=4, text="They met.")
    assert sum(agent == "scribe" for agent, _, _ in made.script.requests) <= 2
    # The summariser's tokens count for the agent, unless its process ended between the summary and the past.
    assert result.facts["total_tokens"] in ({45} if point >= POINTS - 2 else {30, 45})
    assert result.facts["memory"] == {"policy": "summary", "before_message_count": 6, "after_message_count": 3}


def test_what_other_runs_add_meanwhile_is_not_seen(clock: ManualClock) -> None:
    history = History()
    history.add("one", "1")
    made = remembering(clock, history)
    made.journal.interruptions = [4]
    with pytest.raises(Interrupted):
        asyncio.run(made.take())
    history.add("late", "too late", "later", "still")
    asyncio.run(made.take())
    assert all("late" not in prompts(messages) for _, messages, _ in made.script.requests)


def test_a_structured_answer_is_not_mistaken_for_one_of_an_earlier_run(clock: ManualClock) -> None:
    history = History()
    history.add(*("no JSON at all" for _ in range(8)))
    spec = spec_of(agent={"memory": {"policy": "full"}, "output_schema": {"type": "object"}})
    made = house(*["Unused."] * 4, "no JSON either", "{}", spec=spec, clock=clock)
    made.turn = replace(made.turn, session=history)
    assert asyncio.run(made.take()).text == "{}"


def test_a_session_of_answers_alone_is_one_message(clock: ManualClock) -> None:
    history = History()
    history.add("one", "1", "two", "2")
    history.messages = [message for message in history.messages if message.role == "assistant"]
    spec = spec_of(agent={"memory": {"policy": "full"}, "defaults": {"append_mode": "assistant_only"}})
    made = house("Done.", spec=spec, clock=clock)
    made.turn = replace(made.turn, session=history)
    asyncio.run(made.take())
    [(_, messages, _)] = made.script.requests
    assert prompts(messages) == ["Your earlier answers:\n\n1\n\n2", "Do it."]
    [entry] = [entry for entry in made.journal.load() if entry.name == "memory:0"]
    assert entry.facts["append_mode"] == "assistant_only"
