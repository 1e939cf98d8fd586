"""Project folders: the config, and the modules and files that specs name; read, never imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kneo.errors import Invalid
from kneo.settings import Settings

if TYPE_CHECKING:
    from kneo.spec.project import ProjectConfig


def read_config(settings: Settings) -> ProjectConfig | None:
    """Read the config of the project; None outside a project.

    Raises:
        Invalid: the file is not a project config; the message names file and line.
    """
    path = settings.project_config
    if path is None:
        return None
    # Most commands run outside a project and do not need the models of specs.
    from kneo.spec.documents import DEFAULT_LIMITS
    from kneo.spec.project import parse_project

    try:
        with path.open("rb") as file:
            data = file.read(DEFAULT_LIMITS.max_bytes + 1)
    except OSError as error:
        msg = f"The project config {path} cannot be read: {error.strerror}."
        raise Invalid(msg, code="invalid_setting", file=str(path)) from error
    return parse_project(data, file=str(path))
