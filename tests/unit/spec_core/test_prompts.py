"""Placeholders in system prompts are texts of the spec, put in once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo.project.files import SpecFiles
from kneo.spec.lint import check
from kneo.spec.reading.inline import MAX_PLACEHOLDERS, fill_prompts
from kneo.spec.reading.load import LoadedSpec, load_tree, resolve

SPEC = {
    "agent": {"name": "root", "system_prompt": "For {{variables.company}}: {{ skills.tone }} Use {{ tools.look }}"},
    "components": {"agents": {"a": {"name": "a", "system_prompt": "{{ variables.company }}"}}},
    "variables": {"company": "Acme"},
    "skills": {"tone": {"content": "Be brief."}},
    "tools": {"look": {"description": "Look up orders.", "implementation": "app.look"}},
}


def prompt_of(loaded: LoadedSpec) -> str | None:
    assert loaded.spec is not None
    return loaded.spec.agent.system_prompt


def codes(loaded: LoadedSpec) -> list[str]:
    return [each.code for each in loaded.diagnostics if "PROMPT" in each.code]


def test_texts_of_the_spec_are_put_in_for_every_agent() -> None:
    loaded = load_tree(SPEC, rules=check)
    assert prompt_of(loaded) == "For Acme: Be brief. Use Look up orders."
    assert loaded.tree["components"]["agents"]["a"]["system_prompt"] == "Acme"  # type: ignore[index]
    assert codes(loaded) == []
    # What was read once is what every later reader reads.
    assert load_tree(loaded.tree, rules=check).tree == loaded.tree


def test_a_skill_in_a_file_is_put_in_when_the_spec_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "tone.md").write_text("Be brief.")
    spec = {**SPEC, "skills": {"tone": {"source": "tone.md"}}}
    files = SpecFiles(tmp_path, tmp_path)
    loaded = load_tree(spec, rules=check, files=files)
    assert codes(loaded) == []
    assert prompt_of(resolve(loaded, files)) == "For Acme: Be brief. Use Look up orders."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": {}}, "variables.company, which has no text"),
        ({"skills": {}}, "skills.tone, which has no text"),
        ({"variables": {"company": "{{ skills.tone }}"}}, "has braces of its own"),
        ({"skills": {"tone": {"content": "Say {{ input }}."}}}, "has braces of its own"),
    ],
)
def test_what_names_no_text_is_an_error(changes: dict[str, object], message: str) -> None:
    loaded = load_tree({**SPEC, **changes}, rules=check)
    assert codes(loaded)[0] == "E_PROMPT_PLACEHOLDER"
    assert any(message in each.message for each in loaded.diagnostics)


def test_nothing_else_in_braces_is_replaced() -> None:
    prompt = "{{ input }} {{ run.input }} {{x|y}} {% if a %} ${HOME} {company} {{ variables . company }}"
    spec = {**SPEC, "agent": {"name": "root", "system_prompt": prompt}}
    loaded = load_tree(spec, rules=check)
    assert prompt_of(loaded) == prompt
    assert codes(loaded) == ["W_PROMPT_PLACEHOLDER", "W_PROMPT_PLACEHOLDER"]


def test_texts_form_no_placeholder_with_those_around_them() -> None:
    spec = {"agent": {"name": "root", "system_prompt": "{{{ variables.a }}"}, "variables": {"a": "{ variables.b }}"}}
    assert codes(load_tree(spec, rules=check)) == ["E_PROMPT_PLACEHOLDER"]


def test_placeholders_are_bounded() -> None:
    prompt = "{{ variables.company }}" * (MAX_PLACEHOLDERS + 1)
    loaded = load_tree({**SPEC, "agent": {"name": "root", "system_prompt": prompt}}, rules=check)
    assert codes(loaded) == ["E_PROMPT_PLACEHOLDER"]


@given(st.text(alphabet="{} variables.skll\n", max_size=80), st.text(alphabet="{} variables.ab", max_size=30))
def test_prompts_are_the_same_however_often_they_are_filled_in(prompt: str, value: str) -> None:
    spec = {"agent": {"system_prompt": prompt}, "variables": {"a": value, "s": "{{", "v": "variables.a }}"}}
    first = fill_prompts(spec)
    if not any(each.is_error for each in first.findings):
        assert fill_prompts(first.tree).tree == first.tree
