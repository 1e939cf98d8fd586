"""Views of the audit log: events, pages of events, checkpoints and proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field

from kneo.api.page import PageView
from kneo.records.audit import SealedEvent
from kneo.redaction import redact

Json = dict[str, object]


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
        return cls(
            id=event.id,
            seq=item.seq,
            leaf=item.leaf,
            event_type=event.event_type,
            run_id=event.run_id,
            continuation_id=event.continuation_id,
            environment=event.environment,
            actor=event.actor,
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
