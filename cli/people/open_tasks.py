"""The questions that are open in an environment that a commit takes away, as far as somebody can be asked."""

from __future__ import annotations

from pathlib import Path

from cli import render
from cli.backend import Json
from cli.connection import backend, choose
from kneo.errors import KneoError
from kneo.settings import Settings

SHOWN = 5
"""Open questions that are named; the others are counted."""


def open_tasks(settings: Settings, environment: str, service_url: str | None, profile: str | None) -> Json | None:
    """Ask a service, or the database beside us, where there is one.

    Returns:
        ``count`` and the ``first`` of them; None where nobody can be asked: a plan needs neither service nor secret.
    """
    try:
        if choose(settings, service_url, profile) is None and not has_database(settings):
            return None
        with backend(service_url, profile) as asked:
            found = asked.tasks({"environment": environment, "limit": SHOWN})
    except KneoError as error:
        render.warning(f"Which questions are open in {environment} could not be asked: {error.message}")
        return None
    tasks = found["tasks"]
    assert isinstance(tasks, list)
    kept = ("continuation_id", "run_id", "workflow_name", "key")
    return {"count": found["total"], "first": [{name: task.get(name) for name in kept} for task in tasks]}


def said_of(item: Json) -> str:
    """Tell what is known of the open questions of an environment in a plan."""
    known = item.get("open_tasks")
    if not isinstance(known, dict):
        return "Which questions are open there, its service knows: --service-url URL asks it."
    count, first = int(str(known["count"])), known["first"]
    if not count:
        return "No questions are open there."
    named = ", ".join(f"{task['continuation_id']} ({task['workflow_name']}: {task['key']})" for task in first)
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return f"{count} open: {named}{more}. Answers are still taken; each run keeps the bundle it was started with."


def has_database(settings: Settings) -> bool:
    """Say whether there is a database to look into: a SQLite file is not made for a question."""
    scheme, _, path = settings.database_url.partition(":///")
    return scheme != "sqlite" or Path(path).is_file()
