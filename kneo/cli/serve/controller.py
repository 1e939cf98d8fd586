"""``kneo controller run``: a process that reconciles environments with a config repository."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from kneo.background import background
from kneo.cli import render
from kneo.cli.compose import process_store
from kneo.cli.repository import KnownRoots
from kneo.cli.serve.worker import bound_probes, logged_settings, until_stopped
from kneo.clock import parse_duration
from kneo.controller.loop import Controller, watching
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.digest import Digest, parse_digest
from kneo.errors import Usage
from kneo.settings import Settings
from kneo.store.engine import Store
from kneo.store.service_key import find_service_key
from kneo.tasks.notifications import deliver_notifications

RepoOption = Annotated[str | None, typer.Option("--repo", help="Config repository: a folder or an https or ssh URL.")]
RefOption = Annotated[str, typer.Option("--ref", help="Branch to reconcile.")]
RootOption = Annotated[str | None, typer.Option("--trust-root", help="Digest of the trust root to pin (sha256:…).")]
IntervalOption = Annotated[str, typer.Option("--interval", help="Time between fetches, for example 90s or 15m.")]


@dataclass(frozen=True)
class Repository:
    """The config repository of a controller, with its pinned trust root."""

    url: str
    ref: str
    pin: Digest
    interval: timedelta

    @property
    def folder(self) -> Path | None:
        """The repository's folder, if it is local."""
        path = Path(self.url)
        return path if path.is_dir() else None


controller = typer.Typer(no_args_is_help=True)


@controller.command("run")
def controller_run(
    repo: RepoOption = None,
    ref: RefOption = "main",
    trust_root: RootOption = None,
    interval: IntervalOption = "60s",
    once: Annotated[
        bool, typer.Option("--once", help="Reconcile once. Exit status 1 unless all environments are Ready.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result of --once as JSON.")] = False,
) -> None:
    """Run the controller: reconcile environments with Git."""
    if repo is None:
        msg = "--repo is missing."
        raise Usage(msg, hint="Name the config repository: kneo controller run --repo DIR_OR_URL")
    settings = logged_settings("WARNING" if once else None)
    repository = find_repository(settings, repo, ref, trust_root, interval)
    if not once:
        until_stopped(lambda stopping: run_controller(settings, repository, stopping))
        return
    with process_store(settings) as store:
        done = make_controller(settings, store, repository).run_once()
    states = {name: outcome.state for name, outcome in done.outcomes.items()}

    def show() -> None:
        render.table(done.revision, ["Environment", "State"], sorted(states.items()))

    render.emit({"revision": done.revision, "environments": states}, as_json=as_json, text=show)
    if any(state != "Ready" for state in states.values()):
        raise typer.Exit(1)


def find_repository(settings: Settings, url: str, ref: str, trust_root: str | None, interval: str) -> Repository:
    """Return the repository with its pin: the option, the setting, or the trust root that was created on this machine.

    Raises:
        Usage: no trust root is pinned. The repository itself is never trusted to name one.
    """
    location = str(Path(url).resolve()) if Path(url).is_dir() else url
    pin = _digest(trust_root) or settings.trust_root
    if pin is None and Path(location).is_dir():
        pin = KnownRoots(settings.known_roots_path).lookup(Path(location))
    if pin is None:
        msg = f"No trust root is pinned for the repository {location}."
        hint = "Ask its owner for the digest, then pass --trust-root sha256:…, or set KNEO_SERV_TRUST_ROOT."
        raise Usage(msg, code="trust_root_not_pinned", hint=hint)
    return Repository(location, ref, pin, _interval(interval))


def make_controller(settings: Settings, store: Store, repository: Repository) -> Controller:
    mirror = Mirror(repository.url, repository.ref, settings.state_dir / "mirrors", settings.git)
    key = find_service_key(settings)
    reconciler = Reconciler(
        store,
        mirror,
        repository.pin,
        service_key=key.public if key else None,
        hmac_key=settings.spec_signing_key,
        channels=tuple(settings.notify),
    )
    return Controller(store, reconciler, interval=repository.interval)


def run_controller(settings: Settings, repository: Repository, stopping: threading.Event) -> None:
    """Run a controller alone until a signal stops the process."""
    with contextlib.ExitStack() as stack:
        serve_probes = stack.enter_context(bound_probes(settings))
        store = stack.enter_context(process_store(settings))
        controller = stack.enter_context(reconciling(settings, store, repository))
        stack.enter_context(deliver_notifications(settings, store))
        stack.enter_context(serve_probes(controller.is_alive))
        render.success(f"The controller reconciles {repository.ref}.")
        stopping.wait()


@contextlib.contextmanager
def reconciling(settings: Settings, store: Store, repository: Repository) -> Iterator[Controller]:
    """Reconcile a repository in a background thread of this process."""
    controller = make_controller(settings, store, repository)
    with contextlib.ExitStack() as stack:
        stack.enter_context(background("controller", controller.run, controller.stop))
        if repository.folder is not None:
            stack.enter_context(watching(repository.folder, controller.poke))
        yield controller


def _digest(text: str | None) -> Digest | None:
    return parse_digest(text) if text is not None else None


def _interval(text: str) -> timedelta:
    interval = parse_duration(text)
    if interval < timedelta(seconds=1):
        msg = "An interval is at least 1s."
        raise Usage(msg)
    return interval
