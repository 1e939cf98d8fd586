"""Workflows written in Python, executed by the engine that executes every spec."""

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
