"""Questions of the interpreter as tasks for people: their prompts, the seed of sampling, and consequences of decisions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, combinations, islice
from typing import Any

from kneo.digest import Digest, digest_of, digest_of_json
from kneo.errors import KneoError
from kneo.records.run import Run
from kneo.records.task import ARGUMENTS_DIGEST, UNRESOLVED, Decision, DecisionKind, HumanTask, TaskStatus
from kneo.runtime.engine.programs import migrate_state
from kneo.runtime.interpreter.node import FORWARDED, Ask, DecisionContext, Execute, Frame, RunEnded, TaskDecided
from kneo.runtime.interpreter.program import Program, actions, open_questions, settle, waiting
from kneo.runtime.program.compiler import compile_program
from kneo.spec.gates import POSITIONS, positions_of
from kneo.spec.models.environment import read_spec
from kneo.spec.models.human import Human
from kneo.spec.models.spec import Spec
from kneo.store import runs, tasks
from kneo.store.engine import Tx
from kneo.tasks.grants import CallAsked
from kneo.tasks.questions import Question


def question(
    ask: Ask, run: Run, consequences: Mapping[str, object], messages: Callable[[], Sequence[Message]]
) -> Question:
    """Return the task of a question; ``messages`` looks up the outputs of the steps."""
    gate, human = ask.gate, ask.gate.human
    template = human.prompt or human.description
    return Question(
        key=ask.key,
        path=ask.path,
        step_id=ask.step_id,
        position=gate.position,
        human=human,
        subject=ask.subject.text,
        decisions=gate.decisions,
        on_reject=gate.on_reject,
        kind=POSITIONS[gate.position].request_type,
        prompt=ask.prompt or (prompt_of(template, ask, run, messages) if template else None),
        options=ask.options,
        attempt=ask.attempt,
        previous=ask.previous,
        consequences=consequences,
        facts=ask.facts,
        for_caller=gate.for_caller,
        flow=_flow(ask, prompt_of(template, ask, replace(run, id=""), messages) if template else ask.prompt),
    )


def _flow(ask: Ask, prompt: str | None) -> Mapping[str, object]:
    """Return the values, besides the subject, that an answer depends on: variables and metadata decide the next step."""
    kept = {name: part for name, part in ask.subject.as_json().items() if name not in {"text", "review"}}
    call = {ARGUMENTS_DIGEST: ask.facts[ARGUMENTS_DIGEST]} if ARGUMENTS_DIGEST in ask.facts else {}
    return {"value": kept, "prompt": prompt, "options": list(ask.options or ()), **call}


MAX_PROMPT_CHARS = 20_000
"""Longest prompt; the task's subject has the whole text."""

Message = tuple[str, str]
"""The path of a step, and its output."""

_SLOT = re.compile(r"\{\{\s*([a-zA-Z_][a-zA-Z0-9_.#/-]{0,200})\s*\}\}")


def render(template: str, names: Mapping[str, str]) -> str:
    """Fill in ``{{ input }}`` and the other names; unknown names stay unchanged.

    Values are not searched for names: braces in a value are only text.
    """
    parts: list[str] = []
    length = done = 0
    for slot in _SLOT.finditer(template):
        value = names.get(slot[1], slot[0])
        parts += (template[done : slot.start()], value)
        length, done = length + slot.start() - done + len(value), slot.end()
        if length > MAX_PROMPT_CHARS:  # a long value in many places must not be written out before it is truncated
            break
    filled = "".join([*parts, template[done:]])
    return filled if len(filled) <= MAX_PROMPT_CHARS else filled[:MAX_PROMPT_CHARS] + "...[truncated]"


def prompt_of(template: str, ask: Ask, run: Run, messages: Callable[[], Sequence[Message]]) -> str:
    """Return the prompt of a question.

    Names: ``input``, ``output`` and ``previous.output`` (the subject), ``previous.status``, ``previous.rejected``
    and ``previous.feedback`` (the rejected result and its feedback), ``messages`` (the outputs of the steps),
    ``messages.first``, ``messages.last``, ``messages.count``, ``steps.<path>.output``, ``variables.<name>``,
    ``values.<field>``, ``outputs.<step>`` (of parallel ones), ``run.id``, ``run.input``, ``run.requester``,
    ``run.environment``, ``run.workflow``, ``run.metadata.<key>`` (the caller's metadata), ``step.id``, and the
    question's own facts, such as ``iteration`` or ``error``.

    Args:
        template: The template.
        ask: The question.
        run: The run.
        messages: Looks up the outputs of the steps in their order; called only where the template needs them.
    """
    wanted = {slot[1] for slot in _SLOT.finditer(template)}
    names = _names(ask, run)
    if any(name.split(".")[0] in {"messages", "steps"} for name in wanted):
        names |= _step_outputs(messages())
    return render(template, names)


def _names(ask: Ask, run: Run) -> dict[str, str]:
    value = ask.subject
    review = value.review
    caller = run.metadata.get("caller_metadata")
    metadata = caller if isinstance(caller, Mapping) else {}
    return {
        "input": value.text,
        "output": value.text,
        "previous.output": value.text,
        "previous.status": value.status,
        "previous.rejected": ask.previous or (review.previous_output if review else ""),
        "previous.feedback": review.feedback if review else "",
        "run.id": run.id,
        "run.input": run.input_text,
        "run.requester": run.requester,
        "run.environment": run.environment or "",
        "run.workflow": run.workflow_name or "",
        "step.id": ask.step_id,
        **{f"run.metadata.{name}": _text(content) for name, content in metadata.items()},
        **{f"variables.{name}": content for name, content in value.variables.items()},
        **{f"values.{name}": _text(content) for name, content in value.values.items()},
        **{f"outputs.{name}": content for name, content in value.outputs.items()},
        **{name: _text(content) for name, content in ask.facts.items()},
        **{f"error.{name}": _text(content) for name, content in _map(ask.facts.get("error")).items()},
    }


def _step_outputs(messages: Sequence[Message]) -> dict[str, str]:
    texts = [text for _, text in messages]
    return {
        "messages": "\n".join(f"{path}: {text}" for path, text in messages),
        "messages.count": str(len(messages)),
        "messages.first": texts[0] if texts else "",
        "messages.last": texts[-1] if texts else "",
        **{f"steps.{path}.output": text for path, text in messages},
    }


def _map(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


SAMPLING_INPUT = "case_input"
"""The key of a fork's metadata with the digest of its changed input."""

_DATE_CHARS = len("2026-01-31")

CACHED_SEEDS = 1_024
"""Each transaction of a run asks for its seed."""


def sampling_seed_of(run: Run, *, new_input: str | None = None) -> str:
    """Return the sampling seed of a run; with ``new_input`` that of its fork.

    The seed consists of values that a restarted run shares: the exact spec, environment, target, input and day. A requester
    cannot avoid a review by starting the run again; a daily run with the same input is sampled like any other.
    """
    changed = run.metadata.get(SAMPLING_INPUT)
    if new_input is not None or not isinstance(changed, str):
        changed = input_digest(run.input_text if new_input is None else new_input)
    return sampling_seed(run.spec_digest, run.environment, run.target, changed, run.created_at)


@lru_cache(maxsize=CACHED_SEEDS)
def sampling_seed(spec_digest: str, environment: str | None, target: str, input_hash: str, at: str) -> str:
    """Return the sampling seed of a run of a spec."""
    day = at[:_DATE_CHARS]
    case = {"spec": spec_digest, "environment": environment, "target": target, "input": input_hash, "day": day}
    return digest_of_json(case)


def run_facts(requester: str, environment: str | None, workflow: str | None) -> dict[str, object]:
    """Return the facts of a run that expressions compare."""
    return {"requester": requester, "environment": environment, "workflow": workflow}


def decision_context(run: Run, tx: Tx) -> DecisionContext:
    """Return the context of the interpreter for a run."""
    facts = run_facts(run.requester, run.environment, run.workflow_name)
    return DecisionContext(now=tx.now, seed=run.id, sampling_seed=sampling_seed_of(run), run=facts)


def input_digest(text: str) -> str:
    return digest_of(text.encode())


MAX_OPTIONS = 50
"""Options whose consequences are computed."""

MAX_SHOWN_PROMPT_CHARS = 300
"""Characters of the prompt of a following question."""

_ANY_SLOT = re.compile(r"\{\{[^{}]*\}\}")


def consequences(program: Program, state: Frame, ask: Ask, context: DecisionContext) -> dict[str, object]:
    """Return the next steps and questions of each decision, or how the run ends.

    Args:
        program: The program.
        state: The state of its run.
        ask: The question, open or about to be asked.
        context: The time and the chances of the run.

    Returns:
        By decision: ``calls`` (tools that are called), ``next`` (paths of steps), ``asks`` (following questions: ``key``, ``human``,
        ``prompt``), ``ends`` (the run's status); where nothing
        follows yet, ``waits`` (keys of the other open questions) and ``running`` (paths of the steps under way). Where a
        condition reads the text or the form of the answer, ``depends_on`` is ``answer``, and ``branches`` has each of these. A
        rejection also has its ``effect`` and what it ``skips``: a step, or a call as ``step → tool``. For ``selected`` all of it stands under ``options``.
    """
    asked = open_questions(program, state, context)
    before = {action.ticket for action in actions(program, asked)}
    found: dict[str, object] = {}

    def after(kind: DecisionKind, option: str | None = None) -> dict[str, object]:
        answers = possible_answers(program, ask, kind)
        branches: dict[Digest, dict[str, object]] = {}
        for answer in answers:
            branch = _after(program, asked, ask, replace(answer, **_chosen(option)), context, before)
            branches.setdefault(digest_of_json(_without_prompts(branch)), branch)
        first, *others = branches.values()
        leads_to: dict[str, object] = {"depends_on": "answer", "branches": [first, *others]} if others else first
        makes_call = ask.of_call and ask.gate.position == "tool" and kind in _LET_PASS
        return _with_call(program, asked, ask, kind, context, leads_to) if makes_call else leads_to

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
        if ask.of_call and ask.gate.position in positions_of("call"):
            rejected["skips"] = [f"{ask.path} → {ask.facts['tool']}"]
        elif _next_of(found.get(DecisionKind.APPROVED.value)).isdisjoint(_next_of(rejected)):
            skipped = _guarded(ask)
            if skipped is not None:
                rejected["skips"] = [skipped]
    return found


_LET_PASS = frozenset({DecisionKind.APPROVED, DecisionKind.EDITED})
"""The answers of a gate at a call after which the call may be made."""


def _with_call(
    program: Program, state: Frame, ask: Ask, kind: DecisionKind, context: DecisionContext, found: dict[str, object]
) -> dict[str, object]:
    """Return the consequence of an answer that lets a call pass: it is made, or a further gate asks about it first.

    Every other gate asks again about arguments that a person edited.
    """
    arguments = ask.facts.get("arguments")
    if "gate" not in ask.facts or not isinstance(arguments, Mapping):
        return found  # a question about an interrupted call, or of an earlier version
    step = _step_after(program, state, ask, kind, context)
    added, filled = (step.activity.call_gates, step.filled) if step is not None else ((), {})
    asking = program.tool_gates.of_step(added, context.sampling_seed, {"values": filled, "run": context.run})
    found_gates = asking(str(ask.facts["agent"]), str(ask.facts["tool"]), arguments)
    gates = [each.id for each in found_gates if not each.unless_unattended]
    own = str(ask.facts["gate"])
    others = gates[gates.index(own) + 1 :] if own in gates else []
    if kind is DecisionKind.EDITED:
        others = [each for each in gates if each != own]
    if not others:
        return {**found, "calls": [ask.facts["tool"]]}
    asked = [_asked_by(each, program.tool_gates.compiled[each].human) for each in others]
    return {**found, "next": [], "asks": asked}


def _step_after(
    program: Program, state: Frame, ask: Ask, kind: DecisionKind, context: DecisionContext
) -> Execute | None:
    """Return the step that continues with an answer about one of its calls; ``None`` where it waits for others."""
    [answer] = possible_answers(program, ask, kind)
    after = settle(program, state, ask.ticket, TaskDecided(decision=answer), context)
    due = [] if isinstance(after, RunEnded) else actions(program, after)
    return next((each for each in due if isinstance(each, Execute) and each.activity.path == ask.path), None)


def call_asked(program: Program, state: Frame, ask: Ask, context: DecisionContext) -> CallAsked | None:
    """Return the call that a gate asks about; ``None`` for any other question."""
    arguments, tool = ask.facts.get("arguments"), program.spec.tools.get(str(ask.facts.get("tool")))
    if not ask.of_call or "gate" not in ask.facts or tool is None or not isinstance(arguments, Mapping):
        return None

    def facts() -> dict[str, object]:
        step = _step_after(program, state, ask, DecisionKind.APPROVED, context)
        known = {"values": step.filled if step is not None else {}, "run": context.run}
        return {**known, "args": arguments, "tool": ask.facts["tool"], "agent": ask.facts["agent"]}

    return CallAsked(tool=tool, human=ask.gate.human, facts=facts)


def _guarded(ask: Ask) -> str | None:
    return ask.path if ask.gate.position == "before" else None


def _next_of(consequence: object) -> frozenset[tuple[object, ...]]:
    """Return the next steps of each branch of a consequence."""
    if not isinstance(consequence, Mapping):
        return frozenset()
    branches = consequence.get("branches", [consequence])
    return frozenset(tuple(branch.get("next", ())) for branch in branches)


def _chosen(option: str | None) -> dict[str, Any]:
    return {"selected_option": option, "selected_options": (option,) if option else ()}


def _without_prompts(branch: Mapping[str, object]) -> dict[str, object]:
    asks = branch.get("asks")
    keys = [each["key"] for each in asks if isinstance(each, Mapping)] if isinstance(asks, list) else []
    return {**branch, "asks": keys}


MAX_ANSWERS = 32
"""Answers with which a consequence is computed."""

ANY_TEXT = "…"
"""A text with which nothing is compared."""

_WITH_TEXT = frozenset({DecisionKind.EDITED, DecisionKind.PROVIDED, DecisionKind.REJECTED})
_READS_TEXT = frozenset({"output_contains", "output_equals", "variable_equals", "metadata_equals"})


def possible_answers(program: Program, ask: Ask, kind: DecisionKind) -> list[Decision]:
    """Return answers of one kind that conditions of the program can tell apart.

    The first one has a text with which no condition compares; the others have the texts and the form values of conditions. Each
    consequence of one of them is a consequence that the decision can have.
    """
    answer = Decision(kind=kind, content=None, selected_option=None, comment=None, actor="", by="person", at="")
    if ask.of_call:  # its edited arguments go to the tool; no condition reads them
        return [replace(answer, content="") if kind in {DecisionKind.EDITED, DecisionKind.PROVIDED} else answer]
    answers = [answer]
    if kind in _WITH_TEXT:
        compared = dict.fromkeys(str(each.value) for each in program.comparisons if each.type in _READS_TEXT)
        bare = (text.removeprefix(FORWARDED) for text in compared)
        pairs = (f"{one} {other}" for one, other in combinations(compared, 2))
        texts = dict.fromkeys(islice(chain((ANY_TEXT, " ".join(compared)), compared, bare, pairs), 2 * MAX_ANSWERS))
        answers = [replace(answer, content=text) for text in texts if text or kind is DecisionKind.REJECTED]
    if ask.gate.human.fields:
        names = {f"{ask.step_id}.{field.name}": field.name for field in ask.gate.human.fields}
        forms = [{names[each.key]: each.value} for each in program.comparisons if each.key in names]
        together = {name: value for form in forms for name, value in form.items()}
        filled = [replace(answers[0], values=form) for form in (*forms, together) if form]
        answers = [answers[0], *filled, *answers[1:]]
    return answers[:MAX_ANSWERS]


def _after(
    program: Program,
    state: Frame,
    ask: Ask,
    decision: Decision,
    context: DecisionContext,
    before: Collection[str],
) -> dict[str, object]:
    after = settle(program, state, ask.ticket, TaskDecided(decision=decision), context)
    if isinstance(after, RunEnded):
        return {"ends": after.status.value, **({"error": after.error.type} if after.error else {})}
    new = [action for action in actions(program, after) if action.ticket not in before]
    leads_to: Mapping[str, list[object]] = {
        # Behind the only step of a call is the program that makes it.
        "next": [action.activity.path for action in new if isinstance(action, Execute) and not program.is_call],
        "asks": [_asked_by(action.key, action.gate.human, action.prompt) for action in new if isinstance(action, Ask)],
        "waits": [other.key for other in waiting(program, after).values()] if not new else [],
        "running": [a.activity.path for a in actions(program, after) if isinstance(a, Execute)] if not new else [],
    }
    return {name: values for name, values in leads_to.items() if values or name == "next"}


def _asked_by(key: str, human: Human, asked: str | None = None) -> dict[str, object]:
    candidates = human.candidates
    names = [human.assignee] if human.assignee else []
    if candidates is not None:
        names += [name for name in (*candidates.users, *candidates.groups, *candidates.roles) if name not in names]
    template = asked or human.title or human.prompt or human.description
    prompt = _ANY_SLOT.sub("…", template)[:MAX_SHOWN_PROMPT_CHARS] if template else None
    return {"key": key, "human": ", ".join(names) or None, "prompt": prompt}


CACHED_PROGRAMS = 32


def spec_of(tx: Tx, run: Run) -> Spec | None:
    """Return the spec that a run executes; ``None`` where it is no longer kept.

    Raises:
        Invalid: this version cannot read it.
    """
    body = runs.load_spec(tx, run.spec_digest)
    return _program(body, run.target).spec if body is not None and digest_of(body) == run.spec_digest else None


def as_it_stands(tx: Tx, task: HumanTask) -> HumanTask:
    """Return an open task with the consequences of each decision in the present state of its run.

    The row has the consequences of the time when the task was opened; other decisions may have changed them since. A
    resolved task keeps the row's; where the run's program cannot be read, there are none rather than outdated ones.
    """
    run = runs.get(tx, task.run_id) if task.status in UNRESOLVED else None
    if run is None:
        return task
    try:
        found = _found(tx, runs.check(tx, run), task)
    except KneoError:
        found = {}
    return replace(task, consequences=found)


def _found(tx: Tx, run: Run, task: HumanTask) -> Mapping[str, object]:
    body = runs.load_spec(tx, run.spec_digest)
    if body is None or digest_of(body) != run.spec_digest:
        return {}
    program = _program(body, run.target)
    context = decision_context(run, tx)
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
