"""The release workflow: what needs what, which rights a job has, and a rehearsal of every script without a network connection."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from kneo import __version__, distribution

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
RELEASE = yaml.safe_load((WORKFLOWS / "release.yml").read_text())
JOBS = RELEASE["jobs"]
VERIFY = (ROOT / "docs" / "install" / "verify.md").read_text()
TRACKED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
    "\0"
)[:-1]
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


PYTHON = """#!/bin/sh
# The machine's Python, except for the tools that the workflow installs from the package index: hatchling is what they call.
case "$*" in
  "-m pip install "*) exit 0 ;;
  "-m build --outdir dist")
    {python} -m hatchling build --target sdist --directory dist && mkdir ../unpacked && tar -xzf dist/*.tar.gz -C ../unpacked &&
    cd ../unpacked/* && exec {python} -m hatchling build --target wheel --directory "$OLDPWD/dist" ;;
  "-m twine check --strict "*) shift 4; exec {python} {metadata} "$@" ;;
  *) exec {python} "$@" ;;
esac
"""

METADATA = """import sys, tarfile, zipfile
from packaging.metadata import Metadata
for name in sys.argv[1:]:
    if name.endswith(".whl"):
        archive = zipfile.ZipFile(name)
        (path,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        text = archive.read(path)
    else:
        archive = tarfile.open(name)
        (path,) = [each for each in archive.getnames() if each.count("/") == 1 and each.endswith("/PKG-INFO")]
        text = archive.extractfile(path).read()
    assert Metadata.from_email(text, validate=True).description_content_type == "text/markdown", name
"""

TOOLS = {
    "docker": """#!/bin/sh
# Builds nothing: the image is the wheel of the build context, and its command is that of the wheel.
echo "docker $*" >> "$CALLS"
case "$1 $2" in
  "build --file") set -- deploy/image/kneo-*.whl && test $# = 1 && test -f deploy/image/Containerfile && cp "$1" "$REGISTRY_FOLDER/" ;;
  "run --rm") PYTHONPATH="$(echo "$REGISTRY_FOLDER"/kneo-*.whl)" exec {python} -m kneo.cli.main --version ;;
  "login ghcr.io") test "$(cat)" = TOKEN ;;
  "push "*) ;;
  "inspect --format") echo "${{4%:*}}@sha256:$(sha256sum "$REGISTRY_FOLDER"/kneo-*.whl | cut -d' ' -f1)" ;;
  *) exit 1 ;;
esac
""",
    "helm": """#!/bin/sh
echo "helm $*" >> "$CALLS"
case "$1 $2" in
  "package deploy/helm/kneo") tar -czf "$4/kneo-$(sed -n 's/^version: //p' deploy/helm/kneo/Chart.yaml).tgz" -C deploy/helm kneo ;;
  "registry login") test "$(cat)" = TOKEN ;;
  "push "*) test -f "$2" && echo "Digest: sha256:$(sha256sum "$2" | cut -d' ' -f1)" >&2 ;;
  *) exit 1 ;;
esac
""",
    "cosign": '#!/bin/sh\necho "cosign $*" >> "$CALLS"\ncase "$1" in sign|attest) ;; *) exit 1 ;; esac\n',
    "gh": """#!/bin/sh
test "$1 $2" = "release create" || exit 1
echo "gh $*" >> "$CALLS"
shift 8 && cp "$@" "$REGISTRY_FOLDER/released/" && cp release/notes.md "$REGISTRY_FOLDER/"
""",
}


class Rehearsal:
    """A run of the workflow for a tag: each script in a checkout of its job, with artifacts and outputs handed on as the forge does.

    Stand-ins take the place of what needs a network connection: the registry, the forge, keyless signatures and the actions of others.
    """

    def __init__(self, folder: Path, tag: str) -> None:
        self.folder, self.tag = folder, tag
        self.outputs: dict[str, dict[str, str]] = {}
        self.ran: list[str] = []
        self.calls, self.registry, self.artifacts = folder / "calls", folder / "registry", folder / "artifacts"
        (self.registry / "released").mkdir(parents=True)
        self.source, tools = folder / "source", folder / "tools"
        tools.mkdir()
        (folder / "metadata.py").write_text(METADATA)
        programs = {"python": PYTHON} | TOOLS
        for name, text in programs.items():
            (tools / name).write_text(
                text.replace("{python}", sys.executable)
                .replace("{metadata}", str(folder / "metadata.py"))
                .replace("{{", "{")
                .replace("}}", "}")
            )
            (tools / name).chmod(0o755)
        for name in TRACKED:
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.source / name, follow_symlinks=False)
        log = self.source / "CHANGELOG.md"
        log.write_text(f"# Changelog\n\n## [{tag[1:]}] - 2026-11-24\n\n- Everything.\n\n" + log.read_text())
        self.env = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOME": str(folder),
            "CALLS": str(self.calls),
            "REGISTRY_FOLDER": str(self.registry),
            "GITHUB_SHA": "c" * 40,
            "GITHUB_SERVER_URL": "https://git.example.org",
        }

    def run(self) -> None:
        """Run each job whose condition holds, in the order of their needs."""
        for name, job in JOBS.items():
            if "steps" not in job or not self._holds(job.get("if", "")):
                continue
            place = self.folder / name
            shutil.copytree(self.source, place, symlinks=True) if "actions/checkout" in str(job) else place.mkdir()
            for step in job["steps"]:
                self._step(name, place, {**RELEASE.get("env", {}), **job.get("env", {})}, step)
            self.ran.append(name)
            for output, value in job.get("outputs", {}).items():
                self.outputs.setdefault(name, {})[output] = self._value(value, name)

    def _holds(self, condition: str) -> bool:
        if "index_name" in condition:
            return self.outputs["build"]["index_name"] != ""
        return all(name in self.ran for name in re.findall(r"needs\.(\w+)\.result == 'success'", condition))

    def _step(self, job: str, place: Path, env: dict[str, str], step: dict[str, Any]) -> None:
        uses, given = str(step.get("uses", "")), step.get("with", {})
        if "upload-artifact" in uses:
            shutil.copytree(place / given["path"], self.artifacts / given["name"]) if (
                place / given["path"]
            ).is_dir() else (
                (self.artifacts / given["name"]).mkdir(parents=True),
                shutil.copy(place / given["path"], self.artifacts / given["name"]),
            )
        elif "download-artifact" in uses and "name" in given:
            shutil.copytree(self.artifacts / given["name"], place / given["path"])
        elif "download-artifact" in uses:
            shutil.copytree(self.artifacts, place, dirs_exist_ok=True)
        elif "sbom-action" in uses:
            (place / given["output-file"]).write_text('{"bomFormat": "CycloneDX"}')
        if "run" not in step:
            return
        output = self.folder / f"output-{len(list(self.folder.iterdir()))}"
        values = {name: self._value(text, job) for name, text in {**env, **step.get("env", {})}.items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=place,
            env=self.env | values | {"GITHUB_OUTPUT": str(output)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{job}: {step['name']}\n{done.stdout}{done.stderr}"
        if "id" in step and output.exists():
            pairs = dict(line.split("=", 1) for line in output.read_text().splitlines())
            self.outputs[f"{job}.{step['id']}"] = pairs

    def _value(self, text: str, job: str) -> str:
        context = {
            "github.ref_name": self.tag,
            "github.repository": "Acme/Kneo",
            "github.server_url": "https://git.example.org",
            "github.actor": "ann",
            "github.token": "TOKEN",
        }
        for step, pairs in self.outputs.items():
            owner, _, name = step.partition(".")
            for key, value in pairs.items():
                if not name:
                    context[f"needs.{owner}.outputs.{key}"] = value
                elif owner == job:
                    context[f"steps.{name}.outputs.{key}"] = value
        return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: context[found[1]], text)


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    return Rehearsal(tmp_path, f"v{__version__}")


def test_a_rehearsal_makes_every_file_of_a_release(rehearsal: Rehearsal, tmp_path: Path) -> None:
    rehearsal.run()
    assert rehearsal.ran == ["build", "image", "chart", "notes"]
    released = rehearsal.registry / "released"
    assert sorted(path.name for path in released.iterdir()) == [
        "SHA256SUMS",
        f"kneo-{__version__}-py3-none-any.whl",
        f"kneo-{__version__}.tar.gz",
        f"kneo-{__version__}.tgz",
        "sbom.cdx.json",
    ]
    with zipfile.ZipFile(released / f"kneo-{__version__}-py3-none-any.whl") as wheel:
        assert "kneo/cli/main.py" in wheel.namelist()
        assert b"Source, https://git.example.org/Acme/Kneo" in wheel.read(f"kneo-{__version__}.dist-info/METADATA")
    # The image that is signed is the one that was pushed, the notes name it, and the chart has it as its default.
    image = "ghcr.io/acme/kneo"
    notes = (rehearsal.registry / "notes.md").read_text()
    digest = re.search(rf"{image}:{re.escape(__version__)}@(sha256:[0-9a-f]{{64}})", notes)[1]
    calls = rehearsal.calls.read_text().splitlines()
    assert "- Everything." in notes
    assert f"docker push {image}:{__version__}" in calls
    assert f"cosign sign --yes {image}@{digest}" in calls
    assert f"cosign attest --yes --type cyclonedx --predicate sbom.cdx.json {image}@{digest}" in calls
    with tarfile.open(released / f"kneo-{__version__}.tgz") as chart:
        values = yaml.safe_load(chart.extractfile("kneo/values.yaml").read())
    assert values["image"]["repository"] == image
    # Whoever downloads the files verifies them as the page says.
    check = shlex.split(next(line for line in VERIFY.splitlines() if line.startswith("sha256sum ")))
    (released / f"kneo-{__version__}.tar.gz").unlink()
    subprocess.run(check, cwd=released, check=True)
    (released / f"kneo-{__version__}-py3-none-any.whl").write_text("changed")
    assert subprocess.run(check, cwd=released, check=False).returncode == 1


def test_a_name_at_the_index_is_one_setting(rehearsal: Rehearsal) -> None:
    setting = rehearsal.source / "kneo/distribution.py"
    setting.write_text(setting.read_text().replace("INDEX_NAME: str | None = None", 'INDEX_NAME: str | None = "kneo"'))
    rehearsal.run()
    assert rehearsal.ran == ["build", "image", "chart", "publish", "notes"]
    assert sorted(path.suffix for path in (rehearsal.folder / "publish/dist").iterdir()) == [".gz", ".whl"]


@pytest.mark.parametrize("tag", ["v9.9.9", "v0.1"])
def test_a_tag_of_another_version_is_not_released(tag: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="The tag, the package and the changelog have one version"):
        Rehearsal(tmp_path, tag).run()


def test_a_chart_without_the_image_of_the_release_is_not_published(rehearsal: Rehearsal) -> None:
    values = rehearsal.source / "deploy/helm/kneo/values.yaml"
    values.write_text(values.read_text().replace("registry.example.org/kneo", "elsewhere.example.org/kneo"))
    with pytest.raises(AssertionError, match="chart: Package the chart"):
        rehearsal.run()


def test_the_package_has_the_name_of_the_setting() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [line for extra in project["optional-dependencies"].values() for line in extra]
    own = {line.partition("[")[0] for line in listed if line.startswith(("kneo", project["name"]))}
    assert {project["name"]} | own == {distribution.NAME}


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
