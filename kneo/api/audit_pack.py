"""Collects the evidence about an environment and a period from the database, and writes it as an audit pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO

from pydantic_core import to_json

from kneo.api.audit import checkpoint_of
from kneo.api.promotion_receipts import PromotionReceiptsView
from kneo.api.receipts import ReceiptView
from kneo.clock import isoformat
from kneo.errors import NotFound
from kneo.names import visible
from kneo.records.audit import AuditEvent
from kneo.records.release import Promotion
from kneo.registry.served import EVENTS as PROMOTION_EVENTS
from kneo.store import audit, audit_tree, receipts, releases
from kneo.store.audit_pack import (
    DECISIONS,
    EVENTS,
    NOTE,
    PROMOTIONS,
    REPORT,
    SUMMARY,
    PackIndex,
    PackPeriod,
    PackWriter,
)
from kneo.store.engine import Store, Tx
from kneo.trust.keys import PrivateKey

DECIDED = "human.decision"

RULES = frozenset(
    {"environment.declared", "environment.changed", "policy.changed", "trust.accepted", "records.adopted"}
)
"""Events of changed rules."""

BREAK_GLASS = frozenset(
    {
        *("environment.suspended", "environment.unsuspended", "hold.set", "hold.cleared"),
        *("release.rolled_back", "release.restored"),
    }
)
"""Events of people who intervened outside of an ordinary release."""

APPROVALS = 1_000
"""Most approvals of one promotion in a pack."""


@dataclass
class _Collected:
    """What the events of an environment name, for the summary."""

    decisions: list[AuditEvent] = field(default_factory=list)
    promotions: set[str] = field(default_factory=set)
    rules: list[AuditEvent] = field(default_factory=list)
    interventions: list[AuditEvent] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    def add(self, event: AuditEvent, environment: str) -> None:
        """Sort an event into its table; events of other environments into none."""
        if event.environment not in {environment, None}:
            return
        if event.event_type in RULES:
            self.rules.append(event)
        if event.environment is None:
            return
        if event.event_type == DECIDED:
            self.decisions.append(event)
        if event.event_type in PROMOTION_EVENTS.values():
            self.promotions.add(event.id)
        if event.event_type in BREAK_GLASS:
            self.interventions.append(event)
        if event.event_type in {"run.refused", "release.rejected"}:
            self.refusals[event.event_type] += 1


def write_pack(
    store: Store,
    key: PrivateKey,
    stream: IO[bytes],
    environment: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> tuple[PackIndex, Mapping[str, object]]:
    """Write the pack of an environment; return its index and summary.

    Args:
        store: The database.
        key: The service's key.
        stream: The archive.
        environment: The environment.
        since: The beginning of the period; None is the first event of the log.
        until: Its end, which is excluded; None is now.

    Raises:
        NotFound: there is no such environment, or the log was changed.
        Invalid: the period has more files than a pack.
    """
    audit.seal(store)
    with store.read() as tx:
        if releases.environment(tx, environment) is None:
            msg = f"There is no environment {environment[:80]}."
            raise NotFound(msg, code="environment_not_found", hint="kneo status lists them.")
        first, last = audit.sealed_range(
            tx, *(isoformat(time) if time is not None else None for time in (since, until))
        )
        writer, collected = PackWriter(stream, tx.now), _Collected()
        writer.add(EVENTS, _events(tx, first, last, collected, environment))
        writer.add(NOTE, [checkpoint_of(tx, last, key).note.encode()])
        without: list[str] = []
        writer.add(DECISIONS, _lines(_decisions(tx, collected, without)))
        promotions = _promotions(tx, environment, collected)
        views = [PromotionReceiptsView.applied(tx, item, APPROVALS) for item in promotions]
        writer.add(PROMOTIONS, _lines(views))
        for name, data in _files(tx, environment, promotions, views):
            writer.add(name, [data])
        summary = _summary(collected, promotions, views, without)
        writer.add(SUMMARY, [to_json(summary, indent=2), b"\n"])
        period = PackPeriod(
            environment=environment,
            since=since,
            until=until,
            first=first,
            last=last,
            before=audit_tree.edge(tx, first - 1),
        )
        writer.add(REPORT, [_report(summary, period).encode()])
        return writer.close(period, key), summary


def _lines(values: Iterable[object]) -> Iterator[bytes]:
    return (to_json(value) + b"\n" for value in values)


def _events(tx: Tx, first: int, last: int, collected: _Collected, environment: str) -> Iterator[bytes]:
    for event in audit.sealed_events(tx, first, last):
        collected.add(event, environment)
        yield event.canonical() + b"\n"


def _decisions(tx: Tx, collected: _Collected, without: list[str]) -> Iterator[ReceiptView]:
    for event in collected.decisions:
        record = receipts.of_task(tx, str(event.continuation_id))
        if record is None:
            without.append(str(event.continuation_id))
        else:
            yield ReceiptView.of(tx, record)


def _promotions(tx: Tx, environment: str, collected: _Collected) -> list[Promotion]:
    every = releases.list_promotions(tx, environment, limit=releases.count_promotions(tx, environment))
    return [item for item in reversed(every) if item.audit_event_id in collected.promotions]


def _files(
    tx: Tx, environment: str, promotions: Iterable[Promotion], views: Iterable[PromotionReceiptsView]
) -> Iterator[tuple[str, bytes]]:
    for version, digest, envelope in releases.trust_chain(tx):
        yield f"trust/{version}-{digest.removeprefix('sha256:')}.dsse.json", envelope
    for digest in sorted({item.to_digest for item in promotions if item.to_digest}):
        bundle = releases.bundle(tx, digest)
        if bundle is not None:
            yield f"bundles/{digest.removeprefix('sha256:')}.dsse.json", bundle.envelope
    named = {str(item.receipt["policyDigest"]) for view in views for item in view.receipts}
    files = dict(releases.list_replaced_files(tx, environment, named))
    present = releases.environment(tx, environment)
    if present is not None and present.declaration:
        files[present.policy_digest] = present.declaration
    for digest, data in sorted(files.items()):
        yield f"environment/{digest.removeprefix('sha256:')}.yaml", data


def _row(event: AuditEvent) -> dict[str, object]:
    reason = event.metadata.get("reason")
    return {"at": event.at, "event": event.event_type, "by": event.actor, "reason": reason, "id": event.id}


def _summary(
    collected: _Collected, promotions: Iterable[Promotion], views: Iterable[PromotionReceiptsView], without: list[str]
) -> dict[str, object]:
    return {
        "releases": [
            {
                "at": item.at,
                "kind": item.kind,
                "bundle": item.bundle,
                "version": item.version,
                "digest": item.to_digest,
                "commit": item.revision,
                "by": item.actor,
                "approvals": [str(receipt.unsigned["principal"]) for receipt in view.receipts],
                "event": view.audit_seq,
            }
            for item, view in zip(promotions, views, strict=True)
        ],
        "decisions": [
            {
                "task": event.continuation_id,
                "run": event.run_id,
                "decision": event.metadata.get("decision"),
                **_row(event),
            }
            for event in collected.decisions
        ],
        "rules": [_row(event) for event in collected.rules],
        "break_glass": [_row(event) for event in collected.interventions],
        "refusals": dict(sorted(collected.refusals.items())),
        "without_receipt": sorted(without),
    }


def _report(summary: Mapping[str, object], period: PackPeriod) -> str:
    """Return the summary as Markdown: one table for each question of an auditor."""
    since = isoformat(period.since) if period.since else "the first event"
    until = isoformat(period.until) if period.until else "the last event"
    lines = [
        f"# Evidence about {period.environment}",
        "",
        f"From {since} to {until}: the events {period.first} to {period.last} of the audit log, without a gap.",
        "Verify this archive before you rely on it: `kneo audit verify --pack FILE --key service.pem`.",
    ]
    titles = {
        "releases": "What was released, and who approved it",
        "decisions": "What people decided in runs",
        "rules": "Changes of rules",
        "break_glass": "Interventions outside of releases",
    }
    for name, title in titles.items():
        rows = summary[name]
        assert isinstance(rows, list)
        lines += ["", f"## {title}", "", *(_table(rows) if rows else ["None in this period."])]
    refusals, without = summary["refusals"], summary["without_receipt"]
    assert isinstance(refusals, dict)
    assert isinstance(without, list)
    counted = ", ".join(f"{count} × {name}" for name, count in refusals.items())
    lines += ["", "## Refused", "", counted or "None in this period."]
    lines += ["", "## Decisions without a receipt", "", ", ".join(without) or "None in this period.", ""]
    return "\n".join(lines)


def _table(rows: list[Mapping[str, object]]) -> Iterator[str]:
    columns = list(rows[0])
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_cell(row[column]) for column in columns) + " |"


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return visible(text).replace("|", "\\|").replace("\n", " ")[:200]
