"""``kneo up``: API server, worker, controller and timers in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from kneo.cli import render
from kneo.cli.compose import process_store, retry_connecting
from kneo.cli.serve.controller import (
    IntervalOption,
    RefOption,
    RepoOption,
    Repository,
    RootOption,
    find_repository,
    reconciling,
)
from kneo.cli.serve.listener import Listener
from kneo.cli.serve.service import HostOption, PortOption, console_link, serve_http
from kneo.cli.serve.worker import executing, logged_settings
from kneo.clock import sleep
from kneo.runtime.engine.worker import Worker
from kneo.service.callers import check_reachable
from kneo.settings import Settings
from kneo.store.engine import Store


def up(
    repo: RepoOption = None,
    ref: RefOption = "main",
    trust_root: RootOption = None,
    interval: IntervalOption = "60s",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
) -> None:
    """Run API server, worker and controller in one process.

    Timers for deadlines and retention are included. Without --repo no controller runs.
    """
    settings = logged_settings()
    repository = None
    if repo is not None:
        repository = find_repository(settings, repo, ref, trust_root, interval)

    def announce(url: str) -> None:
        followed = f", reconciling {repository.url} ({ref})" if repository else ""
        render.success(f"Kneo is up at {url}{followed}")

    retry_connecting(lambda: run_processes(settings, repository, host, port, announce), sleep)


def offer_sign_in(settings: Settings, store: Store, url: str) -> None:
    """Print a link that signs one browser in to the console, where a key has every permission or none is needed."""
    link = console_link(settings, store, settings.public_url or url)
    if link is not None:
        render.text(f"  Console, signed in once within ten minutes: {link}")


def run_processes(
    settings: Settings, repository: Repository | None, host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Run API server, worker, timers and, with a repository, a controller until a signal stops the process."""
    check_reachable(settings, host)
    settings = with_repository(settings, repository) if repository else settings
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(Listener(host, port)))
        store = stack.enter_context(process_store(settings))
        parts = [stack.enter_context(executing(settings, store, Worker.DEFAULT_CONCURRENCY)).heartbeats.is_alive]
        if repository is not None:
            parts.append(stack.enter_context(reconciling(settings, store, repository)).is_alive)

        def alive() -> bool:
            return all(part() for part in parts)

        def announce_with_link(url: str) -> None:
            announce(url)
            offer_sign_in(settings, store, url)

        serve_http(settings, store, listener, announce=announce_with_link, alive=alive)


def with_repository(settings: Settings, repository: Repository) -> Settings:
    """Return settings with the repository as an import root, if it is local, and with its trust root pinned."""
    roots = settings.import_roots
    if repository.folder is not None and repository.folder not in roots:
        roots = (*roots, repository.folder)
    return replace(settings, import_roots=roots, trust_root=repository.pin)
