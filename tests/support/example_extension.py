"""The package of examples/extension, built and installed into a folder of its own without a network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kneo import extension_points

EXAMPLE = Path(__file__).parents[2] / "examples" / "extension"
PIP = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input", "install"]


def install_example(folder: Path) -> Path:
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    done = subprocess.run([*PIP, *offline, str(EXAMPLE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def on_path(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The packages of a folder are installed for this process."""
    patch.syspath_prepend(str(folder))
    patch.setattr(extension_points, "PATH", tuple(sys.path))
    extension_points._scan.cache_clear()
    yield
    extension_points._scan.cache_clear()
