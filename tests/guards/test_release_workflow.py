"""The release workflow: what needs what, and which rights a job has. Only the forge can execute it."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
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
VERIFY = (ROOT / "docs" / "install" / "verify.md").read_text()
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
    assert before("chart") == {"test", "deploy", "build", "image"}
    assert before("publish") == {"test", "deploy", "build", "image", "chart"}
    assert before("notes") == {"test", "deploy", "build", "image", "chart", "publish"}
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
        "chart": {"packages", "id-token", "attestations"},
        "publish": {"id-token"},
        "notes": {"contents", "id-token", "attestations"},
    }


def test_called_workflows_can_be_called() -> None:
    for name in ("test", "deploy"):
        called = yaml.safe_load((ROOT / JOBS[name]["uses"]).read_text())
        assert "workflow_call" in called[True]  # YAML reads the key ``on`` as a truth value


def test_only_tags_of_versions_start_a_release() -> None:
    assert RELEASE[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}


def test_scripts_take_nothing_from_expressions_but_variables_and_are_valid() -> None:
    for name, step in steps():
        run = str(step.get("run", ""))
        assert "${{" not in run, f"{name}: an expression in a script is code of the person who names the tag"
        assert subprocess.run(["bash", "-n"], input=run, text=True, check=False).returncode == 0, name
    assert all("persist-credentials" in str(step) for _, step in steps() if "actions/checkout" in str(step.get("uses")))


def test_artifacts_that_are_downloaded_were_uploaded() -> None:
    names = {"upload": set(), "download": set()}
    for _, step in steps():
        for kind, found in names.items():
            if f"actions/{kind}-artifact" in str(step.get("uses")) and "with" in step:
                found.add(step["with"]["name"])
    assert names == {"upload": {"dist", "release", "sbom", "chart"}, "download": {"dist"}}


def test_the_image_is_made_of_files_that_exist() -> None:
    for path in re.findall(
        r"deploy/[\w./]*\w", script("image", "Build the image from the wheel that is published, and push it")
    ):
        assert (ROOT / path).exists(), path


def test_the_version_is_the_same_wherever_the_workflow_reads_it() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert f'__version__ = "{__version__}"' in (ROOT / "kneo" / "__init__.py").read_text().splitlines()
    chart = (ROOT / "deploy" / "helm" / "kneo" / "Chart.yaml").read_text().splitlines()
    assert {f"version: {__version__}", f'appVersion: "{__version__}"'} <= set(chart)


def script(job: str, name: str) -> str:
    """Return the script of a step."""
    return next(str(step["run"]) for step in JOBS[job]["steps"] if step.get("name") == name)


def test_the_chart_of_a_release_has_the_image_of_the_release(tmp_path: Path) -> None:
    chart = tmp_path / "deploy" / "helm" / "kneo"
    shutil.copytree(ROOT / "deploy" / "helm" / "kneo", chart)
    programs = tmp_path / "programs"
    programs.mkdir()
    helm = programs / "helm"
    helm.write_text(
        '#!/bin/sh\ntest "$1 $2 $3" = "package deploy/helm/kneo --destination" && : > "$4/kneo-1.2.3.tgz"\n'
    )
    helm.chmod(0o755)
    run = script("chart", "Package the chart with the image of this release as its default")
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "IMAGE": "r.example.org/team/kneo"}
    subprocess.run(["bash", "-e", "-c", run], cwd=tmp_path, env=environment, check=True)
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert values["image"]["repository"] == "r.example.org/team/kneo"
    # A second time the default is another one, so the step fails instead of publishing it.
    again = {**environment, "IMAGE": "elsewhere"}
    assert subprocess.run(["bash", "-e", "-c", run], cwd=tmp_path, env=again, check=False).returncode != 0


def test_files_are_verified_as_the_page_says(tmp_path: Path) -> None:
    for path in ("dist/kneo-1.2.3.whl", "dist/kneo-1.2.3.tar.gz", "sbom/sbom.cdx.json", "chart/kneo-1.2.3.tgz"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
    subprocess.run(["bash", "-e", "-c", script("notes", "Sum the files")], cwd=tmp_path, check=True)
    sums = tmp_path / "SHA256SUMS"
    assert len(sums.read_text().splitlines()) == 4
    files = tmp_path / "files"
    (files / sums.name).write_text(sums.read_text())
    check = next(line for line in VERIFY.splitlines() if line.startswith("sha256sum "))
    (files / "kneo-1.2.3.tar.gz").unlink()
    subprocess.run(shlex.split(check), cwd=files, check=True)
    (files / "kneo-1.2.3.whl").write_text("changed")
    assert subprocess.run(shlex.split(check), cwd=files, check=False).returncode == 1
    release = script("notes", "Create the release with its notes and files")
    assert {"files/*", "SHA256SUMS"} <= set(release.split())


def test_the_page_about_verifying_names_what_the_workflow_signs() -> None:
    assert '"$REPOSITORY/.github/workflows/release.yml"' in VERIFY
    assert "@refs/tags/v$VERSION" in VERIFY
    registry = JOBS["image"]["env"]["REGISTRY"]
    assert JOBS["chart"]["env"]["REGISTRY"] == registry
    assert f'IMAGE="{registry}/$REPOSITORY@' in VERIFY
    assert 'charts="$REGISTRY/${REPOSITORY,,}/charts"' in script("chart", "Push the chart")
    assert f"{registry}/$REPOSITORY/charts/kneo" in VERIFY
    attested = re.search(r"cosign attest --yes --type (\w+)", script("image", "Sign the image and its SBOM"))
    assert attested
    assert f"--type {attested[1]} " in VERIFY
    # Each job that makes a file signs its provenance, the last one that of all files.
    signed = {name for name, step in steps() if "actions/attest-build-provenance" in str(step.get("uses"))}
    assert signed == {"build", "image", "chart", "notes"}
    verified = [line for line in VERIFY.splitlines() if line.startswith(("cosign verify", "gh attestation verify"))]
    assert len(verified) == 6
    for line in verified:
        names = (
            ("--certificate-identity", "--certificate-oidc-issuer")
            if line.startswith("cosign")
            else ("--signer-workflow", "--source-ref")
        )
        assert all(name in line for name in names), f"{line}: accepts the signature of another workflow"


def test_notes_are_the_section_of_the_version() -> None:
    assert NOTES(CHANGELOG, "1.2.0") == "- A.\n\n### B\n\n- C.\n"
    assert NOTES(CHANGELOG, "1.1.0") == "- D.\n"


@pytest.mark.parametrize("version", ["1.3.0", "1.2", "1x2.0", "2.0.0"])
def test_a_version_without_notes_is_not_released(version: str) -> None:
    with pytest.raises(ValueError, match="no section"):
        NOTES(CHANGELOG + "\n## [2.0.0]\n\n", version)
