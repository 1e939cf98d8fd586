"""Operations on the receipts of promotions: the signed decisions of people about changes of environments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo.api.canaries import find_result, sign_result
from kneo.api.operation import Context, Json, operation
from kneo.api.page import Limit
from kneo.api.promotions import promotion_not_found
from kneo.api.subjects import APPROVAL, PROMOTION
from kneo.errors import NotFound
from kneo.records.release import ApprovalRecord, AttestationRecord, Promotion
from kneo.store import attestations, audit, canaries, releases
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope, serialise
from kneo.trust.result import attestation_id
from kneo.trust.statement import approval_content, parse_approval


@dataclass(frozen=True, kw_only=True)
class ApprovalReceiptView:
    """The receipt of an approval or rejection: the decision as the person, or the service for the person, signed it."""

    receipt: Annotated[Json, Field(description="The signed content, and the name of its subject.")]
    envelope: Annotated[Json, Field(description="The signed envelope.")]
    unsigned: Annotated[
        Json,
        Field(
            description="`id`, `principal` and `digest` belong to the envelope; `origin` and `first_seen_at` are the registry's word."
        ),
    ]

    @classmethod
    def of(cls, record: ApprovalRecord) -> ApprovalReceiptView:
        """Build the view of a receipt."""
        envelope = parse_envelope(record.envelope)
        return cls(
            receipt=approval_content(parse_approval(envelope.payload)),
            # Without the fields that a file may have beside the signed ones.
            envelope=json.loads(serialise(envelope)),
            unsigned={
                "id": record.id,
                "principal": record.principal,
                "digest": record.payload_digest,
                "origin": record.origin,
                "first_seen_at": record.first_seen_at,
            },
        )


@dataclass(frozen=True, kw_only=True)
class AttestationReceiptView:
    """An attestation as its signer signed it."""

    statement: Annotated[Json, Field(description="The signed statement.")]
    envelope: Annotated[Json, Field(description="The signed envelope.")]
    unsigned: Annotated[
        Json, Field(description="`id` and `digest` belong to the envelope; `first_seen_at` is the registry's word.")
    ]

    @classmethod
    def of(cls, record: AttestationRecord) -> AttestationReceiptView:
        """Build the view of an attestation."""
        envelope = parse_envelope(record.envelope)
        return cls(
            statement=json.loads(envelope.payload),
            envelope=json.loads(serialise(envelope)),
            unsigned={"id": record.id, "digest": record.payload_digest, "first_seen_at": record.first_seen_at},
        )


@dataclass(frozen=True, kw_only=True)
class PromotionReceiptsView:
    """The receipts of a promotion, in the order in which the decisions were first seen."""

    promotion_id: str
    environment: str
    bundle: str
    version: str | None
    revision: Annotated[str | None, Field(description="The commit of an applied change, with the environment file.")]
    audit_seq: Annotated[int | None, Field(description="The number of the promotion in the audit log, once sealed.")]
    receipts: list[ApprovalReceiptView]
    count: int
    attestations: Annotated[
        list[AttestationReceiptView],
        Field(
            description="Of an applied change those that its evidence rules counted, of a pending one all about its bundle."
        ),
    ]

    canary: Annotated[
        AttestationReceiptView | None,
        Field(description="The result of the canary that allowed an applied change, signed with the service key."),
    ] = None

    @classmethod
    def applied(cls, tx: Tx, done: Promotion, limit: int) -> PromotionReceiptsView:
        """Build the view of a promotion with the decisions that allowed it."""
        receipts = [ApprovalReceiptView.of(record) for record in releases.approvals_by_id(tx, done.approvals)[:limit]]
        return cls(
            promotion_id=done.id,
            environment=done.environment,
            bundle=done.bundle,
            version=done.version,
            revision=done.revision,
            audit_seq=audit.seq_of(tx, done.audit_event_id),
            receipts=receipts,
            count=len(receipts),
            attestations=[AttestationReceiptView.of(record) for record in _counted_attestations(tx, done)[:limit]],
            canary=_result_of_canary(tx, done),
        )


@operation("GET", "/approvals/{approval_id}/receipt", scope=("releases:read", "receipts:read"), about=APPROVAL)
def get_approval_receipt(context: Context, approval_id: str) -> ApprovalReceiptView:
    """Return the signed receipt of an approval or rejection. Receipts outlive the change."""
    with context.store.read() as tx:
        found = releases.approvals_by_id(tx, (approval_id,))
    if not found:
        msg = f"There is no approval or rejection {approval_id[:80]!r}."
        hint = "List the decisions about an environment: GET /v1/environments/ENV/decisions."
        raise NotFound(msg, code="receipt_not_found", hint=hint)
    return ApprovalReceiptView.of(found[0])


@operation("GET", "/promotions/{promotion_id}/receipts", scope=("releases:read", "receipts:read"), about=PROMOTION)
def list_promotion_receipts(context: Context, promotion_id: str, limit: Limit = 100) -> PromotionReceiptsView:
    """Return the receipts of a promotion: of an applied one those that allowed it, of a pending one the newest decisions."""
    with context.store.read() as tx:
        done = releases.promotion(tx, promotion_id)
        if done is not None:
            return PromotionReceiptsView.applied(tx, done, limit)
        found = releases.find_pending(tx, promotion_id)
        if found is None:
            raise promotion_not_found(promotion_id)
        environment, item = found
        newest = releases.newest_approvals(tx, environment, limit, item.subject) if item.subject else ()
        stated = attestations.list_about(tx, (item.digest,)) if item.digest is not None else ()
    receipts = [ApprovalReceiptView.of(record) for record in reversed(newest)]
    return PromotionReceiptsView(
        promotion_id=promotion_id,
        environment=environment,
        bundle=item.bundle,
        version=item.version,
        revision=None,
        audit_seq=None,
        receipts=receipts,
        count=len(receipts),
        attestations=[AttestationReceiptView.of(record) for record in stated[-limit:]],
    )


def _counted_attestations(tx: Tx, done: Promotion) -> tuple[AttestationRecord, ...]:
    """Return the attestations that allowed a promotion, by its audit event."""
    ids = _facts(tx, done).get("attestations")
    return attestations.list_by_id(tx, map(str, ids)) if isinstance(ids, list) else ()


def _result_of_canary(tx: Tx, done: Promotion) -> AttestationReceiptView | None:
    """Return the signed result of the canary that allowed a promotion, by its audit event."""
    canary_id = _facts(tx, done).get("canary")
    canary = canaries.get(tx, str(canary_id)) if canary_id is not None else None
    statement = find_result(canary) if canary is not None else None
    if statement is None or canary is None:
        return None
    facts: Json = {"id": attestation_id(statement.digest), "digest": statement.digest, "first_seen_at": canary.ended_at}
    envelope = sign_result(tx, statement)
    return AttestationReceiptView(statement=json.loads(statement.payload), envelope=envelope, unsigned=facts)


def _facts(tx: Tx, done: Promotion) -> Mapping[str, object]:
    event = audit.event(tx, done.audit_event_id)
    return event.event.metadata if event is not None else {}
