"""Statements of decisions: the bytes that people sign with their own keys, and the check of a signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from kneo import registry
from kneo.clock import isoformat
from kneo.digest import Digest
from kneo.errors import Forbidden, InvalidValue, Untrusted
from kneo.names import person_key
from kneo.records.task import SIGNED_BY_REVIEWER, Decision, HumanTask, Vote
from kneo.store.engine import Tx
from kneo.tasks.decisions import decision_digest
from kneo.tasks.receipts import decided_content, environment_of
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
from kneo.trust.receipt import content_digest, without_empty

LASTS = timedelta(minutes=15)
"""Default lifetime of a statement."""


@dataclass(frozen=True, kw_only=True)
class UnsignedStatement:
    """An unsigned statement of a decision.

    Attributes:
        statement: The bytes and their content.
        answered: The value behind the content digest, for the signer to compare.
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
    environment = environment_of(tx, task)
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
