"""Questions to people: opening a task from a question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from kneo import registry
from kneo.clock import new_id
from kneo.digest import digest_of_json
from kneo.records.run import Run
from kneo.records.task import TAKES_OVER, Candidates, DecisionKind, Escalation, HumanTask, Plan, Quorum, TaskStatus
from kneo.spec.coverage.gates import strengthened
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.models.human import Human
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import tasks
from kneo.store.engine import Tx
from kneo.tasks import people
from kneo.tasks.forms import schema_of
from kneo.tasks.lifecycle import record_event
from kneo.tasks.schedule import add_seconds, next_at

DEFAULT_PROMPT = "Please approve or reject what is shown."

DEFAULT_PRIORITY = 50

FLOW_DIGEST = "flow_digest"
"""The key of a task's metadata with the digest of ``Question.flow``: an answer counts again only where it is the same."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question to people, from which a task is opened."""

    key: str
    """Stable name of the gate over resume and replay."""
    path: str
    step_id: str
    position: str
    human: Human
    subject: str
    decisions: tuple[DecisionKind, ...]
    on_reject: str = "stop"
    kind: str = "approval"
    prompt: str | None = None
    options: tuple[str, ...] | None = None
    attempt: int = 0
    previous: str | None = None
    """What was sent back the last time."""
    consequences: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    """Further information for the person."""
    for_caller: bool = False
    """Whether the program that makes a call is to make it itself; ``human`` takes over where it reports no result."""
    flow: Mapping[str, object] = field(default_factory=dict)
    """The context of an answer: the question, and the data that the run continues with."""


def open_task(tx: Tx, run: Run, question: Question) -> HumanTask:
    """Open the task of a question of a run. People are not notified yet: an earlier answer or a grant may decide it."""
    task = _make(tx, run, question)
    refused = (name for _, name in people.excluded(tx, task)) if task.candidates.exclude else iter(())
    tasks.insert_task(tx, task, people.candidate_rows(task, refused))
    facts = {
        "request_id": task.request_id,
        "step_id": task.step_id,
        "key": task.key,
        "kind": task.kind,
        "subject_digest": task.subject_digest,
    }
    record_event(tx, task, "requested", run.requester, facts)
    return task


def _make(tx: Tx, run: Run, question: Question) -> HumanTask:
    human = strengthened(question.human, _least_asked(tx, run.environment), question.on_reject)
    step_id = question.step_id
    seconds = human.timeout_seconds or 0
    schema = schema_of(human.fields) if human.fields else human.answer_schema
    task = HumanTask(
        id=new_id("cont", tx.now),
        request_id=new_id("req", tx.now),
        run_id=run.id,
        environment=run.environment,
        workflow_name=run.workflow_name,
        workflow_type=run.workflow_type,
        step_id=step_id,
        key=question.key,
        kind=human.request_type or ("freeform" if schema and question.position == "step" else question.kind),
        status=TaskStatus.OPEN,
        version=0,
        title=human.title or human.description or f"{step_id} waits for a decision",
        prompt=question.prompt or human.prompt or human.description or DEFAULT_PROMPT,
        subject=question.subject,
        subject_digest=subject_digest(run, question.path, question.position, question.subject),
        options=question.options,
        default_option=human.default_option,
        decisions=question.decisions,
        assignee=human.assignee,
        timeout_seconds=human.timeout_seconds,
        on_timeout=human.on_timeout,
        on_reject=question.on_reject,
        deadline_at=add_seconds(tx.at, seconds) if seconds > 0 else None,
        escalated_at=None,
        decision=None,
        position=question.position,
        step_path=question.path,
        attempt=question.attempt,
        requester=run.requester,
        bundle_digest=_spec(run),
        previous=question.previous,
        answer_schema=schema,
        multiple=bool(human.multiple),
        candidates=candidates_of(human),
        quorum=quorum_of(human),
        plan=_plan(human),
        consequences=question.consequences,
        priority=DEFAULT_PRIORITY if human.priority is None else human.priority,
        due_at=add_seconds(tx.at, human.due) if human.due else None,
        metadata=_shown(question),
        created_at=tx.at,
        updated_at=tx.at,
    )
    if run.target == CALL_TARGET:
        task = _of_call(task, question)
    return replace(task, next_at=next_at(task))


def _of_call(task: HumanTask, question: Question) -> HumanTask:
    """Return a task of a call: its requester decides nothing about it, and may have to make it itself.

    The time to report begins when the requester begins the call. Input that the tool itself asks for allows nothing, so that the
    requester may give it.
    """
    if task.is_input:
        return task
    others = replace(task.candidates, exclude=tuple(dict.fromkeys((*task.candidates.exclude, "requester"))))
    if not question.for_caller:
        return replace(task, candidates=others)
    return replace(
        task,
        candidates=Candidates(users=(task.requester,)),
        assignee=task.requester,
        on_timeout="escalate",
        deadline_at=None,
        due_at=None,
        plan=Plan(notify=task.plan.notify, receipt=task.plan.receipt),
        metadata={**task.metadata, TAKES_OVER: {name: list(value) for name, value in asdict(others).items()}},
    )


def _least_asked(tx: Tx, environment: str | None) -> QuestionPolicy:
    """Return what an environment asks of every question at least."""
    rules = registry.find_declared(tx, environment)
    return rules.spec.questions if rules is not None else QuestionPolicy()


def candidates_of(human: Human) -> Candidates:
    """Return the candidates of a task that asks a human."""
    declared = human.candidates
    if declared is None:
        return Candidates()
    return Candidates(users=declared.users, groups=declared.groups, roles=declared.roles, exclude=declared.exclude)


def quorum_of(human: Human) -> Quorum:
    """Return the quorum of a task that asks a human."""
    declared = human.quorum
    if declared is None:
        return Quorum()
    each = tuple((one.role, one.approvals) for one in declared.each)
    return Quorum(approvals=declared.approvals, each=each, order=declared.order, reject=declared.reject)


def _plan(human: Human) -> Plan:
    return Plan(
        escalate=tuple(Escalation(after=one.after, to=one.to, notify=one.notify) for one in human.escalate),
        remind=human.remind,
        notify=human.notify,
        links=bool(human.links),
        receipt=human.receipt,
    )


def _shown(question: Question) -> dict[str, object]:
    context = question.human.context
    facts = {
        "context": dict(context) if context else None,
        "facts": dict(question.facts) or None,
        "response_role": question.human.response_role,
        FLOW_DIGEST: digest_of_json(dict(question.flow)) if question.flow else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _spec(run: Run) -> str:
    return run.release.digest if run.release else run.spec_digest


def subject_digest(run: Run, path: str, position: str, subject: str) -> str:
    """Name exactly what a person is shown: the gate, the value, and the spec it came from."""
    return digest_of_json({"position": position, "step": path, "subject": subject, "bundle": _spec(run)})
