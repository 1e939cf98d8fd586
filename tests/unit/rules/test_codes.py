"""One file for each code: a spec that fires exactly it, where it should, and a twin that does not."""

import re
from pathlib import Path

import pytest
from code_fixtures import findings

from kneo.spec import lint
from kneo.spec.reading.reader import read

SPECS = Path(__file__).parents[2] / "fixtures" / "specs"
FILES = sorted(SPECS.glob("*.yaml"))

COMPANIONS = {
    "W_HUMAN_APPROVAL_MISSING": {"W_TOOL_POLICY_UNRESTRICTED"},
    "W_HUMAN_APPROVAL_UNREACHED": {"W_TOOL_POLICY_UNRESTRICTED"},
    "E_STEP_WORKFLOW_SELF_REF": {"E_BUILD_CYCLE"},
    "E_ENV_POLICY_DIAGNOSTIC": {"W_AGENT_MODEL"},
    "E_ENV_POLICY_WARNING": {"W_AGENT_MODEL"},
    "E_ENV_POLICY_TOOL_PERMISSIONS": {"W_TOOL_POLICY_UNRESTRICTED"},
    "E_ENV_POLICY_UNRESTRICTED_TOOLS": {"W_TOOL_SHELL_ALLOWED"},
}
"""Codes that by their meaning come with others."""

EVERYWHERE = {"W_FIELD_NO_EFFECT"}
"""Codes about what this version does not do, which a file about something else may have too."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_code_fires_alone_and_its_twin_is_clean(file: Path) -> None:
    case = read(file.read_bytes(), file=file.name).value
    code = file.stem
    bad = findings(case, "bad")
    beside = COMPANIONS.get(code, set()) | EVERYWHERE - {code}
    assert {d.code for d in bad} - beside == {code}
    found = next(d for d in bad if d.code == code)
    assert found.path_text == case["path"]
    assert found.severity.value == {"E": "error", "W": "warning", "I": "info"}[code[0]]
    assert {d.code for d in findings(case, "good")} <= beside


EMITTED = re.compile(r"\b[EWI]_[A-Z]+(?:_[A-Z]+)+\b")
SHARED = {"E_GUARDRAIL_REGEX_UNSAFE", "E_HUMAN_FIELD_REGEX", "E_HUMAN_FIELD_REGEX_UNSAFE"}


def test_no_code_is_without_a_file() -> None:
    sources = [Path(lint.__file__).parent.glob("*.py")]
    named = {code for files in sources for file in files for code in EMITTED.findall(file.read_text("utf-8"))}
    assert named - {"E_UNKNOWN_TOOL"} | SHARED <= {file.stem for file in FILES}
