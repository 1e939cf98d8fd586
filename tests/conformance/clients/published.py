"""The published clients in environments of their own, made under a folder that git ignores."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kneo.settings import process_environment

FOLDER = Path(__file__).parents[3] / ".conformance"

CLIENT_1_2 = ("kneo-client==1.2.0",)
CLIENT_0_4 = ("kneo-client==0.4.0",)
DASH = ("kneo-dash==0.8.0", "kneo-client==1.2.0", "selenium>=4.20,<5")
STUDIO = ("kneo-studio==0.9.0", "kneo-client==1.2.0")

PYTHON = "python3.12"
"""What the published packages need; Kneo itself may run on an older one."""


class Missing(Exception):
    """Something that this machine would need is not there; the message says what."""


def environment(requirements: Sequence[str]) -> Path:
    """Return the Python of an environment with these packages, made when it is not there yet.

    Raises:
        Missing: there is no Python 3.12, or the packages cannot be had.
    """
    name = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = FOLDER / f"{requirements[0].replace('==', '-')}-{name}"
    python = folder / "bin" / "python"
    if (folder / ".ready").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    pip = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", *requirements]
    for command in ([str(find_python()), "-m", "venv", str(folder)], [str(python), *pip]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise Missing(f"{' '.join(command[1:4])} failed: {done.stderr.strip()[-300:]}")
    (folder / ".ready").touch()
    return python


def find_python() -> Path:
    """Find a Python 3.12 that starts: on the path, or one of pyenv's.

    Raises:
        Missing: there is none.
    """
    home = Path(process_environment("HOME").get("HOME", "/"))
    candidates = [*home.glob(".pyenv/versions/3.12.*/bin/python3.12")]
    if on_path := shutil.which(PYTHON):
        candidates.insert(0, Path(on_path))
    for candidate in candidates:
        code = "import sys; print(sys.executable) if sys.version_info[:2] == (3, 12) else sys.exit(1)"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, timeout=240, check=False)
        if done.returncode == 0:
            return Path(done.stdout.strip())
    raise Missing("The published clients need Python 3.12; there is none on the path or in ~/.pyenv/versions.")


def find_browser() -> tuple[str, str]:
    """Find Chromium and its driver.

    Raises:
        Missing: one of them is not installed.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        raise Missing("The dashboard needs Chromium and its driver: apt-get install chromium chromium-driver.")
    return browser, driver
