"""Operations on receipts: signed proof of decisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo import registry
from kneo.api.operation import Body, Context, Json, operation
from kneo.api.subjects import RUN, SERVICE, TASK
from kneo.errors import NotFound
from kneo.records.task import ReceiptRecord
from kneo.settings import Settings
from kneo.store import audit, receipts, releases, runs, tasks
from kneo.store.engine import Tx
from kneo.store.service_key import service_key
from kneo.trust.answer import ReviewerKeys
from kneo.trust.dsse import parse_envelope
from kneo.trust.keys import PublicKey
from kneo.trust.receipt import find_receipts
from kneo.trust.receipt_check import check_receipts, verdict_json


@dataclass(frozen=True, kw_only=True)
class ReceiptView:
    """A receipt: the signed proof of a decision; see the reference of receipts."""

    receipt: Annotated[Json, Field(description="The signed content.")]
    envelope: Annotated[Json, Field(description="The signed envelope.")]
    statements: Annotated[list[Json], Field(description="Envelopes of the statements that the voters signed.")]
    unsigned: Json

    @classmethod
    def of(cls, tx: Tx, record: ReceiptRecord) -> ReceiptView:
        """Build the view of a receipt."""
        return cls(
            receipt=_content(record),
            envelope=json.loads(record.envelope),
            statements=[json.loads(text) for text in record.statements],
            unsigned={"digest": record.digest, "audit_seq": audit.seq_of(tx, record.audit_event_id)},
        )


@dataclass(frozen=True, kw_only=True)
class ReceiptListView:
    """The receipts of a run, in order."""

    run_id: str
    receipts: list[ReceiptView]
    count: int


@dataclass(frozen=True, kw_only=True)
class ReceiptKeyView:
    """The public key that verifies receipts."""

    key: Annotated[str, Field(description="PEM.")]
    keyid: str
    algorithm: str


@dataclass(frozen=True, kw_only=True)
class ReceiptVerdictView:
    """The result of verifying receipts."""

    valid: bool
    problems: Annotated[list[Json], Field(description="Each with `receipt`, `field` and `message`.")]
    receipts: list[Json]


class ReceiptsToVerify(Body):
    """One receipt as exported, its envelope alone, or all receipts of a run, with their unsigned fields."""

    envelope: dict[str, object] | None = Field(default=None, description="A DSSE envelope.")
    receipt: dict[str, object] | None = Field(default=None, description="The expected content of the envelope.")
    receipts: list[dict[str, object]] | None = Field(default=None, description="All receipts of a run, in order.")
    key: str | None = Field(default=None, description="PEM of the public key; left out: the key of this service.")
    statements: list[dict[str, object]] | None = None
    unsigned: dict[str, object] | None = None
    run_id: str | None = None
    count: int | None = None


@operation("GET", "/human-tasks/{continuation_id}/receipt", scope="receipts:read", about=TASK)
def get_receipt(context: Context, continuation_id: str) -> ReceiptView:
    """Return the signed receipt of a decision."""
    with context.store.read() as tx:
        record = receipts.of_task(tx, continuation_id)
        if record is not None:
            return ReceiptView.of(tx, record)
        task = tasks.get(tx, continuation_id)
    if task is None:
        msg = f"There is no human task {continuation_id[:80]}."
        raise NotFound(msg)
    if task.decision is None:
        msg = f"{continuation_id} is {task.status}; there is a receipt once it is decided."
    else:
        msg = f"{continuation_id} was decided without a receipt: its gate asks for none, or the service had no key."
    raise NotFound(msg, code="receipt_not_found")


@operation("GET", "/runs/{run_id}/receipts", scope="receipts:read", about=RUN)
def list_receipts(context: Context, run_id: str) -> ReceiptListView:
    """Return all receipts of a run; each names the one before it. Receipts outlive the run."""
    with context.store.read() as tx:
        views = [ReceiptView.of(tx, record) for record in receipts.of_run(tx, run_id)]
        if not views and runs.get(tx, run_id) is None:
            msg = f"There is no run {run_id[:80]}."
            raise NotFound(msg)
    return ReceiptListView(run_id=run_id, receipts=views, count=len(views))


@operation("GET", "/receipts/key", scope="receipts:read", about=SERVICE)
def get_receipt_key(context: Context) -> ReceiptKeyView:
    """Return the public key that verifies this service's receipts. Store it elsewhere."""
    key = service_key(context.settings).public
    return ReceiptKeyView(key=key.pem, keyid=key.keyid, algorithm=key.algorithm.value)


@operation("POST", "/receipts/verify", scope="receipts:read", about=SERVICE)
def verify_receipts(context: Context, body: ReceiptsToVerify) -> ReceiptVerdictView:
    """Verify receipts: signatures, fields, and the chain where all receipts of a run are given.

    The problems name each changed field.
    """
    receipts_file = find_receipts(body.model_dump(exclude_none=True, exclude={"key"}), file="the request")
    public = PublicKey.load(body.key) if body.key is not None else service_key(context.settings).public
    with context.store.read() as tx:
        # The trust root of this service has no reviewers of another service.
        verdict = check_receipts(
            receipts_file, [public], _reviewers(tx, context.settings) if body.key is None else None
        )
        known = [receipts.by_digest(tx, item.digest) is not None for item in verdict.checked]
    result = verdict_json(verdict)
    listed, problems = result["receipts"], result["problems"]
    assert isinstance(listed, list)
    assert isinstance(problems, list)
    return ReceiptVerdictView(
        valid=bool(result["valid"]),
        problems=problems,
        receipts=[{**item, "known": is_known} for item, is_known in zip(listed, known, strict=True)],
    )


def _reviewers(tx: Tx, settings: Settings) -> ReviewerKeys | None:
    if not releases.trust_chain(tx):
        return None
    root = registry.trust_root(tx, settings.trust_root)
    return ReviewerKeys(keys=root.keys, void=root.void)


def _content(record: ReceiptRecord) -> Json:
    content = json.loads(parse_envelope(record.envelope).payload)["predicate"]
    assert isinstance(content, dict)
    return content
