"""Guardrails of a turn: every kind at every stage, every action, and turns that are entered again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from agent_turns import House, decided, house, scripted_model, spec_of

from kneo.agents.turn import GuardrailViolation, ToolCall, ToolGate
from kneo.clock import ManualClock
from kneo.errors import Invalid
from kneo.records.conversation import EntryKind

BEFORE = ToolGate(id="before", position="tool")
MODEL = {"provider": "openai", "name": "m"}


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kneo.agents.loop.recorded_model", scripted_model)


def keyword(action: str = "block", **changes: Any) -> dict[str, Any]:
    return {"id": "words", "type": "keyword", "action": action, "config": {"keywords": ["Secret"]}, **changes}


def regex(action: str = "block", pattern: str = r"sk-\w+") -> dict[str, Any]:
    return {"id": "keys", "type": "regex", "action": action, "config": {"patterns": [pattern]}}


def by(kind: str, action: str = "block", **changes: Any) -> dict[str, Any]:
    return {"id": "judge", "type": kind, "ref": "judge", "action": action, **changes}


JUDGE = {"judge": {"name": "judge", "model": MODEL}}


class Functions:
    """Functions of the spec: each takes a text, and the calls are counted."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, list[str]()

    async def __call__(self, _name: str, text: str) -> object:
        self.calls.append(text)
        result = self.function(text)
        if isinstance(result, Exception):
            raise result
        return result


def guarded(clock: ManualClock, *replies: object, function: Any = None, **stages: Any) -> House:
    agent, text = stages.pop("agent", {}), stages.pop("text", "Do it.")
    others, functions = stages.pop("others", None), stages.pop("functions", None)
    gates = stages.pop("gates", None)
    listed = {stage: each if isinstance(each, list) else [each] for stage, each in stages.items()}
    spec = spec_of(agent={"guardrails": listed, **agent}, components={"agents": JUDGE})
    made = house(*replies, spec=spec, clock=clock, others=others, functions=functions, gates=gates)
    made.turn = replace(made.turn, text=text, functions=Functions(function))
    return made


def run(made: House, answers: Mapping[str, Any] | None = None):
    return asyncio.run(made.take(answers))


def questions(made: House, answers: Mapping[str, Any] | None = None):
    return asyncio.run(made.questions(answers))


def sent(made: House) -> str:
    """Return everything that models were sent."""
    return str([messages for _, messages, _ in made.script.requests])


def events(made: House) -> list[str]:
    return [event.type for event in made.journal.trace if event.type.startswith("guardrail_")]


# ---- input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [keyword(), regex(pattern="(?i)secret"), keyword("retry"), keyword("revise")])
def test_a_blocked_input_reaches_no_model(clock: ManualClock, check: dict[str, Any]) -> None:
    made = guarded(clock, "Done.", input=check, text="The SECRET plan")
    with pytest.raises(GuardrailViolation, match="blocks its input") as raised:
        run(made)
    assert made.script.requests == []
    assert (raised.value.http_status, raised.value.code) == (422, "guardrail_violation")
    assert "plan" not in f"{raised.value} {made.journal.trace}"
    assert events(made) == ["guardrail_blocked"]


def test_a_redacted_input_is_what_the_model_and_the_journal_have(clock: ManualClock) -> None:
    made = guarded(clock, "Done.", input=[keyword("redact"), regex("redact")], text="My secret is sk-abc, SECRET.")
    result = run(made)
    assert result.input == "My [redacted] is [redacted], [redacted]."
    assert "My [redacted] is [redacted], [redacted]." in sent(made)
    assert "sk-abc" not in sent(made) + str(made.journal.rows)


def test_a_warning_is_in_the_trace_and_nothing_else_happens(clock: ManualClock) -> None:
    made = guarded(clock, "A secret.", input=keyword("warn"), output=keyword("warn"), text="secret")
    assert run(made).text == "A secret."
    assert events(made) == ["guardrail_warned", "guardrail_warned"]
    assert "secret" not in str([event.data for event in made.journal.trace]).replace("words", "")


def test_the_input_is_checked_once(clock: ManualClock) -> None:
    made = guarded(
        clock, [("pay", {})], "Done.", input=by("function"), function=lambda _text: True, gates={"pay": [BEFORE]}
    )
    [question] = questions(made)
    assert run(made, {question.key: decided("approved")}).text == "Done."
    assert made.turn.functions.calls == ["Do it."]  # type: ignore[attr-defined]


# ---- output ---------------------------------------------------------------------------------------------------------


def test_a_blocked_answer_ends_the_turn_and_is_in_no_message(clock: ManualClock) -> None:
    made = guarded(clock, "The secret is 7.", output=keyword())
    for _ in range(2):
        with pytest.raises(GuardrailViolation, match="output guardrail words of the agent root blocks its answer"):
            run(made)
    assert len(made.script.requests) == 1
    assert events(made) == ["guardrail_blocked"]
    assert "is 7" not in str(made.journal.trace)


def test_a_model_is_told_and_answers_again_twice_at_most(clock: ManualClock) -> None:
    made = guarded(
        clock, "secret 1", "secret 2", "Fine.", output=keyword("retry"), agent={"strategy": "simple", "tools": []}
    )
    assert run(made).text == "Fine."
    assert "The guardrail words refuses your answer" in sent(made)
    stubborn = guarded(clock, "secret", output=keyword("retry"), agent={"strategy": "simple", "tools": []})
    with pytest.raises(GuardrailViolation):
        run(stubborn)
    assert len(stubborn.script.requests) == 3
    assert events(stubborn) == ["guardrail_retried", "guardrail_retried", "guardrail_blocked"]


@pytest.mark.parametrize("stage", ["output", "workflow"])
def test_matches_in_an_answer_are_replaced(clock: ManualClock, stage: str) -> None:
    made = guarded(clock, "The Secret key sk-1.", **{stage: [keyword("redact"), regex("redact")]})
    assert run(made).text == "The [redacted] key [redacted]."
    assert run(made).text == "The [redacted] key [redacted]."
    assert len(made.script.requests) == 1


def test_the_text_of_a_check_replaces_the_answer(clock: ManualClock) -> None:
    told = {"passed": False, "text": "Something polite."}
    made = guarded(clock, "Something rude.", output=by("function", "revise"), function=lambda _text: told)
    assert run(made).text == "Something polite."
    assert made.turn.functions.calls == ["Something rude."]  # type: ignore[attr-defined]
    assert run(made).text == "Something polite."
    assert len(made.turn.functions.calls) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "result", [None, "PASS", 1, {"passed": "yes"}, {}, [True], RuntimeError("down"), Invalid("no")]
)
@pytest.mark.parametrize("action", ["block", "warn", "retry", "revise", "redact", "human_review"])
def test_a_check_that_cannot_be_carried_out_blocks(clock: ManualClock, result: object, action: str) -> None:
    made = guarded(clock, "Fine.", output=by("function", action), function=lambda _text: result)
    with pytest.raises(GuardrailViolation):
        run(made)
    assert events(made) == ["guardrail_failed"]


def test_an_unknown_kind_and_a_config_that_cannot_be_used_block(clock: ManualClock) -> None:
    for broken in (
        by("magic"),
        by("agent", ref="nobody"),
        keyword(config={"keywords": "secret"}),
        regex(pattern=r"(?=x)"),
        keyword("explode"),
    ):
        with pytest.raises(GuardrailViolation):
            run(guarded(clock, "A secret x.", output=broken))


def test_an_agent_lets_a_text_pass_whose_check_begins_with_pass(clock: ManualClock) -> None:
    made = guarded(clock, "Fine.", output=by("agent"), others={"judge": ["PASS: nothing wrong."]})
    assert run(made).text == "Fine."
    assert run(made).text == "Fine."
    assert [agent for agent, _, _ in made.script.requests] == ["root", "judge"]
    assert run(made).facts["total_tokens"] == 30


@pytest.mark.parametrize("reply", ["No.", "PASSWORD found", "I let it PASS", "pass"])
def test_any_other_reply_of_an_agent_blocks(clock: ManualClock, reply: str) -> None:
    made = guarded(clock, "Fine.", output=by("agent"), others={"judge": [reply]})
    for _ in range(2):
        with pytest.raises(GuardrailViolation):
            run(made)
    assert [agent for agent, _, _ in made.script.requests] == ["root", "judge"]


def test_an_agent_revises_an_answer_and_tells_why_it_is_refused(clock: ManualClock) -> None:
    revised = guarded(clock, "Rude.", output=by("agent", "revise"), others={"judge": ["REVISE: Polite."]})
    assert run(revised).text == "Polite."
    told = guarded(clock, "Rude.", "Polite.", output=by("agent", "retry"), others={"judge": ["Too rude.", "Too rude."]})
    with pytest.raises(GuardrailViolation):
        run(told)
    assert "Too rude. Answer again" in sent(told)


def test_an_agent_that_checks_itself_comes_to_an_end(clock: ManualClock) -> None:
    made = guarded(clock, "PASS", output=by("agent", ref="root"))
    with pytest.raises(GuardrailViolation, match="of the agent root blocks its answer"):
        run(made)


def test_structured_output_is_checked_by_its_values_and_fits_its_schema_afterwards(clock: ManualClock) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["a"],
    }
    agent = {"output_schema": schema, "tools": [], "strategy": "simple"}
    made = guarded(clock, '{"a": "x\\u0073ecret", "n": 1}', output=keyword("redact"), agent=agent)
    result = run(made)
    assert (result.text, result.metadata) == ('{"a":"x[redacted]","n":1}', {"a": "x[redacted]", "n": 1})
    assert run(made) == result
    broken = guarded(clock, '{"a": "x", "n": 4711}', output=regex("redact", "4711"), agent=agent)
    with pytest.raises(GuardrailViolation, match="does not fit its output_schema"):
        run(broken)


def test_an_answer_that_never_fits_is_not_quoted(clock: ManualClock) -> None:
    agent = {"output_schema": {"type": "object"}, "tools": [], "strategy": "simple"}
    with pytest.raises(Invalid) as raised:
        run(guarded(clock, '"the secret"', output=keyword("redact"), agent=agent))
    assert raised.value.code == "output_invalid"
    assert "secret" not in str(raised.value)


# ---- people ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["human_review", "escalate"])
def test_a_person_approves_edits_or_rejects(clock: ManualClock, action: str) -> None:
    def begin() -> tuple[House, str]:
        made = guarded(
            clock, "The secret is 7.", output=keyword(action, config={"keywords": ["secret"], "human": "boss"})
        )
        [question] = questions(made)
        assert (question.kind, question.human, question.arguments) == (
            "guardrail",
            "boss",
            {"text": "The secret is 7."},
        )
        assert questions(made) == [question]
        return made, question.key

    made, key = begin()
    assert run(made, {key: decided("approved")}).text == "The secret is 7."
    made, key = begin()
    assert run(made, {key: decided("edited", content="It is 7.")}).text == "It is 7."
    made, key = begin()
    with pytest.raises(GuardrailViolation, match="a person rejected it"):
        run(made, {key: decided("rejected")})
    made, key = begin()
    [again] = questions(made, {key: decided("edited", content="Still the secret.")})
    assert again.arguments == {"text": "Still the secret."}
    assert again.key != key
    assert run(made, {again.key: decided("approved")}).text == "Still the secret."
    assert len(made.script.requests) == 1


# ---- tools ----------------------------------------------------------------------------------------------------------


def test_arguments_are_checked_before_anybody_is_asked_and_before_the_call(clock: ManualClock) -> None:
    calls = [("look", {"x": 4711})]
    made = guarded(clock, calls, "Done.", tool=regex(pattern="4711"), gates={"look": [BEFORE]})
    with pytest.raises(GuardrailViolation, match="blocks a call of look"):
        run(made)
    assert made.backend.calls == []
    redacted = guarded(clock, calls, "Done.", tool=regex("redact", "4711"))
    assert run(redacted).text == "Done."
    assert redacted.backend.calls == []
    assert "they do not fit" in str(redacted.script.results())


def test_a_model_is_told_of_refused_arguments(clock: ManualClock) -> None:
    made = guarded(clock, [("look", {"x": 4711})], [("look", {"x": 1})], "Done.", tool=regex("retry", "4711"))
    assert run(made).text == "Done."
    assert [call.arguments for call in made.backend.calls] == [{"x": 1}]
    assert "refuses a call of look" in sent(made)


def test_results_and_errors_of_tools_are_checked(clock: ManualClock) -> None:
    def fails(_call: ToolCall) -> object:
        raise RuntimeError("no secret found")

    for function in (lambda _call: {"found": ["a secret"]}, fails):
        redacted = guarded(clock, [("look", {})], "Done.", tool=keyword("redact"), functions={"look": function})
        assert run(redacted).text == "Done."
        assert "[redacted]" in sent(redacted)
        assert "secret" not in sent(redacted).replace("[redacted]", "")
        blocked = guarded(clock, [("look", {})], "Done.", tool=keyword(), functions={"look": function})
        for _ in range(2):
            with pytest.raises(GuardrailViolation, match="blocks the result of look"):
                run(blocked)
        assert "secret" not in sent(blocked)
        assert len(blocked.backend.calls) == 1
        assert not any(entry.kind is EntryKind.TOOL for entry in blocked.journal.rows.values())


def test_a_guardrail_that_redacts_the_word_error_leaves_a_result(clock: ManualClock) -> None:
    def fails(_call: ToolCall) -> object:
        raise RuntimeError("no entry")

    check = regex("redact", "error|message")
    made = guarded(clock, [("look", {})], "Done.", tool=check, functions={"look": fails})
    assert run(made).text == "Done."
    assert "no entry" in sent(made)


def test_a_guardrail_of_one_tool_leaves_the_others_alone(clock: ManualClock) -> None:
    made = guarded(
        clock,
        [("look", {}), ("pay", {})],
        "Done.",
        tool=keyword("redact", target="lo*"),
        functions={"look": lambda _call: "secret", "pay": lambda _call: "secret"},
    )
    run(made)
    assert made.script.results() == {"c0": "[redacted]", "c1": "secret"}


def test_a_call_with_effects_is_made_once_however_long_its_result_is_reviewed(clock: ManualClock) -> None:
    made = guarded(
        clock, [("pay", {})], "Done.", tool=keyword("human_review"), functions={"pay": lambda _call: "secret receipt"}
    )
    [question] = questions(made)
    assert question.facts == {"stage": "tool", "tool": "pay"}
    assert questions(made) == [question]
    result = run(made, {question.key: decided("edited", content="receipt")})
    assert result.text == "Done."
    assert made.backend.names() == ["pay"]
    assert made.script.results() == {"c0": "receipt"}


def test_arguments_that_a_person_edited_are_checked_again(clock: ManualClock) -> None:
    made = guarded(clock, [("pay", {"x": 1})], "Done.", tool=regex(pattern="4711"), gates={"pay": [BEFORE]})
    [question] = questions(made)
    with pytest.raises(GuardrailViolation):
        run(made, {question.key: decided("edited", content='{"x": 4711}')})
    assert made.backend.calls == []


def test_each_edit_is_checked_also_where_it_looks_like_the_one_before(clock: ManualClock) -> None:
    """The digests of both edits begin with the same eight digits."""
    one, other = '{"x": 26717}', '{"x": 31076}'
    gates = {"pay": [BEFORE, ToolGate(id="ops", position="tool")]}

    def edit_twice(made: House) -> str:
        [first] = questions(made)
        [second] = questions(made, {first.key: decided("approved")})
        [third] = questions(made, {second.key: decided("edited", content=one)})
        return third.key

    made = guarded(
        clock,
        [("pay", {"x": 1})],
        "Done.",
        tool=by("agent"),
        others={"judge": ["PASS"]},
        agent={"tools": {"include": ["pay"]}},
        gates=gates,
    )
    [again] = questions(made, {edit_twice(made): decided("edited", content=other)})
    assert again.arguments == {"x": 31076}
    judged = [str(messages) for agent, messages, _ in made.script.requests if agent == "judge"]
    assert [value for value in ("26717", "31076") if any(value in each for each in judged)] == ["26717", "31076"]

    reviewed = guarded(clock, [("pay", {"x": 1})], "Done.", tool=regex("human_review", "26717|31076"), gates=gates)
    key = edit_twice(reviewed)
    [third] = questions(reviewed, {key: decided("approved")})
    assert (third.kind, third.gate) == ("approval", "before")
    [fourth] = questions(reviewed, {third.key: decided("edited", content=other)})
    assert (fourth.kind, fourth.arguments["text"]) == ("guardrail", '{"x": 31076}')


def test_a_question_of_the_agent_is_checked_before_a_person_reads_it(clock: ManualClock) -> None:
    agent = {"tools": ["ask_question"]}
    made = guarded(
        clock, [("ask_question", {"question": "Is the secret 7?"})], "Done.", tool=keyword("redact"), agent=agent
    )
    [question] = questions(made)
    assert question.prompt == "Is the [redacted] 7?"
    run(made, {question.key: decided("provided", content="The secret is 8.")})
    assert made.script.results() == {"c0": "The [redacted] is 8."}
