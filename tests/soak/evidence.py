"""What a soak leaves behind: requests that were acknowledged, rows, effects, faults, and memory of processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StartedRun:
    """A request for a run, sent again with its idempotency key until a service responded.

    Attributes:
        input: Text that no other request has.
        run_ids: Run of each response; empty where the client gave up.
    """

    input: str
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class SentDecision:
    """A decision that one person sent, with an idempotency key, until a service responded.

    Attributes:
        status: HTTP status of the last response, or 0 where the client gave up.
    """

    task_id: str
    person: str
    decision: str
    status: int


@dataclass(frozen=True)
class RunRow:
    """A run of the database."""

    id: str
    input: str
    status: str
    error: str | None = None


@dataclass(frozen=True)
class TaskRow:
    """A task of the database, with the number of its decisions in the audit log and of its receipts."""

    id: str
    run_id: str
    is_open: bool
    decision: str | None
    person: str | None
    events: int
    receipts: int


@dataclass(frozen=True)
class StepRow:
    """A committed step with an effect."""

    run_id: str
    step: str
    key: str


@dataclass(frozen=True)
class Effect:
    """An execution of an effect, from the effects' own log."""

    run_id: str
    step: str
    key: str
    at: float
    pid: int


@dataclass(frozen=True)
class Fault:
    """A fault and its time; ``interrupts`` where steps in progress may be executed again."""

    name: str
    begun: float
    ended: float
    interrupts: bool


@dataclass(frozen=True)
class Promotion:
    """Releases of one bundle to one environment by promotion."""

    environment: str
    version: str
    times: int


@dataclass(frozen=True)
class Sample:
    """Memory and open descriptors of a process."""

    process: str
    at: float
    bytes: int
    descriptors: int


@dataclass(frozen=True)
class Evidence:
    """Everything that a soak left behind.

    Attributes:
        released: The last version that was declared for each environment.
        served: The versions that each environment serves.
        jobs: Jobs in the queue when every run had ended or waited.
        poisoned_deaths: Workers that were killed by runs.
        waits: Seconds from the start of each run to its question.
        warm_up: Seconds in which a process of this machine becomes what it stays.
        ended_alone: Processes that ended without being stopped.
        failures: Requests that failed while no fault was on.
        audit_problem: Result of the verification of the audit log, where it is not valid.
    """

    started: Sequence[StartedRun] = ()
    sent: Sequence[SentDecision] = ()
    runs: Sequence[RunRow] = ()
    tasks: Sequence[TaskRow] = ()
    steps: Sequence[StepRow] = ()
    effects: Sequence[Effect] = ()
    faults: Sequence[Fault] = ()
    promotions: Sequence[Promotion] = ()
    released: Mapping[str, str] = field(default_factory=dict)
    served: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    poisoned_deaths: int = 0
    waits: Sequence[float] = ()
    samples: Sequence[Sample] = ()
    warm_up: float = 30.0
    ended_alone: Sequence[str] = ()
    failures: Sequence[str] = ()
    audit_problem: str | None = None

    def save(self, path: Path) -> None:
        """Write the evidence as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))


def read_effects(log: Path) -> tuple[Effect, ...]:
    """Return the executions in the effects' own log."""
    return tuple(Effect(**json.loads(line)) for line in log.read_text().splitlines()) if log.exists() else ()
