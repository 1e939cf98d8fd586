"""A service and a controller over a config repository: releases that wait for people, as the console shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from config_repo import ConfigRepo, announcement
from service_bench import Bench, Json, serving

from kneo.background import background
from kneo.cli.serve.controller import Repository, make_controller

PEOPLE = {name: {"roles": ["approver"]} for name in ("approver", "admin")}
RULES: Json = {"people": PEOPLE, "promoteFrom": "dev", "approvals": {"required": 1, "roles": ["approver"]}}


class House:
    """A service and a controller over a config repository in which ``announcement`` is released to prod."""

    def __init__(self, bench: Bench, repo: ConfigRepo) -> None:
        self.bench = bench
        self.repo = repo
        self.version = 1

    def sign(self, text: str = "Be brief.") -> str:
        """Sign a new version and declare it in dev; return the version."""
        self.version += 1
        spec = announcement()
        spec["agent"] = {**spec["agent"], "system_prompt": f"{self.version}: {text}"}
        self.repo.release("dev", "announcement", f"{self.version}.0.0", spec)
        return f"{self.version}.0.0"

    def release(self, text: str = "Be brief.") -> Json:
        """Declare a new version in dev and prod; return the change of prod, which waits for an approval."""
        version = self.sign(text)
        self.repo.environment("prod", {"announcement": version}, **RULES)
        self.repo.commit("Release")
        found = self.reconciled()
        assert found["version"] == version
        return found

    def enforce(self) -> None:
        """Bring ``RULES`` into force, with a release that is approved."""
        self.approve(self.release())
        self.bench.post("/environments/prod/reconcile", role="operator")

    def reconciled(self) -> Json:
        """Reconcile prod; return the one change that waits there."""
        self.bench.post("/environments/prod/reconcile", role="operator")
        (found,) = self.bench.get("/promotions", environment="prod", phase="waiting")["promotions"]
        return found

    def approve(self, change: Json) -> None:
        """Approve a change as a person who may."""
        self.bench.post(f"/promotions/{change['id']}/approve", role="approver")


@contextlib.contextmanager
def released(
    folder: Path, prepare: Callable[[ConfigRepo], None] = lambda _: None, *, workers: int = 0
) -> Iterator[House]:
    """Serve a config repository and reconcile it until the block ends; without workers no run is driven.

    Args:
        folder: A folder for the repository, the service and its database.
        prepare: Changes the repository before its first release.
        workers: The number of runs that are driven at a time.
    """
    repo = ConfigRepo(folder / "repo")
    prepare(repo)
    repo.release("dev", "announcement", "1.0.0")
    repo.environment("prod", {"announcement": "1.0.0"})
    repo.commit("Release to prod")
    with serving(folder / "house", f"sqlite:///{folder / 'house' / 'kneo.sqlite'}", workers=workers) as bench:
        source = Repository(str(repo.folder), "main", repo.pin, timedelta(hours=1))
        make_controller(bench.settings, bench.store, source).run_once()
        controller = make_controller(bench.settings, bench.store, source)
        with background("controller", controller.run, controller.stop):
            yield House(bench, repo)
