"""``kneo human``: the inbox."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from pydantic import TypeAdapter

from cli import render
from cli.backend import Backend, Json, Query
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.people.answer_options import (
    ApproveOption,
    EditOption,
    KeyOption,
    ProvideOption,
    PublicOption,
    ReasonOption,
    RejectOption,
    RequestIdOption,
    SelectOption,
    SignerOption,
    read_answer,
)
from cli.runs.outcome import show_outcome
from kneo.api.run_waiting import RunResumedView
from kneo.errors import Usage

app = typer.Typer(no_args_is_help=True)

ME = "me"
"""Whoever asks, in the words of the service."""

Order: TypeAlias = Literal["created_at", "priority", "due_at", "expires_at"]

QUESTION_CHARS = 100
"""Most of a question that a list shows."""

TaskArgument = Annotated[str, typer.Argument(metavar="CONTINUATION_ID")]


@app.command("list")
def list_tasks(
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only tasks of this run.")] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="pending, escalated, overdue, all, open, claimed, decided, …; left out: unanswered."
        ),
    ] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only what you may answer.")] = False,
    environment: Annotated[str | None, typer.Option("--env", help="Only tasks of this environment.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only tasks of this workflow.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="approval, review, correction, selection or freeform.")
    ] = None,
    assignee: Annotated[
        str | None, typer.Option("--assignee", help="Only what this person is asked: a name, or me.")
    ] = None,
    text: Annotated[str | None, typer.Option("--search", help="Only tasks with this in their title.")] = None,
    sort_by: Annotated[
        Order | None, typer.Option("--sort", help="Left out: the oldest first; of what is overdue, the longest due.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 100,
    after: Annotated[str | None, typer.Option("--after", help="Go on after this task.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what waits for people, the oldest first."""
    query: Query = {
        "run_id": run_id,
        "status": status,
        "candidate": ME if mine else None,
        "environment": environment,
        "workflow_name": workflow,
        "kind": kind,
        "assignee": assignee,
        "q": text,
        "sort_by": sort_by,
        "sort_order": "desc" if sort_by == "priority" else None,
        "limit": limit,
        "after": after,
    }
    with backend(service_url, profile) as asked:
        answer = asked.tasks(query)
    render.emit(answer, as_json=as_json, text=lambda: _show_list(answer))


def _show_list(answer: Json) -> None:
    items = answer["tasks"]
    assert isinstance(items, list)
    if not items:
        render.text("Nothing waits for a person.")
        return
    rows = [
        [
            item["continuation_id"],
            item["request"]["request_id"],
            item["step_id"],
            textwrap.shorten(item["request"]["prompt"], QUESTION_CHARS, placeholder=" …"),
            item["environment"],
            item["claimed_by"] or item["assignee"],
            item["created_at"],
        ]
        for item in items
    ]
    columns = ["Task", "Request", "Step", "Question", "Environment", "With", "Since"]
    render.table("", columns, rows, unbroken=("Task", "Request"))
    following = answer.get("next_after")
    if following is not None:
        render.text(f"{len(items)} of {answer['total']}. What follows: --after {following}")


@app.command("get")
def get(
    continuation_id: TaskArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one question and what it is about."""
    with backend(service_url, profile) as asked:
        answer = asked.task(continuation_id)
    render.emit(answer, as_json=as_json, text=lambda: show_task(answer))


def show_task(task: Json) -> None:
    request = task["request"]
    assert isinstance(request, dict)
    lines = [
        ("Question", f"{request['prompt']}"),
        ("About", f"{request['context']['input_text']}"),
        ("Run", f"{task['run_id']} at {task['step_id']}"),
        ("Status", f"{task['status']}"),
        ("Request", f"{request['request_id']}"),
        ("Answers", f"{', '.join(request['decisions'])}"),
    ]
    if task.get("receipt") == "signed_by_reviewer":
        lines.append(("Signed", "by whoever answers, with a key of their own: --key"))
    if request["assignee"]:
        lines.append(("For", f"{request['assignee']}"))
    render.panel(f"Task {task['continuation_id']}", lines)


@app.command("resume")
def resume(
    continuation_id: TaskArgument,
    request_id: RequestIdOption,
    approve: ApproveOption = False,
    reject: RejectOption = False,
    edit: EditOption = None,
    provide: ProvideOption = None,
    select: SelectOption = None,
    reason: ReasonOption = None,
    key: KeyOption = None,
    signer: SignerOption = None,
    public: PublicOption = None,
    statement: Annotated[
        Path | None, typer.Option("--statement", help="Or this answer as kneo human sign signed it.")
    ] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question; the run goes on from there.

    Where answers have to be signed by whoever gives them, --key signs this one, after looking that what is signed is this
    answer to this question and nothing else.
    """
    answer = read_answer(
        request_id, approve=approve, reject=reject, edit=edit, provide=provide, select=select, reason=reason
    )
    if sum(each is not None for each in (key, signer or public, statement)) > 1:
        msg = "An answer is signed once: with --key, with --signer and --public, or with --statement."
        raise Usage(msg)
    with backend(service_url, profile) as asked:
        answer = sign(asked, continuation_id, answer, statement=statement, key=key, signer=signer, public=public)
        result = asked.resume(continuation_id, answer)
    run, note = TypeAdapter(RunResumedView).validate_python(result), result.get("note")
    render.emit(result, as_json=as_json, text=lambda: show_outcome(run, str(note) if note else None))


def sign(
    asked: Backend,
    task_id: str,
    answer: Json,
    *,
    statement: Path | None = None,
    key: Path | None = None,
    signer: str | None = None,
    public: Path | None = None,
) -> Json:
    """Return an answer with whoever gives it vouching for it; as it is where nothing was given to sign with."""
    if not any((statement, key, signer, public)):
        return answer
    # Most answers are not signed, and cryptography takes its time to import.
    from cli.people.answer_signing import read_signed, sign_answer
    from cli.specs.signer import signing_key

    if statement is not None:
        return {**answer, "statement": read_signed(statement)}
    private = signing_key(key, signer, public)
    assert private is not None, "one of them was given"
    return {**answer, "statement": sign_answer(asked, task_id, answer, private)}
