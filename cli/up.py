"""``kneo up``, ``kneo controller run``, ``kneo worker``, ``kneo service serve``: processes that stay."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

import typer

from cli import processes, render
from cli.compose import make_store
from kneo.clock import parse_duration
from kneo.digest import Digest, parse_digest
from kneo.errors import Usage
from kneo.settings import Settings, from_env
from kneo.telemetry import configure_logging

RepoOption = Annotated[str | None, typer.Option("--repo", help="Config repository: a folder or an https or ssh URL.")]
RefOption = Annotated[str, typer.Option("--ref", help="Branch to follow.")]
RootOption = Annotated[str | None, typer.Option("--trust-root", help="Digest of the first trust root to believe.")]
IntervalOption = Annotated[str, typer.Option("--interval", help="How often to look for commits: 90s, 15m.")]
HostOption = Annotated[str, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]


def up(
    repo: RepoOption = None,
    ref: RefOption = "main",
    trust_root: RootOption = None,
    interval: IntervalOption = "60s",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
) -> None:
    """Run service, worker, controller and timers in one process."""
    settings = _settings()
    repository = None
    if repo is not None:
        repository = processes.find_repository(settings, repo, ref, _digest(trust_root), _interval(interval))

    def announce(url: str) -> None:
        followed = f", following {repository.url} ({ref})" if repository else ""
        render.success(f"Kneo is up at {url}{followed}")

    processes.run_all(settings, repository, host, port, announce)


controller = typer.Typer(help="The controller: from Git to the registry.", no_args_is_help=True)


@controller.command("run")
def controller_run(
    repo: RepoOption = None,
    ref: RefOption = "main",
    trust_root: RootOption = None,
    interval: IntervalOption = "60s",
    once: Annotated[
        bool, typer.Option("--once", help="Do one pass; exit 1 unless every environment is Ready.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result of --once as JSON.")] = False,
) -> None:
    """Follow a config repository."""
    if repo is None:
        msg = "Which repository should be followed?"
        raise Usage(msg, hint="kneo controller run --repo DIR_OR_URL")
    settings = from_env()
    configure_logging("WARNING" if once else settings.http.log_level)
    repository = processes.find_repository(settings, repo, ref, _digest(trust_root), _interval(interval))
    if not once:
        _until_told_to_stop(lambda stopping: processes.run_controller(settings, repository, stopping))
        return
    store = make_store(settings)
    done = processes.make_controller(settings, store, repository).run_once()
    states = {name: outcome.state for name, outcome in done.outcomes.items()}

    def show() -> None:
        render.table(done.revision, ["Environment", "State"], sorted(states.items()))

    render.emit({"revision": done.revision, "environments": states}, as_json=as_json, text=show)
    if any(state != "Ready" for state in states.values()):
        raise typer.Exit(1)


def worker(
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="How many runs to drive at once.")] = 4,
) -> None:
    """Execute steps, and bring deadlines."""
    settings = _settings()
    _until_told_to_stop(lambda stopping: processes.run_worker(settings, stopping, concurrency))


service = typer.Typer(help="The HTTP service.", no_args_is_help=True)


@service.command("serve")
def serve(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Runs to drive at once; 0 leaves it to others.")] = 4,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: begin anew when a Python file of the project changes.")
    ] = False,
) -> None:
    """Answer HTTP, and drive runs unless --workers is 0."""
    settings = _settings()
    if reload:
        render.success(f"Kneo answers at http://{host}:{port}, and begins anew when code changes")
        processes.run_reloading(settings, host, port)
        return
    processes.run_service(settings, host, port, workers, lambda url: render.success(f"Kneo answers at {url}"))


def _settings() -> Settings:
    settings = from_env()
    configure_logging(settings.http.log_level)
    return settings


def _until_told_to_stop(work: Callable[[threading.Event], None]) -> None:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    work(stopping)


def _digest(text: str | None) -> Digest | None:
    return parse_digest(text) if text is not None else None


def _interval(text: str) -> timedelta:
    interval = parse_duration(text)
    if interval < timedelta(seconds=1):
        msg = "An interval is at least 1s."
        raise Usage(msg)
    return interval
