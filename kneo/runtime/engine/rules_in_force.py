"""The rules of environments, as the files in force have them."""

from __future__ import annotations

from kneo import registry
from kneo.agents.services import operator_rules
from kneo.errors import NotFound
from kneo.runtime.steps.threads import in_thread
from kneo.settings import Settings
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.policy import ModelRules, SandboxLimits, SandboxRules, ToolRules
from kneo.store.engine import Store

NO_TOOLS = ToolRules(
    allow=(),
    sandbox=SandboxRules(required="kernel", limits=SandboxLimits(net=(), read=(), write=(), secrets=())),
)
"""The rules of an environment whose file is gone: no tool, and functions without any rights."""


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
        return NO_TOOLS if is_closed else self._operator

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
