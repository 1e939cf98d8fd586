"""Writing the receipt of a decision, in the transaction that makes it one."""

from __future__ import annotations

from kneo import registry
from kneo.clock import new_id, parse_time
from kneo.spec.environment import Environment
from kneo.state.audit import AuditEvent, leaf_of
from kneo.state.receipt import ReceiptRecord
from kneo.state.task import Decision, DecisionKind, HumanTask
from kneo.store import audit, receipts, releases, runs
from kneo.store.engine import Tx
from kneo.tasks.deadline import POLICY
from kneo.trust.dsse import serialise
from kneo.trust.receipt import Receipt, Voter, build_receipt, content_digest, sign_receipt


def write_receipt(tx: Tx, task: HumanTask, decision: Decision | None, event: AuditEvent) -> ReceiptRecord | None:
    """Sign what was decided and add it to the run's chain.

    Args:
        tx: The transaction of the decision; it holds the run's lock.
        task: The task, with the votes that led to the decision.
        decision: The decision; None where silence ended the run.
        event: What the audit log says about it.

    Returns:
        The receipt; None where there is no key to sign it with.
    """
    key = tx.find_key()
    if key is None:
        return None
    before = receipts.last_of_run(tx, task.run_id)
    statement = build_receipt(_receipt(tx, task, decision, event, before))
    record = ReceiptRecord(
        id=statement.receipt.id,
        task_id=task.id,
        run_id=task.run_id,
        sequence=statement.receipt.sequence,
        digest=statement.digest,
        envelope=serialise(sign_receipt(statement, key)),
        audit_event_id=event.id,
        at=tx.at,
    )
    receipts.insert_receipt(tx, record)
    return record


def _receipt(
    tx: Tx, task: HumanTask, decision: Decision | None, event: AuditEvent, before: ReceiptRecord | None
) -> Receipt:
    environment = _environment(tx, task)
    run = runs.get(tx, task.run_id)
    size, head = audit.chain_head(tx)
    return Receipt.model_validate(
        {
            "id": new_id("rcp", tx.now),
            "task": task.id,
            "request": task.request_id,
            "run": task.run_id,
            "environment": task.environment,
            "gate": task.key,
            "position": str(task.metadata.get("position", "step")),
            "step": str(task.metadata.get("step_path", task.step_id)),
            "attempt": 0,
            "subject_digest": task.subject_digest,
            "decision": decision.kind.value if decision else "expired",
            "effect": _effect(task, decision),
            "content_digest": _content_digest(decision) if decision else None,
            "by": decision.by if decision else POLICY,
            "actor": decision.actor if decision else POLICY,
            "decided_at": decision.at if decision else tx.at,
            "voters": _voters(decision, environment),
            "allow_self": environment.spec.allow_self if environment else False,
            "bundle_digest": (run.release.digest if run.release else run.spec_digest) if run else None,
            "policy_digest": environment.policy_digest if environment else None,
            "source": None,
            "audit_event": event.id,
            "audit_leaf": leaf_of(event.canonical()),
            "audit_size": size,
            "audit_head": head,
            "sequence": before.sequence + 1 if before else 1,
            "previous": before.digest if before else None,
        }
    )


def _environment(tx: Tx, task: HumanTask) -> Environment | None:
    """Read the rules in force; a name that Git never declared has none."""
    if task.environment is None or releases.environment(tx, task.environment) is None:
        return None
    return registry.declared(tx, task.environment)


def _effect(task: HumanTask, decision: Decision | None) -> str | None:
    if decision is None:
        return "fail"
    if decision.kind is not DecisionKind.REJECTED:
        return None
    return decision.effect or task.on_reject


def _content_digest(decision: Decision) -> str | None:
    return content_digest(
        {
            "content": decision.content,
            "selectedOption": decision.selected_option,
            "comment": decision.comment if decision.by == "person" else None,
        }
    )


def _voters(decision: Decision | None, environment: Environment | None) -> list[Voter]:
    if decision is None or decision.by != "person":
        return []
    known = environment.spec.people.get(decision.actor) if environment else None
    return [
        Voter(
            actor=decision.actor,
            decision=decision.kind.value,
            at=parse_time(decision.at),
            roles=known.roles if known else (),
            groups=known.groups if known else (),
        )
    ]
