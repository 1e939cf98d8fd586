"""The spec that a run brings along, checked the way every command about specs checks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cli.project import open_project
from cli.specs.check import check as check_file
from kneo.spec.compiler import refusal


def read_tree(path: Path | None, environment: str | None) -> Mapping[str, object]:
    """Read a spec, with the overlays, defaults and policy of its project, as the tree that a run is sent.

    Args:
        path: The file; ``None`` is the project's default spec.
        environment: The environment that is meant; ``None`` is the project's.

    Raises:
        Usage, NotFound: there is no such spec.
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    checked = check_file(open_project(environment), path)
    if not checked.valid:
        raise refusal(checked.findings)
    return checked.file.loaded.tree
