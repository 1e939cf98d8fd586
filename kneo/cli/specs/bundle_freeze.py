"""The spec of a bundle, resolved and checked for each of its environments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kneo.cli import render
from kneo.cli.specs.check import Checked, check, require_usable
from kneo.digest import digest_of_json
from kneo.errors import Conflict
from kneo.spec.diagnostics import Diagnostic, Severity
from kneo.spec.reading.load import load_tree
from kneo.spec.reading.migrate import bring_to_v1


def freeze(spec: Path, environments: Sequence[str], *, as_json: bool) -> Mapping[str, object]:
    """Resolve a spec for its environments. Warnings are printed.

    Raises:
        typer.Exit: it is not valid in one of them; the findings are printed.
        Conflict: it differs between them.
    """
    checked = {environment: check(spec, environment) for environment in environments}
    _require_usable(checked.values(), as_json=as_json)
    return _same({environment: each.file.loaded.tree for environment, each in checked.items()})


def freeze_as_written(spec: Path, environment: str, *, as_json: bool) -> Mapping[str, object]:
    """Return a spec as its author wrote it, migrated to v1, for the format that published tools compare byte for byte.

    Where overlays, a project's defaults or other files add to the file, the spec is resolved, so that the signed spec
    is the one that runs. Warnings are printed.

    Raises:
        typer.Exit: it is not valid in this environment; the findings are printed.
    """
    checked = check(spec, environment)
    _require_usable([checked], as_json=as_json)
    resolved = checked.file.loaded.tree
    value = checked.file.loaded.documents[0].value
    assert isinstance(value, dict), "what is usable is a map"
    written = bring_to_v1(value).tree
    alone = load_tree(written).tree
    return written if digest_of_json(alone) == digest_of_json(resolved) else resolved


def _require_usable(checks: Iterable[Checked], *, as_json: bool) -> None:
    warned: set[tuple[str, str | None]] = set()
    for checked in checks:
        require_usable(checked, as_json=as_json)
        for found in checked.findings:
            known = (found.code, found.path_text)
            if found.severity is Severity.WARNING and known not in warned:
                warned.add(known)
                _warn(found)


def _warn(found: Diagnostic) -> None:
    where = f"{found.file}:{found.line}: " if found.file else ""
    render.warning(f"{where}{found.code}: {found.message}", found.suggestion)


def _same(trees: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    """Remove the name of the environment that a project's defaults write into ``metadata``: a bundle may have several."""
    (first, tree), *others = trees.items()
    if not others:
        return tree
    wanted = _without_environment(tree)
    for name, other in others:
        if digest_of_json(_without_environment(other)) != digest_of_json(wanted):
            msg = f"The spec differs between {first} and {name}: their overlays or defaults differ."
            raise Conflict(msg, hint=f"Sign a version for each: --env {first}, and another with --env {name}.")
    return wanted


def _without_environment(tree: Mapping[str, object]) -> dict[str, object]:
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict) or "environment" not in metadata:
        return dict(tree)
    rest = {key: value for key, value in metadata.items() if key != "environment"}
    whole = {key: value for key, value in tree.items() if key != "metadata"}
    return {**whole, "metadata": rest} if rest else whole
