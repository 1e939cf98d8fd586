"""The history of a run: steps, checkpoints and trace events, append-only and numbered by counts in the run's row."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, func, insert, select, update

from kneo.clock import new_id
from kneo.digest import Digest, digest_of
from kneo.records.run import Checkpoint, NewTrace, Run, RunError, StepRecord, TraceEvent
from kneo.redaction import redact_start
from kneo.settings import ExecutionSettings
from kneo.store.authenticated import MAC, check, with_mac
from kneo.store.engine import Tx, decode_json, encode_json, upsert
from kneo.store.prepared import Prepared
from kneo.store.prepared import Row as PreparedRow
from kneo.store.tables import checkpoints, journal_entries, runs, steps, trace_events

AnyRow = Row[*tuple[object, ...]]

MAX_VISITED = 1000
"""Visited steps in a run's row and in its last trace event; the steps table has all of them."""


@dataclass(frozen=True, kw_only=True)
class CheckpointLimits:
    """Bounds on the state that one checkpoint stores."""

    compress_bytes: int = ExecutionSettings.checkpoint_compress_bytes
    """A larger state is compressed."""
    max_bytes: int = ExecutionSettings.checkpoint_max_bytes
    """Of a larger state, after compression, only a preview is stored; the run cannot be forked from there."""
    preview_chars: int = ExecutionSettings.checkpoint_preview_chars


@dataclass(frozen=True, kw_only=True)
class NewCheckpoint:
    type: str
    step_id: str | None
    state: Mapping[str, object]
    metadata: Mapping[str, object]


@dataclass(kw_only=True)
class History:
    """The entries that one transaction adds to a run's history, in order."""

    steps: list[StepRecord] = field(default_factory=list)
    checkpoints: list[NewCheckpoint] = field(default_factory=list)
    trace: list[NewTrace] = field(default_factory=list)


_ADD_STEP, _ADD_CHECKPOINT = Prepared(insert(steps)), Prepared(insert(checkpoints))
_ADD_TRACE = Prepared(insert(trace_events))


def counted(run: Run, history: History, **changes: Any) -> Run:  # noqa: ANN401 - fields of a run
    """Return a run with the counts after these entries are added, and with other changes."""
    completed = (step.step_id for step in history.steps if step.status == "completed")
    return replace(
        run,
        **changes,
        visited_steps=(*run.visited_steps, *completed)[-MAX_VISITED:],
        step_count=run.step_count + len(history.steps),
        checkpoint_count=run.checkpoint_count + len(history.checkpoints),
        trace_count=run.trace_count + len(history.trace),
    )


def append(tx: Tx, run: Run, history: History, limits: CheckpointLimits) -> None:
    """Add to the history of a run as it was before; the caller has committed ``counted`` behind the fence."""
    if history.steps:
        numbered = (replace(step, sequence=run.step_count + n) for n, step in enumerate(history.steps, 1))
        _ADD_STEP.insert(tx, *(_step_row(tx, step) for step in numbered))
    _add(tx, run.id, history, limits, run.checkpoint_count, run.trace_count)


def _add(
    tx: Tx, run_id: str, history: History, limits: CheckpointLimits, checkpoint_count: int, trace_count: int
) -> None:
    """Add checkpoints and trace events after those that the run has."""
    checkpoint_rows = [
        with_mac(
            tx,
            checkpoints,
            {
                "run_id": run_id,
                "sequence": checkpoint_count + n,
                "id": new_id("ckpt", tx.now),
                "type": new.type,
                "step_id": new.step_id,
                **_packed(new, limits),
                "created_at": tx.at,
            },
        )
        for n, new in enumerate(history.checkpoints, 1)
    ]
    trace_rows = [
        {
            "run_id": run_id,
            "sequence": trace_count + n,
            "event_id": new_id("evt", tx.now),
            "type": new.type,
            "step_id": new.step_id,
            "timestamp": tx.at,
            "data": dict(new.data),
        }
        for n, new in enumerate(history.trace, 1)
    ]
    _ADD_CHECKPOINT.insert(tx, *checkpoint_rows)
    _ADD_TRACE.insert(tx, *trace_rows)


def _step_row(tx: Tx, step: StepRecord) -> dict[str, object]:
    return with_mac(tx, steps, vars(step) | {"facts": dict(step.facts)})


def _packed(new: NewCheckpoint, limits: CheckpointLimits) -> dict[str, object]:
    """Return the columns of a checkpoint's state: compressed where large, a preview where too large even so."""
    body = encode_json(new.state)
    size = len(body)
    if size >= limits.compress_bytes:
        body = zlib.compress(body)
    if len(body) <= limits.max_bytes:
        return {"state": body, "metadata": dict(new.metadata)}
    stub = {"_limited": True, "status": new.state.get("status")}
    storage = {"payload_limited": True, "original_bytes": size, "max_bytes": limits.max_bytes}
    cut = {
        key: redact_start(value, limits.preview_chars) if isinstance(value, str) else value
        for key, value in new.metadata.items()
    }
    return {"state": encode_json(stub), "metadata": {**cut, "_checkpoint_storage": storage}}


def _unpacked(body: bytes) -> Mapping[str, object]:
    # JSON begins with a brace, zlib with another byte.
    plain = body if body[:1] == b"{" else zlib.decompress(body)
    state = decode_json(plain)
    assert isinstance(state, dict)
    return state


# ---- runs without a driver ------------------------------------------------------------------------------------------


def insert_step(tx: Tx, step: StepRecord) -> None:
    _ADD_STEP.change(tx, _step_row(tx, step))


def add_trace(tx: Tx, run_id: str, kind: str, *, step_id: str | None = None, **data: object) -> None:
    """Append a trace event to a run without a driver."""
    _append_to(tx, run_id, History(trace=[NewTrace(type=kind, step_id=step_id, data=data)]))


def add_checkpoint(
    tx: Tx, run_id: str, kind: str, *, step_id: str | None, state: Mapping[str, object], metadata: Mapping[str, object]
) -> None:
    """Append a checkpoint to a run without a driver."""
    _append_to(
        tx,
        run_id,
        History(checkpoints=[NewCheckpoint(type=kind, step_id=step_id, state=state, metadata=metadata)]),
    )


def _append_to(tx: Tx, run_id: str, history: History) -> None:
    before = tx.connection.execute(
        update(runs)
        .where(runs.c.id == run_id)
        .values(
            checkpoint_count=runs.c.checkpoint_count + len(history.checkpoints),
            trace_count=runs.c.trace_count + len(history.trace),
        )
        .returning(runs.c.checkpoint_count - len(history.checkpoints), runs.c.trace_count - len(history.trace))
    ).first()
    checkpoint_count, trace_count = before if before is not None else (0, 0)
    _add(tx, run_id, history, CheckpointLimits(), checkpoint_count, trace_count)


def insert_past(
    tx: Tx, steps_: Sequence[StepRecord], checkpoints_: Sequence[Checkpoint], trace: Sequence[TraceEvent]
) -> None:
    """Insert the whole history of a run that another platform executed, with its own times."""
    _ADD_STEP.insert(tx, *(_step_row(tx, step) for step in steps_))
    limits = CheckpointLimits()
    rows = []
    for one in checkpoints_:
        new = NewCheckpoint(type=one.type, step_id=one.step_id, state=one.state, metadata=one.metadata)
        rows.append(with_mac(tx, checkpoints, vars(one) | _packed(new, limits)))
    _ADD_CHECKPOINT.insert(tx, *rows)
    _ADD_TRACE.insert(tx, *(vars(event) | {"data": dict(event.data)} for event in trace))


# ---- reading ------------------------------------------------------------------------------------------------------


_STEP = [column.name for column in steps.c if column.name != MAC]


def list_steps(tx: Tx, run_id: str) -> tuple[StepRecord, ...]:
    """Read the finished steps of a run, in order.

    Raises:
        Untrusted, Invalid: a process with the service key did not write one of them; see ``kneo.store.authenticated``.
    """
    rows = tx.connection.execute(select(steps).where(steps.c.run_id == run_id).order_by(steps.c.sequence))
    return tuple(_step(check(tx, steps, row)) for row in rows)


class StoredStep(NamedTuple):
    """A finished step, whose texts may be cut, and the characters of its whole input and output."""

    record: StepRecord
    input_chars: int
    output_chars: int


def page_of_steps(
    tx: Tx, run_id: str, *, limit: int, offset: int, text_chars: int | None = None
) -> tuple[tuple[StoredStep, ...], int]:
    """Return a page of a run's finished steps in order as they are stored, and the number of all.

    Args:
        tx: The transaction.
        run_id: The run.
        limit: The most steps of the page.
        offset: The number of steps before the page.
        text_chars: The number of characters after which inputs and outputs are cut; ``None`` reads them whole.
    """
    of_run = steps.c.run_id == run_id
    texts = steps.c.input_text, steps.c.output_text
    columns = [
        column if text_chars is None or column not in texts else func.substr(column, 1, text_chars).label(column.name)
        for column in steps.c
    ]
    lengths = [func.coalesce(func.length(text), 0) for text in texts]
    page = select(*columns, *lengths).where(of_run).order_by(steps.c.sequence).limit(limit).offset(offset)
    total = tx.connection.execute(select(func.count()).select_from(steps).where(of_run)).scalar_one()
    return tuple(_stored_step(row) for row in tx.connection.execute(page)), total


def _stored_step(row: AnyRow) -> StoredStep:
    *_, input_chars, output_chars = row
    assert isinstance(input_chars, int)
    assert isinstance(output_chars, int)
    return StoredStep(_step(row), input_chars, output_chars)


def step_ends(tx: Tx, run_id: str) -> tuple[tuple[int, str, str], ...]:
    """List the sequence number, the idempotency key and the end of each finished step, in order."""
    columns = select(steps.c.sequence, steps.c.idempotency_key, steps.c.completed_at)
    rows = tx.connection.execute(columns.where(steps.c.run_id == run_id).order_by(steps.c.sequence))
    return tuple((row[0], row[1], row[2]) for row in rows)


def outputs_until(tx: Tx, run_id: str, at: str, *, limit: int) -> tuple[tuple[str, str, str], ...]:
    """List the path, the output and the end of the steps that ended until a time, the latest ``limit`` of them in order.

    Raises:
        Untrusted, Invalid: as ``list_steps``.
    """
    ended = select(steps).where(steps.c.run_id == run_id, steps.c.completed_at <= at, steps.c.output_text.is_not(None))
    rows = tx.connection.execute(ended.order_by(steps.c.sequence.desc()).limit(limit)).all()
    return tuple((row.step_id, row.output_text, row.completed_at) for row in map(partial(check, tx, steps), rows[::-1]))


def _step(row: AnyRow) -> StepRecord:
    values = row._asdict()
    return StepRecord(**{name: values[name] for name in _STEP} | {"error": read_error(row.error)})


_VISITED = Prepared(
    select(steps.c.step_id)
    .where(steps.c.run_id == bindparam("of_run"), steps.c.status == "completed")
    .order_by(steps.c.sequence.desc())
    .limit(MAX_VISITED)
)


def visited(tx: Tx, run: Run) -> tuple[str, ...]:
    """List the completed steps of a run in order, the latest ``MAX_VISITED`` of them.

    The row of a run lists those of its last pause. Where they are as many as its steps, they are all, and nothing is read.
    """
    if len(run.visited_steps) == run.step_count:
        return run.visited_steps
    rows = _VISITED.rows(tx, {"of_run": run.id})
    return tuple(row.step_id for row in rows)[::-1]


def list_checkpoints(tx: Tx, run_id: str, *, limit: int = 10_000, offset: int = 0) -> tuple[Checkpoint, ...]:
    """Read the checkpoints of a run, in order.

    Raises:
        Untrusted, Invalid: as ``list_steps``.
    """
    rows = tx.connection.execute(
        select(checkpoints)
        .where(checkpoints.c.run_id == run_id)
        .order_by(checkpoints.c.sequence)
        .limit(limit)
        .offset(offset)
    )
    return tuple(_checkpoint(check(tx, checkpoints, row)) for row in rows)


def page_of_checkpoints(
    tx: Tx, run_id: str, *, type_: str | None, descending: bool, limit: int, offset: int
) -> tuple[tuple[Checkpoint, ...], int]:
    """Return a page of a run's checkpoints and the number of all."""
    where = [checkpoints.c.run_id == run_id]
    if type_ is not None:
        where.append(checkpoints.c.type == type_)
    number = checkpoints.c.sequence
    order = number.desc() if descending else number
    rows = tx.connection.execute(select(checkpoints).where(*where).order_by(order).limit(limit).offset(offset))
    total = tx.connection.execute(select(func.count()).select_from(checkpoints).where(*where)).scalar_one()
    return tuple(_checkpoint(row) for row in rows), total


def _checkpoint(row: AnyRow) -> Checkpoint:
    values = row._asdict()
    del values[MAC]
    return Checkpoint(**values | {"state": _unpacked(row.state)})


def list_trace(
    tx: Tx,
    run_id: str,
    *,
    event_type: str | None = None,
    after: int = 0,
    descending: bool = False,
    limit: int = 1000,
    offset: int = 0,
) -> tuple[TraceEvent, ...]:
    """List the trace events of a run with a sequence number above ``after``."""
    number = trace_events.c.sequence
    where = [trace_events.c.run_id == run_id, number > after]
    if event_type is not None:
        where.append(trace_events.c.type == event_type)
    order = number.desc() if descending else number
    rows = tx.connection.execute(select(trace_events).where(*where).order_by(order).limit(limit).offset(offset))
    return tuple(TraceEvent(**row._asdict()) for row in rows)


def count_trace(tx: Tx, run_id: str, *, event_type: str | None = None) -> int:
    where = [trace_events.c.run_id == run_id]
    if event_type is not None:
        where.append(trace_events.c.type == event_type)
    return tx.connection.execute(select(func.count()).select_from(trace_events).where(*where)).scalar_one()


def read_error(value: Mapping[str, str] | None) -> RunError | None:
    return RunError(type=value["type"], message=value["message"]) if value else None


@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """A finished call inside a step.

    Attributes:
        sequence: Its number in the journal of the run.
        location: The instance path of its step.
        name: Its name within the step.
        input_digest: The digest of its input.
        value: Its result, as JSON.
    """

    run_id: str
    sequence: int
    location: str
    name: str
    input_digest: str
    value: str
    created_at: str


_FIND_ENTRY = Prepared(
    select(journal_entries).where(
        journal_entries.c.run_id == bindparam("run_id"), journal_entries.c.key == bindparam("key")
    )
)
_LIST_ENTRIES = Prepared(
    select(journal_entries).where(journal_entries.c.run_id == bindparam("run_id")).order_by(journal_entries.c.sequence)
)


def find_entry(tx: Tx, run_id: str, location: str, name: str) -> JournalEntry | None:
    """Read an entry of the journal of a run.

    Raises:
        Untrusted, Invalid: as ``list_steps``.
    """
    row = _FIND_ENTRY.first(tx, {"run_id": run_id, "key": _entry_key(location, name)})
    return _entry(check(tx, journal_entries, row)) if row is not None else None


def list_entries(tx: Tx, run_id: str) -> Sequence[JournalEntry]:
    """Read the journal of a run, in order.

    Raises:
        Untrusted, Invalid: as ``list_steps``.
    """
    return tuple(_entry(check(tx, journal_entries, row)) for row in _LIST_ENTRIES.rows(tx, {"run_id": run_id}))


def _entry(row: PreparedRow) -> JournalEntry:
    return JournalEntry(**{item.name: getattr(row, item.name) for item in fields(JournalEntry)})


def record_entry(tx: Tx, run_id: str, location: str, name: str, *, input_digest: Digest, value: str) -> None:
    """Store the result of a call; its result for another input is replaced."""
    last = select(func.max(journal_entries.c.sequence)).where(journal_entries.c.run_id == run_id)
    number = (tx.connection.execute(last).scalar() or 0) + 1
    entry = JournalEntry(
        run_id=run_id,
        sequence=number,
        location=location,
        name=name,
        input_digest=input_digest,
        value=value,
        created_at=tx.at,
    )
    _put_entry(tx, entry)


def copy_entries(tx: Tx, source: Sequence[JournalEntry], run_id: str) -> None:
    """Copy entries of another run's journal to a run."""
    for entry in source:
        _put_entry(tx, replace(entry, run_id=run_id))


def _put_entry(tx: Tx, entry: JournalEntry) -> None:
    key: dict[str, object] = {"run_id": entry.run_id, "key": _entry_key(entry.location, entry.name)}
    row = with_mac(tx, journal_entries, asdict(entry) | key)
    upsert(tx, journal_entries, key, **{name: value for name, value in row.items() if name not in key})


def _entry_key(location: str, name: str) -> Digest:
    return digest_of(f"{location}\0{name}".encode())
