"""Reuse of answers: a run that repeats the past of another run does not ask its questions again.

Only decisions of people count, about exactly the present subject, and only while the people who decided could decide
today: the person who starts such a run gains no decision that they could not have had otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter, ValidationError

from kneo.errors import KneoError
from kneo.names import person_key
from kneo.records.run import Run
from kneo.records.task import ARGUMENTS_DIGEST, GRANTED, REPLAYED, DecisionKind, HumanTask, TaskStatus, Vote
from kneo.store import receipts, runs, tasks
from kneo.store.engine import Tx
from kneo.tasks import decisions, people
from kneo.tasks.decisions import DecisionNotAllowed, DecisionRequest, decision_from_value
from kneo.tasks.grants import is_active
from kneo.tasks.inbox import decide_in, find, record
from kneo.tasks.lifecycle import record_event
from kneo.tasks.questions import FLOW_DIGEST, subject_digest
from kneo.tasks.receipts import must_be_signed

REPLAY = REPLAYED
"""The key of the reuse in the metadata of a run and of its tasks."""

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """The answers of an earlier run that count in a later one."""

    source: str
    """The run with the answers."""
    answers: Mapping[str, object] = field(default_factory=dict)
    """Other decisions, by key, of the person who started the run, where that person may decide."""
    ask: tuple[str, ...] = ()
    """Keys of the questions to ask again, or ``all``."""

    def as_json(self) -> dict[str, object]:
        return {"source": self.source, "answers": dict(self.answers), "ask": list(self.ask)}


def reuse_answer(tx: Tx, run: Run, task: HumanTask, *, of_call: bool = False) -> HumanTask:
    """Answer a newly opened task with the earlier answer, or record why it is asked; return it.

    Args:
        tx: The transaction.
        run: The run.
        task: The task.
        of_call: Whether it is about a call. Its key has a label of the arguments, which others may have too: a new answer by the
            key counts where the earlier run asked about the same call.

    Raises:
        Fenced: another driver has the run.
    """
    reuse = _reuse_of(run)
    if reuse is None:
        return task
    runs.lock_own(tx, run)
    if of_call and task.key in reuse.answers and not _was_asked(tx, reuse.source, task):
        return _note(tx, task, "the new answer is about another subject")
    return _reuse(tx, run, task, reuse, _earlier(tx, reuse.source, task.key), passed=False)


def reuse_passed(tx: Tx, run: Run, task: HumanTask, source: str | None) -> HumanTask:
    """Apply ``reuse_answer`` to a gate that was passed before the point at which the run continues.

    Args:
        tx: The transaction.
        run: The run.
        task: The newly opened task of the gate; its subject is the output of the gate.
        source: The run with the answer; None where no earlier answer may count.

    Raises:
        Fenced: another driver has the run.
    """
    runs.lock_own(tx, run)
    earlier = _earlier(tx, source, task.key) if source is not None else None
    return _reuse(tx, run, task, _reuse_of(run) or Reuse(source=source or run.id), earlier, passed=True)


def _was_asked(tx: Tx, source: str, task: HumanTask) -> bool:
    """Return whether a run asked the question of a task, answered or not, about the same call."""
    asked = (one for one in tasks.of_run(tx, source, TaskStatus) if one.key == task.key)
    return any(_asked_about(one) == _asked_about(task) for one in asked)


def _asked_about(task: HumanTask) -> tuple[str, object]:
    facts = task.metadata.get("facts")
    return task.subject_digest, facts.get(ARGUMENTS_DIGEST) if isinstance(facts, Mapping) else None


def task_output(task: HumanTask) -> str:
    """Return the output of a task: the text that its run continues with."""
    decision = task.decision
    if decision is None:
        return task.subject
    if decision.kind in {DecisionKind.EDITED, DecisionKind.PROVIDED} and task.position != "wait":
        return decision.content or ""
    if decision.kind is DecisionKind.SELECTED and task.position == "step":
        return ", ".join(decision.selected_options) or decision.selected_option or ""
    return task.subject


def why_invalid(tx: Tx, task: HumanTask) -> str | None:
    """Return why the answer of a task no longer holds for its run; ``None`` where it holds.

    Decisions of deadlines follow the spec and hold; answers of people hold while those people may still answer.
    """
    decision = task.decision
    if decision is not None and decision.by == GRANTED:
        return "the grant that answered it has ended" if not is_active(tx, decision.source or "") else None
    if decision is None or decision.by not in {"person", REPLAY}:
        return None
    # Reviewers of later questions are no previous reviewers of this one.
    exclude = tuple(part for part in task.candidates.exclude if part != "previous_reviewers")
    return _votes_fail(tx, replace(task, candidates=replace(task.candidates, exclude=exclude)), task.votes)


def _reuse_of(run: Run) -> Reuse | None:
    stored = run.metadata.get(REPLAY)
    if not isinstance(stored, Mapping):
        return None
    return Reuse(source=stored["source"], answers=stored["answers"], ask=tuple(stored["ask"]))


def _reuse(tx: Tx, run: Run, task: HumanTask, reuse: Reuse, earlier: HumanTask | None, *, passed: bool) -> HumanTask:
    if task.key in reuse.answers:
        why = _override(tx, run, task, reuse.answers[task.key])
    elif ALL in reuse.ask or task.key in reuse.ask:
        why = "the request asks it again"
    elif must_be_signed(task):
        why = "its answers need the signature of the reviewer for this question"
    else:
        why = _again(tx, run, task, earlier, passed=passed)
    now = find(tx, task.id)  # votes may have been added
    return _note(tx, now, why) if why is not None else now


def _note(tx: Tx, task: HumanTask, why: str) -> HumanTask:
    return tasks.note(tx, task, {**task.metadata, REPLAY: {"asked_because": why}})


def _earlier(tx: Tx, source: str, key: str) -> HumanTask | None:
    """Return the last answer to a question in a run."""
    answered = tasks.of_run(tx, source, [TaskStatus.APPLIED, TaskStatus.DECIDED])
    return next((task for task in reversed(answered) if task.key == key), None)


def _override(tx: Tx, run: Run, task: HumanTask, value: object) -> str | None:
    """Decide as the person who started the run; return why that does not suffice."""
    try:
        decided = decide_in(tx, task, _answer(task, value), run.requester)
    except KneoError as error:
        return f"the new answer is refused: {error.message}"
    return None if decided.status is TaskStatus.DECIDED else "more approvals are required"


ANSWER_PARTS = frozenset(
    {"decision", "content", "selected_option", "selected_options", "values", "arguments", "feedback"}
)
"""The parts of an answer that a request may set."""


def _answer(task: HumanTask, value: object) -> DecisionRequest:
    """Parse the value of ``KEY=``: a decision with its parts, the name of a decision, or the value to decide with.

    Raises:
        DecisionNotAllowed: ``human_input_invalid``: a part has another type, or the value does not decide the task.
    """
    if isinstance(value, Mapping) and "decision" in value:
        parts = {name: part for name, part in value.items() if name in ANSWER_PARTS}
        try:
            return TypeAdapter(DecisionRequest).validate_python({**parts, "request_id": task.request_id})
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            msg = f"{where} of the answer to {task.key} does not fit: {first['msg']}."
            raise DecisionNotAllowed(msg, code="human_input_invalid") from error
    if isinstance(value, str) and value in {DecisionKind.APPROVED, DecisionKind.REJECTED} & set(task.decisions):
        return DecisionRequest(request_id=task.request_id, decision=DecisionKind(value))
    return decision_from_value(task, value)


def _again(tx: Tx, run: Run, task: HumanTask, before: HumanTask | None, *, passed: bool) -> str | None:
    """Decide as the earlier decision did; return why that is not possible."""
    if before is None:
        return "this question was not asked before"
    decision = before.decision
    assert decision is not None
    if decision.by not in {"person", REPLAY}:
        return "no person answered it before"
    digest = (
        subject_digest(run, before.step_path, before.position, task_output(before)) if passed else before.subject_digest
    )
    if digest != task.subject_digest:
        return "its subject has changed"
    flow = before.metadata.get(FLOW_DIGEST)
    # The output of a passed gate is part of the state from which the run continues, and did not change.
    if not passed and flow != task.metadata.get(FLOW_DIGEST):
        return "data that the run continues with has changed"
    votes = before.votes
    why = _votes_fail(tx, task, votes)
    if why is not None:
        return why
    receipt = receipts.of_task(tx, before.id)
    used = replace(decision, by=REPLAY, at=tx.at, source=receipt.digest if receipt else None)
    facts = {"key": task.key, "source_run": before.run_id, "source_task": before.id, "source_receipt": used.source}
    record_event(tx, task, "reused", run.requester, facts)
    metadata = {**task.metadata, FLOW_DIGEST: flow, REPLAY: {"reused_from": before.id, "receipt": used.source}}
    noted = tasks.note(tx, task, metadata)
    record(tx, noted, used, votes=votes)
    return None


def _votes_fail(tx: Tx, task: HumanTask, votes: Sequence[Vote]) -> str | None:
    """Return why the votes would not decide a task today; ``None`` where they would."""
    try:
        for vote in votes:
            people.check_known(tx, task.environment, vote.actor)
        known = {person_key(vote.actor): people.check_may_answer(tx, task, vote.actor) for vote in votes}
    except KneoError as error:
        return f"the earlier answer is no longer valid: {error.message}"
    roles = {name: person.roles for name, person in known.items()}
    if decisions.decisive_votes(task.quorum, votes, roles) is None:
        return "more approvals are required now than before"
    return None


def reuse_report(tx: Tx, run_id: str) -> list[dict[str, object]]:
    """Return for every task of a repeated run whether an answer was reused, and else why it is asked."""
    report: list[dict[str, object]] = []
    for task in tasks.of_run(tx, run_id, TaskStatus):
        note = task.metadata.get(REPLAY)
        reuse = note if isinstance(note, Mapping) else {}
        overridden = task.decision is not None and not reuse
        report.append(
            {
                "key": task.key,
                "continuation_id": task.id,
                "reused": "reused_from" in reuse,
                "reason": reuse.get("asked_because", "another answer was given" if overridden else None),
                "source": reuse.get("reused_from"),
                "receipt": reuse.get("receipt"),
            }
        )
    return report
