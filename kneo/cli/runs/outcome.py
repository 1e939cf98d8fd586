"""The outcome of a run, as text."""

from __future__ import annotations

from kneo.api.run_views import RunView
from kneo.api.run_waiting import RunStartedView
from kneo.cli import render
from kneo.cli.backend import Backend


def show_outcome(run: RunStartedView | RunView, note: str | None = None) -> None:
    """Print the state of a run, and the next command when it is paused."""
    lines: list[tuple[str, object]] = [("Status", run.status)]
    release = run.metadata.get("release")
    if isinstance(release, dict):
        lines.append(("Bundle", f"{release['bundle']} {release['version']} in {release['environment']}"))
        lines.append(("Digest", release["digest"]))
    if run.output_text is not None:
        lines.append(("Output", run.output_text))
    if run.error is not None:
        lines.append(("Error", f"{run.error.type}: {run.error.message}"))
    render.panel(f"Run {run.run_id}", lines)
    if note:
        render.text(note)
    request = run.metadata.get("pending_human_request")
    if run.continuation_id is not None and isinstance(request, dict):
        render.warning(f"Paused: {request['type']} required: {request['prompt']}")
        render.text(f"  kneo task decide {run.continuation_id} --request-id {request['request_id']} --approve")


def note_of(backend: Backend, run: RunStartedView) -> str | None:
    """Return what to do when an answer is recorded and no process here can continue the run."""
    if backend.over_http or run.status != "running":
        return None
    workflow = run.metadata.get("workflow")
    name = workflow["name"] if isinstance(workflow, dict) else None
    program = f"The program that executes the workflow {name} continues the run {run.run_id}"
    return f"The answer is recorded. {program}; start that program if it is not running."
