"""Where a question stands in its workflow."""

from __future__ import annotations

from kneo.state.task import HumanTask


def step_path(task: HumanTask) -> str:
    """Return the path of the step that asks."""
    return str(getattr(task, "step_path", None) or task.metadata.get("step_path") or task.step_id)


def position(task: HumanTask) -> str:
    """Return where around the step it asks: ``step``, ``before``, ``after``, ``each``, ``route`` or ``error``."""
    return str(getattr(task, "position", None) or task.metadata.get("position") or "step")
