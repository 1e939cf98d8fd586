"""The rules of environments, as the files in force have them."""

from __future__ import annotations

from kneo import registry
from kneo.agents.services import operator_rules
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

    Each read is a query of its own: an environment that is tightened by another process holds for the next call. The event loop,
    which serves all runs of the process, waits for no database.

    Args:
        settings: This process's settings.
        store: The database.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._pin, self._store = settings.trust_root, store
        self._operator = operator_rules(settings)

    def read_tools(self, environment: str | None) -> ToolRules:
        """Read the rules for tools of an environment, in a thread that may wait."""
        return self._tools_of(*self._read(environment))

    async def tools(self, environment: str | None) -> ToolRules:
        """Return the rules for tools of an environment."""
        return self._tools_of(*await self._declared(environment))

    def _tools_of(self, declared: EnvironmentSpec | None, is_closed: bool) -> ToolRules:
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
        return await in_thread(lambda: self._read(environment)) if environment is not None else (None, False)

    def _read(self, environment: str | None) -> tuple[EnvironmentSpec | None, bool]:
        """Return an environment, and whether nothing is allowed without one: its file is gone, and others decide here."""
        if environment is None:
            return None, False
        with self._store.look() as tx:
            found = registry.find_declared(tx, environment)
            return (found.spec, False) if found is not None else (None, registry.is_followed(tx, self._pin))
