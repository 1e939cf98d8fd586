"""The open tasks of an environment that a commit removes, for ``kneo plan``."""

from __future__ import annotations

from pathlib import Path

from kneo.api.tasks import list_human_tasks
from kneo.cli import render
from kneo.cli.connection import backend, choose
from kneo.errors import KneoError
from kneo.settings import Settings

Json = dict[str, object]

SHOWN = 5
"""Open tasks that are listed by name; the others are counted."""


def open_tasks(settings: Settings, environment: str, service_url: str | None, profile: str | None) -> Json | None:
    """Return the number of the open tasks of an environment, and the first of them.

    Returns:
        ``count`` and ``first``; ``None`` without a service and a database: a plan needs neither.
    """
    try:
        if choose(settings, service_url, profile) is None and not has_database(settings):
            return None
        with backend(service_url, profile) as opened:
            page = opened.call(list_human_tasks, environment=environment, limit=SHOWN)
    except KneoError as error:
        render.warning(f"The open tasks of {environment} cannot be read: {error.message}")
        return None
    names = ("continuation_id", "run_id", "workflow_name", "key")
    return {"count": page.total, "first": [{name: getattr(task, name) for name in names} for task in page.tasks]}


def open_tasks_text(item: Json) -> str:
    """Return the open tasks of an environment in a plan, as text."""
    known = item.get("open_tasks")
    if not isinstance(known, dict):
        return "Its open tasks are unknown here. Pass --service-url URL to list them."
    count, first = int(str(known["count"])), known["first"]
    if not count:
        return "It has no open tasks."
    named = ", ".join(f"{task['continuation_id']} ({task['workflow_name']}: {task['key']})" for task in first)
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return f"{count} open: {named}{more}. They can still be decided; each run keeps the bundle it was started with."


def has_database(settings: Settings) -> bool:
    """Return whether there is a database. A SQLite file is not created for reading."""
    scheme, _, path = settings.database_url.partition(":///")
    return scheme != "sqlite" or Path(path).is_file()
