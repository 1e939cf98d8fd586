"""Ours against what the published tools answered: whatever differs stands on one page, with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conformance.spec.corpus import VERSIONS, Answer, Case, Finding, answer_of, cases, lay_out, recorded, recording

from kneo.cli.main import run

PAGE = Path(__file__).parents[3] / "docs" / "conformance" / "spec.md"
CORPUS = cases()
NEWEST = VERSIONS[-1]


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{PAGE.name} has no section {title!r}"
    return found[1]


def rows() -> dict[tuple[str, str], list[str]]:
    """Return the listed differences: case and version, and what the row says of theirs, ours and the reason."""
    listed = {}
    for line in section("Case by case").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| `"):
            name, versions, *said = cells
            listed |= {(name.strip("`"), version.strip()): said for version in versions.split(",")}
    return listed


LISTED = rows()
UNKNOWN_TO_OLDER = set(re.findall(r"`([EWI]_[A-Z_]+)`", section("Codes that 0.4.0 does not know")))
ONLY_OURS = set(re.findall(r"`([EWI]_[A-Z_]+)`", section("Codes that only Kneo has")))


def comparable(case: Case, findings: list[Finding], version: str) -> list[Finding]:
    """Leave out what differs everywhere, as the page says: places in files of a wrong shape, and codes of a later version."""
    kept = [
        (code, severity, None if code == "E_SCHEMA" else path)
        for code, severity, path in findings
        if code not in ONLY_OURS
    ]
    if case.policy is not None:
        return [(code, None, None) for code, _, _ in kept if code.startswith("E_ENV_POLICY_")]
    if version == "0.4.0":
        kept = [found for found in kept if found[0] not in UNKNOWN_TO_OLDER]
    unique = {found for found in kept if found[0] == "E_SCHEMA"}
    return sorted([*(found for found in kept if found[0] != "E_SCHEMA"), *unique], key=str)


def agree(case: Case, ours: Answer, theirs: Answer, version: str) -> bool:
    if theirs.refused and not theirs.findings:
        # A sentence and no findings: here it is a finding like any other.
        return {code for code, _, _ in ours.findings} == {"E_SCHEMA"}
    return comparable(case, ours.findings, version) == comparable(case, theirs.findings, version)


def shown(case: Case, answer: Answer, version: str) -> str:
    """Write findings the way the page does."""
    if answer.refused and not answer.findings:
        return "an error message"
    codes = [code for code, _, _ in comparable(case, answer.findings, version)]
    return ", ".join(f"`{code}`" for code in codes) or "nothing"


@pytest.fixture
def ours(request, tmp_path, monkeypatch, capsys) -> Answer:
    case = request.param
    lay_out(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_IMPORT_ALLOW"):
        monkeypatch.delenv(name, raising=False)
    run(["spec", "validate", case.file, "--json"])
    answer = answer_of(case, capsys.readouterr().out)
    assert not answer.refused, "findings are never a sentence only"
    return answer


@pytest.mark.parametrize(
    ("case", "ours"), [(each, each) for each in CORPUS], ids=lambda each: each.name, indirect=["ours"]
)
def test_what_differs_is_on_the_page_and_nothing_else_is(case: Case, ours: Answer) -> None:
    for version in VERSIONS:
        theirs = recorded(version, case)
        row = LISTED.get((case.name, version))
        if agree(case, ours, theirs, version):
            assert row is None, f"{case.name} no longer differs from {version}: take it off {PAGE.name}"
            continue
        said = [shown(case, theirs, version), shown(case, ours, version)]
        assert row is not None, f"{case.name} differs from {version} and is not on {PAGE.name}: {' | '.join(said)}"
        assert row[:2] == said
        assert len(row[2]) > 10, "every difference has a reason"


NOT_REPORTED = {
    "agent_policies_tool": {"E_SCHEMA"},
    "concurrent_two_humans": {"E_ORCHESTRATION_MULTI_HUMAN_UNSUPPORTED"},
    "graph_start": {"E_GRAPH_START_UNKNOWN"},
    "guardrail_action_output": {"E_GUARDRAIL_ACTION_UNSUPPORTED"},
    "human_review_nested": {"E_STEP_WORKFLOW_NESTED_HUMAN"},
    "lookup_agent_tutorial": {"E_STEP_AGENT_REF"},
    "policy_human_review_concurrent": {"E_ENV_POLICY_HUMAN_REVIEW"},
    "step_agent_is_root": {"E_STEP_AGENT_REF"},
    "step_string_in_component": {"E_SCHEMA"},
}
"""The cases whose published code is not among the findings: what the code is about is possible here, or has a code already."""


@pytest.mark.parametrize(
    ("case", "ours"), [(each, each) for each in CORPUS], ids=lambda each: each.name, indirect=["ours"]
)
def test_a_pipeline_that_looks_for_a_published_code_finds_it(case: Case, ours: Answer) -> None:
    theirs = recorded(NEWEST, case)
    found = {code for code, _, _ in ours.findings} | ours.aliases
    assert {code for code, _, _ in theirs.findings} - found == NOT_REPORTED.get(case.name, set())


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_the_newest_published_tool_answers_what_the_contract_says(case: Case) -> None:
    theirs = recorded(NEWEST, case)
    assert comparable(case, theirs.findings, NEWEST) == comparable(case, case.expect, NEWEST)
    assert theirs.refused == (case.refused or bool(case.policy and case.expect))


def test_the_page_and_the_recordings_speak_of_cases_that_exist() -> None:
    names = {case.name for case in CORPUS}
    assert {name for name, _ in LISTED} <= names
    for version in VERSIONS:
        assert set(recording(version)) == names


def test_every_published_code_is_in_the_corpus() -> None:
    expected = {code for case in CORPUS for code, _, _ in case.expect}
    assert expected >= UNKNOWN_TO_OLDER
    recorded_codes = {
        code for version in VERSIONS for case in CORPUS for code, _, _ in recorded(version, case).findings
    }
    assert recorded_codes == expected
