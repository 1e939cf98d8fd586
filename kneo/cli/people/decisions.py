"""Commands that read a task in detail and decide it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.decisions import DecisionBatch, TaskDecision, get_human_task, resume_human_task, resume_human_tasks
from kneo.api.task_views import HumanTaskView
from kneo.api.tasks import list_human_tasks
from kneo.cli import render
from kneo.cli.backend import Backend
from kneo.cli.commands import examples
from kneo.cli.connection import ProfileOption, ServiceOptions, ServiceUrlOption, backend
from kneo.cli.files import read_bytes
from kneo.cli.people.statements import DecisionOptions, KeyOption, SigningOptions, sign_decision
from kneo.cli.people.tasks import TaskArgument, show_task
from kneo.cli.requests import request
from kneo.cli.runs.outcome import note_of, show_outcome
from kneo.errors import Conflict, Forbidden, Invalid, NotFound, Untrusted, Usage

MAX_FILE_BYTES = 4_194_304
"""Largest file of decisions."""

PAGE_TASKS = 20
"""Tasks that a review reads at a time: few enough that a page is not outdated when its last task is shown."""


@examples("kneo task get cont_01m0", "kneo task get cont_01m0 --json")
def get(task: TaskArgument, *, options: ServiceOptions) -> None:
    """Show a task: its question, its subject and its decisions."""
    with options.open() as opened:
        view = opened.call(get_human_task, task)
    render.emit(view, as_json=options.as_json, text=lambda: show_task(view))


@examples(
    "kneo task decide cont_01m0 --approve",
    "kneo task decide cont_01m0 --reject --reason 'The date is wrong'",
    "kneo task decide cont_01m0 --edit 'The office moves in June' --key ann.pem",
)
def decide(
    task: TaskArgument,
    statement: Annotated[
        Path | None, typer.Option("--statement", help="Or the decision as kneo task sign signed it.")
    ] = None,
    *,
    answer: DecisionOptions,
    signing: SigningOptions,
    options: ServiceOptions,
) -> None:
    """Submit a decision for a task and continue its run.

    Where a gate requires signed decisions, --key signs this one, after a check that the bytes to sign are this decision on
    this task.
    """
    decision = answer.decision()
    if sum(each is not None for each in (signing.key, signing.signer or signing.public, statement)) > 1:
        msg = "Sign a decision once: with --key, with --signer and --public, or with --statement."
        raise Usage(msg)
    with options.open() as opened:
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
    try:
        return json.loads(data)
    except ValueError as error:
        msg = f"{file} is not JSON: {error}."
        raise Invalid(msg) from error


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
