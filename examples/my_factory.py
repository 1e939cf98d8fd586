"""A platform with a tool of your own.

Programs call ``build_platform()``. ``KNEO_SERV_PLATFORM=examples.my_factory:build_platform`` makes every ``kneo``
command, service and worker call it too.
"""

from __future__ import annotations

from examples.my_tools import lookup_user
from kneo.platform import PlatformManager
from kneo.service.factory import create_persistence_stores, create_runtime_registry, create_tool_registry
from kneo.spec import SpecCompiler
from kneo.tools import ToolDefinition

LOOKUP_USER = ToolDefinition(
    name="lookup_user",
    description="Find the address of a person by their id.",
    parameters={"type": "object", "properties": {"user_id": {"type": "string"}}, "required": ["user_id"]},
)


def build_platform() -> PlatformManager:
    """Register the tool beside the example ones, and start executing."""
    tools = create_tool_registry(include_examples=True)
    tools.register(LOOKUP_USER, lookup_user)
    compiler = SpecCompiler(runtime_registry=create_runtime_registry(), tool_registry=tools)
    runs, tasks = create_persistence_stores()
    manager = PlatformManager(compiler=compiler, run_state_store=runs, continuation_store=tasks)
    manager.start_worker()
    return manager
