"""``kneo run``: an approved bundle, or where that is allowed a spec of your own; and the outcome of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kneo.api.run_start import RunCreate, create_run
from kneo.api.run_views import RunStartedView, RunView
from kneo.api.runs import get_run
from kneo.cli import render
from kneo.cli.backend import Backend
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.runs.runs import show_usage
from kneo.cli.specs.check import read_tree
from kneo.cli.watch import StreamPrinter
from kneo.clock import parse_duration
from kneo.errors import Usage


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
    if backend.url is not None or run.status != "running":
        return None
    workflow = run.metadata.get("workflow")
    name = workflow["name"] if isinstance(workflow, dict) else None
    program = f"The program that executes the workflow {name} continues the run {run.run_id}"
    return f"The answer is recorded. {program}; start that program if it is not running."


@examples(
    "kneo run --bundle announcement --env prod --input 'The office moves in May'",
    "kneo run specs/hello.yaml --input Hello --timeout 15m",
)
def run(
    spec: Annotated[
        Path | None, typer.Argument(help="Spec file; by default the project's default spec, unless --bundle is set.")
    ] = None,
    text: Annotated[str, typer.Option("--input", "-i", help="Input of the run.")] = ...,  # type: ignore[assignment]  # typer: required
    bundle: Annotated[str | None, typer.Option("--bundle", help="Bundle: NAME, NAME@VERSION or sha256:….")] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Environment that releases the bundle.")] = None,
    target: Annotated[
        Literal["workflow", "agent"], typer.Option("--target", help="Run the whole workflow, or only the root agent.")
    ] = "workflow",
    session: Annotated[str | None, typer.Option("--session", help="Conversation that the run belongs to.")] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", help="Time limit of the run: 90s, 15m, 24h.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print replies of models while they arrive, on a terminal.")
    ] = False,
    *,
    options: ServiceOptions,
) -> None:
    """Start a run and wait until it pauses or finishes."""
    if spec is not None and bundle is not None:
        msg = "Name a spec or a bundle to run, not both."
        raise Usage(msg, hint="kneo run --bundle NAME --env ENV --input TEXT")
    seconds = max(1, int(parse_duration(timeout).total_seconds())) if timeout is not None else None
    live = render.at_terminal() and not options.as_json
    body = request(
        RunCreate,
        input=text,
        target=target,
        environment=environment,
        session_id=session,
        timeout_seconds=seconds,
        bundle=bundle,
        spec=read_tree(spec, environment) if bundle is None else None,
        async_mode=live or None,
        stream=(live and stream) or None,
    )
    with options.open() as opened:
        view = _live(opened, body, stream=stream) if live else opened.call(create_run, body)
    render.emit(view, as_json=options.as_json, text=lambda: show_outcome(view))
    show_usage(view.metadata.get("usage"))
    if view.status == "failed":
        raise typer.Exit(1)


def _live(opened: Backend, body: RunCreate, *, stream: bool) -> RunView:
    """Start a run and show its steps as they complete, with ``stream`` also what models reply."""
    run_id = opened.call(create_run, body).run_id
    printer = StreamPrinter()
    for event in opened.follow(run_id, until_pause=True, deltas=stream):
        if event["type"] not in {"status", "end"}:
            printer.show(event)
    return opened.call(get_run, run_id)
