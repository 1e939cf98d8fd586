"""Commands that read a task in detail and decide it, make one-time approval links, and show review statistics."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.decisions import DecisionBatch, TaskDecision, get_human_task, resume_human_task, resume_human_tasks
from kneo.api.links import CreatedLinkView, LinkListView, LinkRequest
from kneo.api.links import create_link as create_operation
from kneo.api.links import list_links as list_operation
from kneo.api.links import revoke_link as revoke_operation
from kneo.api.task_views import HumanTaskView
from kneo.api.tasks import TaskStatsView, get_human_task_stats, list_human_tasks
from kneo.cli import render
from kneo.cli.backend import Backend
from kneo.cli.commands import examples
from kneo.cli.connection import ProfileOption, ServiceOptions, ServiceUrlOption, backend, request
from kneo.cli.files import read_bytes
from kneo.cli.people.statements import DecisionOptions, KeyOption, SigningOptions, sign_decision
from kneo.cli.people.tasks import TaskArgument, show_task
from kneo.cli.runs.run import note_of, show_outcome
from kneo.errors import Conflict, Forbidden, Invalid, NotFound, Untrusted, Usage
from kneo.spec.documents import ReadLimits
from kneo.spec.reading.reader import read_json
from kneo.tasks.review import GateStatistics

MAX_FILE_BYTES = 4_194_304
"""Largest file of decisions."""

PAGE_TASKS = 20
"""Tasks that a review reads at a time: few enough that a page is not outdated when its last task is shown."""


@examples("kneo task get cont_01m0", "kneo task get cont_01m0 --json")
def get(task: TaskArgument, *, options: ServiceOptions) -> None:
    """Show a task: its question, its subject and its decisions."""
    options.show(get_human_task, show_task, task)


@examples(
    "kneo task decide cont_01m0 --approve",
    "kneo task decide cont_01m0 --reject --reason 'The date is wrong'",
    "kneo task decide cont_01m0 --approve --as ann",
    "kneo task decide cont_01m0 --edit 'The office moves in June' --key ann.pem",
)
def decide(
    task: TaskArgument,
    statement: Annotated[
        Path | None, typer.Option("--statement", help="Or the decision as kneo task sign signed it.")
    ] = None,
    person: Annotated[
        str | None,
        typer.Option("--as", help="Try the part of this person: local database, no declared environment, no key."),
    ] = None,
    *,
    answer: DecisionOptions,
    signing: SigningOptions,
    options: ServiceOptions,
) -> None:
    """Submit a decision for a task and continue its run.

    --as tries the part of another person before anything is deployed. The decision is recorded as that person's, made by you.

    Where a gate requires signed decisions, --key signs this one, after a check that the bytes to sign are this decision on
    this task.
    """
    decision = answer.decision()
    if sum(each is not None for each in (signing.key, signing.signer or signing.public, statement)) > 1:
        msg = "Sign a decision once: with --key, with --signer and --public, or with --statement."
        raise Usage(msg)
    is_signed = signing.key or signing.signer or signing.public or statement
    if person is not None and is_signed:
        msg = f"--as {person[:40]} decides without a signature; a key decides for its owner."
        raise Usage(msg, hint="Pass --as or a key, not both.")
    with options.open() as found:
        opened = found if person is None else found.as_person(person)
        signed = sign_decision(opened, task, decision, signing, statement=statement)
        view = opened.call(resume_human_task, task, signed)
        note = note_of(opened, view)
    value = {**vars(view), "note": note} if note else view
    render.emit(value, as_json=options.as_json, text=lambda: show_outcome(view, note))


@examples("kneo task batch decisions.json", "kneo task batch decisions.json --profile prod --json")
def batch(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help='JSON file: {"items": [{"continuation_id", "decision", …}]}.')
    ],
    *,
    options: ServiceOptions,
) -> None:
    """Submit many decisions from a file. Exit status 5 if a decision is refused."""
    content = _read(file)
    items = content.get("items") if isinstance(content, dict) else None
    if not isinstance(items, list):
        msg = f"{file} holds no items."
        raise Invalid(msg, hint='{"items": [{"continuation_id": "cont_…", "decision": "approved"}]}')
    with options.open() as opened:
        view = opened.call(resume_human_tasks, request(DecisionBatch, items=items))
    rows = [[result.continuation_id, result.status or result.error, result.message] for result in view.results]
    render.emit(view, as_json=options.as_json, text=lambda: render.table("", ["Task", "Result", "Message"], rows))
    if view.refused:
        raise typer.Exit(5)


def _read(file: Path) -> object:
    data = read_bytes(file, max_bytes=MAX_FILE_BYTES, what="file of decisions")
    return read_json(data, file=str(file), limits=ReadLimits(max_bytes=MAX_FILE_BYTES)).value


@examples("kneo task review", "kneo task review --candidate ann --key ann.pem")
def review(
    candidate: Annotated[str, typer.Option("--candidate", help="Person whose tasks to review: a name, or me.")] = "me",
    key: KeyOption = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Review your open tasks one by one, the most urgent first."""
    if not sys.stdin.isatty():
        msg = "kneo task review needs a terminal."
        raise Usage(msg, hint="kneo task decide TASK --approve; kneo task list --mine lists your tasks.")
    with backend(service_url, profile) as opened:
        for number, (task, total) in enumerate(_open_tasks(opened, candidate), 1):
            render.text(f"{number} of {total}")
            show_task(task)
            word = _ask_word(task)
            if word == "stop":
                return
            if word != "later":
                _submit(opened, task, ask_decision(task, word), key)
    render.text("No more open tasks.")


def _open_tasks(opened: Backend, candidate: str) -> Iterator[tuple[HumanTaskView, int]]:
    """Yield the open tasks of a candidate, the most urgent first, each with the number of tasks; a page at a time."""
    after: str | None = None
    total: int | None = None
    while True:
        page = opened.call(
            list_human_tasks, candidate=candidate, sort_by="priority", sort_order="desc", limit=PAGE_TASKS, after=after
        )
        total = page.total if total is None else total
        for task in page.tasks:
            yield task, total
        after = page.next_after
        if after is None:
            return


def _submit(opened: Backend, task: HumanTaskView, decision: TaskDecision, key: Path | None) -> None:
    task_id = task.continuation_id
    try:
        opened.call(resume_human_task, task_id, sign_decision(opened, task_id, decision, SigningOptions(key)))
    except (Conflict, Forbidden, Invalid, NotFound, Untrusted) as error:
        # Another person decided first, or this decision is refused; the review continues.
        render.warning(error.message, error.hint)
    else:
        render.success("Submitted.")


def _ask_word(task: HumanTaskView) -> str:
    """Ask for a decision; ``later`` continues with the next task, ``stop`` ends the review."""
    allowed = task.request["decisions"]
    assert isinstance(allowed, list)
    while True:
        word = str(typer.prompt(f"{' / '.join(allowed)} / later / stop", default="later"))
        if word in {*allowed, "later", "stop"}:
            return word


def ask_decision(task: HumanTaskView, word: str) -> TaskDecision:
    """Ask for the parts of a decision: a text, an option or a reason."""
    parts: dict[str, object] = {}
    options = task.request["options"]
    if word in {"edited", "provided"}:
        parts["content"] = typer.prompt("Text")
    elif word == "selected":
        parts["selected_option"] = typer.prompt(f"Option ({', '.join(options if isinstance(options, list) else ())})")
    elif word == "rejected":
        parts["feedback"] = typer.prompt("Reason", default="")
    reviewed = {"request_id": task.pending_human_request_id, "expect_digest": task.request["subject_digest"]}
    return request(TaskDecision, decision=word, **reviewed, **parts)


app = typer.Typer(help="Manage one-time approval links", no_args_is_help=True)


@app.command("create")
@examples("kneo task link create cont_01m0", "kneo task link create cont_01m0 --person ann --expires 30m")
def create(
    task: TaskArgument,
    person: Annotated[str | None, typer.Option("--person", help="Person who decides with it; default: you.")] = None,
    expires: Annotated[str, typer.Option("--expires", help="Lifetime: 30m, 24h, up to 30d.")] = "24h",
    *,
    options: ServiceOptions,
) -> None:
    """Create a one-time link. It is shown only now; who has it can decide the task once, as that person.

    Opening the page of a link changes nothing, so mail scanners do no harm.
    """
    body = request(LinkRequest, person=person, expires_in=expires)
    options.show(create_operation, lambda view: _show_link(view, task), task, body)


def _show_link(view: CreatedLinkView, task: str) -> None:
    render.success(f"{view.person} can decide {task} once, until {view.expires_at}:")
    render.text(view.url or view.path)
    if view.url is None:
        render.text("This is a path. Set KNEO_SERV_PUBLIC_URL to the address of the service for whole links.")


@app.command("list")
@examples("kneo task link list cont_01m0", "kneo task link list cont_01m0 --json")
def list_links(task: TaskArgument, *, options: ServiceOptions) -> None:
    """List the links of a task and the state of each, without their addresses."""
    options.show(list_operation, lambda view: _show_links(view, task), task)


def _show_links(view: LinkListView, task: str) -> None:
    if not view.links:
        render.text(f"{task} has no links.")
        return
    rows = [[link.id, link.person, link.state, link.created_by, link.expires_at] for link in view.links]
    render.table("", ["Link", "Person", "State", "Created by", "Expires"], rows)


@app.command("revoke")
@examples("kneo task link revoke cont_01m0 lnk_01m0", "kneo task link revoke cont_01m0 lnk_01m0 --json")
def revoke(
    task: TaskArgument,
    link_id: Annotated[str, typer.Argument(metavar="LINK", help="Id of the link, as kneo task link list shows.")],
    *,
    options: ServiceOptions,
) -> None:
    """Revoke a link."""
    options.show(revoke_operation, lambda _view: render.success(f"Revoked {link_id}."), task, link_id)


BAR_CHARS = 16
"""Characters of a bar."""

PARTS = (("approved", "█"), ("selected", "█"), ("provided", "█"), ("edited", "▒"), ("rejected", "░"))

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m"))


@examples("kneo task stats", "kneo task stats --env prod --since 7d --json")
def stats(
    since: Annotated[str, typer.Option("--since", help="Period in which the tasks were opened: 30d, 12h, …")] = "30d",
    environment: Annotated[
        str | None, typer.Option("--env", "--environment", help="Only gates of this environment.")
    ] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only gates of this workflow.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Show review statistics for each gate: response times, edits, rejections, agreement.

    A gate is marked where most decisions approve the subject unchanged, in less time than reading it takes.
    """
    options.show(get_human_task_stats, _show_stats, since=since, environment=environment, workflow_name=workflow)


def _show_stats(view: TaskStatsView) -> None:
    if not view.gates:
        render.text("No decisions in this period.")
        return
    columns = ["Gate", "Decisions", "█ as shown ▒ edited ░ rejected", "Median", "90 %", "Changed", "Agreed"]
    render.table(f"Since {view.since}", columns, [_stats_row(gate) for gate in view.gates])
    for gate in view.gates:
        if gate.rubber_stamp:
            quick = f"{gate.quick_share:.0%} of approvals came before the subject could have been read"
            hint = "Ask less often (sample, when), show less, or require two people."
            render.warning(f"{_gate_name(gate)} looks like a rubber stamp: {quick}.", hint)
    if view.truncated:
        render.warning(f"The statistics cover the newest {view.tasks} tasks only; there are more in this period.")


def _stats_row(gate: GateStatistics) -> list[object]:
    undecided = [
        f"{count} {word}" for count, word in ((gate.by_deadline, "by deadline"), (gate.expired, "expired")) if count
    ]
    return [
        _gate_name(gate),
        f"{gate.by_people}" + (f" (+ {', '.join(undecided)})" if undecided else ""),
        bar(gate.decisions),
        duration(gate.median_seconds),
        duration(gate.p90_seconds),
        _percent(gate.edit_distance),
        _percent(gate.agreement),
    ]


def _gate_name(gate: GateStatistics) -> str:
    return "/".join(place for place in (gate.environment, gate.workflow_name, gate.gate) if place is not None)


def bar(decisions: Mapping[str, int]) -> str:
    """Draw decisions as one line, each as long as its share; every decision shows."""
    whole = sum(decisions.values())
    if not whole:
        return ""
    marks: dict[str, int] = {}
    for word, mark in PARTS:
        marks[mark] = marks.get(mark, 0) + decisions.get(word, 0)
    lengths = {mark: max(1, round(BAR_CHARS * count / whole)) if count else 0 for mark, count in marks.items()}
    longest = max(lengths, key=lambda mark: lengths[mark])
    lengths[longest] += BAR_CHARS - sum(lengths.values())
    return "".join(mark * length for mark, length in lengths.items())


def duration(seconds: float | None) -> str:
    """Return seconds as text: ``40 s``, ``1.5 h``."""
    if seconds is None:
        return ""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _percent(share: float | None) -> str:
    return f"{share:.0%}" if share is not None else ""
