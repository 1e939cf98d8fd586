"""``kneo up``: service, worker, controller and timers in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from cli import render
from cli.compose import make_store
from cli.serve.follow import IntervalOption, RefOption, RepoOption, Repository, RootOption, find_repository, following
from cli.serve.service import HostOption, PortOption, always, answer_http
from cli.serve.tune_gc import settle
from cli.serve.worker import logged_settings
from kneo import __version__
from kneo.maintenance import make_retention
from kneo.runtime.engine.assemble import working
from kneo.runtime.engine.worker import Worker
from kneo.service.head_check import check_reachable
from kneo.settings import Settings
from kneo.telemetry.spans import configure_tracing


def up(
    repo: RepoOption = None,
    ref: RefOption = "main",
    trust_root: RootOption = None,
    interval: IntervalOption = "60s",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
) -> None:
    """Run service, worker, controller and timers in one process."""
    settle()
    settings = logged_settings()
    repository = None
    if repo is not None:
        repository = find_repository(settings, repo, ref, trust_root, interval)

    def announce(url: str) -> None:
        followed = f", following {repository.url} ({ref})" if repository else ""
        render.success(f"Kneo is up at {url}{followed}")

    run_all(settings, repository, host, port, announce)


def run_all(
    settings: Settings, repository: Repository | None, host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Service, worker, timers and, with a repository, a controller in one process; until it is told to stop."""
    check_reachable(settings, host)
    settings = with_repository(settings, repository) if repository else settings
    store = make_store(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(configure_tracing(settings.tracing, version=__version__))
        stack.callback(store.close)
        stack.enter_context(working(settings, store, Worker.DEFAULT_CONCURRENCY, make_retention(settings, store)))
        alive: Callable[[], bool] = always
        if repository is not None:
            alive = stack.enter_context(following(settings, store, repository)).is_alive
        answer_http(settings, store, host, port, announce=announce, alive=alive)


def with_repository(settings: Settings, repository: Repository) -> Settings:
    """Let functions that stand beside a local repository's specs be found, and believe its pin everywhere."""
    roots = settings.import_roots
    if repository.folder is not None and repository.folder not in roots:
        roots = (*roots, repository.folder)
    return replace(settings, import_roots=roots, trust_root=repository.pin)
