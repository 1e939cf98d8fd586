"""A run: its graph, its steps on a time axis, the conversations of its agents, and acts on it: cancel, try again, fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from kneo.api.run_conversation import ConversationsView, ConversationView, get_run_conversation
from kneo.api.run_history import find_refusal_to_continue, get_run_graph
from kneo.api.run_start import RunFork, cancel_run, continue_run, fork_run
from kneo.api.run_steps import StepGateView, StepPageView, list_run_steps
from kneo.api.run_views import RunView
from kneo.api.runs import get_run
from kneo.errors import InvalidValue, KneoError, NotFound
from kneo.records.run import RunStatus, dollars
from kneo.records.task import UNRESOLVED
from kneo.service.console.page import Page, PageRequest, Pages, SeeOther
from kneo.service.console.render import span
from kneo.service.console.run_rows import ROW_CHARS, RunGraph, run_graph, step_rows, step_states
from kneo.service.console.runs import CHIPS, MENU, environment_of, name_of, release_of, seconds_of

pages = Pages(MENU)

PAGE_SIZE = 50
"""Steps of a page."""

RESULT_CHARS = 20_000

MOST_MESSAGES, MESSAGE_CHARS = 30, 1_000
"""Messages of the conversation on the page of a run, the latest, and characters of each text; a page of its own has the whole."""

TEXT_CHARS = 100_000
"""Characters of one text on the page of a step."""


@pages.get("/runs/{run_id}", scope="runs:read")
def show_run(request: PageRequest) -> Page:
    """Show a run."""
    run_id = request.path["run_id"]
    run = request.call(get_run, run_id)
    offset = _offset(request)
    listed = request.call(list_run_steps, run_id, limit=PAGE_SIZE, offset=offset, text_chars=ROW_CHARS)
    gates = gates_of_page(listed)
    rows, axis, times = step_rows(listed.steps, gates, request.now, first=offset)
    release = release_of(run)
    last = offset + len(listed.steps)
    has_agents = any(step.kind == "agent" or step.model is not None for step in listed.steps)
    talk, hidden = _talk(request, run_id) if has_agents else ([], 0)
    waiting = [gate for gate in listed.gates if gate.status in UNRESOLVED]
    return Page(
        "run.html",
        {
            "run": run,
            "name": name_of(run),
            "chip": CHIPS[run.status],
            "release": release,
            "environment": environment_of(run),
            "took": span(seconds_of(run, request)),
            "worked": _worked(times.worked, times.waited) if listed.total <= PAGE_SIZE else "",
            "cost": _cost(run),
            "questions": waiting if request.may("human:read") else [],
            "failed_step": next((step.path for step in reversed(listed.steps) if step.status == "failed"), ""),
            "can_continue": _can_continue(request, run),
            "is_under_way": run.status in {RunStatus.RUNNING, RunStatus.PAUSED},
            "may_change": request.may("runs:write"),
            "may_trace": request.may("releases:read"),
            "may_audit": request.may("audit:read"),
            "may_read_content": request.may("runs:content"),
            "may_read_tasks": request.may("human:read"),
            "has_agents": has_agents,
            "talk": talk,
            "talk_hidden": hidden,
            "graph": _graph(request, run, listed),
            "rows": rows,
            "is_squeezed": bool(axis.squeezed),
            "result": (run.output_text or "")[:RESULT_CHARS],
            "result_is_cut": len(run.output_text or "") > RESULT_CHARS,
            "shown": f"Steps {offset + 1} to {last} of {listed.total}" if listed.total > PAGE_SIZE else "",
            "next_url": request.query.with_values(offset=str(last)) if last < listed.total else "",
            "previous_url": request.query.with_values(offset=str(max(offset - PAGE_SIZE, 0))) if offset else "",
        },
        live="runs",
    )


def _talk(request: PageRequest, run_id: str) -> tuple[list[ConversationView], int]:
    """Return the latest messages of a run's conversations, and the number of earlier ones."""
    try:
        found = request.call(get_run_conversation, run_id, text_chars=MESSAGE_CHARS)
    except KneoError:
        # The journal is sealed with a key that this process does not have; the steps say the rest.
        return [], 0
    left, shown = MOST_MESSAGES, list[ConversationView]()
    for each in reversed(found.conversations):
        if left <= 0:
            break
        shown.append(replace(each, messages=each.messages[-left:]))
        left -= len(each.messages)
    total = sum(len(each.messages) for each in found.conversations)
    return shown[::-1], max(total - MOST_MESSAGES, 0)


def _can_continue(request: PageRequest, run: RunView) -> bool:
    """Return whether to offer another attempt at the step that failed."""
    if run.status != RunStatus.FAILED or not request.may("runs:write"):
        return False
    return find_refusal_to_continue(request.context, run.id) is None


def _offset(request: PageRequest) -> int:
    text = request.query.get("offset", "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 6):
        msg = f"offset is not a number of steps: {text[:40]!r}."
        raise InvalidValue(msg, field="offset")
    return int(text)


def gates_of_page(listed: StepPageView) -> list[StepGateView]:
    """Return the gates that opened while the steps of a page ran; the last page has all later ones."""
    first = listed.steps[0].started_at if listed.offset and listed.steps else None
    is_last = listed.offset + len(listed.steps) >= listed.total
    ends = [step.completed_at for step in listed.steps if step.completed_at is not None]
    last = None if is_last or not ends else max(ends)
    return [
        gate
        for gate in listed.gates
        if (first is None or gate.opened_at >= first) and (last is None or gate.opened_at <= last)
    ]


def _worked(worked: float, waited: float) -> str:
    return f"{span(worked)}, people {span(waited)}" if waited else span(worked)


def _cost(run: RunView) -> str:
    if run.usage is None:
        return ""
    tokens = f"{run.usage.total_tokens:,} tokens"
    return f"{dollars(run.usage.cost_micros)}, {tokens}" if run.usage.cost_micros is not None else tokens


def _graph(request: PageRequest, run: RunView, listed: StepPageView) -> RunGraph | None:
    """Return the graph of a run; ``None`` where its spec is gone."""
    try:
        view = request.call(get_run_graph, run.id)
    except KneoError:
        # The spec was pruned or cannot be read by this version; the steps say the rest.
        return None
    states = step_states(view.nodes, view.visited, listed.steps, listed.gates, RunStatus(run.status))
    attempts = {step.path: step.attempt or 0 for step in listed.steps}
    return run_graph(
        view.nodes,
        view.edges,
        states,
        attempts,
        draw_all=request.query.get("graph") == "all",
    )


@pages.get("/runs/{run_id}/steps/{number}", scope="runs:read")
def show_step(request: PageRequest) -> Page:
    """Show one attempt at a step with its whole input and output, and its tool calls."""
    run_id, number = request.path["run_id"], request.path["number"]
    run = request.call(get_run, run_id)
    steps = []
    if number.isascii() and number.isdecimal() and 0 < int(number[:6]) <= 10_000:
        steps = request.call(list_run_steps, run_id, limit=1, offset=int(number) - 1).steps
    if not steps:
        msg = f"The run {run_id} has no step {number[:20]!r}."
        raise NotFound(msg, code="step_not_found", hint="The page of the run lists its steps.")
    step = steps[0]
    calls: list[dict[str, object]] = []
    if step.tool_calls:
        known = _contents(request, run_id, step.path) if request.may("runs:content") else {}
        calls = [
            {"call": call, "name": call.tool or call.key, "content": known.get(call.key)} for call in step.tool_calls
        ]
    return Page(
        "step.html",
        {
            "run": run,
            "name": name_of(run),
            "step": step,
            "took": span(step.milliseconds / 1000) if step.milliseconds is not None else "",
            "texts": [
                (title, text[:TEXT_CHARS], len(text) > TEXT_CHARS)
                for title, text in [("Input", step.input), ("Output", step.output)]
                if text is not None
            ],
            "calls": calls,
            "may_read_content": request.may("runs:content"),
            "may_change": request.may("runs:write"),
        },
    )


def _contents(request: PageRequest, run_id: str, step: str) -> dict[str, tuple[str, str]]:
    """Return the arguments and the result of each tool call of a step, by the key of the call."""
    found = request.call(get_run_conversation, run_id, step=step)
    calls = (call for each in found.conversations for message in each.messages for call in message.tool_calls)
    return {call.key: (call.arguments or "", call.result or "") for call in calls}


@pages.get("/runs/{run_id}/conversation", scope="runs:read")
def show_conversation(request: PageRequest) -> Page:
    """Show what the agents of a run and their models wrote."""
    run = request.call(get_run, request.path["run_id"])
    step = request.query.get("step")
    found: ConversationsView = request.call(get_run_conversation, run.id, step=step[:2_000] or None)
    return Page("conversation.html", {"run": run, "name": name_of(run), "step": step, "found": found}, live="runs")


MAX_LISTED = 1_000
"""Steps that a page of an act looks at, the first ones."""

SCOPES = ("runs:read", "runs:write")


def _page(request: PageRequest, template: str, problem: KneoError | None, **values: object) -> Page:
    run = request.call(get_run, request.path["run_id"])
    steps = request.call(list_run_steps, run.id, limit=MAX_LISTED, text_chars=1)
    known: dict[str, object] = {
        "run": run,
        "name": name_of(run),
        "chip": CHIPS[run.status],
        "steps": steps,
        **_consequences(run, steps),
    }
    return Page(template, known | values, problem=problem)


def _consequences(run: RunView, steps: StepPageView) -> dict[str, object]:
    """Return what an act on a run finds: open questions, steps under way, and the effects that remain."""
    done = [step.path for step in steps.steps if step.status == "completed" and step.kind != "human"]
    return {
        "questions": [gate for gate in steps.gates if gate.status in UNRESOLVED],
        "under_way": [step.path for step in steps.steps if step.completed_at is None],
        "done": list(dict.fromkeys(done)),
        "failed_step": next((step.path for step in reversed(steps.steps) if step.status == "failed"), ""),
        "is_under_way": run.status in {RunStatus.RUNNING, RunStatus.PAUSED},
    }


def _recovery(request: PageRequest) -> dict[str, object]:
    """Return whether a run can be continued, and why not."""
    refusal = find_refusal_to_continue(request.context, request.path["run_id"])
    return {"can_continue": refusal is None, "refusal": refusal}


@dataclass(frozen=True)
class RunAct:
    """An act on a run: its path, its page, and what it does; ``perform`` returns the id of the run, ``values`` more of the page."""

    name: str
    template: str
    perform: Callable[[PageRequest], str]
    values: Callable[[PageRequest], dict[str, object]] = lambda _: {}


ACTS = (
    RunAct("cancel", "run_cancel.html", lambda request: request.call(cancel_run, request.path["run_id"]).id),
    RunAct(
        "continue",
        "run_continue.html",
        lambda request: request.begin(continue_run, request.path["run_id"]),
        _recovery,
    ),
)
"""The acts without choices: cancel a run, and try a failed run again from the step that failed."""


def _show(act: RunAct) -> Callable[[PageRequest], Page]:
    return lambda request: _page(request, act.template, None, **act.values(request))


def _perform(act: RunAct) -> Callable[[PageRequest], Page | SeeOther]:
    def perform(request: PageRequest) -> Page | SeeOther:
        try:
            run_id = act.perform(request)
        except KneoError as error:
            return _page(request, act.template, error, **act.values(request))
        return SeeOther(f"/console/runs/{run_id}")

    return perform


for _act in ACTS:
    pages.get(f"/runs/{{run_id}}/{_act.name}", scope=SCOPES)(_show(_act))
    pages.post(f"/runs/{{run_id}}/{_act.name}", scope=SCOPES)(_perform(_act))


@pages.get("/runs/{run_id}/fork", scope=SCOPES)
def ask_to_fork(request: PageRequest) -> Page:
    """Show from which steps a run can be forked, and which steps run again."""
    return _fork_page(request, None, step=request.query.get("step"))


@pages.post("/runs/{run_id}/fork", scope=SCOPES)
def accept_fork(request: PageRequest) -> Page | SeeOther:
    """Start a run from a step of another one."""
    form = request.form
    changes = form.get("change_input") == "yes"
    try:
        body = RunFork(
            step=form.get("step") or None,
            input=form.get("input") if changes else None,
            ask=form.all("ask"),
        )
        run_id = request.begin(fork_run, request.path["run_id"], body)
    except ValidationError as error:
        problem = InvalidValue(f"The form cannot be accepted: {error.errors()[0]['msg']}.", code="invalid_form")
        return _fork_page(request, problem, step=form.get("step"))
    except KneoError as error:
        return _fork_page(request, error, step=form.get("step"))
    return SeeOther(f"/console/runs/{run_id}")


def _input(request: PageRequest, number: int) -> str:
    """Return the whole input of a step."""
    found = request.call(list_run_steps, request.path["run_id"], limit=1, offset=number).steps
    return (found[0].input if found else None) or ""


def _fork_page(request: PageRequest, problem: KneoError | None, *, step: str) -> Page:
    page = _page(request, "run_fork.html", problem)
    listed = page.values["steps"]
    assert isinstance(listed, StepPageView)
    paths = list(dict.fromkeys(one.path for one in listed.steps if one.status in {"completed", "failed"}))
    chosen = step if step in paths else ""
    number, started = next(((at, one) for at, one in enumerate(listed.steps) if one.path == chosen), (0, None))
    again = paths[paths.index(chosen) :] if chosen else []
    before = [
        gate
        for gate in listed.gates
        if gate.decision is not None and (started is None or gate.opened_at <= (started.started_at or ""))
    ]
    values = {
        "paths": paths,
        "chosen": chosen,
        "again": again,
        "gates": list({gate.key: gate for gate in before}.values()),
        "input": request.form.get("input") or (_input(request, number) if started is not None else ""),
        "change_input": request.form.get("change_input") == "yes",
        "asked": request.form.all("ask"),
    }
    return Page(page.template, {**page.values, **values}, problem=problem)
