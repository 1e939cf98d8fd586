"""Receipts of decisions, written in the transaction of the decision, and the statements that reviewers sign."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from kneo import registry
from kneo.clock import isoformat, new_id, parse_time
from kneo.digest import Digest
from kneo.errors import Forbidden, Invalid, InvalidValue, Untrusted
from kneo.names import person_key
from kneo.records.audit import AuditEvent, leaf_of
from kneo.records.run import Run
from kneo.records.task import (
    GRANTED,
    SANDBOX,
    SIGNED,
    SIGNED_BY_REVIEWER,
    Decision,
    DecisionKind,
    HumanTask,
    ReceiptRecord,
    Vote,
)
from kneo.store import audit, oidc_people, receipts, runs
from kneo.store.engine import Tx
from kneo.tasks.decisions import CALL, decision_digest
from kneo.tasks.schedule import TIMEOUT_POLICY
from kneo.trust.answer import (
    LASTS_AT_MOST,
    AnswerBinding,
    AnswerStatement,
    ReviewerKeys,
    build_answer,
    open_answer,
    verify_answer,
)
from kneo.trust.dsse import parse_envelope, read_envelope, serialise
from kneo.trust.receipt import Receipt, Voter, build_receipt, content_digest, sign_receipt, without_empty

if TYPE_CHECKING:
    from kneo.spec.models.environment import Environment


log = logging.getLogger("kneo.tasks")

NO_KEY = "no_service_key"


def write_receipt(
    tx: Tx, task: HumanTask, decision: Decision | None, event: AuditEvent, run: Run | None = None
) -> ReceiptRecord | None:
    """Sign a decision and append its receipt to the run's chain.

    Args:
        tx: The transaction of the decision; it holds the run's lock.
        task: The task, with the votes that led to the decision.
        decision: The decision; None where a deadline ended the run.
        event: The audit event of the decision.
        run: The run, where it was read.

    Returns:
        The receipt; None where there is no signing key, or the gate asks for no receipt.
    """
    if task.plan.receipt == "none":
        return None
    key = tx.find_key()
    if key is None:
        return None
    before = receipts.last_before(tx, task.id, task.run_id)
    statement = build_receipt(_receipt(tx, task, decision, event, before, run))
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
    tx: Tx,
    task: HumanTask,
    decision: Decision | None,
    event: AuditEvent,
    before: ReceiptRecord | None,
    run: Run | None,
) -> Receipt:
    environment, use = _rules(tx, task, decision), task.granted_use
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
            "source": decision.source if decision and decision.by != GRANTED else None,
            "audit_event": event.id,
            "audit_leaf": leaf_of(event.canonical()),
            "audit_size": size,
            "audit_head": head,
            "sequence": before.sequence + 1 if before else 1,
            "previous": before.digest if before else None,
            "grant": {name: use[name] for name in ("id", "terms_digest", "number")} if use is not None else None,
            "code": _code(tx, task, run),
            "subject": _subject(task),
        }
    )


def _subject(task: HumanTask) -> dict[str, object] | None:
    """Return the sandbox of a call that a question stated; ``None`` for other questions."""
    facts = task.metadata.get("facts")
    sandbox = facts.get(SANDBOX) if isinstance(facts, Mapping) else None
    return {SANDBOX: sandbox} if sandbox is not None else None


def _code(tx: Tx, task: HumanTask, run: Run | None) -> dict[str, object] | None:
    """Return the code of the bundle that a gated call executes; ``None`` for other questions, and for code of a project."""
    if task.position != CALL:
        return None
    run = run or runs.get(tx, task.run_id)
    bundled = run.metadata.get("code") if run is not None else None
    return {"digest": bundled["digest"], "source": "bundle"} if isinstance(bundled, Mapping) else None


def _rules(tx: Tx, task: HumanTask, decision: Decision | None) -> Environment | None:
    """Return the file in force of the environment of a task.

    A deadline depends on no rule of it: where the file cannot be read, the receipt has no policy digest.

    Raises:
        Invalid, Untrusted: the file cannot be read, and no deadline decided.
    """
    try:
        return registry.find_declared(tx, task.environment)
    except (Invalid, Untrusted) as error:
        if decision is not None and decision.by != TIMEOUT_POLICY:
            raise
        facts = {"event": "receipt_without_rules", "continuation_id": task.id, "code": error.code}
        log.warning("the receipt of the deadline of %s names no rules: %s", task.id, error.message, extra=facts)
        return None


def _effect(task: HumanTask, decision: Decision | None) -> str | None:
    if decision is None:
        return "fail"
    if decision.kind is not DecisionKind.REJECTED:
        return None
    return decision.effect or task.on_reject


def _decisive(task: HumanTask, decision: Decision | None) -> tuple[Vote, ...]:
    """Return the deciding votes; none for a decision of a deadline or a replay."""
    if decision is None or decision.by not in {"person", GRANTED}:
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
    issued = oidc_people.find(tx, name) if task.candidates.groups else None
    return tuple(group for group in task.candidates.groups if issued is not None and group in issued.groups)


@dataclass(frozen=True, kw_only=True)
class UnsignedStatement:
    """An unsigned statement of a decision.

    Attributes:
        statement: The bytes and their content.
        decided_content: The value behind the content digest, for the signer to compare.
    """

    statement: AnswerStatement
    decided_content: Mapping[str, object]


def must_be_signed(task: HumanTask) -> bool:
    """Return whether a task takes only decisions that people sign with keys of their own."""
    return task.plan.receipt == SIGNED_BY_REVIEWER


def check_without_key(task: HumanTask, how: str) -> None:
    """Refuse a channel of decisions that carries no signature.

    Raises:
        Forbidden: ``signature_required``.
    """
    if must_be_signed(task):
        msg = f"{task.id} takes only answers that people sign with their own key, and {how} cannot carry a signature."
        raise Forbidden(msg, code="signature_required", hint=f"kneo task decide {task.id} --key FILE")


def build_statement(tx: Tx, task: HumanTask, decision: Decision, lasts: timedelta) -> UnsignedStatement:
    """Return the statement of a valid decision, for signing.

    Raises:
        Invalid: its lifetime is zero or too long.
    """
    if not timedelta(0) < lasts <= LASTS_AT_MOST:
        msg = f"A signed answer lasts for up to {LASTS_AT_MOST.total_seconds() / 3600:.0f} hours."
        raise InvalidValue(msg, field="expires_in")
    statement = build_answer(_said(tx, task, decision), issued_at=tx.now, expires=tx.now + lasts)
    return UnsignedStatement(statement=statement, decided_content=without_empty(decided_content(decision)))


def check_signature(
    tx: Tx, task: HumanTask, decision: Decision, handed: Mapping[str, object] | None, pin: Digest | None
) -> str | None:
    """Check that a decision has a signature where its gate requires one, and that any signature is valid.

    Args:
        tx: The transaction of the answer.
        task: The task.
        decision: The decision.
        handed: The submitted envelope.
        pin: See ``registry.trust_root``.

    Returns:
        The envelope to keep, as a JSON text; None where there is none.

    Raises:
        Forbidden: ``signature_required``: the required signature is missing.
        Untrusted, Invalid: the signature is not valid; see ``verify_answer``. ``no_trust_root``: no trust root is accepted.
    """
    if handed is None:
        if must_be_signed(task):
            msg = f"{task.id} takes only answers that people sign with their own key."
            raise Forbidden(msg, code="signature_required", hint=f"kneo task decide {task.id} --key FILE")
        return None
    envelope = read_envelope(handed, file="statement")
    root = registry.trust_root(tx, pin)
    if root.expired_at(tx.now):
        msg = f"The trust root expired on {isoformat(root.expires)}; no signed answer is taken until it is renewed."
        raise Untrusted(msg, code="Expired", hint="kneo trust sign --expires 365d --key FILE, then commit.")
    before = next((vote for vote in task.votes if person_key(vote.actor) == person_key(decision.actor)), None)
    after = open_answer(parse_envelope(before.statement.encode())).answer if before and before.statement else None
    verify_answer(
        envelope,
        _said(tx, task, decision),
        reviewers=ReviewerKeys(keys=root.keys, void=root.void),
        now=tx.now,
        after=after.issued_at if after else None,
    )
    return serialise(envelope).decode()


def signature_facts(vote: Vote | None) -> dict[str, object]:
    """Return the digest of the statement of a vote, for the audit log; nothing for an unsigned vote."""
    if vote is None or vote.statement is None:
        return {}
    return {"statement": parse_envelope(vote.statement.encode()).digest}


def _said(tx: Tx, task: HumanTask, decision: Decision) -> AnswerBinding:
    environment = registry.find_declared(tx, task.environment)
    return AnswerBinding.model_validate(
        {
            "task": task.id,
            "request": task.request_id,
            "run": task.run_id,
            "environment": task.environment,
            "gate": task.key,
            "subject_digest": task.subject_digest,
            "decision": decision.kind.value,
            "answer_digest": decision_digest(decision),
            "content_digest": content_digest(decided_content(decision)),
            "reviewer": decision.actor,
            "bundle_digest": task.bundle_digest,
            "policy_digest": environment.policy_digest if environment else None,
        }
    )
