"""``kneo service serve``: the API server."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from typing import Annotated

import typer
import uvicorn

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.compose import find_store, make_starter, process_store, retry_connecting
from kneo.cli.options import JsonOption
from kneo.cli.project import spec_compiler
from kneo.cli.serve.http_limits import DefaultProtocol, RequestTimer, timed_protocol
from kneo.cli.serve.listener import Listener
from kneo.cli.serve.worker import executing, logged_settings
from kneo.clock import sleep
from kneo.errors import NotFound
from kneo.service.app import App, create_app, drain, reload_keys
from kneo.service.auth import configured, keyring
from kneo.service.callers import check_reachable
from kneo.service.console.session import make_link
from kneo.settings import HttpSettings, Settings, from_env, user_name
from kneo.store.engine import Store

HostOption = Annotated[str, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 selects a free port.")]

KEEP_ALIVE_SECONDS = 75
"""Idle time after which a connection is closed: longer than clients (httpx: 5 s) and proxies (most: 60 s) keep one, so that they do
not send a request into a connection that is being closed.
"""

service = typer.Typer(no_args_is_help=True)


@service.command("serve")
def serve(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Runs to execute at once; 0 leaves runs to other workers.")
    ] = 4,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: restart when a Python file of the project changes.")
    ] = False,
) -> None:
    """Run the API server, and a worker unless --workers is 0.

    SIGHUP reads the files of API keys again.
    """
    settings = logged_settings()
    if reload:
        serve_with_reload(settings, host, port)
        return

    def announce(url: str) -> None:
        render.success(f"Kneo is up at {url}")

    retry_connecting(lambda: run_service(settings, host, port, workers, announce), sleep)


@service.command("sign-in-link")
@examples("kneo service sign-in-link", "kneo service sign-in-link --person ann")
def sign_in_link(
    person: Annotated[
        str | None, typer.Option("--person", help="Owner of an API key; without it the owner of an admin key.")
    ] = None,
    address: Annotated[
        str, typer.Option("--address", help="Address of the service; KNEO_SERV_PUBLIC_URL where it is set.")
    ] = "http://127.0.0.1:8000",
    as_json: JsonOption = False,
) -> None:
    """Create a link that signs one browser in to the console, once and for ten minutes.

    Run it with the settings of the service: its database and its API keys.
    """
    settings = from_env()
    with contextlib.closing(find_store(settings)) as store:
        link = console_link(settings, store, settings.public_url or address, person)
    if link is None:
        msg = f"No API key belongs to {person}." if person else "No API key has every permission."
        raise NotFound(msg, hint="KNEO_SERV_API_KEYS must have the keys of the service; name a person with --person.")
    render.emit({"url": link}, as_json=as_json, text=lambda: render.text(link))


def console_link(settings: Settings, store: Store, address: str, person: str | None = None) -> str | None:
    """Create a one-time sign-in link of the console at an address; ``None`` where no API key fits."""
    path = make_link(store, keyring(configured(settings)), person, operator=user_name())
    return f"{address.rstrip('/')}{path}" if path is not None else None


def run_service(settings: Settings, host: str, port: int, workers: int, announce: Callable[[str], None]) -> None:
    """Run the API server, and a worker unless ``workers`` is 0."""
    check_reachable(settings, host)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(Listener(host, port)))
        store = stack.enter_context(process_store(settings))
        alive: Callable[[], bool] = always
        if workers:
            alive = stack.enter_context(executing(settings, store, workers)).heartbeats.is_alive
        serve_http(settings, store, listener, announce=announce, executes=workers > 0, alive=alive)


def serve_with_reload(settings: Settings, host: str, port: int) -> None:
    """Run the API server with a worker, and restart it when a Python file below the project root changes."""
    folders = [str(settings.project_root)]
    app = "kneo.service.app:create_app"
    check_reachable(settings, host)
    # uvicorn's reloader binds by itself, and ends the process with a line of its log where it cannot.
    with contextlib.closing(Listener(host, port)) as listener:
        listener.listen()
        url, port = listener.url, listener.port
    render.success(f"Kneo is up at {url}; it restarts when code changes")
    uvicorn.run(
        app,
        factory=True,
        host=host,
        port=port,
        reload=True,
        reload_dirs=folders,
        log_level="warning",
        http="kneo.cli.serve.http_limits:DefaultProtocol",
        h11_max_incomplete_event_size=settings.http.header_bytes,
        proxy_headers=bool(settings.http.trusted_proxies),
        forwarded_allow_ips=list(settings.http.trusted_proxies),
    )


def always() -> bool:
    """Return true: the process has no part besides the API server that could stop."""
    return True


def serve_http(
    settings: Settings,
    store: Store,
    listener: Listener,
    *,
    announce: Callable[[str], None],
    executes: bool = True,
    alive: Callable[[], bool] = always,
) -> None:
    """Serve HTTP in this thread until a signal stops the process.

    Args:
        settings: The settings of this process.
        store: The database.
        listener: The socket.
        announce: Receives the URL.
        executes: Whether a worker is in this process; else the models of a run are checked by the worker that executes it.
        alive: Whether the other parts of the process still run.
    """
    server = make_server(settings, store, executes=executes, alive=alive)

    def stop(_number: int, _frame: object) -> None:
        server.should_exit = True

    # The readers of the announcement may send a signal at once. uvicorn replaces the first two handlers while it serves,
    # and raises the signal again afterwards, when worker and controller still have to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if settings.key_files:
        signal.signal(
            signal.SIGHUP, lambda *_: threading.Thread(target=reload_keys, args=(server.app,), daemon=True).start()
        )
    sockets = [listener.listen()]
    announce(listener.url)
    server.run(sockets=sockets)


def make_server(settings: Settings, store: Store, *, executes: bool, alive: Callable[[], bool]) -> Server:
    """Return the API server of a process; see ``serve_http``."""
    starter = make_starter(settings, store, executes=lambda: executes)
    app = create_app(settings, store, starter, tools=spec_compiler(settings).tools, alive=alive)
    return Server(app, settings.http)


class Server(uvicorn.Server):
    """A server that bounds requests, and ends waiting requests before it shuts down."""

    def __init__(
        self,
        app: App,
        http: HttpSettings | None = None,
        *,
        shutdown_seconds: int = 10,
        protocol: type[RequestTimer] = DefaultProtocol,
    ) -> None:
        http = http or HttpSettings()
        super().__init__(
            uvicorn.Config(
                app,
                http=timed_protocol(http, protocol),
                h11_max_incomplete_event_size=http.header_bytes,
                # Without these two uvicorn trusts every process of this machine.
                proxy_headers=bool(http.trusted_proxies),
                forwarded_allow_ips=list(http.trusted_proxies),
                log_config=None,
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=shutdown_seconds,
            )
        )
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain(self.app)
        await super().shutdown(sockets)
