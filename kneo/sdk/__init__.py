"""Doors for programs: workflows written in Python, run by the same engine on the same rows as every spec."""

from kneo.sdk.messages import (
    HumanInterventionRequest,
    HumanInterventionRequiredError,
    Message,
    RunConfig,
    RunResult,
)

__all__ = [
    "HumanInterventionRequest",
    "HumanInterventionRequiredError",
    "Message",
    "RunConfig",
    "RunResult",
]
