"""What happens to a task, written down twice: for those who look at the task, and, without content, in the audit log."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.records.audit import AuditEvent
from kneo.records.task import HumanTask
from kneo.store import audit, tasks
from kneo.store.engine import Tx

Facts = Mapping[str, object]


def happened(
    tx: Tx, task: HumanTask, what: str, actor: str | None, facts: Facts | None = None, *, kept: Facts | None = None
) -> AuditEvent:
    """Record an event; return what the audit log has of it.

    Args:
        tx: The transaction of the change itself.
        task: The task.
        what: ``requested``, ``claimed``, ``decision`` and so on.
        actor: Who did it; ``None`` for time.
        facts: What everybody may know; goes into the audit log too.
        kept: What people wrote; stays with the task.
    """
    tasks.add_event(tx, task, what, actor, {**(facts or {}), **(kept or {})})
    return audit.record(
        tx,
        f"human.{what}",
        actor=actor,
        run_id=task.run_id,
        continuation_id=task.id,
        environment=task.environment,
        metadata=facts,
    )
