"""How records look in JSON, over HTTP and with ``--json`` alike. Superset of what the published clients parse.

What runs were given and gave goes out without secrets. Texts that people have to read or judge keep names and addresses;
what is there for machines and for looking back (metadata, trace, checkpoints) goes without those too. What is stored stays
whole: the next step works on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from kneo.redaction import hide_paths, redact, redact_text
from kneo.registry import EnvironmentStatus, reason_of
from kneo.service.task_wire import epoch, human_request, votes_of
from kneo.service.words import say
from kneo.state.audit import SealedEvent
from kneo.state.release import ApprovalRecord, Pending, Promotion, Release
from kneo.state.run import Checkpoint, Run, StepRecord, TraceEvent
from kneo.state.task import UNRESOLVED, HumanTask
from kneo.store import approvals
from kneo.store.engine import Tx

Json = dict[str, object]


def run_created(run: Run, task: HumanTask | None, *, published: bool) -> Json:
    """Answer to starting or continuing a run."""
    return {
        "run_id": run.id,
        "status": say(run.status, published=published),
        "output_text": _text(run.output_text),
        "human_intervention_required": task is not None,
        "continuation_id": task.id if task else None,
        "metadata": run_metadata(run, task),
        "error": _error(run),
    }


def run_status(run: Run, task: HumanTask | None, *, published: bool) -> Json:
    """One run, whole but for its history."""
    visited = list(run.visited_steps)
    step_id = task.step_id if task else (visited[-1] if visited else None)
    is_graph = run.workflow_type == "graph"
    metadata = run_metadata(run, task)
    return {
        "id": run.id,
        "run_id": run.id,
        "status": say(run.status, published=published),
        "agent_name": run.agent_name,
        "workflow_name": run.workflow_name,
        "workflow_kind": run.target,
        "input_text": _text(run.input_text),
        "output_text": _text(run.output_text),
        "current_step_index": None,
        "current_step_id": step_id,
        "current_node_id": step_id if is_graph else None,
        "visited_steps": visited,
        "visited_nodes": visited if is_graph else [],
        "pending_human_request": metadata["pending_human_request"] if task else None,
        "continuation_id": task.id if task else None,
        "trace_event_count": run.trace_count,
        "trace_dropped": 0,
        "session_id": run.metadata.get("session_id"),
        "usage": run.metadata.get("usage"),
        "metadata": metadata,
        "error": _error(run),
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "started_at": run.started_at,
        "completed_at": run.completed_at,
        "deadline_at": epoch(run.deadline_at),
    }


def run_metadata(run: Run, task: HumanTask | None) -> Json:
    values: Json = _clean(run.metadata)
    values["requester"] = run.requester
    values["spec_digest"] = run.spec_digest
    if run.workflow_type is not None:
        values["workflow"] = {
            "name": run.workflow_name,
            "type": run.workflow_type,
            "visited_steps": list(run.visited_steps),
        }
        values["workflow_type"] = run.workflow_type
    if task is not None:
        request = redact(human_request(task), personal=False)
        values |= {
            "human_intervention_required": True,
            "continuation_id": task.id,
            "pending_human_request": request,
            "request": request,
            "pending_step_id": task.step_id,
        }
    return values


def human_resumed(run: Run, answered: HumanTask, following: HumanTask | None, *, published: bool) -> Json:
    """Answer to a decision: where the run went from there."""
    answer = run_created(run, following, published=published)
    metadata = answer["metadata"]
    assert isinstance(metadata, dict)
    metadata["resumed_from_continuation_id"] = answered.id
    if answered.status in UNRESOLVED:
        answer |= votes_of(answered)
    return answer


def _clean(values: Mapping[str, object]) -> Json:
    found = redact(values)
    assert isinstance(found, dict)
    return found


def _text(text: str | None) -> str | None:
    return redact_text(text, personal=False) if text is not None else None


def _error(run: Run) -> Json | None:
    error = run.error
    return {"type": error.type, "message": hide_paths(redact_text(error.message))} if error is not None else None


def view(told: Json) -> Json:
    """A view of a run's past."""
    return _clean(told)


def trace_event(event: TraceEvent) -> Json:
    data = _clean(event.data)
    return {
        "type": event.type,
        "run_id": event.run_id,
        "event_id": event.event_id,
        "sequence": event.sequence,
        "timestamp": event.timestamp,
        "step_id": event.step_id,
        **{key: data.get(key) for key in ("agent_name", "model_provider", "model_name", "tool_name")},
        **{key: data.get(key) for key in ("input_preview", "output_preview", "error")},
        "metadata": {key: value for key, value in data.items() if key not in _TRACE_TOP},
    }


_TRACE_TOP = frozenset(
    {"agent_name", "model_provider", "model_name", "tool_name", "input_preview", "output_preview", "error"}
)


def step(item: StepRecord) -> Json:
    return _clean(asdict(item))


def checkpoint(item: Checkpoint) -> Json:
    return asdict(item) | {"node_id": None, "state": _clean(item.state), "metadata": _clean(item.metadata)}


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
    return asdict(item) | {"who": list(item.who)}


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
        "reason": reason_of(item),
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
