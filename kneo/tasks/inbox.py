"""Actions of people on tasks.

Each is one compare-and-set, stored before any effect. A decision and its effect are two writes: a crash between them
neither asks again nor acts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta

from kneo.clock import isoformat, parse_time
from kneo.digest import Digest, canonical_json, digest_of_json
from kneo.errors import Conflict, Forbidden, InvalidValue, NotFound
from kneo.names import person_key
from kneo.records.run import Run, RunStatus
from kneo.records.task import BEGUN, REPORTED, Decision, DecisionKind, HumanTask, TaskStatus, Vote
from kneo.store import audit, idempotency, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.tasks import decisions, people
from kneo.tasks.decisions import DecisionRequest, check_decision, check_storable, check_unresolved, decision_digest
from kneo.tasks.grant_ends import end_after
from kneo.tasks.lifecycle import apply_due, is_due, record_event
from kneo.tasks.receipts import (
    UnsignedStatement,
    build_statement,
    check_can_sign,
    check_signature,
    signature_facts,
    write_receipt,
)
from kneo.tasks.schedule import add_seconds, next_at
from kneo.telemetry import span

MAX_COMMENT_CHARS = 20_000


def find(tx: Tx, task_id: str) -> HumanTask:
    """Read a task.

    Raises:
        NotFound: there is no such task.
    """
    task = tasks.get(tx, task_id)
    if task is None:
        msg = f"There is no human task {task_id[:80]}."
        raise NotFound(msg, hint="kneo task list shows the open ones.")
    return task


def decide(
    store: Store,
    task_id: str,
    answer: DecisionRequest,
    *,
    actor: str,
    via: str | None = None,
    first: Callable[[Tx, HumanTask], None] | None = None,
    pin: Digest | None = None,
) -> HumanTask:
    """Record the decision of a person: with it the quorum is met, or other votes are still needed.

    Args:
        store: The database.
        task_id: The task.
        answer: The decision.
        actor: The person who decides.
        via: How the decision came where the person did not authenticate: by a link, or by a local developer.
        first: A callback at the start of the transaction; its exception refuses the answer.
        pin: The pinned trust root; see ``registry.trust_root``.

    Returns:
        The task: decided, and its run woken; or still unresolved, with one more vote.

    Raises:
        NotFound: there is no such task.
        Forbidden: ``not_a_candidate`` or ``separation_of_duties``.
        Conflict, DecisionNotAllowed: the answer does not fit; see ``check_decision``. Nothing was written.
        Forbidden, Untrusted, Invalid: the required signature is missing or not valid; see ``check_signature``.
    """
    check_storable(answer)

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        if first is not None:
            first(tx, task)
        return decide_in(tx, task, answer, actor, via, pin)

    with span("kneo.continuation.lock", kneo_continuation__id=task_id, kneo_decision=answer.decision.value):
        return _act(store, task_id, work)


def decide_in(
    tx: Tx, task: HumanTask, answer: DecisionRequest, actor: str, via: str | None = None, pin: Digest | None = None
) -> HumanTask:
    """Do what ``decide`` does, as a part of a transaction that has locked the task's run."""
    decision, person = _fitting(tx, task, answer, actor)
    signed = check_signature(tx, task, decision, answer.statement, pin)
    vote = Vote(
        actor=decision.actor,
        decision=decision.kind,
        answer=decision_digest(decision),
        at=tx.at,
        comment=decision.remark,
        via=via,
        statement=signed,
    )
    return _vote(tx, task, decision, person, vote)


def statement_for(tx: Tx, task_id: str, answer: DecisionRequest, *, actor: str, lasts: timedelta) -> UnsignedStatement:
    """Return the statement that a person signs for a decision. Changes nothing.

    Raises:
        KneoError: the answer would be refused; as ``decide`` says.
        Invalid: the statement would last too long, or not at all.
    """
    check_storable(answer)
    task = find(tx, task_id)
    decision, _ = _fitting(tx, task, answer, actor)
    return build_statement(tx, task, decision, lasts)


def _fitting(tx: Tx, task: HumanTask, answer: DecisionRequest, actor: str) -> tuple[Decision, people.Person]:
    """Check an answer, except for its signature."""
    decision = check_decision(task, answer, actor=actor, at=tx.at)
    return decision, check_decider(tx, task, actor)


def check_decider(tx: Tx, task: HumanTask, actor: str) -> people.Person:
    """Return the person who decides a task, after a check that the person may decide it now.

    Raises:
        Forbidden: ``not_a_candidate`` or ``separation_of_duties``.
        Conflict: the task is resolved, or ``claimed_by_other``.
        Invalid: the required receipt cannot be signed.
    """
    check_unresolved(task)
    person = people.check_may_answer(tx, task, actor)
    _check_free(task, actor)
    check_can_sign(tx, task)
    return person


def _act(store: Store, task_id: str, work: Callable[[Tx, HumanTask], HumanTask]) -> HumanTask:
    """Apply an action to a task, after its due events, which are committed first."""

    def attempt(tx: Tx) -> HumanTask | None:
        if idempotency.made() is not None:
            return find(tx, task_id)
        runs.lock_of_task(tx, task_id)
        task = find(tx, task_id)
        if is_due(tx, task):
            apply_due(tx, task)
            return None
        idempotency.bind(tx, task_id)
        return work(tx, task)

    while (done := store.transact(attempt)) is None:
        pass
    return done


def _vote(tx: Tx, task: HumanTask, decision: Decision, person: people.Person, vote: Vote) -> HumanTask:
    # A vote counts as long as its author may still answer: a person who left the group or the installation has no vote.
    before = [one for one in task.votes if people.may_still_answer(tx, task, one.actor)]
    roles = {person_key(one.actor): people.find_person(tx, task.environment, one.actor).roles for one in before} | {
        person_key(person.name): person.roles
    }
    whose = decisions.next_role(task.quorum, before, roles)
    if whose is not None and whose not in person.roles:
        msg = f"{task.id} asks one role after the other, and {whose} comes first."
        raise Forbidden(msg, code="not_a_candidate", waits_for=whose)
    votes = decisions.add_vote(before, vote)
    decisive = decisions.decisive_votes(task.quorum, votes, roles)
    if decisive is None or vote not in decisive:
        # Changed roles may let earlier votes suffice; the recorded decision is that of the present vote.
        return _store_vote(tx, task, vote, votes)
    agreed = replace(decision, voters=tuple(one.actor for one in decisive))
    return record(tx, task, agreed, votes=votes)


def _store_vote(tx: Tx, task: HumanTask, vote: Vote, votes: tuple[Vote, ...]) -> HumanTask:
    """Store a vote that does not decide yet, and release the task from its voter."""
    changed = _change(tx, task, status=TaskStatus.OPEN, claimed_by=None, snoozed_until=None, votes=votes)
    facts = {"decision": vote.decision, "votes": len(votes), "approvals": task.quorum.approvals}
    facts |= signature_facts(vote) | _carried(vote)
    record_event(tx, task, "voted", vote.actor, facts, kept={"comment": vote.comment})
    return changed


def record(
    tx: Tx,
    task: HumanTask,
    decision: Decision,
    *,
    votes: tuple[Vote, ...] = (),
    metadata: Mapping[str, object] | None = None,
    run: Run | None = None,
) -> HumanTask:
    """Record the decision of a task, with its votes and metadata where they change, and wake its run.

    A run that is passed is not woken: its driver decides.
    """
    changes = {"metadata": metadata} if metadata is not None else {}
    decided = _change(tx, task, status=TaskStatus.DECIDED, decision=decision, votes=votes or task.votes, **changes)
    if run is None:
        runs.signal(tx, task.run_id)
    content = decision.content or ""
    facts = {
        "request_id": task.request_id,
        "decision": decision.kind,
        "has_content": bool(content),
        "content_present": bool(content),
        "content_digest": digest_of_json(content) if content else None,
        "values_digest": digest_of_json(dict(decision.values)) if decision.values else None,
        "selected_option": decision.selected_option,
        "subject_digest": task.subject_digest,
        "by": decision.by,
        # The audit log records that the run continues; its outcome is not known yet.
        "status": RunStatus.RUNNING,
        "result_status": RunStatus.RUNNING,
    }
    last = next((vote for vote in votes if vote.actor == decision.actor), None)
    facts |= signature_facts(last) | _carried(last)
    use = decided.granted_use
    facts |= {"grant": use["id"], "number": use["number"]} if use is not None else {}
    event = record_event(tx, task, "decision", decision.actor, facts, kept={"comment": decision.remark})
    write_receipt(tx, decided, decision, event, run)
    end_after(tx, decided, decision)
    return decided


def _carried(vote: Vote | None) -> dict[str, object]:
    """Return how a vote came, for the audit log, where its author did not authenticate."""
    return {"via": vote.via} if vote is not None and vote.via is not None else {}


def _change(tx: Tx, task: HumanTask, **changes: object) -> HumanTask:
    after = tasks.change(tx, task, **changes, next_at=next_at(replace(task, **changes)))  # type: ignore[arg-type]
    if after is None:
        msg = f"Another person decided {task.id} at the same time."
        raise Conflict(msg, code="human_task_decided", continuation_id=task.id)
    return after


def _check_free(task: HumanTask, actor: str) -> None:
    if task.claimed_by is not None and person_key(task.claimed_by) != person_key(actor):
        msg = f"{task.claimed_by} is working on {task.id}."
        hint = "Ask them to release it, or assign it to yourself."
        raise Conflict(msg, code="claimed_by_other", hint=hint, claimed_by=task.claimed_by)


# ---- around an answer -------------------------------------------------------------------------------------------


def claim(store: Store, task_id: str, *, actor: str) -> HumanTask:
    """Claim a task so that others do not work on it. A second claim changes nothing.

    Raises:
        NotFound, Conflict: there is none to take; ``claimed_by_other``.
        Forbidden: the actor is not a candidate.
    """

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        check_unresolved(task)
        people.check_may_answer(tx, task, actor)
        _check_free(task, actor)
        if task.claimed_by is not None:
            return task
        claimed = _change(tx, task, status=TaskStatus.CLAIMED, claimed_by=actor, snoozed_until=None)
        record_event(tx, task, "claimed", actor)
        return claimed

    return _act(store, task_id, work)


def begin_call(store: Store, task_id: str, *, actor: str, first: Callable[[Tx, HumanTask], None]) -> HumanTask:
    """Claim the task of a program that makes a call itself, once; its time to report the result begins.

    Args:
        store: The database.
        task_id: The task.
        actor: The program.
        first: A callback at the start of the transaction; its exception refuses the beginning.

    Raises:
        Conflict: ``call_begun``, or the task is resolved.
    """

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        if task.claimed_by is not None or not task.is_for_caller:
            raise call_begun(task)
        check_unresolved(task)
        first(tx, task)
        deadline = add_seconds(tx.at, task.timeout_seconds or 0)
        metadata = {**task.metadata, BEGUN: tx.at}
        begun = _change(tx, task, status=TaskStatus.CLAIMED, claimed_by=actor, deadline_at=deadline, metadata=metadata)
        record_event(tx, task, "claimed", actor)
        audit.record(tx, "call.begun", actor=actor, run_id=task.run_id, environment=task.environment)
        return begun

    return _act(store, task_id, work)


def report_call(store: Store, task_id: str, report: Mapping[str, object], *, actor: str) -> HumanTask:
    """Record what a program reports of a call that it began: ``result``, or ``error`` with a text.

    Raises:
        Conflict: ``call_not_allowed``: the call was not begun. ``call_begun``: people have taken over.
    """

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        check_unresolved(task)
        if not task.is_for_caller:
            raise call_begun(task)
        if task.claimed_by is None:
            msg = f"{task.run_id} was not begun."
            raise Conflict(
                msg, code="call_not_allowed", hint="POST /v1/calls/{id}/begin returns the decided arguments."
            )
        decision = Decision(
            kind=DecisionKind.PROVIDED,
            content=canonical_json(dict(report)).decode(),
            data=dict(report),
            selected_option=None,
            comment=None,
            actor=actor,
            by="person",
            at=tx.at,
            effect=REPORTED,
            voters=(actor,),
        )
        vote = Vote(actor=actor, decision=decision.kind, answer=decision_digest(decision), at=tx.at)
        outcome = "failed" if "error" in report else "success"
        facts = {"outcome": outcome}
        audit.record(tx, "call.reported", actor=actor, run_id=task.run_id, environment=task.environment, metadata=facts)
        return record(tx, task, decision, votes=(vote,))

    return _act(store, task_id, work)


def call_begun(task: HumanTask) -> Conflict:
    """Return the refusal to begin a call again, or to report after its end or after people have taken over."""
    begun = f"it was begun at {task.metadata[BEGUN]}" if BEGUN in task.metadata else "it was not begun in time"
    if task.decision is not None and task.decision.effect == REPORTED:
        why = f"{begun}, and its result was reported"
    elif task.escalation > 0:
        why = f"{begun}, and people have taken over"
    else:
        why = f"{begun}, and its result was not reported"
    msg = f"{task.run_id} cannot be begun or reported: {why}."
    return Conflict(msg, code="call_begun", run_id=task.run_id)


def unclaim(store: Store, task_id: str, *, actor: str) -> HumanTask:
    """Release a claimed task.

    Raises:
        Conflict: ``claimed_by_other``, or it is resolved.
    """

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        check_unresolved(task)
        people.check_not_of_caller(task)
        _check_free(task, actor)
        if task.claimed_by is None:
            return task
        released = _change(tx, task, status=TaskStatus.OPEN, claimed_by=None)
        record_event(tx, task, "released", actor)
        return released

    return _act(store, task_id, work)


def assign(store: Store, task_id: str, to: str, *, actor: str, comment: str | None = None) -> HumanTask:
    """Assign a task to a person, and release it from the person who claimed it.

    Raises:
        Invalid: ``invalid_name`` or ``unknown_person``: the person is not declared.
        Forbidden: the person may not answer it; or the actor is excluded from it and so does not choose who answers.
    """

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        check_unresolved(task)
        people.check_not_excluded(tx, task, actor, "assign")
        return _handed(tx, task, _receiver(tx, task, to), actor, "assigned", comment)

    return _act(store, task_id, work)


def delegate(store: Store, task_id: str, to: str, *, actor: str, comment: str | None = None) -> HumanTask:
    """Delegate a task that the actor may decide to another candidate.

    Raises:
        Invalid: ``invalid_name`` or ``unknown_person``: the person is not declared.
        Forbidden: either of them may not answer it.
        Conflict: ``claimed_by_other``.
    """

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        check_unresolved(task)
        people.check_may_answer(tx, task, actor)
        _check_free(task, actor)
        return _handed(tx, task, _receiver(tx, task, to), actor, "delegated", comment)

    return _act(store, task_id, work)


def _receiver(tx: Tx, task: HumanTask, to: str) -> str:
    """Return the declared name of a person who is known and may answer a task."""
    name = people.check_known(tx, task.environment, to)
    people.check_may_answer(tx, replace(task, assignee=None), name)
    return name


def _handed(tx: Tx, task: HumanTask, to: str, actor: str, what: str, comment: str | None) -> HumanTask:
    if comment:
        _check_comment(comment, "comment")
    changed = _change(tx, task, status=TaskStatus.OPEN, claimed_by=None, assignee=to, snoozed_until=None)
    record_event(tx, task, what, actor, {"to": to}, kept={"comment": comment} if comment else None)
    return changed


def snooze(store: Store, task_id: str, until: str, *, actor: str) -> HumanTask:
    """Hide a task until a time. Its deadline does not change.

    Raises:
        Invalid: the time is in the past.
        Conflict: ``claimed_by_other``, or it is resolved.
    """

    def work(tx: Tx, task: HumanTask) -> HumanTask:
        check_unresolved(task)
        people.check_may_answer(tx, task, actor)
        _check_free(task, actor)
        moment = isoformat(parse_time(until))
        if moment <= tx.at:
            msg = f"{until[:60]} is not to come; it is {tx.at}."
            raise InvalidValue(msg, field="until")
        snoozed = _change(tx, task, status=TaskStatus.SNOOZED, claimed_by=None, snoozed_until=moment)
        record_event(tx, task, "snoozed", actor, {"until": moment})
        return snoozed

    return _act(store, task_id, work)


def comment(store: Store, task_id: str, text: str, *, actor: str) -> HumanTask:
    """Comment on a task without deciding it.

    Raises:
        Invalid: the text is empty or too long.
    """
    _check_comment(text, "text")

    def work(tx: Tx) -> HumanTask:
        task = find(tx, task_id)
        if idempotency.made() is not None:
            return task
        idempotency.bind(tx, task_id)
        record_event(tx, task, "commented", actor, {"text_digest": digest_of_json(text)}, kept={"text": text})
        return task

    return store.transact(work)


def _check_comment(text: str, field: str) -> None:
    if not text.strip() or len(text) > MAX_COMMENT_CHARS:
        msg = f"A comment has 1 to {MAX_COMMENT_CHARS} characters."
        raise InvalidValue(msg, field=field)
