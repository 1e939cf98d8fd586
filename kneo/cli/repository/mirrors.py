"""Mirrors of config repositories, opened with the credentials of the settings."""

from __future__ import annotations

from pathlib import Path

from kneo.controller.source.mirror import Mirror
from kneo.settings import Settings


def open_mirror(settings: Settings, url: str, ref: str, folder: Path) -> Mirror:
    """Open the mirror of a repository with the credentials of the settings.

    Raises:
        Invalid: the address or the ref is not supported.
    """
    return Mirror(url, ref, folder, settings.git)
