"""The audit log: events, checkpoints and proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field

from kneo.api.operation import Context, Json, operation
from kneo.api.page import Limit, Moment, Offset, Order, PageView, Word, page_fields, stored_time, total_of, view_of
from kneo.api.subjects import EVENT, SERVICE
from kneo.errors import Invalid, NotFound
from kneo.records.audit import SealedEvent, leaf_of
from kneo.redaction import redact
from kneo.store import audit, audit_tree
from kneo.store.audit import AuditConditions
from kneo.store.audit_tree import Checkpoint, Proof
from kneo.store.engine import Store, Tx
from kneo.store.service_key import service_key
from kneo.trust.checkpoint import make_checkpoint
from kneo.trust.keys import PrivateKey


@dataclass(frozen=True, kw_only=True)
class AuditEventView:
    """An event of the audit log. Secrets are redacted; names and addresses stay, because they say who acted."""

    id: str
    seq: int | None
    leaf: str | None
    event_type: str
    run_id: str | None
    continuation_id: str | None
    environment: str | None
    actor: str | None
    metadata: Json
    payload: Json
    created_at: str
    occurred_at: str

    @classmethod
    def of(cls, item: SealedEvent) -> Self:
        event = item.event
        metadata = redact(event.metadata, personal=False)
        assert isinstance(metadata, dict)
        return view_of(
            cls,
            event,
            seq=item.seq,
            leaf=item.leaf,
            metadata=metadata,
            payload=metadata,
            created_at=event.at,
            occurred_at=event.at,
        )


@dataclass(frozen=True, kw_only=True)
class AuditPageView(PageView):
    """One page of audit events."""

    events: list[AuditEventView]
    next_after: Annotated[str | None, Field(description="The cursor of the next page: `after`.")]


@dataclass(frozen=True, kw_only=True)
class AuditCheckpointView:
    """A signed checkpoint: the size and root of the log, and the service's public key."""

    size: int
    root: str
    note: str
    created_at: str
    key: str


@dataclass(frozen=True, kw_only=True)
class AuditProofView:
    """A proof that an event is in the log, verifiable without the service."""

    seq: int
    leaf: str
    size: int
    root: str
    path: tuple[str, ...]
    checkpoint: str
    key: str
    event: AuditEventView
    canonical: str


ORIGIN = "kneo/audit"
"""The name of the log in its checkpoints."""

MAX_NUMBER = 2**63 - 1
"""The highest number that both databases store."""

Seq = Annotated[int, Field(ge=1, le=MAX_NUMBER)]


@operation("GET", "/audit-events", scope="audit:read", about=EVENT)
def list_audit_events(
    context: Context,
    event_type: Word | None = None,
    run_id: Word | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: Literal["created_at", "occurred_at", "seq", "id"] = "created_at",
    sort_order: Order = "desc",
    *,
    actor: Word | None = None,
    environment: Word | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    after: Annotated[str | None, Field(max_length=40, description="`next_after` of the previous page.")] = None,
) -> AuditPageView:
    """List audit events, newest first, each with its place in the chain."""
    if not context.over_http:
        audit.seal(context.store)  # a service seals now and then
    where: AuditConditions = {
        "event_type": event_type,
        "run_id": run_id,
        "actor": actor,
        "environment": environment,
        "created_after": stored_time(created_after),
        "created_before": stored_time(created_before),
    }
    with context.store.read() as tx:
        events = audit.events(tx, **where, limit=limit, offset=offset, after=after, descending=sort_order == "desc")
        total = total_of(events, lambda: audit.count(tx, **where), limit=limit, offset=offset, after=after)
    return AuditPageView(
        events=[AuditEventView.of(item) for item in events],
        next_after=events[-1].event.id if len(events) == limit else None,
        **page_fields(events, total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order),
    )


@operation("GET", "/audit/checkpoint", scope="audit:read", about=SERVICE)
def get_audit_checkpoint(context: Context) -> AuditCheckpointView:
    """Sign the size and root of the log. Keep the checkpoint elsewhere: it proves later that the log was not rewritten."""
    key = service_key(context.settings)
    return AuditCheckpointView(**vars(checkpoint(context.store, key)), key=key.public.pem)


@operation("GET", "/audit/proof", scope="audit:read", errors=(404,), about=EVENT)
def get_audit_proof(context: Context, seq: Seq, size: Seq | None = None) -> AuditProofView:
    """Prove that an event is in the log. The proof is verifiable without this service."""
    return prove(context.store, service_key(context.settings), seq, size)


def checkpoint(store: Store, key: PrivateKey) -> Checkpoint:
    """Return a signed checkpoint of the log as it is now."""
    audit.seal(store)
    with store.write() as tx:
        newest, size = audit_tree.newest_checkpoint(tx), audit_tree.size(tx)
        if newest is not None and newest.size == size:
            return newest
        created = checkpoint_of(tx, size, key)
        audit_tree.keep_checkpoint(tx, created)
    return created


def checkpoint_of(tx: Tx, size: int, key: PrivateKey) -> Checkpoint:
    """Sign the root over the first events."""
    root = audit_tree.root(tx, size)
    return Checkpoint(size=size, root=root, note=make_checkpoint(ORIGIN, size, root, key), created_at=tx.at)


def prove(store: Store, key: PrivateKey, seq: int, size: int | None) -> AuditProofView:
    """Prove an event against a signed checkpoint.

    Args:
        store: The database.
        key: The service's key.
        seq: The number of the event.
        size: The size of the log at the checkpoint; None takes the present size.

    Raises:
        NotFound: there is no such event, it was removed, or the log never had that size.
    """
    current = checkpoint(store, key)
    with store.read() as tx:
        if size is not None and size != current.size:
            if size > current.size:
                msg = f"The audit log has {current.size} events, and was never {size} long."
                raise NotFound(msg, code="audit_size_not_found")
            current = audit_tree.newest_checkpoint(tx, size) or checkpoint_of(tx, size, key)
        proof = audit_tree.prove(tx, seq, current.size)
        event = audit.event_at(tx, seq)
    event, canonical = _unchanged(event, proof)
    return AuditProofView(
        **vars(proof),
        checkpoint=current.note,
        key=key.public.pem,
        event=AuditEventView.of(event),
        canonical=canonical.decode(),
    )


def _unchanged(event: SealedEvent | None, proof: Proof) -> tuple[SealedEvent, bytes]:
    """Return an event and its canonical bytes.

    Raises:
        NotFound: ``audit_event_changed``: the event is gone, or is not the one that was sealed.
    """
    try:
        canonical = event.event.canonical() if event is not None else None
    except Invalid:
        canonical = None
    if event is None or canonical is None or leaf_of(canonical) != proof.leaf:
        problem = "is missing" if event is None else "is not the event that was sealed"
        msg = f"Audit event {proof.seq} {problem}: the database was changed."
        hint = "Run kneo audit verify to find the place; keep the database as it is."
        raise NotFound(msg, code="audit_event_changed", hint=hint)
    return event, canonical
