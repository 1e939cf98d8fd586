"""Receipts as answers, for HTTP and for commands beside the database."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from kneo import registry
from kneo.clock import isoformat, parse_duration
from kneo.errors import NotFound
from kneo.records.task import ReceiptRecord
from kneo.service.task_acts import read_answer
from kneo.service.wire import Json
from kneo.settings import Settings
from kneo.store import audit, receipts, releases, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.service_key import service_key
from kneo.tasks.inbox import statement_for
from kneo.trust.answer import ReviewerKeys
from kneo.trust.dsse import parse_envelope
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.keys import PublicKey
from kneo.trust.receipt import find_receipts
from kneo.trust.receipt_check import check_receipts, verdict_json


def receipt_of_task(store: Store, task_id: str) -> Json:
    """Return the receipt of a decision.

    Raises:
        NotFound: ``receipt_not_found``: nothing was decided yet, or it was decided without a receipt.
    """
    with store.read() as tx:
        record = receipts.of_task(tx, task_id)
        if record is not None:
            return shown(tx, record)
        task = tasks.get(tx, task_id)
    if task is None:
        msg = f"There is no human task {task_id[:80]}."
        raise NotFound(msg)
    if task.decision is None:
        msg = f"{task_id} is {task.status}; nothing was decided that there could be a receipt of."
    else:
        msg = f"{task_id} was decided without a receipt: its gate wants none, or the service had no key."
    raise NotFound(msg, code="receipt_not_found")


def receipts_of_run(store: Store, run_id: str) -> Json:
    """Return all receipts of a run, first one first.

    Raises:
        NotFound: there never was such a run.
    """
    with store.read() as tx:
        found = [shown(tx, record) for record in receipts.of_run(tx, run_id)]
        if not found and runs.get(tx, run_id) is None:
            msg = f"There is no run {run_id[:80]}."
            raise NotFound(msg)
    return {"run_id": run_id, "receipts": found, "count": len(found)}


def answer_to_sign(store: Store, task_id: str, body: Mapping[str, object], *, actor: str, limit: int) -> Json:
    """Return what somebody signs to give an answer.

    Raises:
        KneoError: the answer would be refused.
    """
    answer = read_answer(body, limit)
    lasts = parse_duration(str(body.get("expires_in") or "15m"))
    with store.read() as tx:
        found = statement_for(tx, task_id, answer, actor=actor, lasts=lasts)
    statement = found.statement
    return {
        "continuation_id": task_id,
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(statement.payload).decode("ascii"),
        "said": statement.said.model_dump(mode="json", by_alias=True),
        "answered": dict(found.decided_content),
        "expires_at": isoformat(statement.said.expires),
    }


def public_key(settings: Settings) -> Json:
    """Return the key to check receipts with. Keep it: a key that comes with a receipt proves nothing."""
    key = service_key(settings).public
    return {"key": key.pem, "keyid": key.keyid, "algorithm": key.algorithm.value}


def shown(tx: Tx, record: ReceiptRecord) -> Json:
    """One receipt: the signed envelope, what it says, and what nobody signed."""
    envelope = json.loads(record.envelope)
    return {
        "receipt": _said(record),
        "envelope": envelope,
        "statements": [json.loads(text) for text in record.statements],
        "unsigned": {"digest": record.digest, "audit_seq": audit.seq_of(tx, record.audit_event_id)},
    }


def summary(record: ReceiptRecord) -> Json:
    """What a receipt says, in short."""
    said = _said(record)
    names = ("id", "task", "gate", "decision", "by", "actor", "decidedAt", "sequence")
    return {name: said[name] for name in names} | {"digest": record.digest}


def _reviewers(tx: Tx, settings: Settings) -> ReviewerKeys | None:
    if not releases.trust_chain(tx):
        return None
    root = registry.trust_root(tx, settings.trust_root)
    return ReviewerKeys(keys=root.keys, void=root.void)


def _said(record: ReceiptRecord) -> Json:
    payload = parse_envelope(record.envelope).payload
    said = json.loads(payload)["predicate"]
    assert isinstance(said, dict)
    return said


def verify_receipts(store: Store, settings: Settings, handed: Mapping[str, object], key: str | None) -> Json:
    """Check receipts with a key, or with this service's own, and say which of them this service wrote.

    Raises:
        Invalid: these are no receipts, or there is no key.
    """
    found = find_receipts(handed, file="the request")
    public = PublicKey.load(key) if key is not None else service_key(settings).public
    with store.read() as tx:
        # Another service's reviewers are in another trust root.
        verdict = check_receipts(found, [public], _reviewers(tx, settings) if key is None else None)
        known = [receipts.by_digest(tx, item.digest) is not None for item in verdict.checked]
    answer = verdict_json(verdict)
    listed = answer["receipts"]
    assert isinstance(listed, list)
    for item, is_known in zip(listed, known, strict=True):
        item["known"] = is_known
    return answer
