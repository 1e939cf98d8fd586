"""``kneo run``: an approved bundle, or where that is allowed a spec of your own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Backend, Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.runs.outcome import show_outcome
from cli.watch import show_event
from kneo.api.runs import get_run
from kneo.clock import parse_duration
from kneo.errors import Usage


def run(
    spec: Annotated[
        Path | None, typer.Argument(help="A spec of your own; left out: the project's default one, or --bundle.")
    ] = None,
    text: Annotated[str, typer.Option("--input", "-i", help="What the run is given.")] = ...,  # type: ignore[assignment]  # typer: required
    bundle: Annotated[str | None, typer.Option("--bundle", help="NAME, NAME@VERSION or sha256:… to run.")] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Environment that serves it.")] = None,
    target: Annotated[str, typer.Option("--target", help="workflow, or agent for the root agent alone.")] = "workflow",
    session: Annotated[str | None, typer.Option("--session", help="The conversation this run belongs to.")] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", help="How long it may take in all: 90s, 15m, 24h.")
    ] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run something and wait until it pauses or ends."""
    if spec is not None and bundle is not None:
        msg = "Name a spec or a bundle to run, not both."
        raise Usage(msg, hint="kneo run --bundle NAME --env ENV --input TEXT")
    if target not in {"workflow", "agent"}:
        msg = f"--target is workflow or agent, not {target[:40]!r}."
        raise Usage(msg)
    order: Json = {"input": text, "target": target, "environment": environment}
    if session is not None:
        order["session_id"] = session
    if timeout is not None:
        order["timeout_seconds"] = max(1, int(parse_duration(timeout).total_seconds()))
    if bundle is not None:
        order["bundle"] = bundle
    else:
        from cli.specs.inline import read_tree  # a bundle is frozen: it needs nothing that reads specs here

        order["spec"] = read_tree(spec, environment)
    with backend(service_url, profile) as asked:
        live = render.at_terminal() and not as_json
        answer = _live(asked, order) if live else asked.start_run(order)
    render.emit(answer, as_json=as_json, text=lambda: show_outcome(answer))
    if answer["status"] == "failed":
        raise typer.Exit(1)


def _live(asked: Backend, order: Json) -> Json:
    """Start a run and show its steps while they happen."""
    run_id = str(asked.begin_run(order)["run_id"])
    for event in asked.follow(run_id, until_pause=True):
        if event["type"] not in {"status", "end"}:
            show_event(event)
    run = asked.call(get_run, run_id)
    return {**asdict(run), "human_intervention_required": run.continuation_id is not None}
