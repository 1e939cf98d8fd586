"""Names in specs and environment files: what is refused, and where the finding points."""

from __future__ import annotations

import json

import pytest

from kneo.spec.environment import parse_environment
from kneo.spec.lint import check
from kneo.spec.reading.load import load_spec
from kneo.spec.reading.validate import InvalidDeclaration

HIDDEN = ["", " ", "a\nb", "a\tb", "a\u202eb", "a\u0007b", "\u2028", "a\u00adb", "ab\u2800", "ab\U000e01f0"]

PLACES = {
    "agent": '{"agent": {"name": NAME}}',
    "component": '{"agent": {"name": "root"}, "components": {"functions": {NAME: {"implementation": "a.b"}}}}',
    "human": '{"agent": {"name": "root"}, "components": {"humans": {NAME: {}}}}',
    "workflow": '{"agent": {"name": "root"}, "workflow": {"name": NAME, "type": "sequential", "steps": ["root"]}}',
    "step": '{"agent": {"name": "root"}, "workflow": [{"id": NAME, "kind": "agent", "ref": "root"}]}',
    "inner step": '{"agent": {"name": "root"}, "workflow": [{"id": "g", "kind": "steps", "steps": '
    '[{"id": NAME, "kind": "agent", "ref": "root"}]}]}',
    "option": '{"agent": {"name": "root"}, "components": {"humans": {"h": {"options": ["a", NAME]}}}}',
    "assignee": '{"agent": {"name": "root"}, "components": {"humans": {"h": {"assignee": NAME}}}}',
    "user": '{"agent": {"name": "root"}, "components": {"humans": {"h": {"candidates": {"users": [NAME]}}}}}',
    "excluded": '{"agent": {"name": "root"}, "components": {"humans": {"h": {"candidates": {"exclude": [NAME]}}}}}',
    "escalation": '{"agent": {"name": "root"}, "components": {"humans": {"h": {"escalate": [{"after": "1h", "to": NAME}]}}}}',
    "channel": '{"agent": {"name": "root"}, "components": {"humans": {"h": {"notify": [NAME]}}}}',
    "gate": '{"agent": {"name": "root"}, "workflow": [{"id": "s", "kind": "agent", "ref": "root", '
    '"review": {"before": {"assignee": NAME}}}]}',
}
PLACES["key"] = PLACES["gate"].replace('"assignee": NAME', '"key": NAME')
PEOPLE_PLACES = ["assignee", "user", "excluded", "escalation", "gate"]


def found(place: str, name: str) -> list[tuple[str, int | None, int | None]]:
    text = "\n" + PLACES[place].replace("NAME", json.dumps(name))
    loaded = load_spec(text.encode(), file="spec.json", rules=check)
    return [(item.code, item.line, item.column) for item in loaded.diagnostics if item.code == "E_NAME"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HIDDEN)
def test_a_name_that_cannot_be_read_is_a_finding_with_its_place(place: str, name: str) -> None:
    column = PLACES[place].index("NAME") + 1
    assert found(place, name) == [("E_NAME", 2, column)]


@pytest.mark.parametrize("place", PLACES)
def test_plain_names_are_fine(place: str) -> None:
    for name in ["draft", "Draft-2"] + (["Prüfung / §3: \u00e4", "草稿"] if place != "channel" else []):
        assert found(place, name) == []


@pytest.mark.parametrize("place", PEOPLE_PLACES)
def test_a_name_of_mixed_scripts_is_nobodys(place: str) -> None:
    assert len(found(place, "\u0430nn")) == 1


def environment(people: object, **more: object) -> bytes:
    spec = {"policy": {}, "signatures": {"roles": ["release"], "threshold": 1}, "people": people, **more}
    tree = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": spec}
    return json.dumps(tree, indent=1).encode()


@pytest.mark.parametrize("name", [*HIDDEN, "\u0430nn"])
def test_a_person_of_an_environment_has_a_readable_name(name: str) -> None:
    data = environment({"ben": {}, name: {}})
    with pytest.raises(InvalidDeclaration) as caught:
        parse_environment(data, file="environments/prod.json")
    [finding] = caught.value.findings
    line = data.decode().splitlines().index(f"   {json.dumps(name)}: {{}}") + 1
    assert (finding.code, finding.line, finding.column) == ("E_NAME", line, 4)
    # A file that was accepted before names were checked stays readable: what it says goes on holding.
    assert name in parse_environment(data, file="environments/prod.json", accepted=True).spec.people


def test_a_window_that_is_never_stays_readable_in_an_accepted_file() -> None:
    data = environment({}, windows=[{"deny": "* 24:00 - 00:00"}])
    with pytest.raises(InvalidDeclaration):
        parse_environment(data, file="environments/prod.json")
    assert len(parse_environment(data, file="environments/prod.json", accepted=True).windows) == 1


@pytest.mark.parametrize("other", ["ANN", "\uff41nn", "ann "])
def test_a_person_is_written_once(other: str) -> None:
    with pytest.raises(InvalidDeclaration, match="two spellings"):
        parse_environment(environment({"ann": {}, other: {}}), file="environments/prod.json")


def test_whom_an_environment_asks_and_excludes_is_named_too() -> None:
    for more in (
        {"humans": {"boss": {"assignee": "a\nb"}}},
        {"questions": {"exclude": ["\u0430nn"]}},
        {"gates": [{"name": "g", "match": {"kinds": ["function"]}, "before": {"assignee": "a\nb"}}]},
    ):
        with pytest.raises(InvalidDeclaration) as caught:
            parse_environment(environment({}, **more), file="environments/prod.json")
        assert [finding.code for finding in caught.value.findings] == ["E_NAME"]
