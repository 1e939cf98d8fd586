"""Workflows written in Python, executed by the engine that executes every spec."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kneo.embed.runs import run_sync
    from kneo.sdk.messages import (
        HumanInterventionRequest,
        HumanInterventionRequiredError,
        Message,
        RunConfig,
        RunResult,
        StreamChunk,
    )
    from kneo.sdk.middleware import AgentRunContext, BaseAgentMiddleware
    from kneo.sdk.participants import AgentStep, FunctionStep, HumanInTheLoopStep
    from kneo.sdk.workflows import (
        ConcurrentWorkflow,
        GroupChatWorkflow,
        HandoffWorkflow,
        SequentialWorkflow,
        Workflow,
        WorkflowAgent,
        WorkflowBuilder,
        WorkflowEdge,
        WorkflowFailed,
    )

__all__ = [
    "AgentRunContext",
    "AgentStep",
    "BaseAgentMiddleware",
    "ConcurrentWorkflow",
    "FunctionStep",
    "GroupChatWorkflow",
    "HandoffWorkflow",
    "HumanInTheLoopStep",
    "HumanInterventionRequest",
    "HumanInterventionRequiredError",
    "Message",
    "RunConfig",
    "RunResult",
    "SequentialWorkflow",
    "StreamChunk",
    "Workflow",
    "WorkflowAgent",
    "WorkflowBuilder",
    "WorkflowEdge",
    "WorkflowFailed",
    "run_sync",
]

_MODULES = (
    "kneo.sdk.messages",
    "kneo.sdk.middleware",
    "kneo.sdk.participants",
    "kneo.sdk.workflows",
    "kneo.embed.runs",
)


def __getattr__(name: str) -> object:
    # On demand: a module of tools, which the process of each call imports, must not import the engine.
    if not name.startswith("__"):
        for module in _MODULES:
            found = vars(import_module(module))
            globals().update({each: found[each] for each in __all__ if each in found and each not in globals()})
        if name in globals():
            return globals()[name]
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
