"""One task, with what led to it and what each answer leads to now."""

from __future__ import annotations

from kneo.api import task_views
from kneo.runtime.engine.consequences import as_it_stands
from kneo.service.wire import Json
from kneo.store import history, runs
from kneo.store.engine import Tx
from kneo.tasks.inbox import find

MESSAGES = 50
"""Of the steps before a question, the last so many are told."""


def task_detail(tx: Tx, continuation_id: str) -> Json:
    """Answer with one task and what was said before it, so that whoever decides sees what led there.

    Raises:
        NotFound: there is no such task.
    """
    task = as_it_stands(tx, find(tx, continuation_id))
    run = runs.get(tx, task.run_id)
    said: list[Json] = []
    if run is not None:
        said.append(_message("user", None, run.input_text, run.created_at))
        steps = [step for step in history.list_steps(tx, run.id) if step.output_text is not None]
        said += [_message("assistant", step.step_id, step.output_text, step.completed_at) for step in steps[-MESSAGES:]]
    return {**task_views.human_task(task), "messages": said}


def _message(role: str, name: str | None, content: str | None, at: str) -> Json:
    return {"role": role, "name": name, "content": content, "timestamp": at, "tool_call_id": None, "metadata": {}}
