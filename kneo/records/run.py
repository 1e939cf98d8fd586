"""A run: one execution of one frozen spec.

``status`` is the only field that other rooms branch on. Whether a worker holds a running run is its ``owner``, a matter
of dispatch, not a status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kneo.records.usage import AgentUsage

STATE_VERSION = 6
"""Version of the interpreter's state format; a loader migrates older ones, so a deploy never strands a run."""


IMPORTED = "imported"
"""The key in the metadata of runs and tasks that were imported from another platform; such a run is history and never continues."""

IMPORTER = "import"
"""The requester of imported runs, and the author of imported decisions: no person of this installation."""


class RunStatus(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    TIMED_OUT = "timed_out"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended; a failed one has, and may be continued."""
        return self not in {RunStatus.RUNNING, RunStatus.PAUSED}


def ending(status: RunStatus) -> str:
    """Return the type of the last trace event of a run that ended with a status.

    A run that a person rejected is cancelled; a run that expired or timed out has failed.
    """
    match status:
        case RunStatus.SUCCEEDED:
            return "workflow_completed"
        case RunStatus.CANCELLED:
            return "workflow_cancelled"
        case _:
            return "workflow_failed"


@dataclass(frozen=True, kw_only=True)
class ReleaseRef:
    """The release that a run executes, copied into the run so that later promotions do not change it."""

    bundle: str
    version: str
    digest: str
    environment: str
    revision: str
    promotion_id: str


@dataclass(frozen=True, kw_only=True)
class RunError:
    type: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of ``runs``. Times are ISO-8601 texts."""

    id: str
    status: RunStatus
    target: str
    spec_digest: str
    """Digest of the frozen spec's canonical JSON."""
    release: ReleaseRef | None
    environment: str | None
    agent_name: str
    workflow_name: str | None
    workflow_type: str | None
    input_text: str
    output_text: str | None
    error: RunError | None
    state: Mapping[str, object]
    """The interpreter's position; see ``kneo.runtime.interpreter.program``."""
    state_version: int
    visited_steps: tuple[str, ...]
    requester: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    epoch: int = 0
    """The fence: raised when a driver claims the run and when it is cancelled; a commit with an older epoch is refused."""
    owner: str | None = None
    signal_seq: int = 0
    """The number of signals to the run; a driver that read an older number reads the run again before it pauses."""
    created_at: str = ""
    updated_at: str = ""
    started_at: str | None = None
    completed_at: str | None = None
    deadline_at: str | None = None
    step_count: int = 0
    checkpoint_count: int = 0
    trace_count: int = 0
    usage: AgentUsage = field(default_factory=AgentUsage)
    """The sum over the journals of the run's agents."""

    @property
    def is_imported(self) -> bool:
        """Whether another platform executed the run."""
        return IMPORTED in self.metadata


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One finished step of a run, with its input and output."""

    run_id: str
    sequence: int
    step_id: str
    kind: str
    attempt: int
    status: str
    idempotency_key: str
    input_text: str
    output_text: str | None
    error: RunError | None
    code_digest: str | None
    """SHA-256 of the module that ran, for function steps: the code is not in the bundle."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Facts of an agent's turn: its name, provider and model. Never content."""
    started_at: str
    completed_at: str

    @property
    def location(self) -> str:
        """The location of the step in its run, which the rounds of a loop and the attempts at a step share or not."""
        return self.idempotency_key.partition(":")[2].rpartition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run at one point."""

    id: str
    run_id: str
    sequence: int
    type: str
    step_id: str | None
    state: Mapping[str, object]
    metadata: Mapping[str, object]
    created_at: str


@dataclass(frozen=True, kw_only=True)
class TraceEvent:
    """One entry of a run's trace. ``data`` carries the type's own fields."""

    event_id: str
    run_id: str
    sequence: int
    type: str
    step_id: str | None
    timestamp: str
    data: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class NewTrace:
    """A trace event to be written. ``data`` never has content."""

    type: str
    step_id: str | None = None
    data: Mapping[str, object] = field(default_factory=dict)
