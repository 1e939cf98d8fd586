"""Where a run went, as programs that embed Kneo are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kneo.runtime.engine.wait import SettledRun


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run that waits for people or has ended. ``error`` has ``type`` and ``message``."""

    run_id: str
    status: str
    output_text: str | None
    human_intervention_required: bool
    continuation_id: str | None
    error: Mapping[str, str] | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)


def result_of(settled: SettledRun) -> RunResult:
    """Say where a run is, with the first question that waits for an answer."""
    run, task = settled.run, settled.task
    asked = {"pending_human_request": {"request_id": task.request_id, "prompt": task.prompt}} if task else {}
    return RunResult(
        run_id=run.id,
        status=run.status.value,
        output_text=run.output_text,
        human_intervention_required=task is not None,
        continuation_id=task.id if task else None,
        error={"type": run.error.type, "message": run.error.message} if run.error else None,
        metadata={**run.metadata, **asked},
    )
