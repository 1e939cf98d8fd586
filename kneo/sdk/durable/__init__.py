"""Flows: functions that may wait for people, record their checkpoints, and continue in another process."""

from kneo.sdk.durable.flows import Checkpoint, Client, Execution, Executions, Flow, FlowHandle, Wait, flow
from kneo.sdk.waits import ask_question, checkpoint, hitl_tool, wait, wait_for_input

__all__ = [
    "Checkpoint",
    "Client",
    "Execution",
    "Executions",
    "Flow",
    "FlowHandle",
    "Wait",
    "ask_question",
    "checkpoint",
    "flow",
    "hitl_tool",
    "wait",
    "wait_for_input",
]
