"""A run: one execution of one frozen spec; its steps, checkpoints, use of models, and the transitions of runs and their tasks.

``status`` is the only field that other rooms branch on. Whether a worker holds a running run is its ``owner``, a matter
of dispatch, not a status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Self, TypeVar

from kneo.errors import Conflict
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.task import TaskStatus

STATE_VERSION = 6
"""Version of the interpreter's state format; a loader migrates older ones, so a deploy never strands a run."""


IMPORTED = "imported"
"""The key in the metadata of runs and tasks that were imported from another platform; such a run is history and never continues."""

IMPORTER = "import"
"""The requester of imported runs, and the author of imported decisions: no person of this installation."""

MAX_COUNT = 10**12
"""The highest count of one request. A provider that reports more is recorded with this, so that sums stay in their columns."""

USAGE_NAME_CHARS = 200
"""Characters of a provider's, a model's and an agent's name in usage."""

MOST_MINUTES = 10
"""The longest time after which a request that a limit per minute refused comes again."""

FINISHED_ENTRIES = frozenset({EntryStatus.DONE, EntryStatus.FAILED})


class Suspicion(IntEnum):
    """How far a run is suspected of ending its workers. The next result of a step of the run ends the suspicion."""

    NONE = 0
    ONE = 1
    """A driver of the run died, which may have many causes."""
    SUSPECT = 2
    """Another one died: the worker executes the next step of the run while it executes nothing else."""
    ALONE = 3
    """That step has begun."""
    CONFIRMED = 4
    """The driver died meanwhile; the run ends."""


def dollars(micros: int) -> str:
    """Format an amount of millionths of a US dollar: with four decimals, six below $0.0001, and two from $10 on."""
    decimals = 2 if micros >= 10_000_000 else 4 if micros >= 100 or not micros else 6
    return f"${micros / 1_000_000:,.{decimals}f}"


@dataclass(frozen=True, kw_only=True)
class AgentUsage:
    """A sum over requests and calls.

    Attributes:
        requests: Requests that a model answered.
        tool_calls: Tool calls that were made, with and without success; refused ones are not.
        input_tokens: Tokens that the models read.
        output_tokens: Tokens that the models wrote.
        cost_micros: The cost of the requests whose model has a price, in millionths of a US dollar.
        unpriced_requests: Requests whose model has no known price.
    """

    requests: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0
    unpriced_requests: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def known_cost(self) -> int | None:
        """The cost; ``None`` where no request has a price."""
        return None if self.unpriced_requests and self.unpriced_requests == self.requests else self.cost_micros

    def __add__(self, other: AgentUsage) -> AgentUsage:
        return AgentUsage(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @classmethod
    def of(cls, entry: ConversationEntry) -> Self:
        """Return the usage of one journal entry, which is nothing until the entry is finished."""
        if entry.status not in FINISHED_ENTRIES:
            return cls()
        if "input_tokens" in entry.facts:
            cost = entry.facts.get("cost_micros")
            return cls(
                requests=1,
                input_tokens=_count(entry.facts["input_tokens"]),
                output_tokens=_count(entry.facts.get("output_tokens")),
                cost_micros=_count(cost),
                unpriced_requests=int(cost is None),
            )
        return cls(tool_calls=int(entry.kind is EntryKind.TOOL))

    @classmethod
    def of_counts(cls, counts: Mapping[str, object]) -> Self:
        """Return the usage with these counts; a missing one is 0."""
        return cls(**{field.name: int(str(counts.get(field.name, 0))) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True, order=True)
class UsageKey:
    """The agent, provider and model that a request is counted for."""

    provider: str
    model: str
    agent: str

    @classmethod
    def of(cls, entry: ConversationEntry) -> Self:
        names = (str(entry.facts.get(name) or "unknown") for name in ("provider", "model", "agent"))
        # Another server's words: a NUL cannot be stored, and a long name has to fit its column.
        provider, model, agent = (name.replace("\0", "")[:USAGE_NAME_CHARS] for name in names)
        return cls(provider=provider, model=model, agent=agent)


def _count(value: object) -> int:
    return min(max(value, 0), MAX_COUNT) if isinstance(value, int) else 0


@dataclass(frozen=True, kw_only=True)
class RateWindow:
    """The requests to a provider in one minute, counted over all workers.

    Attributes:
        minute: The number of the minute since 1970.
        requests: Admitted requests.
        tokens: Tokens of the replies that arrived.
        refused: Refused requests, each of which is to come again later than those before it.
    """

    minute: int
    requests: int = 0
    tokens: int = 0
    refused: int = 0

    def at(self, minute: int) -> RateWindow:
        """Return the window of a minute: this one, or a new one.

        A clock that is a minute ahead does not close the window of the others; one that is wrong by more is not believed.
        """
        return self if self.minute in {minute, minute + 1} else RateWindow(minute=minute)

    def admits(self, *, requests: int | None, tokens: int | None) -> bool:
        """Return whether another request stays within limits; ``None`` is no limit."""
        return (requests is None or self.requests < requests) and (tokens is None or self.tokens < tokens)

    def wait_minutes(self) -> int:
        """Return in how many minutes the request that was refused last is to come again, at the rate of this window."""
        return min(1 + (self.refused - 1) // max(self.requests, 1), MOST_MINUTES)


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
    suspicion: Suspicion = Suspicion.NONE
    mac: bytes | None = field(default=None, repr=False, compare=False)
    """The message authentication code of the row; see ``kneo.store.runs.check``."""

    @property
    def workflow_kind(self) -> str:
        """The family of the workflow; ``agent`` where the root agent runs alone, ``workflow`` without a family."""
        return self.workflow_type or self.target

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


Status = TypeVar("Status", RunStatus, TaskStatus)

_ENDINGS = frozenset({RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.EXPIRED, RunStatus.TIMED_OUT})

RUN_TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.RUNNING: _ENDINGS | {RunStatus.PAUSED, RunStatus.SUCCEEDED},
    RunStatus.PAUSED: _ENDINGS | {RunStatus.RUNNING},
    RunStatus.SUCCEEDED: frozenset(),
    RunStatus.FAILED: frozenset({RunStatus.RUNNING}),
    RunStatus.CANCELLED: frozenset(),
    RunStatus.EXPIRED: frozenset(),
    RunStatus.TIMED_OUT: frozenset(),
}
"""The statuses that follow each status of a run. A failed run has ended, and runs again when it is continued."""

_RESOLUTIONS = frozenset({TaskStatus.DECIDED, TaskStatus.EXPIRED, TaskStatus.CANCELLED})

TASK_TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.OPEN: _RESOLUTIONS | {TaskStatus.CLAIMED, TaskStatus.SNOOZED},
    TaskStatus.CLAIMED: _RESOLUTIONS | {TaskStatus.OPEN, TaskStatus.SNOOZED},
    TaskStatus.SNOOZED: _RESOLUTIONS | {TaskStatus.OPEN, TaskStatus.CLAIMED},
    TaskStatus.DECIDED: frozenset({TaskStatus.APPLIED, TaskStatus.CANCELLED}),
    TaskStatus.APPLIED: frozenset(),
    TaskStatus.EXPIRED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}
"""The statuses that follow each status of a human task."""


class IllegalTransition(Conflict):
    """The status does not follow the present one; nothing was written."""

    default_code = "run_transition_illegal"


def check_transition(before: Status, after: Status) -> None:
    """Check that a status follows another one.

    Raises:
        IllegalTransition: ``run_transition_illegal`` or ``task_transition_illegal``: it does not.
    """
    kind, following = (
        ("run", RUN_TRANSITIONS[before]) if isinstance(before, RunStatus) else ("task", TASK_TRANSITIONS[before])
    )
    if after not in following:
        msg = f"A {kind} that is {before} cannot become {after}."
        raise IllegalTransition(msg, code=f"{kind}_transition_illegal", before=before.value, after=after.value)
