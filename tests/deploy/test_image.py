"""The image: what it is built from is fixed, and what runs in it has no more rights than it needs."""

from __future__ import annotations

import re
import subprocess
import tomllib

from deploy_files import DEPLOY, ROOT, program
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGE = DEPLOY / "image"
LINES = (IMAGE / "Containerfile").read_text().replace("\\\n", " ").splitlines()
EXTRAS = ("deploy", "models", "a2a")


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{name} ")]


def locked() -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each locked package."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (IMAGE / "requirements.lock").read_text().replace("\\\n", " ")):
        if not entry.startswith("#"):
            name, version = re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry).groups()
            found[canonicalize_name(name)] = (version, re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return found


def wanted(extras: tuple[str, ...]) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = []
    for requirement in map(Requirement, lines):
        found += wanted_of_kneo(requirement) if requirement.name == "kneo" else [requirement]
    return found


def wanted_of_kneo(requirement: Requirement) -> list[Requirement]:
    return wanted(tuple(sorted(requirement.extras)))


def test_base_images_are_pinned_by_digest_and_every_stage_has_the_same() -> None:
    bases = {base.split(" ")[0] for base in instructions("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.1\d-slim-bookworm@sha256:[0-9a-f]{64}", bases.pop())


def test_the_process_has_no_rights_and_gets_signals() -> None:
    assert instructions("USER") == ["10001:10001"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["tini", "--", "kneo"]']
    assert "chmod 0711 /usr/bin/tini" in instructions("RUN")[-1], "functions could read the environment of process 1"
    assert not instructions("ADD")
    assert not instructions("EXPOSE")
    secret = re.compile(r"key|token|password|secret|KNEO_SERV", re.IGNORECASE)
    assert not [line for line in instructions("ENV") + instructions("ARG") if secret.search(line)]


def test_the_build_sees_the_wheel_and_the_lock_alone() -> None:
    ignored = (IMAGE / ".containerignore").read_text().splitlines()
    assert [line for line in ignored if line and not line.startswith("#")] == ["*", "!requirements.lock", "!kneo-*.whl"]
    assert (IMAGE / ".dockerignore").read_text() == (IMAGE / ".containerignore").read_text()
    assert [line.split(" ")[0] for line in instructions("COPY")] == ["requirements.lock", "--from=build"]


def test_every_package_of_the_lock_has_hashes() -> None:
    packages = locked()
    assert len(packages) > 50
    assert [name for name, (_, hashes) in packages.items() if not hashes] == []
    assert "://" not in (IMAGE / "requirements.lock").read_text(), "addresses of an index are not part of the lock"


def test_the_lock_has_what_the_project_requires_today() -> None:
    packages = locked()
    for requirement in wanted(EXTRAS):
        version, _ = packages.get(canonicalize_name(requirement.name), ("", []))
        assert version, f"make lock: {requirement.name} is not in the lock"
        assert requirement.specifier.contains(version), f"make lock: {requirement.name} {version}"


def test_the_container_file_has_no_findings() -> None:
    done = subprocess.run([program("hadolint"), IMAGE / "Containerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
