"""Workflows of steps, conditions, loops and routers, with reviews by people around any of them."""

from kneo.sdk.people import OnTimeout
from kneo.sdk.workflow.containers import Condition, Loop, Parallel, Router, Steps
from kneo.sdk.workflow.requirements import (
    ErrorRequirement,
    RunStatus,
    StepRequirement,
    ToolRequirement,
    WorkflowRunOutput,
)
from kneo.sdk.workflow.step import Step
from kneo.sdk.workflow.types import HumanReview, OnError, OnReject, StepInput, StepOutput, UserInputField
from kneo.sdk.workflow.workflow import Workflow

__all__ = [
    "Condition",
    "ErrorRequirement",
    "HumanReview",
    "Loop",
    "OnError",
    "OnReject",
    "OnTimeout",
    "Parallel",
    "Router",
    "RunStatus",
    "Step",
    "StepInput",
    "StepOutput",
    "StepRequirement",
    "Steps",
    "ToolRequirement",
    "UserInputField",
    "Workflow",
    "WorkflowRunOutput",
]
