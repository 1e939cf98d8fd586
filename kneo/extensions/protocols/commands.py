"""``kneo mcp serve``: released agents as tools of an MCP client on this machine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated
from urllib.parse import quote

import typer

from kneo.api.agents import list_agents
from kneo.api.operation import EVERYTHING, Principal
from kneo.cli.commands import examples
from kneo.cli.compose import executes_runs, make_starter, process_store
from kneo.cli.connection import ProfileOption, ServiceUrlOption, backend, choose
from kneo.cli.project import registered_tools, spec_compiler
from kneo.cli.serve.worker import logged_settings
from kneo.extension_points import import_with_extra
from kneo.maintenance import make_retention
from kneo.runtime.engine.assemble import working
from kneo.runtime.engine.worker import Worker
from kneo.service.app import make_service
from kneo.service.auth import Keyring
from kneo.service.callers import Callers
from kneo.settings import Settings, user_name

app = typer.Typer(no_args_is_help=True)


@app.callback()
def mcp() -> None:
    """Serve released agents as MCP tools over stdio."""


@app.command("serve")
@examples(
    "kneo mcp serve --env prod",
    "kneo mcp serve --env prod --service-url https://kneo.example.com",
)
def serve(
    environment: Annotated[str, typer.Option("--env", help="The environment whose agents are tools.")],
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Serve the agents of an environment as MCP tools over stdio.

    With --service-url or --profile the messages go to that service, with the rights of the API key. Otherwise works on the local
    database as the owner of this process, and executes runs unless another process does.
    """
    if service_url is not None or profile is not None:
        _relay(environment, service_url, profile)
    else:
        _serve(environment)


def _relay(environment: str, service_url: str | None, profile: str | None) -> None:
    """Relay messages to a service, which has to serve the environment to the key."""
    relay = import_with_extra("kneo.extensions.protocols.mcp.stdio", "mcp", "This protocol")
    address = choose(logged_settings(), service_url, profile)
    assert address is not None
    with backend(service_url, profile) as opened:
        opened.call(list_agents, environment, "mcp")
    url = f"{address.url.rstrip('/')}/v1/mcp/{quote(environment, safe='')}"
    asyncio.run(relay.relay_stdio(url, address.key))


def _serve(environment: str) -> None:
    server = import_with_extra("kneo.extensions.protocols.mcp.server", "mcp", "This protocol")
    stdio = import_with_extra("kneo.extensions.protocols.mcp.stdio", "mcp", "This protocol")
    settings = logged_settings()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(process_store(settings))
        executes = executes_runs(store)
        if executes:
            retention = make_retention(settings, store)
            tools = registered_tools(settings)
            stack.enter_context(working(settings, store, Worker.DEFAULT_CONCURRENCY, retention, tools))
        starter = make_starter(settings, store, executes=lambda: executes)
        callers = Callers(Keyring({}, required=False))
        service = make_service(settings, store, starter, callers, spec_compiler(settings).tools)
        stack.callback(service.changes.stop)
        owner = Principal(user_name(), frozenset({EVERYTHING}))
        list_agents(service.context(owner), environment, "mcp")
        tools_of = server.AgentTools(service, owner, environment, _address(settings))
        asyncio.run(stdio.serve_stdio(tools_of))


def _address(settings: Settings) -> str:
    """Return the address for links: the public one, else that of a service on this machine."""
    return settings.public_url.rstrip("/") or "http://127.0.0.1:8000"
