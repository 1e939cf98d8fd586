"""Acts on a run, each a page that shows what will happen: cancel, try again, fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from kneo.api.run_history import find_refusal_to_continue
from kneo.api.run_start import RunFork, cancel_run, continue_run, fork_run
from kneo.api.run_steps import StepPageView, list_run_steps
from kneo.api.run_views import RunView
from kneo.api.runs import get_run
from kneo.errors import InvalidValue, KneoError
from kneo.records.run import RunStatus
from kneo.records.task import UNRESOLVED
from kneo.service.console.page import Page, PageRequest, Pages, SeeOther
from kneo.service.console.runs import CHIPS, MENU, name_of

pages = Pages(MENU)

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
