"""Specs from files and requests, through the whole pipeline of ``kneo.spec``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kneo.errors import Invalid, NotFound
from kneo.settings import Settings
from kneo.spec.models import Spec
from kneo.spec.reader import read


def resolved_tree(path: Path, environment: str | None) -> Mapping[str, object]:
    """Read a spec file as the tree that is sent to a run."""
    del environment
    if not path.is_file():
        msg = f"There is no spec at {path}."
        raise NotFound(msg)
    tree = read(path.read_bytes(), file=str(path)).value
    if not isinstance(tree, dict):
        msg = f"{path} holds no map."
        raise Invalid(msg, code="spec_invalid")
    return tree


def check_spec(tree: Mapping[str, object], settings: Settings) -> Spec:
    """Validate a spec that a request brought along."""
    del settings
    return Spec.model_validate(tree)
