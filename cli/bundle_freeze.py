"""The one spec that a bundle carries: resolved and checked as each of its environments sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cli import render
from cli.project import open_project
from cli.spec_check import check, require_usable
from kneo.digest import digest_of_json
from kneo.errors import Conflict
from kneo.spec.diagnostics import Diagnostic, Severity


def freeze(spec: Path, environments: Sequence[str], *, as_json: bool) -> Mapping[str, object]:
    """Resolve a spec for its environments. Warnings are printed.

    Raises:
        typer.Exit: it cannot be used in one of them; the findings are printed.
        Conflict: it is not the same in all of them.
    """
    trees: dict[str, Mapping[str, object]] = {}
    warned: set[tuple[str, str | None]] = set()
    for environment in environments:
        checked = check(open_project(environment), spec)
        require_usable(checked, as_json=as_json)
        for found in checked.findings:
            known = (found.code, found.path_text)
            if found.severity is Severity.WARNING and known not in warned:
                warned.add(known)
                _warn(found)
        trees[environment] = checked.file.loaded.tree
    return _same(trees)


def _warn(found: Diagnostic) -> None:
    where = f"{found.file}:{found.line}: " if found.file else ""
    render.warning(f"{where}{found.code}: {found.message}", found.suggestion)


def _same(trees: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    """A project's defaults write the environment's name into ``metadata``; a bundle for several has no one name."""
    (first, tree), *others = trees.items()
    if not others:
        return tree
    wanted = _without_environment(tree)
    for name, other in others:
        if digest_of_json(_without_environment(other)) != digest_of_json(wanted):
            msg = f"The spec is not the same in {first} and {name}: their overlays or defaults differ."
            raise Conflict(msg, hint=f"Sign a version for each: --env {first}, and another with --env {name}.")
    return wanted


def _without_environment(tree: Mapping[str, object]) -> dict[str, object]:
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict) or "environment" not in metadata:
        return dict(tree)
    rest = {key: value for key, value in metadata.items() if key != "environment"}
    whole = {key: value for key, value in tree.items() if key != "metadata"}
    return {**whole, "metadata": rest} if rest else whole
