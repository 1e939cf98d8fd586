"""Specs that a run brings along, checked the way every command about specs checks them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cli.project import open_project
from cli.spec_check import check as check_file
from kneo.errors import Invalid
from kneo.spec.diagnostics import Diagnostic
from kneo.spec.load import load_tree
from kneo.spec.models import Spec
from kneo.spec.rules import check


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
        raise _refusal(checked.findings)
    return checked.file.loaded.tree


def check_spec(tree: Mapping[str, object]) -> Spec:
    """Validate a spec that a request brought along.

    Raises:
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    loaded = load_tree(dict(tree), rules=check)
    if loaded.spec is None or not loaded.valid:
        raise _refusal(loaded.diagnostics)
    return loaded.spec


def _refusal(findings: tuple[Diagnostic, ...]) -> Invalid:
    errors = [found for found in findings if found.is_error]
    first = errors[0]
    where = f"{first.file}:{first.line}: " if first.file else ""
    more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
    return Invalid(
        f"{where}{first.code}: {first.message} (at {first.path_text or 'the whole spec'}){more}",
        code="spec_invalid",
        hint=first.suggestion or "kneo spec lint shows every finding.",
        diagnostics=[found.as_json() for found in findings],
    )
