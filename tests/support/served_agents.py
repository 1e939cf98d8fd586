"""A service over prod, which serves some bundles by a protocol, and dev, which serves none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from config_repo import ConfigRepo, announcement
from service_bench import Bench, serving

from kneo.cli.serve.controller import Repository, make_controller


@contextmanager
def served_agents(
    folder: Path,
    specs: Mapping[str, Mapping[str, Any]],
    database_url: str | None = None,
    variables: Mapping[str, str] | None = None,
    functions: str = "",
    **protocols: list[str],
) -> Iterator[Bench]:
    """Serve a bundle of each spec by the protocols of prod, and add the source of functions to the service's own."""
    repo = ConfigRepo(folder / "repo")
    for name, spec in specs.items():
        repo.bundle(name, "1.0.0", spec)
    versions = dict.fromkeys(specs, "1.0.0")
    repo.environment("prod", versions, protocols=protocols)
    repo.environment("dev", versions)
    repo.commit("Serve agents")
    database_url = database_url or f"sqlite:///{folder / 'house' / 'kneo.sqlite'}"
    with serving(folder / "house", database_url, **variables or {}) as made:
        source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
        outcome = make_controller(made.settings, made.store, source).run_once()
        assert outcome.outcomes["prod"].state == "Ready", outcome
        own = made.folder / "lab_functions.py"
        own.write_text(own.read_text() + functions)
        yield made


def lab_announcement(steps: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the announcement's spec with a function that the service of tests can import; with other steps where they are given."""
    spec: dict[str, Any] = announcement()
    spec["components"]["functions"]["publish"]["implementation"] = "lab_functions.publish"
    return spec if steps is None else {**spec, "workflow": {**spec["workflow"], "steps": steps}}


def without_library(patch: Any, modules: dict[str, Any], *names: str) -> None:
    """Remove libraries and what imported them, as where their extra is not installed."""
    for loaded in list(modules):
        if loaded.partition(".")[0] in names or loaded.startswith(
            tuple(f"kneo.extensions.protocols.{name}." for name in names)
        ):
            patch.delitem(modules, loaded)
    for name in names:
        patch.setitem(modules, name, None)
