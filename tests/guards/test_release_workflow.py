"""The release workflow: what needs what, and which rights a job has. Only the forge can execute it."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from kneo import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
RELEASE = yaml.safe_load((WORKFLOWS / "release.yml").read_text())
JOBS = RELEASE["jobs"]
NOTES = runpy.run_path(str(ROOT / ".github" / "scripts" / "release_notes.py"))["notes_of"]

CHANGELOG = (
    "# Changelog\n\n## [Unreleased]\n\nNew.\n\n## [1.2.0] - 2026-11-22\n\n- A.\n\n### B\n\n- C.\n\n## [1.1.0]\n\n- D.\n"
)


def before(job: str) -> set[str]:
    """Return every job that has to succeed before one."""
    needs = JOBS[job].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct.union(*(before(name) for name in direct))


def steps() -> list[tuple[str, dict[str, object]]]:
    return [(name, step) for name, job in JOBS.items() for step in job.get("steps", [])]


def test_nothing_is_published_before_everything_is_tested_and_built() -> None:
    assert before("image") == {"test", "deploy", "build"}
    assert before("publish") == {"test", "deploy", "build", "image"}
    assert before("notes") == {"test", "deploy", "build", "image", "publish"}
    assert JOBS["publish"]["environment"] == "pypi"


def test_a_job_has_only_the_rights_that_it_uses() -> None:
    assert RELEASE["permissions"] == {}
    writes = {
        name: {right for right, level in job["permissions"].items() if level == "write"} for name, job in JOBS.items()
    }
    assert writes == {
        "test": set(),
        "deploy": set(),
        "build": {"id-token", "attestations"},
        "image": {"packages", "id-token", "attestations"},
        "publish": {"id-token"},
        "notes": {"contents"},
    }


def test_called_workflows_can_be_called() -> None:
    for name in ("test", "deploy"):
        called = yaml.safe_load((ROOT / JOBS[name]["uses"]).read_text())
        assert "workflow_call" in called[True]  # YAML reads the key ``on`` as a truth value


def test_only_tags_of_versions_start_a_release() -> None:
    assert RELEASE[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}


def test_scripts_take_nothing_from_expressions_but_variables_and_are_valid() -> None:
    for name, step in steps():
        script = str(step.get("run", ""))
        assert "${{" not in script, f"{name}: an expression in a script is code of whoever names the tag"
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0, name
    assert all("persist-credentials" in str(step) for _, step in steps() if "actions/checkout" in str(step.get("uses")))


def test_artifacts_that_are_downloaded_were_uploaded() -> None:
    names = {"upload": set(), "download": set()}
    for _, step in steps():
        for kind, found in names.items():
            if f"actions/{kind}-artifact" in str(step.get("uses")) and "with" in step:
                found.add(step["with"]["name"])
    assert names == {"upload": {"dist", "release", "sbom"}, "download": {"dist"}}


def test_the_image_is_made_of_files_that_exist() -> None:
    script = next(str(step["run"]) for _, step in steps() if step.get("id") == "push")
    for path in re.findall(r"deploy/[\w./]*\w", script):
        assert (ROOT / path).exists(), path


def test_the_version_is_the_same_wherever_the_workflow_reads_it() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert f'__version__ = "{__version__}"' in (ROOT / "kneo" / "__init__.py").read_text().splitlines()


def test_notes_are_the_section_of_the_version() -> None:
    assert NOTES(CHANGELOG, "1.2.0") == "- A.\n\n### B\n\n- C.\n"
    assert NOTES(CHANGELOG, "1.1.0") == "- D.\n"


@pytest.mark.parametrize("version", ["1.3.0", "1.2", "1x2.0", "2.0.0"])
def test_a_version_without_notes_is_not_released(version: str) -> None:
    with pytest.raises(ValueError, match="no section"):
        NOTES(CHANGELOG + "\n## [2.0.0]\n\n", version)
