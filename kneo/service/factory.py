"""Parts of a platform under the names that existing programs use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

from kneo.agents.function_tools import ToolDefinition, ToolRegistry
from kneo.embed.database import Database
from kneo.embed.platform import PlatformManager
from kneo.settings import from_env
from kneo.spec.compiler import SpecCompiler
from kneo.store.service_key import find_service_key
from kneo.trust.sealing import DataKeys

EXAMPLES = {"web_search": "query", "webpage_reader": "url"}
"""The example tools, with the argument of each."""


def create_runtime_registry() -> Mapping[str, object]:
    """Return an empty map: the provider of a spec decides what runs an agent. Programs pass it on."""
    return {}


def create_tool_registry(*, include_examples: bool = False) -> ToolRegistry:
    """Create a tool registry.

    Args:
        include_examples: Whether to add the tools of ``examples.app_functions``, where it can be imported.
    """
    registry = ToolRegistry()
    if include_examples:
        with suppress(ModuleNotFoundError):
            module = import_module("examples.app_functions")
            for name, argument in EXAMPLES.items():
                tool = getattr(module, name)
                schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
                registry.register(ToolDefinition(name=name, description=tool.__doc__ or "", parameters=schema), tool)
    return registry


def create_persistence_stores(state_path: str | Path | None = None) -> tuple[Database, Database]:
    """Return the database twice: runs and human tasks share one. It is opened at its first use.

    Args:
        state_path: A SQLite file; omitted: the database of the settings and the project.
    """
    settings = from_env()
    if state_path is not None:
        settings = settings.on(f"sqlite:///{Path(state_path).resolve()}")
    database = Database(
        settings.database_url,
        partial(find_service_key, settings),
        data_keys=DataKeys.read(settings.data_keys),
        migrates=settings.migrate == "auto",
        checks_macs=settings.record_macs == "check",
    )
    return database, database


def create_default_platform_manager(state_path: str | Path | None = None) -> PlatformManager:
    """Create a platform from the settings of this process, without tools of its own."""
    compiler = SpecCompiler(create_runtime_registry(), create_tool_registry())
    return PlatformManager(compiler, *create_persistence_stores(state_path))
