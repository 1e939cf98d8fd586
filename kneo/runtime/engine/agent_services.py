"""The services of agents in a process that executes steps: models, the backends of tools, quotas over the database, so that they
hold for all workers together, and the rules that an environment states now, which runs that wait obey too.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial

from kneo.agents.function_tools import ToolRegistry
from kneo.agents.http import HttpClient
from kneo.agents.providers import OperatorConnections
from kneo.agents.quota import BudgetExceeded, ModelUnpriced, Period, PlannedRequest, check_budgets, minute_limits
from kneo.agents.services import AgentServices
from kneo.agents.tools import http, mcp
from kneo.agents.tools.kinds import BACKEND_KINDS, BackendContext, BackendKind
from kneo.agents.tools.middleware import MiddlewareTools, SecretFilter
from kneo.agents.tools.python import PythonTools
from kneo.agents.tools.script import ScriptTools
from kneo.agents.turn import PeopleRequired, Postponed, ToolBackend
from kneo.project import read_config
from kneo.records.run import AgentUsage
from kneo.runtime.engine.rules_in_force import RulesInForce
from kneo.runtime.steps.agents import OpenServices
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.code_store import package_paths
from kneo.runtime.steps.sandboxes import Sandboxes
from kneo.runtime.steps.tool_functions import ToolFunctions
from kneo.settings import Settings
from kneo.spec.policy import ModelRules
from kneo.store import runs, usage
from kneo.store.engine import Store, Tx


def open_services(
    settings: Settings,
    store: Store,
    code: CodeLoader,
    sandboxes: Sandboxes,
    registry: ToolRegistry | None = None,
) -> OpenServices:
    """Open the services of agents.

    Args:
        settings: This process's settings.
        store: The database, with the rules of environments.
        code: The modules that specs may name.
        sandboxes: The sandboxes of the process.
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
    functions = ToolFunctions(code, sandboxes)
    python, script = PythonTools(functions, registry), ScriptTools(functions, package_paths())
    closing = AsyncExitStack()
    context = BackendContext(
        settings=settings,
        secrets=settings.secret,
        rules=rules.tools,
        client=partial(HttpClient, max_bytes=settings.agents.fetch_bytes),
        on_close=closing.push_async_callback,
    )
    around = registry.middleware if registry is not None else {}
    services = AgentServices(
        models=models,
        tools=Backends(
            context,
            {"python": python, "script": script},
            lambda backend: MiddlewareTools(SecretFilter(backend), around),
        ),
        middleware=frozenset(around),
        turn_middleware=registry.turn_middleware if registry is not None else {},
        rules=rules.tools,
        registered=python.registered,
        limits=settings.agents,
        clock=store.clock,
    )

    async def close() -> None:
        await models.close()
        await closing.aclose()

    return OpenServices(services=services, close=close)


class StoreQuota:
    """The quota of all environments of a database.

    Args:
        store: The database.
        rules: Returns the rules for models that an environment has now.
    """

    def __init__(self, store: Store, rules: Callable[[str | None], Awaitable[ModelRules | None]]) -> None:
        self._store = store
        self._rules = rules

    async def admit(self, request: PlannedRequest) -> None:
        """Admit a request; see ``ModelQuota``."""
        rules = await self._rules(request.environment) or ModelRules()
        limits = minute_limits(rules, request.provider)
        if not rules.budgets and limits is None:
            return

        def work(tx: Tx) -> BaseException | None:
            try:
                check_budgets(request, rules, _used(tx, request, rules), tx.now.date())
            except (BudgetExceeded, ModelUnpriced, PeopleRequired) as refusal:
                return refusal
            if limits is None:
                return None
            wait = usage.admit_request(
                tx, request.environment, request.provider, requests=limits.requests, tokens=limits.tokens
            )
            return _postponed(request, wait) if wait is not None else None

        refusal = await asyncio.wrap_future(self._store.submit(work, durable=False))
        if refusal is not None:
            raise refusal


def _postponed(request: PlannedRequest, wait: timedelta) -> Postponed:
    of = f" of {request.environment}" if request.environment is not None else ""
    return Postponed(
        wait / timedelta(seconds=1), f"The limit{of} per minute of requests to {request.provider} is reached."
    )


def _used(tx: Tx, request: PlannedRequest, rules: ModelRules) -> dict[Period, AgentUsage]:
    """Read the usage of each period with a budget."""
    today = tx.now.date()
    used: dict[Period, AgentUsage] = {}
    for period in {budget.per for budget in rules.budgets}:
        if period == "run":
            run = runs.get(tx, request.run_id)
            used[period] = run.usage if run is not None else AgentUsage()
        else:
            first = today if period == "day" else today.replace(day=1)
            used[period] = usage.usage_since(tx, request.environment, usage.day_of(first))
    return used


OWN: Mapping[str, BackendKind] = {"http": http.KIND, "mcp": mcp.KIND}


class Backends(Mapping[str, ToolBackend]):
    """Backends that are opened before their first call.

    Args:
        context: What they are opened with.
        opened: Backends that are open.
        around: Returns a backend with what holds for all of them.
    """

    def __init__(
        self, context: BackendContext, opened: Mapping[str, ToolBackend], around: Callable[[ToolBackend], ToolBackend]
    ) -> None:
        self._context, self._around = context, around
        self._opened = {name: around(backend) for name, backend in opened.items()}

    def __getitem__(self, name: str) -> ToolBackend:
        """Return the backend of a kind.

        Raises:
            KeyError: no such kind is installed.
            ExtensionFailed: its extension cannot be loaded.
        """
        if name not in self._opened:
            kind = OWN[name] if name in OWN else BACKEND_KINDS.load(name)
            self._opened[name] = self._around(kind.open(self._context))
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened.keys() | OWN.keys() | {*BACKEND_KINDS.names()})

    def __len__(self) -> int:
        return sum(1 for _ in self)
