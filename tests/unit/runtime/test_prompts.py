"""Templates of questions: what is filled in is text, and filling in costs no more than what is shown of it."""

from __future__ import annotations

from kneo.runtime.engine.questions import MAX_PROMPT_CHARS, render


class Names(dict):
    """Counts what is looked up."""

    asked = 0

    def get(self, name: str, default: str) -> str:
        self.asked += 1
        return super().get(name, default)


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    names = {"input": "{{ run.id }} {{ {{ input }} }}", "run.id": "run_1"}
    assert render("{{ input }}/{{run.id}}/{{ nobody }}/{{ 7 }}", names) == (
        "{{ run.id }} {{ {{ input }} }}/run_1/{{ nobody }}/{{ 7 }}"
    )


def test_a_long_text_in_many_places_is_written_out_once() -> None:
    names = Names(input="x" * MAX_PROMPT_CHARS)
    shown = render("a {{ input }}" * 50_000, names)
    assert shown == "a " + "x" * (MAX_PROMPT_CHARS - 2) + "...[truncated]"
    assert names.asked == 1


def test_many_short_ones_are_all_filled_in() -> None:
    assert render("{{ a }}-" * 1_000 + "end", {"a": "b"}) == "b-" * 1_000 + "end"
    assert len(render("{{ a }}" * 30_000, {"a": "b"})) == MAX_PROMPT_CHARS + len("...[truncated]")
