"""Receipts of decisions, written in the transaction of the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kneo import registry
from kneo.clock import new_id, parse_time
from kneo.errors import Invalid
from kneo.names import person_key
from kneo.records.audit import AuditEvent, leaf_of
from kneo.records.task import SIGNED, SIGNED_BY_REVIEWER, Decision, DecisionKind, HumanTask, ReceiptRecord, Vote
from kneo.store import audit, oidc_people, receipts, releases
from kneo.store.engine import Tx
from kneo.tasks.schedule import TIMEOUT_POLICY
from kneo.trust.dsse import parse_envelope, serialise
from kneo.trust.receipt import Receipt, Voter, build_receipt, content_digest, sign_receipt

if TYPE_CHECKING:
    from kneo.spec.models.environment import Environment

NO_KEY = "no_service_key"


def write_receipt(tx: Tx, task: HumanTask, decision: Decision | None, event: AuditEvent) -> ReceiptRecord | None:
    """Sign a decision and append its receipt to the run's chain.

    Args:
        tx: The transaction of the decision; it holds the run's lock.
        task: The task, with the votes that led to the decision.
        decision: The decision; None where a deadline ended the run.
        event: The audit event of the decision.

    Returns:
        The receipt; None where there is no signing key, or the gate asks for no receipt.
    """
    if task.plan.receipt == "none":
        return None
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
        statements=tuple(vote.statement for vote in _decisive(task, decision) if vote.statement is not None),
        audit_event_id=event.id,
        at=tx.at,
    )
    receipts.insert_receipt(tx, record)
    return record


def can_sign(tx: Tx, task: HumanTask) -> bool:
    """Return whether a decision can have the receipt that its gate requires."""
    return task.plan.receipt not in {SIGNED, SIGNED_BY_REVIEWER} or tx.find_key() is not None


def check_can_sign(tx: Tx, task: HumanTask) -> None:
    """Refuse a decision that requires a signed receipt where there is no signing key.

    Raises:
        Invalid: ``no_service_key``.
    """
    if not can_sign(tx, task):
        msg = f"{task.id} requires a signed receipt, and this service has no signing key."
        hint = "Set KNEO_SERV_SERVICE_KEY; kneo keys generate makes one."
        raise Invalid(msg, code=NO_KEY, hint=hint)


def environment_of(tx: Tx, task: HumanTask) -> Environment | None:
    """Return the rules in force of an environment; a name that Git never declared has none."""
    if task.environment is None or releases.environment(tx, task.environment) is None:
        return None
    return registry.declared(tx, task.environment)


def decided_content(decision: Decision) -> dict[str, object]:
    """Return the content of a decision, as its content digest covers it."""
    return {
        "content": decision.content,
        "selectedOption": decision.selected_option,
        "selectedOptions": list(decision.selected_options) if len(decision.selected_options) > 1 else None,
        "values": dict(decision.values) if decision.values else None,
        "feedback": decision.feedback,
        "comment": decision.comment if decision.by == "person" else None,
    }


def _receipt(
    tx: Tx, task: HumanTask, decision: Decision | None, event: AuditEvent, before: ReceiptRecord | None
) -> Receipt:
    environment = environment_of(tx, task)
    size, head = audit.chain_head(tx)
    return Receipt.model_validate(
        {
            "id": new_id("rcp", tx.now),
            "task": task.id,
            "request": task.request_id,
            "run": task.run_id,
            "environment": task.environment,
            "gate": task.key,
            "position": task.position,
            "step": task.step_path,
            "attempt": task.attempt,
            "subject_digest": task.subject_digest,
            "decision": decision.kind.value if decision else "expired",
            "effect": _effect(task, decision),
            "content_digest": content_digest(decided_content(decision)) if decision else None,
            "by": decision.by if decision else TIMEOUT_POLICY,
            "actor": decision.actor if decision else TIMEOUT_POLICY,
            "decided_at": decision.at if decision else tx.at,
            "voters": _voters(tx, task, decision, environment),
            "allow_self": environment.spec.allow_self if environment else False,
            "bundle_digest": task.bundle_digest,
            "policy_digest": environment.policy_digest if environment else None,
            "source": decision.source if decision else None,
            "audit_event": event.id,
            "audit_leaf": leaf_of(event.canonical()),
            "audit_size": size,
            "audit_head": head,
            "sequence": before.sequence + 1 if before else 1,
            "previous": before.digest if before else None,
        }
    )


def _effect(task: HumanTask, decision: Decision | None) -> str | None:
    if decision is None:
        return "fail"
    if decision.kind is not DecisionKind.REJECTED:
        return None
    return decision.effect or task.on_reject


def _decisive(task: HumanTask, decision: Decision | None) -> tuple[Vote, ...]:
    """Return the deciding votes; none for a decision of a deadline or a replay."""
    if decision is None or decision.by != "person":
        return ()
    return tuple(vote for vote in task.votes if vote.actor in decision.voters)


def _voters(tx: Tx, task: HumanTask, decision: Decision | None, environment: Environment | None) -> list[Voter]:
    people = {person_key(name): known for name, known in environment.spec.people.items()} if environment else {}
    voters = []
    for vote in _decisive(task, decision):
        known = people.get(person_key(vote.actor))
        voters.append(
            Voter(
                actor=vote.actor,
                decision=vote.decision.value,
                at=parse_time(vote.at),
                roles=known.roles if known else (),
                groups=known.groups if known else _issued_groups(tx, task, vote.actor),
                via=vote.via,
                statement=parse_envelope(vote.statement.encode()).digest if vote.statement is not None else None,
            )
        )
    return voters


def _issued_groups(tx: Tx, task: HumanTask, name: str) -> tuple[str, ...]:
    """Return the groups that the issuer of tokens states of a person, those alone that the task names."""
    issued = oidc_people.find(tx, name)
    return tuple(group for group in task.candidates.groups if issued is not None and group in issued.groups)
