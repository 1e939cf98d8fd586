"""Earlier versions of this repository, unpacked from its history."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

DEPLOYMENT = "deploy/image/Containerfile"
"""The first file with which this program can be deployed. The commit before it stands for the version before, while none is released."""

PROMISE = "kneo/store/migrations/versions/kneo_0007_schema_compatibility.py"
"""The migration since which a version works on the schema of the next one."""


class HistoryMissing(Exception):
    """The clone does not have a commit."""


def git(*arguments: str) -> bytes:
    """Run git in the repository and return its output.

    Raises:
        HistoryMissing: git refused, which it does in a shallow clone and outside of one.
    """
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, timeout=240)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        reason = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise HistoryMissing(reason) from error
    return done.stdout


def earlier_version() -> str:
    """Return the newest released tag of the history; without one, the last commit before the deployment files."""
    tags = git("tag", "--list", "v[0-9]*", "--merged", "HEAD", "--sort=-version:refname").decode().split()
    here = set(git("tag", "--points-at", "HEAD").decode().split())
    return next((tag for tag in tags if tag not in here), "") or last_before(DEPLOYMENT)


def last_before(file: str) -> str:
    """Return the last commit before a file came.

    Raises:
        HistoryMissing: the clone does not reach back that far.
    """
    came = git("log", "--diff-filter=A", "--format=%H", "--", file).decode().split()
    if not came:
        msg = f"no commit adds {file}"
        raise HistoryMissing(msg)
    return git("rev-parse", "--short=12", "--verify", f"{came[-1]}^").decode().strip()


def unpack(version: str, folder: Path) -> str:
    """Unpack the program of a commit into a folder; return the schema that it needs.

    Raises:
        HistoryMissing: the clone does not have the commit.
    """
    archive = git("archive", f"{version}^{{commit}}", "kneo")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    found = re.search(r'^HEAD = "(kneo_\d{4})"', (folder / "kneo/store/migrate.py").read_text(), re.MULTILINE)
    assert found is not None, f"{version} has no schema that can be migrated"
    return found[1]
