"""What a run of the published platform becomes: a run that has ended, with its steps, checkpoints, trace and tasks. Pure.

Everything of the source is untrusted: texts are cut and cleaned, values of another type are left out, and a run without a
usable id, status or time is refused.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic_core import from_json

from kneo.clock import derived_id, isoformat, parse_time
from kneo.digest import digest_of
from kneo.errors import Invalid, InvalidValue
from kneo.invisible import INVISIBLE
from kneo.names import person_problem
from kneo.records.run import (
    IMPORTED,
    IMPORTER,
    STATE_VERSION,
    Checkpoint,
    Run,
    RunError,
    RunStatus,
    StepRecord,
    TraceEvent,
)
from kneo.records.task import Decision, DecisionKind, HumanTask, TaskStatus
from kneo.store.engine import encode_json

MAX_CHECKPOINTS = 5_000
"""Checkpoints of one run that are imported; ``MAX_HISTORY_CHARS`` bounds their size."""

MAX_HISTORY_CHARS = 64 * 1024 * 1024
MAX_TRACE = 10_000
MAX_TASKS = 1_000
MAX_EVENTS = 10_000
"""Audit events of one run in which decisions are looked for."""

MAX_EVENT_CHARS = 256 * 1024
"""Characters of the JSON of one audit event."""

MAX_PAYLOAD_CHARS = 16 * 1024 * 1024
"""Characters of the JSON of one run or checkpoint; a longer one is not read."""

MAX_TEXT_CHARS = 1_000_000
"""Characters of an input, an output or a subject."""

NAME_CHARS = 200
LINE_CHARS = 2_000

COMPRESSED, ENCODING = "__kneo_checkpoint_payload__", "zlib+base64+json"

STATUSES: Mapping[str, RunStatus] = {
    "completed": RunStatus.SUCCEEDED,
    "failed": RunStatus.FAILED,
    "cancelled": RunStatus.CANCELLED,
    "expired": RunStatus.EXPIRED,
    "timed_out": RunStatus.TIMED_OUT,
}
"""The statuses of ended runs."""

OPEN = frozenset({"created", "running", "paused", "blocked"})
"""The statuses of runs that have not ended. They are imported as cancelled: their state belongs to another engine."""

ENDED_BY_IMPORT = "import_ended"
"""The error of a run that had not ended."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_CONTROL = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{INVISIBLE}]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")

_STEP_ENDS = {"step_completed": "completed", "node_completed": "completed", "step_failed": "failed"}
_STEP_KINDS = frozenset({"agent", "function", "workflow", "human", "guardrail"})
_REQUESTS = frozenset({"approval", "review", "correction", "selection", "freeform"})
_TRACE_TEXTS = ("agent_name", "model_provider", "model_name", "tool_name", "input_preview", "output_preview")
_TRACE_NAMES = frozenset({*_TRACE_TEXTS, "error", "agent", "provider", "model", "tool"})


@dataclass(frozen=True)
class SourceRun:
    """A row of a run. ``payload`` is its JSON; ``None`` where it is no text or longer than ``MAX_PAYLOAD_CHARS``."""

    id: object
    payload: str | None


@dataclass(frozen=True)
class SourceAuditEvent:
    """An audit event as it is stored; its columns, in this order, may have any value."""

    id: object
    event_type: object
    run_id: object
    continuation_id: object
    actor: object
    at: object
    payload: str | None


class UnusableRow(Invalid):
    """A row of the source has no place; the message says why."""

    default_code = "import_refused"


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """A run with all that belongs to it.

    Attributes:
        was: Its status in the source.
        waited_for: The title of the open task that ended with it.
        left_out: Checkpoints that exceed a bound or cannot be read.
        chars: The size of its rows in the source.
    """

    run: Run
    steps: Sequence[StepRecord]
    checkpoints: Sequence[Checkpoint]
    trace: Sequence[TraceEvent]
    tasks: Sequence[HumanTask]
    was: str
    waited_for: str | None
    left_out: int
    chars: int


@dataclass(frozen=True, kw_only=True)
class SourceDecision:
    """A decision of a task, as an audit event of the source records it."""

    continuation_id: str
    kind: DecisionKind
    selected_option: str | None
    actor: str
    at: str


def parse_object(payload: str | None) -> Mapping[str, object]:
    """Parse the JSON of a row, with bounded depth.

    Raises:
        UnusableRow: it is missing, too long, not JSON, or no object.
    """
    if payload is None:
        msg = "Its content is missing or too long."
        raise UnusableRow(msg)
    try:
        value = _cleaned(from_json(payload))
    except ValueError as error:
        msg = f"Its content is not JSON that can be read: {str(error)[:120]}."
        raise UnusableRow(msg) from error
    if not isinstance(value, dict):
        msg = "Its content is no JSON object."
        raise UnusableRow(msg)
    return value


def parse_checkpoint(payload: str | None) -> Mapping[str, object]:
    """Parse the JSON of a checkpoint, which may be compressed.

    Raises:
        UnusableRow: as ``parse_object``, or it unpacks to more than ``MAX_HISTORY_CHARS``.
    """
    value = parse_object(payload)
    if value.get(COMPRESSED) != ENCODING:
        return value
    unpack = zlib.decompressobj()
    try:
        plain = unpack.decompress(base64.b64decode(str(value.get("payload")), validate=True), MAX_HISTORY_CHARS)
    except (zlib.error, binascii.Error) as error:
        msg = f"Its compressed content is damaged: {error}."
        raise UnusableRow(msg) from error
    if unpack.unconsumed_tail or not unpack.eof:
        msg = "Its compressed content is incomplete or too long."
        raise UnusableRow(msg)
    return parse_object(plain.decode("utf-8", "replace"))


def decision_of(event: SourceAuditEvent) -> SourceDecision | None:
    """Read a decision from an audit event; ``None`` for another event."""
    moment = _time(event.at)
    if event.event_type != "human.decision" or not isinstance(event.continuation_id, str) or moment is None:
        return None
    try:
        facts = _map(parse_object(event.payload).get("metadata"))
        kind = DecisionKind(str(facts.get("decision")))
    except (UnusableRow, ValueError):
        return None
    return SourceDecision(
        continuation_id=event.continuation_id,
        kind=kind,
        selected_option=_text(facts.get("selected_option"), LINE_CHARS),
        actor=_person(event.actor) or IMPORTER,
        at=moment,
    )


def convert(
    row: SourceRun, checkpoints: Iterable[str | None], decisions: Sequence[SourceDecision], *, source: str, at: str
) -> RunHistory:
    """Convert a run.

    Args:
        row: Its row.
        checkpoints: The JSON of its checkpoints, in order.
        decisions: The decisions of its tasks.
        source: The id of the source.
        at: The time of the import.

    Raises:
        UnusableRow: the run has no usable id, status or time.
    """
    body = parse_object(row.payload)
    run_id = row.id if isinstance(row.id, str) else ""
    if not _ID.fullmatch(run_id) or body.get("id") != run_id:
        msg = "Its id is not one of letters, digits, - and _ with at most 40 characters, or differs from that in its content."
        raise UnusableRow(msg)
    was = body.get("status")
    if not isinstance(was, str) or (was not in STATUSES and was not in OPEN):
        msg = f"Its status is unknown: {_line(was, 40)!a}."
        raise UnusableRow(msg)
    created = _time(body.get("created_at"))
    if created is None:
        msg = "The time at which it was created is missing, or is no time."
        raise UnusableRow(msg)
    # A clock that was ahead, or a made-up time, must not keep the run at the top of every list.
    created = min(created, at)
    facts = _map(body.get("metadata"))
    spec = _map(facts.get("spec"))
    past = _History(run_id, created, at, _kinds(spec))
    for number, item in enumerate(checkpoints):
        past.add(item, number)
    error = None if was == "completed" else _error(body.get("error"), was)
    updated = max(_time(body.get("updated_at")) or created, created)
    tasks = _tasks(body, past, decisions, source=source, ended=min(updated, at))
    trace = tuple(_trace(_list(body.get("trace_events")) or past.trace, run_id, created))
    target = "agent" if body.get("workflow_kind") == "agent" else "workflow"
    run = Run(
        id=run_id,
        status=STATUSES.get(was, RunStatus.CANCELLED),
        target=target,
        # Of another form than the digest of a spec or bundle here, so that the run is taken for an execution of neither.
        spec_digest=digest_of(encode_json({IMPORTED: spec})),
        release=None,
        environment=None,
        agent_name=_line(body.get("agent_name")) or _line(_map(spec.get("agent")).get("name")) or "",
        workflow_name=_line(body.get("workflow_name")),
        workflow_type=_line(_map(facts.get("workflow")).get("type"), 40),
        input_text=_text(body.get("input_text")) or "",
        output_text=_text(body.get("output_text")) if was in STATUSES else None,
        error=error,
        state={},
        state_version=STATE_VERSION,
        visited_steps=_visited(body),
        requester=IMPORTER,
        metadata={
            "target": target,
            "caller_metadata": dict(_map(facts.get("caller_metadata"))),
            "session_id": _line(body.get("session_id")),
            IMPORTED: {
                "source": source,
                "status": was,
                "environment": _line(facts.get("environment")),
                "parent_run_id": _line(body.get("parent_run_id")),
                "tags": [tag for tag in map(_line, _list(body.get("tags"))[:50]) if tag],
                "checkpoints_left_out": past.left_out,
                "at": at,
            },
        },
        created_at=created,
        updated_at=min(updated, at),
        started_at=_past(body.get("started_at"), at),
        completed_at=_past(body.get("completed_at"), at) or min(updated, at),
        step_count=len(past.steps),
        checkpoint_count=len(past.checkpoints),
        trace_count=len(trace),
    )
    waiting = next((task.title for task in tasks if task.status is TaskStatus.CANCELLED and was in OPEN), None)
    return RunHistory(
        run=run,
        steps=past.steps,
        checkpoints=past.checkpoints,
        trace=trace,
        tasks=tasks,
        was=was,
        waited_for=waiting,
        left_out=past.left_out,
        chars=past.chars + len(row.payload or ""),
    )


def imported_event(event: SourceAuditEvent) -> dict[str, object]:
    """Return the row of an audit event, with its JSON unchanged.

    Raises:
        UnusableRow: it has no usable id or time, or its JSON is too long or cannot be stored.
    """
    moment, payload = _time(event.at), event.payload
    if not isinstance(event.id, str) or not _ID.fullmatch(event.id) or moment is None:
        msg = "It has no usable id or time."
        raise UnusableRow(msg)
    if payload is None or len(payload) > MAX_EVENT_CHARS or _UNSTORABLE.search(payload):
        msg = f"Its content is missing, has more than {MAX_EVENT_CHARS} characters, or a character that is not stored."
        raise UnusableRow(msg)
    parse_object(payload)
    return {
        "id": event.id,
        "at": moment,
        "event_type": _line(event.event_type, 60) or "event",
        "actor": _line(event.actor),
        "run_id": event.run_id if isinstance(event.run_id, str) and _ID.fullmatch(event.run_id) else None,
        "payload": payload,
    }


class _History:
    """The steps, checkpoints and questions of one run, from its checkpoints in order."""

    def __init__(self, run_id: str, created: str, at: str, kinds: Mapping[str, str]) -> None:
        self.steps: list[StepRecord] = []
        self.checkpoints: list[Checkpoint] = []
        self.asked: dict[str, tuple[Mapping[str, object], str, str]] = {}
        """The question, the step and the time of each continuation."""
        self.answered: dict[str, str] = {}
        """The time at which each continuation went on."""
        self.trace: list[object] = []
        """The trace of the last checkpoint that has one; version 0.4.0 keeps that of a failed run nowhere else."""
        self.left_out = 0
        self._run_id, self._before, self._at, self._kinds = run_id, created, at, kinds
        self.chars = 0

    def add(self, payload: str | None, number: int) -> None:
        """Add a checkpoint; one that cannot be read, or exceeds the bounds, is counted."""
        self.chars += len(payload or "")
        if number >= MAX_CHECKPOINTS or self.chars > MAX_HISTORY_CHARS:
            self.left_out += 1
            return
        try:
            body = parse_checkpoint(payload)
        except UnusableRow:
            self.left_out += 1
            return
        kind, at = _line(body.get("type"), 40) or "manual", min(_time(body.get("created_at")) or self._before, self._at)
        step_id = _line(body.get("step_id")) or _line(body.get("node_id"))
        facts = _map(body.get("metadata"))
        self.trace = _list(body.get("trace_events")) or self.trace
        self.checkpoints.append(
            Checkpoint(
                id=derived_id("ckpt", parse_time(at), f"{self._run_id}\n{len(self.checkpoints)}"),
                run_id=self._run_id,
                sequence=len(self.checkpoints) + 1,
                type=kind,
                step_id=step_id,
                # Under a name of its own, so that nothing takes it for a state of Kneo's engine.
                state={IMPORTED: _map(body.get("state"))},
                metadata=facts,
                created_at=at,
            )
        )
        continuation = facts.get("continuation_id")
        if kind == "human_pause" and isinstance(continuation, str):
            self.asked[continuation] = (_map(facts.get("request")), step_id or "", at)
        elif kind == "human_resume" and isinstance(continuation, str):
            self.answered[continuation] = at
        if kind in _STEP_ENDS and step_id:
            self._add_step(step_id, _STEP_ENDS[kind], facts, at)
        self._before = max(self._before, at)

    def _add_step(self, step_id: str, status: str, facts: Mapping[str, object], at: str) -> None:
        number = len(self.steps) + 1
        failed = (
            RunError(type="error", message=_text(facts.get("error"), LINE_CHARS) or "") if status == "failed" else None
        )
        self.steps.append(
            StepRecord(
                run_id=self._run_id,
                sequence=number,
                step_id=step_id,
                kind=self._kinds.get(step_id, "function"),
                attempt=1,
                status=status,
                idempotency_key=f"{self._run_id}:{step_id}#{number}:1",
                input_text=_text(facts.get("input_text")) or "",
                output_text=_text(facts.get("output_text")),
                error=failed,
                code_digest=None,
                started_at=min(self._before, at),
                completed_at=at,
            )
        )


def _tasks(
    body: Mapping[str, object], past: _History, decisions: Sequence[SourceDecision], *, source: str, ended: str
) -> tuple[HumanTask, ...]:
    """Return the tasks of a run: those that were answered, and those that ended with it."""
    by_id = {one.continuation_id: one for one in decisions}
    pending, last = body.get("pending_human_request"), body.get("continuation_id")
    asked = dict(past.asked)
    if isinstance(last, str) and isinstance(pending, Mapping):
        request, step, at = asked.get(last, ({}, _line(pending.get("requested_by")) or "", ended))
        asked[last] = ({**request, **pending}, step, at)
    expired = body.get("status") == "expired"
    tasks = []
    for continuation, (request, step, at) in list(asked.items())[:MAX_TASKS]:
        decision = by_id.get(continuation)
        resolved = decision.at if decision is not None else past.answered.get(continuation, ended)
        mark: dict[str, object] = {"source": source, "continuation_id": _line(continuation)}
        status = TaskStatus.CANCELLED
        if decision is not None:
            status = TaskStatus.APPLIED
        elif expired and continuation == last:
            status = TaskStatus.EXPIRED
        if decision is None and continuation in past.answered:
            mark["answered"] = True  # without the audit event nothing says with what
        tasks.append(
            replace(
                _task(str(body["id"]), f"{source}\n{continuation}", request, step, at),
                workflow_name=_line(body.get("workflow_name")),
                status=status,
                decision=_decision(decision) if decision is not None else None,
                metadata={IMPORTED: mark},
                resolved_at=max(resolved, at),
                updated_at=max(resolved, at),
            )
        )
    return tuple(tasks)


def _decision(made: SourceDecision) -> Decision:
    # Not by a person of this installation: it counts in no statistics, and no other run can reuse it.
    return Decision(
        kind=made.kind,
        content=None,
        selected_option=made.selected_option,
        comment=None,
        actor=made.actor,
        by=IMPORTER,
        at=made.at,
    )


def _task(run_id: str, identity: str, request: Mapping[str, object], step: str, at: str) -> HumanTask:
    """Return the task of a question, whose ids follow from its identity in the source."""
    subject = _text(_map(request.get("context")).get("input_text")) or ""
    kind = request.get("type")
    options = [option for option in (_text(one, LINE_CHARS) for one in _list(request.get("options"))[:100]) if option]
    seconds = request.get("timeout_seconds")
    return HumanTask(
        id=derived_id("cont", parse_time(at), identity),
        request_id=derived_id("req", parse_time(at), identity),
        run_id=run_id,
        environment=None,
        workflow_name=None,
        workflow_type=None,
        step_id=step,
        key=f"{step}.step",
        kind=kind if isinstance(kind, str) and kind in _REQUESTS else "approval",
        status=TaskStatus.CANCELLED,
        version=1,
        title=_line(request.get("title"), LINE_CHARS) or "",
        prompt=_text(request.get("prompt"), 100_000) or "",
        subject=subject,
        subject_digest=digest_of(subject.encode()),
        options=tuple(options) or None,
        default_option=_text(request.get("default_option"), LINE_CHARS),
        decisions=(),
        assignee=_line(request.get("assignee")),
        timeout_seconds=seconds if isinstance(seconds, int) and 0 < seconds < 2**31 else None,
        on_timeout=_line(request.get("on_timeout"), 80) or "fail",
        on_reject="continue",
        deadline_at=None,
        escalated_at=None,
        decision=None,
        step_path=step,
        requester=IMPORTER,
        created_at=at,
        updated_at=at,
    )


def _trace(items: Sequence[object], run_id: str, created: str) -> Iterator[TraceEvent]:
    events = [item for item in items if isinstance(item, Mapping)][:MAX_TRACE]
    for number, item in enumerate(events, 1):
        at = _time(item.get("timestamp")) or created
        data: dict[str, object] = {
            name: part for name, part in _map(item.get("metadata")).items() if name not in _TRACE_NAMES
        }
        data |= {name: text for name in _TRACE_TEXTS if (text := _text(item.get(name), LINE_CHARS)) is not None}
        error = item.get("error")
        if error is not None:
            message = {"type": "error", "message": _text(error, LINE_CHARS) or ""}
            data["error"] = error if isinstance(error, dict) else message
        yield TraceEvent(
            event_id=derived_id("evt", parse_time(at), f"{run_id}\n{number}"),
            run_id=run_id,
            sequence=number,
            type=_line(item.get("type"), 60) or "event",
            step_id=_line(item.get("step_id")),
            timestamp=at,
            data=data,
        )


def _error(value: object, was: str) -> RunError | None:
    if was in OPEN:
        message = (
            f"The run was {was} when it was imported. Kneo does not continue runs of another platform; start it again."
        )
        return RunError(type=ENDED_BY_IMPORT, message=message)
    error = _map(value)
    return RunError(type=_line(error.get("type"), 100) or was, message=_text(error.get("message"), 10_000) or "")


def _kinds(spec: Mapping[str, object]) -> Mapping[str, str]:
    """Return the kind of each step of a spec by its id."""
    kinds: dict[str, str] = {}
    waiting: list[object] = [spec]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            step, kind = part.get("id"), part.get("kind")
            if isinstance(step, str) and isinstance(kind, str) and kind in _STEP_KINDS:
                kinds.setdefault(step, kind)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return kinds


def _visited(body: Mapping[str, object]) -> tuple[str, ...]:
    listed = _list(body.get("visited_steps")) or _list(body.get("visited_nodes"))
    return tuple(step for step in map(_line, listed[-1000:]) if step)


# ---- values of the source ----------------------------------------------------------------------------------------


def _cleaned(value: object) -> object:
    """Return a JSON value without characters and numbers that a database does not store."""
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_cleaned(item) for item in value]
        case dict():
            return {_UNSTORABLE.sub("\ufffd", str(name)): _cleaned(item) for name, item in value.items()}
        case _:
            return value


def _map(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _text(value: object, most: int = MAX_TEXT_CHARS) -> str | None:
    """Return a text, cut; ``None`` for another value."""
    return _UNSTORABLE.sub("\ufffd", value[:most]) if isinstance(value, str) else None


def _line(value: object, most: int = NAME_CHARS) -> str | None:
    """Return a name on one line, without characters that cannot be seen; ``None`` for another value and for an empty one."""
    return _CONTROL.sub("", value[:most]).strip() or None if isinstance(value, str) else None


def _past(value: object, now: str) -> str | None:
    moment = _time(value)
    return min(moment, now) if moment is not None else None


def _person(value: object) -> str | None:
    name = _line(value)
    return name if name is not None and person_problem(name) is None else None


def _time(value: object) -> str | None:
    """Return a time as it is stored; ``None`` for a text that is no time."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value[:40])
        return isoformat(parse_time((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()))
    except (ValueError, InvalidValue, OverflowError):
        return None
