"""How records look in JSON, over HTTP and with ``--json`` alike. Superset of what the published clients parse.

What runs were given and gave goes out without secrets. Texts that people have to read or judge keep names and addresses;
what is there for machines and for looking back (metadata, trace, checkpoints) goes without those too. What is stored stays
whole: the next step works on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from kneo.api.run_views import RunErrorView, clean, readable, run_metadata
from kneo.api.status_words import say
from kneo.api.task_views import votes_of
from kneo.records.audit import SealedEvent
from kneo.records.release import ApprovalRecord, Pending, Promotion, Release
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.redaction import redact
from kneo.registry import EnvironmentStatus, decision_reason
from kneo.store import approvals
from kneo.store.engine import Tx

Json = dict[str, object]


def run_created(run: Run, task: HumanTask | None, *, published: bool) -> Json:
    """Answer to starting or continuing a run."""
    return {
        "run_id": run.id,
        "status": say(run.status, published=published),
        "output_text": readable(run.output_text),
        "human_intervention_required": task is not None,
        "continuation_id": task.id if task else None,
        "metadata": run_metadata(run, task),
        "error": RunErrorView.of(run),
    }


def human_resumed(run: Run, answered: HumanTask, following: HumanTask | None, *, published: bool) -> Json:
    """Answer to a decision: where the run went from there."""
    answer = run_created(run, following, published=published)
    metadata = answer["metadata"]
    assert isinstance(metadata, dict)
    metadata["resumed_from_continuation_id"] = answered.id
    if answered.status in UNRESOLVED:
        answer |= votes_of(answered)
    return answer


def view(told: Json) -> Json:
    """A view of a run's past."""
    return clean(told)


def environment(status: EnvironmentStatus) -> Json:
    """One environment: what it serves, what waits, and why."""
    return {
        "name": status.name,
        "revision": status.record.revision if status.record else None,
        "policy_digest": status.record.policy_digest if status.record else None,
        "conditions": [
            {
                "type": item.type.value,
                "status": item.status,
                "reason": item.reason,
                "message": item.message,
                "revision": item.revision,
                "since": item.since,
            }
            for item in status.conditions
        ],
        "releases": [release(item) for item in status.releases],
        "pending": [pending(item) for item in status.pending],
        "holds": [asdict(item) for item in status.holds],
        "suspension": asdict(status.suspension) if status.suspension else None,
    }


def pending(item: Pending) -> Json:
    """A change that did not happen yet; ``id`` is what ``/promotions/{id}/approve`` takes."""
    also = [asdict(one) | {"who": list(one.who)} for one in item.also]
    return asdict(item) | {"who": list(item.who), "also": also}


def release(item: Release) -> Json:
    return {
        "bundle": item.bundle,
        "version": item.version,
        "digest": item.digest,
        "since": item.since,
        "revision": item.revision,
    }


def promotion(item: Promotion) -> Json:
    return asdict(item) | {"approvals": list(item.approvals)}


def history(tx: Tx, name: str, items: Sequence[Promotion]) -> Json:
    """What an environment served, with the decisions that each change rests on."""
    found = {item.id: approvals.approvals_by_id(tx, item.approvals) for item in items}
    changes = [promotion(item) | {"decisions": [decision(one) for one in found[item.id]]} for item in items]
    return {"environment": name, "promotions": changes}


def decision(item: ApprovalRecord) -> Json:
    """Who decided what about a release, and why."""
    return {
        "id": item.id,
        "principal": item.principal,
        "decision": item.decision,
        "signed": item.signed,
        "at": item.first_seen_at,
        "reason": decision_reason(item),
    }


def audit_event(item: SealedEvent) -> Json:
    """An event of the audit log. Names and addresses stay, or nobody would know who did it."""
    event = item.event
    metadata = redact(event.metadata, personal=False)
    return {
        "id": event.id,
        "seq": item.seq,
        "leaf": item.leaf,
        "event_type": event.event_type,
        "run_id": event.run_id,
        "continuation_id": event.continuation_id,
        "environment": event.environment,
        "actor": event.actor,
        "metadata": metadata,
        "payload": metadata,
        "created_at": event.at,
        "occurred_at": event.at,
    }


def page(
    name: str,
    items: Sequence[Mapping[str, object]],
    *,
    total: int,
    limit: int,
    offset: int,
    sort_by: str,
    sort_order: str,
) -> Json:
    """One page of a list."""
    return {
        name: list(items),
        "count": len(items),
        "total": total,
        "window": 10_000,
        "limit": limit,
        "offset": offset,
        "sort_by": sort_by,
        "sort_order": sort_order,
    }
