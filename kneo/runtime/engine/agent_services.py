"""The services of agents in a process that executes steps: models, the backends of tools, and the rules in force."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial

from kneo.agents.a2a import RemoteAgents
from kneo.agents.http import HttpClient
from kneo.agents.http_tools import HttpTools
from kneo.agents.mcp import McpTools
from kneo.agents.providers import OperatorConnections
from kneo.agents.services import AgentServices, BackendKind
from kneo.agents.turn import ToolBackend
from kneo.project import read_config
from kneo.runtime.engine.quota import StoreQuota
from kneo.runtime.engine.rules_in_force import RulesInForce
from kneo.runtime.steps.agents import OpenServices
from kneo.runtime.steps.child_process import ChildProcesses
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.middleware import MiddlewareTools
from kneo.runtime.steps.python_tools import PythonTools
from kneo.settings import Settings
from kneo.store.engine import Store
from kneo.tools import ToolRegistry


def open_services(
    settings: Settings, store: Store, code: CodeLoader, registry: ToolRegistry | None = None
) -> OpenServices:
    """Open the services of agents.

    Args:
        settings: This process's settings.
        store: The database, with the rules of environments.
        code: The modules that specs may name.
        registry: The tools and the middleware that the program registered.
    """
    rules = RulesInForce(settings, store)
    # The module of requests needs the library of agents, which a process without such agents does not have.
    requests = importlib.import_module("kneo.agents.requests")
    models = requests.ModelServices(
        operator=OperatorConnections.of(settings, read_config(settings)),
        settings=settings.models,
        rules=rules.models,
        quota=StoreQuota(store, rules.models),
        clients=requests.ModelClients(settings.models.reply_bytes),
    )
    children = ChildProcesses(code)
    python = PythonTools(code, children, registry)
    mcp = McpTools(rules.tools, settings.secret, settings.mcp)
    client, seconds = partial(HttpClient, max_bytes=settings.agents.fetch_bytes), settings.agents.tool_seconds
    http = HttpTools(settings.secret, rules.tools, seconds=seconds, client=client)
    a2a = RemoteAgents(settings.secret, rules.tools, seconds=seconds, client=client)
    backends: Mapping[BackendKind, ToolBackend] = {"python": python, "http": http, "mcp": mcp, "a2a": a2a}
    around = registry.middleware if registry is not None else {}
    services = AgentServices(
        models=models,
        tools={kind: MiddlewareTools(backend, around) for kind, backend in backends.items()},
        middleware=frozenset(around),
        turn_middleware=registry.turn_middleware if registry is not None else {},
        rules=rules.tools,
        registered=python.registered,
        limits=settings.agents,
        clock=store.clock,
    )

    async def close() -> None:
        await models.close()
        await mcp.close()
        await children.close()

    return OpenServices(services=services, close=close)
