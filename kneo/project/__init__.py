"""The project's folder: its config, the modules that specs name, and the files beside them. Read, never imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kneo.errors import Invalid
from kneo.settings import Settings

if TYPE_CHECKING:
    from kneo.spec.project import ProjectConfig


def read_config(settings: Settings) -> ProjectConfig | None:
    """Read the project's config; None where there is no project.

    Raises:
        Invalid: it is not one; the message names file and line.
    """
    path = settings.project_config
    if path is None:
        return None
    # Most commands stand in no project, and need not know what specs look like.
    from kneo.spec.documents import DEFAULT_LIMITS
    from kneo.spec.project import parse_project

    try:
        with path.open("rb") as file:
            data = file.read(DEFAULT_LIMITS.max_bytes + 1)
    except OSError as error:
        msg = f"The project config {path} cannot be read: {error.strerror}."
        raise Invalid(msg, code="invalid_setting", file=str(path)) from error
    return parse_project(data, file=str(path))
