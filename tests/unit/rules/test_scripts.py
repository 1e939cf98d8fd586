"""Tools that are scripts of skills: what lint refuses, what rules and reviews see of them, and the code of their bundles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kneo.cli.specs.bundle_code import collect_code
from kneo.errors import Invalid, Untrusted
from kneo.spec.coverage.policy import check_code
from kneo.spec.coverage.sandboxes import code_parts
from kneo.spec.diff import Danger, compare_specs
from kneo.spec.environment import parse_environment
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec, Tool
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import InvalidDeclaration, parse_model

SKILL = {
    "content": "How to add up.",
    "resources": {
        "scripts/total.py": "import rfc8785\n",
        "scripts/lib/more.py": "x = 1\n",
        "references/law.md": "Law.",
        "run.sh": "true\n",
    },
}
PARAMETERS = {"type": "object", "properties": {"id": {"type": "string"}}}


def tree(declared: object = SKILL, **script: object) -> dict[str, object]:
    script = {"skill": "orders", "file": "scripts/total.py", **script}
    tool = {"description": "Add up.", "script": script, "parameters": PARAMETERS}
    return {"version": "v1", "agent": {"name": "root"}, "skills": {"orders": declared}, "tools": {"total": tool}}


def spec(declared: object = SKILL, **script: object) -> Spec:
    return Spec.model_validate(tree(declared, **script))


@pytest.mark.parametrize(
    "file", ["", "/etc/x.py", "../x.py", "scripts/../x.py", "scripts//x.py", "./x.py", "x.rb", "x", "x.PY", "scripts/"]
)
def test_a_script_is_a_python_or_shell_file_below_the_folder_of_its_skill(file: str) -> None:
    with pytest.raises(InvalidDeclaration) as refused:
        parse_model(Spec, read(json.dumps(tree(file=file)).encode(), file="spec.json"))
    assert [each.code for each in refused.value.findings] == ["E_SCRIPT"]


@pytest.mark.parametrize(
    ("script", "place"),
    [
        ({"skill": "order"}, "skill"),
        ({"file": "scripts/totals.py"}, "file"),
        ({"args": ["{id}", "n={count}"]}, "args"),
    ],
)
def test_skills_files_and_arguments_have_to_exist(script: dict[str, object], place: str) -> None:
    [found] = [each for each in check(spec(**script)) if each.code == "E_SCRIPT"]
    assert found.path is not None
    assert found.path[:4] == ("tools", "total", "script", place)


def test_files_are_not_missed_before_the_skill_is_read() -> None:
    assert "E_SCRIPT" not in {each.code for each in check(spec({"source": "skills/orders"}))}


def test_a_script_runs_in_a_sandbox_which_adds_capabilities() -> None:
    assert [part.name for part in code_parts(spec())] == ["total"]
    script = {"skill": "orders", "file": "run.sh"}
    tool = Tool.model_validate(
        {"description": "A tool.", "script": script, "sandbox": {"net": ["crm.example:443"], "processes": 2}}
    )
    assert tool.all_capabilities == ("network", "shell")
    assert tool.has_effects
    assert "orders/run.sh" in tool.names("total").called


def test_the_code_of_a_bundle_has_the_files_below_the_folder_of_a_script(tmp_path: Path) -> None:
    code = collect_code(spec(), [tmp_path]).code
    assert code is not None
    assert [*code.files] == ["skills/orders/scripts/total.py", "skills/orders/scripts/lib/more.py"]
    assert "rfc8785" in code.packages
    whole = collect_code(spec(file="run.sh"), [tmp_path]).code
    assert whole is not None
    assert len(whole.files) == 4


def test_another_file_of_the_project_at_the_path_of_a_script_is_refused(tmp_path: Path) -> None:
    module = tmp_path / "skills" / "orders" / "scripts" / "total.py"
    module.parent.mkdir(parents=True)
    module.write_text("def run(text): return text\n")
    named = Spec.model_validate(
        {**tree(), "components": {"functions": {"f": {"implementation": "skills.orders.scripts.total.run"}}}}
    )
    with pytest.raises(Invalid) as refused:
        collect_code(named, [tmp_path])
    assert refused.value.code == "E_CODE_OUTSIDE"


@pytest.mark.parametrize(("rule", "refused"), [("bundled", True), ("pinned", True), ("any", False)])
def test_a_bundle_with_a_script_needs_its_code(rule: str, refused: bool) -> None:
    text = f"""
        apiVersion: kneo/v1
        kind: Environment
        metadata: {{name: prod}}
        spec: {{policy: {{enabled: true}}, signatures: {{roles: [release], threshold: 1}}, code: {rule}}}
    """
    environment = parse_environment(text.encode(), file="prod.yaml")
    check_code(spec(), True, environment, "mail 1.0.0")
    if not refused:
        check_code(spec(), False, environment, "mail 1.0.0")
        return
    with pytest.raises(Untrusted, match=r"skills/orders/scripts/total\.py") as found:
        check_code(spec(), False, environment, "mail 1.0.0")
    assert found.value.code == "CodeMissing"


def test_a_changed_script_is_reviewed_as_code_and_another_file_is_of_high_danger() -> None:
    changed = {**SKILL, "resources": {**SKILL["resources"], "scripts/total.py": "import os\n"}}  # type: ignore[dict-item]
    codes = [collect_code(spec(each), [Path()]).code for each in (SKILL, changed)]
    found = compare_specs(tree(), tree(changed), code=(codes[0], codes[1])).changes
    [file] = [each for each in found if each.path == "code.skills/orders/scripts/total.py"]
    assert [*file.lines[1:3]] == ["-import rfc8785", "+import os"]
    [other] = [each for each in compare_specs(tree(), tree(file="run.sh")).changes if "script" in each.path]
    assert other.danger is Danger.HIGH
