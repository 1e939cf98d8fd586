"""``kneo mcp serve``: released agents as tools of an MCP client on this machine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated
from urllib.parse import quote

import typer

from kneo.api.agents import list_agents
from kneo.api.calls import list_call_tools, read_served
from kneo.api.operation import Principal
from kneo.cli.commands import examples
from kneo.cli.compose import executes_runs, make_starter, process_store
from kneo.cli.connection import ProfileOption, ServiceUrlOption, backend, choose
from kneo.cli.project import registered_tools, spec_compiler
from kneo.cli.serve.worker import logged_settings
from kneo.extension_points import import_with_extra
from kneo.maintenance import make_retention
from kneo.roles import EVERYTHING
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
    "kneo mcp serve --env prod --bundle payments --service-url https://kneo.example.com",
)
def serve(
    environment: Annotated[str, typer.Option("--env", help="The environment whose agents are tools.")],
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="Serve the tools of this bundle, instead of agents as tools.")
    ] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Serve the agents of an environment, or the tools of one bundle, as MCP tools over stdio.

    With --service-url or --profile the messages go to that service, with the rights of the API key. Otherwise works on the local
    database as the owner of this process, and executes runs unless another process does.
    """
    if service_url is not None or profile is not None:
        _relay(environment, bundle, service_url, profile)
    else:
        _serve(environment, bundle)


def _relay(environment: str, bundle: str | None, service_url: str | None, profile: str | None) -> None:
    """Relay messages to a service, which has to serve the environment to the key."""
    relay = import_with_extra("kneo.extensions.protocols.mcp.stdio", "mcp", "This protocol")
    address = choose(logged_settings(), service_url, profile)
    assert address is not None
    with backend(service_url, profile) as opened:
        if bundle is None:
            opened.call(list_agents, environment, "mcp")
        else:
            opened.call(list_call_tools, environment, bundle)
    path = "/".join(quote(each, safe="") for each in (environment, bundle) if each is not None)
    url = f"{address.url.rstrip('/')}/v1/mcp/{path}"
    asyncio.run(relay.relay_stdio(url, address.key))


def _serve(environment: str, bundle: str | None) -> None:
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
        address = _address(settings)
        if bundle is None:
            list_agents(service.context(owner), environment, "mcp")
            tools_of = server.AgentTools(service, owner, environment, address)
        else:
            gateway = import_with_extra("kneo.extensions.protocols.mcp.gateway", "mcp", "This protocol")
            served = read_served(service.context(owner), environment, bundle)
            seconds = settings.http.call_wait_seconds
            tools_of = gateway.BundleTools(service, owner, served, environment, address, seconds)
        asyncio.run(stdio.serve_stdio(tools_of))


def _address(settings: Settings) -> str:
    """Return the address for links: the public one, else that of a service on this machine."""
    return settings.public_url.rstrip("/") or "http://127.0.0.1:8000"
