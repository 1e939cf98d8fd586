"""Specs that people bring along, through the whole pipeline of ``kneo.spec``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kneo.errors import Invalid, NotFound
from kneo.spec.document import DEFAULT_LIMITS
from kneo.spec.load import LoadedSpec, load_spec, load_tree
from kneo.spec.models import Spec
from kneo.spec.rules import check


def read_tree(path: Path) -> Mapping[str, object]:
    """Read a spec file as the tree that is sent with a run.

    Raises:
        NotFound: there is no such file.
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    if not path.is_file():
        msg = f"There is no spec at {path}."
        raise NotFound(msg, hint="Name a YAML or JSON file, or --bundle NAME --env ENV.")
    with path.open("rb") as file:
        data = file.read(DEFAULT_LIMITS.max_bytes + 1)
    loaded = load_spec(data, file=str(path), rules=check)
    _require_valid(loaded)
    return loaded.tree


def check_spec(tree: Mapping[str, object]) -> Spec:
    """Validate a spec that a request brought along.

    Raises:
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    return _require_valid(load_tree(dict(tree), rules=check))


def _require_valid(loaded: LoadedSpec) -> Spec:
    if loaded.spec is not None and loaded.valid:
        return loaded.spec
    errors = [found for found in loaded.diagnostics if found.is_error]
    first = errors[0]
    where = f"{first.file}:{first.line}: " if first.file else ""
    more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
    raise Invalid(
        f"{where}{first.code}: {first.message} (at {first.path_text or 'the whole spec'}){more}",
        code="spec_invalid",
        hint=first.suggestion or "kneo spec lint shows every finding.",
        diagnostics=[found.as_json() for found in loaded.diagnostics],
    )
