"""The source archive: a wheel that is built from it is the package, complete."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kneo import __version__
from kneo.settings import function_environment

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
    "\0"
)[:-1]


def build(source: Path, target: str, folder: Path) -> Path:
    """Build the sdist or the wheel of a source folder without a package index."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of a clone of this checkout."""
    clone = tmp_path_factory.mktemp("clone") / "kneo"
    for name in TRACKED:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name, follow_symlinks=False)
    return build(clone, "sdist", tmp_path_factory.mktemp("sdist"))


def test_the_folders_at_the_root_are_links_into_the_package() -> None:
    for name in ("cli", "controller"):
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).resolve() == ROOT / "kneo" / name


def test_a_wheel_from_the_source_archive_is_complete_and_runs(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    wheel = build(source, "wheel", tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
        files.extractall(tmp_path / "installed")
    assert names == {name for name in TRACKED if name.startswith("kneo/")}

    environment = {**function_environment(), "PYTHONPATH": str(tmp_path / "installed")}
    program = [sys.executable, "-c", "import kneo.cli.main as m; print(m.__file__); m.main()"]

    def run(argument: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, argument], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    ran = run("--version")
    assert ran.stdout.splitlines() == [str(tmp_path / "installed" / "kneo/cli/main.py"), f"kneo {__version__}"], ran
    installed = next(line for line in run("doctor").stdout.splitlines() if "extensions: Installed" in line)
    assert f"kneo {__version__}: " in installed
    assert "maintenance.import (commands)" in installed
