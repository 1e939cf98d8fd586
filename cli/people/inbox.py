"""Working on the inbox: taking tasks, handing them on, answering one after the other."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Backend, Json, Query
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.files import read_bytes
from cli.people.answer_options import KeyOption
from cli.people.human import TaskArgument, show_task, sign
from kneo.clock import SystemClock, isoformat, parse_duration
from kneo.errors import Conflict, Forbidden, Invalid, NotFound, Untrusted, Usage

MAX_FILE_BYTES = 4_194_304
"""Largest file of answers."""

REVIEWED_AT_ONCE = 20
"""Questions that a review reads at a time: few enough that what it asks has not become old meanwhile."""

STOP: Json = {}
"""What somebody says who has had enough."""

ToOption = Annotated[str, typer.Option("--to", help="Whose it shall be.")]


def _act(
    task: str, verb: str, body: Json, service_url: str | None, profile: str | None, *, as_json: bool, said: str
) -> None:
    with backend(service_url, profile) as asked:
        answer = asked.act(task, verb, body)
    render.emit(answer, as_json=as_json, text=lambda: render.success(said))


def claim(
    continuation_id: TaskArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a task, so that nobody else works on it."""
    _act(continuation_id, "claim", {}, service_url, profile, as_json=as_json, said=f"{continuation_id} is yours.")


def release(
    continuation_id: TaskArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give back a task that you took."""
    said = f"{continuation_id} is anybody's again."
    _act(continuation_id, "unclaim", {}, service_url, profile, as_json=as_json, said=said)


def assign(
    continuation_id: TaskArgument,
    to: ToOption,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make somebody the one who is asked first."""
    said = f"{continuation_id} is for {to} now."
    _act(continuation_id, "assign", {"to": to}, service_url, profile, as_json=as_json, said=said)


def delegate(
    continuation_id: TaskArgument,
    to: ToOption,
    remark: Annotated[str | None, typer.Option("--comment", help="Why.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand a task that is yours to answer to somebody else who may."""
    body: Json = {"to": to}
    if remark is not None:
        body["comment"] = remark
    said = f"{continuation_id} is for {to} now."
    _act(continuation_id, "delegate", body, service_url, profile, as_json=as_json, said=said)


def snooze(
    continuation_id: TaskArgument,
    hide_for: Annotated[str | None, typer.Option("--for", help="For how long: 30m, 4h, 2d.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Or until when, as an ISO-8601 time.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hide a task for a while; its deadline stays where it is."""
    if (hide_for is None) == (until is None):
        msg = "Say for how long or until when, one of them."
        raise Usage(msg, hint="kneo human snooze TASK --for 4h")
    moment = until or isoformat(SystemClock().now() + _length(hide_for))
    said = f"{continuation_id} comes back at {moment}."
    _act(continuation_id, "snooze", {"until": moment}, service_url, profile, as_json=as_json, said=said)


def _length(text: str | None) -> timedelta:
    assert text is not None
    return parse_duration(text)


def comment(
    continuation_id: TaskArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say something about a task without answering it."""
    _act(continuation_id, "comments", {"text": text}, service_url, profile, as_json=as_json, said="Noted.")


def history(
    continuation_id: TaskArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything that happened to a task."""
    with backend(service_url, profile) as asked:
        answer = asked.task_history(continuation_id)
    events = answer["events"]
    assert isinstance(events, list)
    rows = [[item["at"], item["type"], item["actor"], _said(item["data"])] for item in events]
    render.emit(answer, as_json=as_json, text=lambda: render.table("", ["At", "What", "Who", "Said"], rows))


def _said(data: Json) -> str:
    return str(data.get("text") or data.get("comment") or data.get("to") or data.get("decision") or "")


def summary(service_url: ServiceUrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Count what waits for people."""
    with backend(service_url, profile) as asked:
        answer = asked.task_summary()
    lines = [(name, f"{answer[name]}") for name in ("waiting", "escalated", "overdue")]
    for name in ("by_status", "by_kind", "by_environment"):
        counts = answer[name]
        assert isinstance(counts, dict)
        lines += [(f"{name.removeprefix('by_')} {word or '(none)'}", f"{count}") for word, count in counts.items()]
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Inbox", lines))


def batch(
    file: Annotated[
        Path, typer.Argument(help='A JSON file: {"items": [{"continuation_id", "request_id", "decision"}]}.')
    ],
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer many tasks; exit 5 when one of the answers was refused."""
    found = _read(file)
    items = found.get("items") if isinstance(found, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        msg = f"{file} holds no items."
        raise Invalid(
            msg, hint='{"items": [{"continuation_id": "cont_…", "request_id": "req_…", "decision": "approved"}]}'
        )
    with backend(service_url, profile) as asked:
        answer = asked.resume_many(items)
    results = answer["results"]
    assert isinstance(results, list)
    rows = [[item["continuation_id"], item["status"] or item["error"], item["message"]] for item in results]
    render.emit(answer, as_json=as_json, text=lambda: render.table("", ["Task", "Outcome", "Why"], rows))
    if answer["refused"]:
        raise typer.Exit(5)


def watch(
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after so many events.")] = None,
    after: Annotated[str | None, typer.Option("--after", help="Go on after this event.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow the inbox as it fills and empties, until stopped; with --json one event on each line."""
    with backend(service_url, profile) as asked:
        for event in itertools.islice(asked.follow_tasks(after), count):
            data = event["data"]
            assert isinstance(data, dict)
            if as_json:
                typer.echo(render.plain(json.dumps(event, ensure_ascii=False)))
            else:
                who, said = event["actor"] or "-", _said(data)
                render.text(f"{event['at']}  {event['type']:<18} {event['continuation_id']}  {who}  {said}".rstrip())


def _read(file: Path) -> object:
    data = read_bytes(file, max_bytes=MAX_FILE_BYTES, what="file of answers")
    try:
        return json.loads(data)
    except ValueError as error:
        msg = f"{file} is not JSON: {error}."
        raise Invalid(msg) from error


def review(
    candidate: Annotated[str, typer.Option("--candidate", help="Whose tasks: a name, or me.")] = "me",
    key: KeyOption = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Go through what waits for you, one question after the other."""
    if not sys.stdin.isatty():
        msg = "This asks at a terminal, and there is none."
        raise Usage(msg, hint="kneo human resume TASK --request-id R --approve")
    with backend(service_url, profile) as asked:
        for number, (task, total) in enumerate(_waiting(asked, candidate), 1):
            render.text(f"{number} of {total}")
            show_task(task)
            said = _ask(task)
            if said is STOP:
                return
            if said is not None:
                _answer(asked, task, said, key)
    render.text("That was everything.")


def _waiting(asked: Backend, candidate: str) -> Iterator[tuple[Json, int]]:
    """Yield what waits for somebody, the most urgent first, each with how many there were; a page at a time."""
    query: Query = {"candidate": candidate, "sort_by": "priority", "sort_order": "desc", "limit": REVIEWED_AT_ONCE}
    after: str | None = None
    total: int | None = None
    while True:
        answer = asked.tasks({**query, "after": after})
        items = answer["tasks"]
        assert isinstance(items, list)
        if total is None:
            total = int(str(answer["total"]))
        for task in items:
            yield task, total
        following = answer.get("next_after")
        if following is None:
            return
        after = str(following)


def _answer(asked: Backend, task: Json, said: Json, key: Path | None) -> None:
    task_id, request = str(task["continuation_id"]), task["request"]
    assert isinstance(request, dict)
    try:
        asked.resume(task_id, sign(asked, task_id, {"request_id": request["request_id"], **said}, key=key))
    except (Conflict, Forbidden, Invalid, NotFound, Untrusted) as error:
        # Somebody else was quicker, or this one cannot be answered so: the others may.
        render.warning(error.message, error.hint)
    else:
        render.success("Taken.")


def _ask(task: Json) -> Json | None:
    """Ask for one decision; ``None`` goes on to the next task, ``STOP`` ends it all."""
    request = task["request"]
    assert isinstance(request, dict)
    allowed = request["decisions"]
    while True:
        word = typer.prompt(f"{' / '.join(allowed)} / later / stop", default="later")
        if word == "later":
            return None
        if word == "stop":
            return STOP
        if word not in allowed:
            continue
        said: Json = {"decision": word, "expect_digest": request["subject_digest"]}
        if word in {"edited", "provided"}:
            said["content"] = typer.prompt("Text")
        elif word == "selected":
            said["selected_option"] = typer.prompt(f"Option ({', '.join(request['options'] or [])})")
        elif word == "rejected":
            said["feedback"] = typer.prompt("Why", default="")
        return said
