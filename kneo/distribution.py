"""The package under whose name Kneo is installed, and whether a package index has it."""

from __future__ import annotations

INDEX_NAME: str | None = None
"""The name of Kneo at the package index; None while no index has it, since the package named kneo there is another one.

The setting decides what ``kneo init`` locks, what errors tell people to install, and whether the release workflow publishes. The name of
the project in pyproject.toml is the same.
"""

NAME = INDEX_NAME or "kneo"


def install_extra(*extras: str) -> str:
    """Return the command that installs the libraries of extras into the environment of Kneo."""
    return f"pip install '{NAME}[{','.join(extras)}]'"


def requirement(version: str) -> str:
    """Return the requirement of a version of Kneo: its name at the index, or its wheel in the folder ``.github/wheels``."""
    return f"{NAME}=={version}" if INDEX_NAME else f"./.github/wheels/{NAME}-{version}-py3-none-any.whl"
