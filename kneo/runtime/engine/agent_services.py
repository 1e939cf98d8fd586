"""The services of agents in a process that executes steps: models, the backends of tools, quotas over the database, so that they
hold for all workers together, and the rules that an environment states now, which runs that wait obey too.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial

from kneo import registry
from kneo.agents.function_tools import ToolRegistry
from kneo.agents.http import HttpClient
from kneo.agents.providers import OperatorConnections
from kneo.agents.quota import BudgetExceeded, ModelUnpriced, Period, PlannedRequest, check_budgets, minute_limits
from kneo.agents.secret_filter import SecretFilter
from kneo.agents.services import AgentServices, operator_rules
from kneo.agents.tools.backends import Backends
from kneo.agents.tools.kinds import BackendContext
from kneo.agents.tools.middleware import MiddlewareTools
from kneo.agents.tools.python.backend import PythonTools
from kneo.agents.turn import PeopleRequired, Postponed
from kneo.errors import NotFound
from kneo.project import read_config
from kneo.records.run import AgentUsage
from kneo.runtime.steps.agents import OpenServices
from kneo.runtime.steps.child_process import ChildProcesses
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.code_store import CodeStore
from kneo.runtime.steps.threads import in_thread
from kneo.runtime.steps.tool_functions import ToolFunctions
from kneo.settings import Settings
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.policy import ModelRules, ToolRules
from kneo.store import runs, usage
from kneo.store.engine import Store, Tx


def open_services(
    settings: Settings,
    store: Store,
    code: CodeLoader,
    registry: ToolRegistry | None = None,
    code_store: CodeStore | None = None,
) -> OpenServices:
    """Open the services of agents.

    Args:
        settings: This process's settings.
        store: The database, with the rules of environments.
        code: The modules that specs may name.
        registry: The tools and the middleware that the program registered.
        code_store: The code of bundles.
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
    children = ChildProcesses(code, code_store)
    python = PythonTools(ToolFunctions(code, children), registry)
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
        tools=Backends(context, {"python": python}, lambda backend: MiddlewareTools(SecretFilter(backend), around)),
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
        await children.close()

    return OpenServices(services=services, close=close)


class RulesInForce:
    """Reads rules from the environment files in force. Where none is declared, the operator's settings apply.

    Each read is a query of its own, in a thread: an environment that is tightened by another process holds for the next call,
    and the event loop, which serves all runs of the process, waits for no database.

    Args:
        settings: This process's settings.
        store: The database.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._pin, self._store = settings.trust_root, store
        self._operator = operator_rules(settings)

    async def tools(self, environment: str | None) -> ToolRules:
        """Return the rules for tools of an environment."""
        declared, is_closed = await self._declared(environment)
        if declared is not None:
            return declared.tools
        return ToolRules(allow=()) if is_closed else self._operator

    async def models(self, environment: str | None) -> ModelRules | None:
        """Return the rules for models of an environment; ``None`` where no environment is declared."""
        declared, is_closed = await self._declared(environment)
        if declared is not None:
            return declared.models
        return ModelRules(allow=()) if is_closed else None

    async def _declared(self, environment: str | None) -> tuple[EnvironmentSpec | None, bool]:
        """Return an environment, and whether nothing is allowed without one: its file is gone, and others decide here."""
        if environment is None:
            return None, False
        return await in_thread(lambda: self._read(environment))

    def _read(self, environment: str) -> tuple[EnvironmentSpec | None, bool]:
        with self._store.read() as tx:
            try:
                return registry.declared(tx, environment).spec, False
            except NotFound:
                return None, registry.is_followed(tx, self._pin)


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
