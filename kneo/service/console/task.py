"""The page of a task: its subject, the form that decides it, and its receipt; claiming, delegating, snoozing, commenting."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import zip_longest
from urllib.parse import urlencode

from markupsafe import Markup, escape
from starlette.responses import PlainTextResponse, Response

from kneo.api.decisions import get_human_task, resume_human_task
from kneo.api.inbox import get_inbox
from kneo.api.receipts import get_receipt
from kneo.api.run_views import RunView
from kneo.api.runs import get_run
from kneo.api.task_views import HumanTaskDetailView
from kneo.api.tasks import (
    TaskComment,
    TaskReceiver,
    TaskSnooze,
    claim_human_task,
    comment_human_task,
    delegate_human_task,
    get_human_task_history,
    list_human_tasks,
    snooze_human_task,
    unclaim_human_task,
)
from kneo.clock import isoformat, parse_duration
from kneo.errors import Conflict, Invalid, KneoError, NotFound
from kneo.names import person_key, reveal
from kneo.records.task import GRANTED, UNRESOLVED
from kneo.service.console import inbox, task_words
from kneo.service.console.answer_form import decision_of, form_values
from kneo.service.console.page import Form, Page, PageRequest, Pages, SeeOther, download
from kneo.service.console.runs import CHIPS
from kneo.service.routing import JsonResponse
from kneo.spec.gates import POSITIONS
from kneo.tasks.decisions import CALL

pages = Pages(inbox.pages.place)

RAIL = 30
"""Tasks in the list beside a task."""

SHOWN_CHARS = 100_000
"""Characters of a subject on the page; the rest is a page of its own."""

MESSAGE_CHARS = 20_000
"""Characters of an earlier output on the page."""

ACTIONS = frozenset({"claim", "unclaim", "delegate", "snooze", "comment"})

SNOOZES: Mapping[str, str] = {"1h": "1 hour", "4h": "4 hours", "1d": "1 day", "3d": "3 days", "7d": "1 week"}


@pages.get("/inbox/{task}", scope="human:read")
def show_task(request: PageRequest) -> Page:
    """Show a task."""
    return _page(request)


@pages.post("/inbox/{task}", scope="human:write")
def decide_task(request: PageRequest) -> Page | SeeOther:
    """Decide a task; a refused decision shows the page with what was typed."""
    task = _task(request)
    try:
        request.begin(resume_human_task, task.id, decision_of(task, request.form))
    except KneoError as error:
        if isinstance(error, Conflict) and _was_mine(request):
            return SeeOther(f"/console/inbox/{task.id}")
        return _refused(request, error)
    return SeeOther(f"/console/inbox/{task.id}")


def _was_mine(request: PageRequest) -> bool:
    """Return whether the same form was accepted before: a button was pressed twice."""
    decision = _task(request).decision
    return (
        decision is not None
        and person_key(str(decision["actor"])) == person_key(request.person)
        and decision["kind"] == request.form.get("decision")
    )


@pages.post("/inbox/{task}/{action}", scope="human:write")
def act_on_task(request: PageRequest) -> Page | SeeOther:
    """Claim, release, delegate, snooze or comment on a task."""
    task, action = request.path["task"], request.path["action"]
    if action not in ACTIONS:
        msg = f"A task has no action {action[:40]!r}."
        raise NotFound(msg)
    try:
        match action:
            case "claim":
                request.call(claim_human_task, task)
            case "unclaim":
                request.call(unclaim_human_task, task)
            case "delegate":
                to = request.form.get("to").strip()
                note = request.form.get("note").strip() or None
                request.call(delegate_human_task, task, TaskReceiver.model_construct(to=to, comment=note))
            case "snooze":
                until = isoformat(request.now + _snooze(request.form.get("for")))
                request.call(snooze_human_task, task, TaskSnooze(until=until))
            case "comment":
                request.call(comment_human_task, task, TaskComment(text=request.form.get("text")))
    except KneoError as error:
        return _refused(request, error)
    return SeeOther(f"/console/inbox/{task}")


def _snooze(text: str) -> timedelta:
    if text not in SNOOZES:
        msg = "Choose how long the task is snoozed."
        raise Invalid(msg, code="validation_error")
    return parse_duration(text)


@pages.get("/inbox/{task}/receipt", scope="receipts:read")
def download_receipt(request: PageRequest) -> Response:
    """Download the receipt of a decision, which ``kneo task receipt verify`` verifies."""
    view = request.call(get_receipt, request.path["task"])
    return download(JsonResponse(view), f"receipt-{request.path['task']}.json")


@pages.get("/inbox/{task}/subject", scope="human:read")
def show_subject(request: PageRequest) -> Response:
    """Show the whole subject of a task as plain text."""
    return PlainTextResponse(_task(request).current_input)


def _task(request: PageRequest) -> HumanTaskDetailView:
    return request.call(get_human_task, request.path["task"])


def _refused(request: PageRequest, error: KneoError) -> Page:
    """Return the page of a task with a refusal and what was typed."""
    return _page(request, request.form, error)


def _page(request: PageRequest, typed: Form | None = None, problem: KneoError | None = None) -> Page:
    task = _task(request)
    typed = typed or Form()
    is_open = task.status in UNRESOLVED
    waiting = request.call(get_inbox, limit=RAIL)
    mine = next((vote for vote in task.votes if person_key(str(vote["actor"])) == person_key(request.person)), None)
    events = request.call(get_human_task_history, task.id).events
    edit_limit = request.context.settings.limits.human_content_chars
    run = request.call(get_run, task.run_id) if request.may("runs:read") else None
    values = {
        **form_values(task, typed, edit_limit=edit_limit, shown_chars=SHOWN_CHARS),
        **_difference(request, task),
        "whole_text": f"/console/inbox/{task.id}/subject",
        "is_open": is_open,
        "rail": inbox.rows_of(waiting.items),
        "next_row": next((row for row in inbox.rows_of(waiting.items) if row.id != task.id), None),
        "where": POSITIONS[task.position].where.format(task.step_path),
        "who": task_words.candidates(task),
        "silence": task_words.silence(task.timeout),
        "vote": mine if is_open else None,
        "may_write": request.may("human:write"),
        "may_act": is_open and task.may_answer.ok,
        "sent_back": _sent_back(request, task),
        "events": [(event, task_words.event(event.type, event.data)) for event in events],
        "run": run,
        "run_chips": CHIPS,
        "done": task_words.DONE,
        "snoozes": list(SNOOZES.items()),
        "message_chars": MESSAGE_CHARS,
        "may_read_content": request.may("runs:content"),
        "grant": _grant(task, run),
    }
    return Page("task.html", values, problem=problem, live="inbox")


def _grant(task: HumanTaskDetailView, run: RunView | None) -> Mapping[str, object] | None:
    """Return the standing grant that decided a call or does not cover it, and the address of a draft; ``None`` for other tasks."""
    facts, about = task.metadata.get("facts"), task.metadata.get(GRANTED)
    if task.position != CALL or task.environment is None or not isinstance(facts, Mapping):
        return None
    release = run.metadata.get("release") if run is not None else None
    bundle = release.get("bundle") if isinstance(release, Mapping) else None
    query = urlencode({"environment": task.environment, "bundle": bundle, "tool": facts.get("tool")})
    known = about if isinstance(about, Mapping) else {}
    values = {name: known.get(name) for name in ("id", "not_covered", "number", "of")}
    values["not_covered"] = task_words.NOT_COVERED.get(str(values["not_covered"]))
    return {**values, "draft": f"/console/grants/proposal?{query}" if bundle else None}


def _difference(request: PageRequest, task: HumanTaskDetailView) -> dict[str, object]:
    """Return the changes since the previous version of the subject, and whether they are shown, a call or a text."""
    subject = task.request["subject"]
    previous = subject.get("previous") if isinstance(subject, Mapping) else None
    rows = diff_rows(str(previous), task.current_input) if previous else None
    return {"rows": rows, "shows_changes": rows is not None and request.query.get("view") != "text"}


def _sent_back(request: PageRequest, task: HumanTaskDetailView) -> Mapping[str, object] | None:
    """Return the decision that sent the previous version back."""
    if not task.attempt:
        return None
    earlier = request.call(list_human_tasks, run_id=task.run_id, status="all", step_id=task.step_id, limit=50).tasks
    decisions = [
        each.decision for each in earlier if each.attempt < task.attempt and each.decision and each.decision["feedback"]
    ]
    return decisions[-1] if decisions else None


MAX_LINES = 2_000
"""Lines that are compared; comparing more would cost too much."""

MAX_LINE_CHARS = 2_000
"""Characters of a line whose words are compared."""

DiffRow = tuple[str, str]
"""The kind of a line, ``" "``, ``"-"`` or ``"+"``, and its text or markup."""

_WORD = re.compile(r"\w+|\W")


def diff_rows(before: str, now: str) -> list[DiffRow] | None:
    """Return the lines of two texts; ``None`` where they have too many lines to compare."""
    old, new = before.splitlines(), now.splitlines()
    if len(old) + len(new) > MAX_LINES:
        return None
    rows: list[DiffRow] = []
    for kind, old_from, old_to, new_from, new_to in _changes(old, new):
        if kind == "equal":
            rows += [(" ", line) for line in old[old_from:old_to]]
        else:
            rows += _changed(old[old_from:old_to], new[new_from:new_to])
    return rows


def _changed(old: list[str], new: list[str]) -> Iterator[DiffRow]:
    pairs = [_mark(first, second) for first, second in zip_longest(old, new)]
    yield from (("-", removed) for removed, _ in pairs if removed is not None)
    yield from (("+", added) for _, added in pairs if added is not None)


def _mark(old: str | None, new: str | None) -> tuple[str | None, str | None]:
    """Return two lines with the words that differ marked."""
    if old is None or new is None or len(old) + len(new) > MAX_LINE_CHARS:
        return old, new
    before, after = _WORD.findall(old), _WORD.findall(new)
    removed, added = Markup(), Markup()
    for kind, old_from, old_to, new_from, new_to in _changes(before, after):
        gone, come = _text(before[old_from:old_to]), _text(after[new_from:new_to])
        removed += gone if kind == "equal" or not gone else Markup("<del>{}</del>").format(gone)
        added += come if kind == "equal" or not come else Markup("<ins>{}</ins>").format(come)
    return removed, added


def _text(words: list[str]) -> Markup:
    return escape(reveal("".join(words)))


def _changes(before: list[str], after: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    return difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
