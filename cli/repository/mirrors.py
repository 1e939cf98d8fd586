"""Mirrors of config repositories: every command that reads from a remote opens its mirror here, with its credentials."""

from __future__ import annotations

from pathlib import Path

from controller.source.mirror import Mirror
from kneo.settings import Settings


def open_mirror(settings: Settings, url: str, ref: str, folder: Path) -> Mirror:
    """Open the mirror of a repository, logged in as the settings say.

    Raises:
        Invalid: the address or the ref is not one we use.
    """
    return Mirror(url, ref, folder, settings.git)
