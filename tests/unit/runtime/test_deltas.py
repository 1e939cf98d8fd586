"""Deltas of a reply: batches, secrets, and the steps whose text is withheld."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo.clock import ManualClock
from kneo.records.conversation import ModelDelta
from kneo.runtime.engine.attempt import MAX_CHARS, DeltaWriter, is_withheld
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.spec import Spec


class Reader:
    """Receives deltas, and puts them together as a reader does."""

    def __init__(self, **more: timedelta) -> None:
        self.clock = ManualClock(datetime(2026, 1, 31, 12, tzinfo=UTC))
        self.deltas: list[ModelDelta] = []
        self.text = ""
        self.writer = DeltaWriter(
            run_id="run_1", step_id="draft", is_read=lambda: True, publish=self.receive, clock=self.clock, **more
        )

    def receive(self, delta: ModelDelta) -> None:
        assert delta.offset in {0, len(self.text)}
        self.deltas.append(delta)
        self.text = self.text[: delta.offset] + delta.text

    def write(self, *pieces: str, request: int = 1, milliseconds: int = 150) -> None:
        offset = 0
        for piece in pieces:
            self.writer.write(request, offset, piece)
            offset += len(piece)
            self.clock.advance(timedelta(milliseconds=milliseconds))


def test_text_is_passed_on_in_batches_of_150_milliseconds() -> None:
    reader = Reader()
    reader.write(*["a", "b", "c", "d", "e", "f "], milliseconds=0)
    reader = Reader()
    reader.write("a ", "b ", "c ", "d ", "e ", milliseconds=50)
    assert [(delta.offset, delta.text) for delta in reader.deltas] == [(0, "a "), (2, "b c d ")]
    reader.writer.end(1)
    assert reader.text == "a b c d e "
    assert vars(reader.deltas[0]) == {"run_id": "run_1", "step_id": "draft", "request": 1, "offset": 0, "text": "a "}


def test_an_operator_states_the_time_of_a_batch() -> None:
    reader = Reader(batch=timedelta(milliseconds=20))
    reader.write("a ", "b ", "c ", milliseconds=20)
    assert [delta.text for delta in reader.deltas] == ["a ", "b ", "c "]


def test_a_word_is_passed_on_when_it_is_complete() -> None:
    reader = Reader()
    reader.write("Hel", "lo wor", "ld")
    assert reader.text == "Hello "
    reader.writer.end(1)
    assert reader.text == "Hello world"


def test_each_request_and_each_repetition_begins_anew() -> None:
    reader = Reader()
    reader.write("one two ")
    reader.text = ""
    reader.write("again ")
    reader.text = ""
    reader.write("next ", request=2)
    assert [(delta.request, delta.offset, delta.text) for delta in reader.deltas] == [
        (1, 0, "one two "),
        (1, 0, "again "),
        (2, 0, "next "),
    ]
    reader.writer.end(1)
    assert len(reader.deltas) == 3


def test_the_text_of_one_reply_is_bounded() -> None:
    reader = Reader()
    reader.write(*(["x " * 10_000] * 10))
    reader.writer.end(1)
    assert MAX_CHARS - 20_000 < len(reader.text) <= MAX_CHARS + 20_000


SECRETS = (
    "sk-abcdefghijklmnop1234",
    "AKIAABCDEFGHIJKLMNOP",
    "hunter2!x",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
)
WORDS = st.sampled_from(
    [
        "Hello",
        "password: hunter2!x",
        'token="hunter2!x"',
        SECRETS[0],
        SECRETS[1],
        f"Bearer {SECRETS[3]}\n",
        " ",
        "ü",
        "字",
    ]
)


@given(st.lists(WORDS, max_size=8).map(" ".join), st.lists(st.integers(1, 12), max_size=80))
def test_no_part_of_a_secret_is_passed_on_however_the_reply_is_cut(text: str, lengths: list[int]) -> None:
    reader, at, pieces = Reader(), 0, []
    for length in lengths:
        pieces.append(text[at : at + length])
        at += length
    reader.write(*[piece for piece in [*pieces, text[at:]] if piece])
    reader.writer.end(1)
    assert not any(secret[:6] in reader.text for secret in SECRETS)
    if not any(secret in text for secret in SECRETS):
        assert reader.text == text


def program(
    step: dict[str, object], agent: dict[str, object] | None = None, **group: object
) -> tuple[object, Activity]:
    model = {"provider": "openai", "name": "gpt"}
    tree = {
        "agent": {"name": "a", "model": model},
        "workflow": {
            "type": "sequential",
            "steps": [
                {
                    "id": "group",
                    "kind": "steps",
                    "steps": [{"id": "draft", "kind": "agent", "ref": "w", **step}],
                    **group,
                }
            ],
        },
        "components": {
            "agents": {"w": {"name": "w", "model": model, **(agent or {})}},
            "humans": {"ann": {"description": "Fine?"}},
        },
    }
    compiled = compile_program(Spec.model_validate_json(json.dumps(tree)), "workflow")
    return compiled, Activity(path="group/draft", id="draft", kind="agent", ref="w")


ASK = {"human": "ann"}


@pytest.mark.parametrize(
    ("step", "agent", "group", "withheld"),
    [
        ({}, {}, {}, False),
        ({"review": {"before": ASK}}, {}, {}, False),
        ({"review": {"after": ASK}}, {}, {}, True),
        ({}, {}, {"review": {"after": ASK}}, True),
        ({}, {"guardrails": {"output": [{"id": "g", "type": "keyword", "config": {"keywords": ["x"]}}]}}, {}, True),
        ({}, {"guardrails": {"input": [{"id": "g", "type": "keyword", "config": {"keywords": ["x"]}}]}}, {}, False),
        ({}, {"model": {"provider": "dummy", "name": "d"}}, {}, True),
    ],
)
def test_text_that_a_person_or_a_guardrail_checks_is_withheld(
    step: dict[str, object], agent: dict[str, object], group: dict[str, object], withheld: bool
) -> None:
    compiled, activity = program(step, agent, **group)
    assert is_withheld(compiled, activity) is withheld  # type: ignore[arg-type]
