"""Suites: what is refused, with its line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from kneo.digest import digest_of
from kneo.spec.reading.suite import parse_suite
from kneo.spec.reading.validate import InvalidDeclaration

SUITE: dict[str, Any] = {
    "apiVersion": "kneo/v1",
    "kind": "Suite",
    "metadata": {"name": "support"},
    "spec": {"cases": [{"id": "one", "input": "hi", "expect": [{"status": "succeeded"}]}]},
}


def suite(**changes: object) -> dict[str, Any]:
    content = copy.deepcopy(SUITE)
    content["spec"] |= changes
    return content


def case(**changes: object) -> dict[str, Any]:
    return copy.deepcopy(SUITE["spec"]["cases"][0]) | changes


def test_a_suite_has_the_digest_of_its_file() -> None:
    data = yaml.safe_dump(SUITE).encode()
    loaded = parse_suite(data, file="support.yaml")
    assert (loaded.name, loaded.digest) == ("support", digest_of(data))
    assert (loaded.spec.repeats, loaded.spec.max_cost, loaded.spec.models) == (1, 1.0, "scripted")


@pytest.mark.parametrize(
    "content",
    [
        suite(unknown=1),
        suite(repeats=21),
        suite(cases=[]),
        suite(cases=[case(), case()]),
        suite(cases=[case(expect=[])]),
        suite(cases=[case(expect=[{"status": "succeeded", "called": "pay"}])]),
        suite(cases=[case(expect=[{"status": "succeeded", "times": 1}])]),
        suite(cases=[case(expect=[{"outputMatches": "("}])]),
        suite(cases=[case(expect=[{"judge": "strict", "question": "Polite?", "atLeast": 0.8}])]),
        suite(cases=[case(expect=[{"judge": "strict"}])], models="live"),
        suite(cases=[case(replies=[{"text": "a", "call": {"tool": "b"}}])]),
        suite(judges={"strict": {"model": {"provider": "openai", "name": "gpt-5"}, "system_prompt": "x"}}),
    ],
)
def test_an_unusable_suite_is_refused_with_its_line(content: dict[str, Any]) -> None:
    with pytest.raises(InvalidDeclaration) as refused:
        parse_suite(yaml.safe_dump(content).encode(), file="support.yaml")
    (*_, last) = refused.value.findings
    assert last.code == "E_SUITE"
    assert last.line is not None
