"""Answers of a program to human tasks: their form, and the checks that they pass."""

from __future__ import annotations

from kneo.tasks.decisions import DecisionRequest, check_decision, decision_from_value, find_pending
from kneo.tasks.forms import TYPES, filled, problems
from kneo.tasks.reuse import REPLAY

__all__ = [
    "REPLAY",
    "TYPES",
    "DecisionRequest",
    "check_decision",
    "decision_from_value",
    "filled",
    "find_pending",
    "problems",
]
