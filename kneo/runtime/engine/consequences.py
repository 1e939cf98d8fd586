"""Consequences of decisions: each decision of a question, tried on the state of its run."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache

from kneo.digest import digest_of
from kneo.errors import KneoError
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, Decision, DecisionKind, HumanTask, TaskStatus
from kneo.runtime.engine.programs import migrate_state
from kneo.runtime.engine.questions import sampling_seed_of
from kneo.runtime.interpreter.node import Ask, DecisionContext, Execute, Frame, RunEnded, TaskDecided
from kneo.runtime.interpreter.program import Program, actions, open_questions, settle, waiting
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.environment import read_spec
from kneo.store import runs, tasks
from kneo.store.engine import Tx

MAX_OPTIONS = 50
"""Options whose consequences are computed."""

MAX_PROMPT_CHARS = 300
"""Characters of the prompt of a following question."""

_SLOT = re.compile(r"\{\{[^{}]*\}\}")


def consequences(program: Program, state: Frame, ask: Ask, context: DecisionContext) -> dict[str, object]:
    """Return the next steps and questions of each decision, or how the run ends.

    Args:
        program: The program.
        state: The state of its run.
        ask: The question, open or about to be asked.
        context: The time and the chances of the run.

    Returns:
        By decision: ``next`` (paths of steps), ``asks`` (following questions: ``key``, ``human``,
        ``prompt``), ``ends`` (the run's status); where nothing
        follows yet, ``waits`` (keys of the other open questions) and ``running`` (paths of the steps under way). A
        rejection also has its ``effect`` and what it ``skips``: a step, or a call as ``step → tool``. For ``selected`` all of it stands under ``options``.
    """
    asked = open_questions(program, state, context)
    before = {action.ticket for action in actions(program, asked)}
    found: dict[str, object] = {}

    def after(kind: DecisionKind, option: str | None = None) -> dict[str, object]:
        return _after(program, asked, ask, kind, context, before, option)

    for kind in ask.gate.decisions:
        if kind is DecisionKind.SELECTED:
            options = [option for option in ask.options or () if option][:MAX_OPTIONS]
            if options:
                found[kind.value] = {"options": {option: after(kind, option) for option in options}}
            continue
        found[kind.value] = after(kind)
    if DecisionKind.REJECTED in ask.gate.decisions:
        rejected = found[DecisionKind.REJECTED.value]
        assert isinstance(rejected, dict)
        rejected["effect"] = ask.gate.on_reject
        if ask.of_call and ask.gate.position in {"tool", "external"}:
            rejected["skips"] = [f"{ask.path} → {ask.facts['tool']}"]
        elif rejected.get("next") != found.get(DecisionKind.APPROVED.value, {}).get("next"):  # type: ignore[attr-defined]
            skipped = _guarded(ask)
            if skipped is not None:
                rejected["skips"] = [skipped]
    return found


def _guarded(ask: Ask) -> str | None:
    return ask.path if ask.gate.position == "before" else None


def _after(
    program: Program,
    state: Frame,
    ask: Ask,
    kind: DecisionKind,
    context: DecisionContext,
    before: Collection[str],
    option: str | None,
) -> dict[str, object]:
    decision = Decision(
        kind=kind,
        content="" if kind in {DecisionKind.EDITED, DecisionKind.PROVIDED} else None,
        selected_option=option,
        selected_options=(option,) if option else (),
        comment=None,
        actor="",
        by="person",
        at="",
    )
    after = settle(program, state, ask.ticket, TaskDecided(decision=decision), context)
    if isinstance(after, RunEnded):
        return {"ends": after.status.value, **({"error": after.error.type} if after.error else {})}
    new = [action for action in actions(program, after) if action.ticket not in before]
    leads_to: Mapping[str, list[object]] = {
        "next": [action.activity.path for action in new if isinstance(action, Execute)],
        "asks": [_following(action) for action in new if isinstance(action, Ask)],
        "waits": [other.key for other in waiting(program, after).values()] if not new else [],
        "running": [a.activity.path for a in actions(program, after) if isinstance(a, Execute)] if not new else [],
    }
    return {name: values for name, values in leads_to.items() if values or name == "next"}


def _following(ask: Ask) -> dict[str, object]:
    """Return a following question: its key, the people it asks, and its prompt.

    ``human`` is None where everyone who may decide tasks may answer. The content that the prompt quotes is not known yet: an
    ellipsis stands for each value.
    """
    human = ask.gate.human
    candidates = human.candidates
    names = [human.assignee] if human.assignee else []
    if candidates is not None:
        names += [name for name in (*candidates.users, *candidates.groups, *candidates.roles) if name not in names]
    template = ask.prompt or human.title or human.prompt or human.description
    prompt = _SLOT.sub("…", template)[:MAX_PROMPT_CHARS] if template else None
    return {"key": ask.key, "human": ", ".join(names) or None, "prompt": prompt}


CACHED_PROGRAMS = 32


def as_it_stands(tx: Tx, task: HumanTask) -> HumanTask:
    """Return an open task with the consequences of each decision in the present state of its run.

    The row has the consequences of the time when the task was opened; other decisions may have changed them since. A
    resolved task keeps the row's; where the run's program cannot be read, there are none rather than outdated ones.
    """
    run = runs.get(tx, task.run_id) if task.status in UNRESOLVED else None
    if run is None:
        return task
    try:
        found = _found(tx, run, task)
    except KneoError:
        found = {}
    return replace(task, consequences=found)


def _found(tx: Tx, run: Run, task: HumanTask) -> Mapping[str, object]:
    body = runs.load_spec(tx, run.spec_digest)
    if body is None or digest_of(body) != run.spec_digest:
        return {}
    program = _program(body, run.target)
    context = DecisionContext(now=tx.now, seed=run.id, sampling_seed=sampling_seed_of(run))
    state = _decided(tx, run, program, context)
    if isinstance(state, RunEnded):
        return {kind.value: {"next": [], "ends": state.status.value} for kind in task.decisions}
    ask = waiting(program, state).get(task.id)
    return consequences(program, state, ask, context) if ask is not None else {}


def _decided(tx: Tx, run: Run, program: Program, context: DecisionContext) -> Frame | RunEnded:
    """Return the state of a run once the answers that are recorded and not applied yet have taken effect."""
    state: Frame | RunEnded = migrate_state(run.state, run.state_version)
    for answered in tasks.of_run(tx, run.id, [TaskStatus.DECIDED]):
        if isinstance(state, RunEnded):
            return state
        ask = waiting(program, state).get(answered.id)
        if ask is not None and answered.decision is not None:
            state = settle(program, state, ask.ticket, TaskDecided(decision=answered.decision), context)
    return state


@lru_cache(maxsize=CACHED_PROGRAMS)
def _program(body: bytes, target: str) -> Program:
    return compile_program(read_spec(body), target)
