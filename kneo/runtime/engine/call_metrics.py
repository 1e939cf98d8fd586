"""Prometheus metrics of calls, counted by the process that ends them; and the outcome of a call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, TypeAlias

from prometheus_client import Counter, Histogram

from kneo.clock import parse_time
from kneo.records.run import Run, RunStatus
from kneo.runtime.interpreter.gate import REJECTED

CallOutcome: TypeAlias = Literal["success", "failed", "denied"]

MINUTE, HOUR, DAY = 60, 3_600, 86_400

CALLS = Counter(
    "kneo_calls", "Calls of other programs that have ended, by outcome.", ["environment", "bundle", "tool", "outcome"]
)
SECONDS = Histogram(
    "kneo_call_seconds",
    "Time from a call to its end, with the time that people took.",
    ["environment", "bundle"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 5, 15, MINUTE, 10 * MINUTE, HOUR, DAY),
)


def outcome_of(run: Run) -> CallOutcome | None:
    """Return the outcome of a call; ``None`` for one that has not ended."""
    if not run.status.is_final:
        return None
    if run.status is RunStatus.SUCCEEDED:
        outcome: CallOutcome = output_of(run)["outcome"]  # type: ignore[assignment]
        return outcome
    return "denied" if run.error is not None and run.error.type == REJECTED else "failed"


def output_of(run: Run) -> Mapping[str, object]:
    """Return the output of the run of a call: its outcome and result; nothing where it has none."""
    output: Mapping[str, object] = json.loads(run.output_text) if run.output_text is not None else {}
    return output


def count_call(run: Run) -> None:
    """Count a call that has ended."""
    outcome, release = outcome_of(run), run.release
    if outcome is None or release is None or run.completed_at is None:
        return
    seconds = (parse_time(run.completed_at) - parse_time(run.created_at)).total_seconds()
    CALLS.labels(release.environment, release.bundle, str(run.metadata.get("tool")), outcome).inc()
    SECONDS.labels(release.environment, release.bundle).observe(seconds)
