"""``kneo canary``: a new version that gets a share of the new runs before its promotion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from kneo.api import canaries as api
from kneo.api.operation import Operation
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.files import write_whole
from kneo.cli.releases.environments import ReleaseArgument, split_target
from kneo.digest import canonical_json

app = typer.Typer(no_args_is_help=True)

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; the audit log and the status show it.")]

Change: TypeAlias = Operation[[str, str, api.CanaryChange], api.CanaryView]

BAR = 30
"""Characters of a bar."""


@app.command("status")
@examples("kneo canary status prod/refunds", "kneo canary status prod/refunds --json")
def status(place: ReleaseArgument, *, options: ServiceOptions) -> None:
    """Show the newest canary of a bundle: its share, its runs, and how it compares."""
    options.show_existing(api.get_canary, _show, *split_target(place, "canary status"))


def _show(view: api.CanaryView) -> None:
    lines = [
        ("State", f"{view.state}{f': {view.reason}' if view.reason else ''}"),
        ("Digest", view.digest),
        *((f"Step {number}", _step(view, number, share)) for number, share in enumerate(view.steps, 1)),
        ("Runs", f"{view.runs} of the canary, {view.control} of the release to compare with"),
        *((("Next", view.next),) if view.next else ()),
    ]
    render.panel(f"{view.bundle} {view.version} in {view.environment}", lines)
    rows = [
        [
            item.metric,
            item.candidate_bad,
            item.control_bad,
            "none to compare" if item.ratio is None else f"{item.ratio:.2f}",
            f"{_bar(item.evidence / item.limit)} {item.evidence:.2f} of {item.limit:g}",
        ]
        for item in view.metrics
    ]
    if rows:
        render.table("", ["Metric", "Canary", "Release", "Ratio", "Evidence against it"], rows)


def _step(view: api.CanaryView, number: int, share: float) -> str:
    is_now = number == view.step and view.ended_at is None
    return f"{_bar(share)} {share * 100:.4g} %{'  now' if is_now else ''}"


def _bar(part: float) -> str:
    filled = round(min(1.0, max(0.0, part)) * BAR)
    return "█" * filled + "░" * (BAR - filled)


@app.command("pause")
@examples("kneo canary pause prod/refunds --reason 'look at the rejections first'")
def pause(place: ReleaseArgument, reason: ReasonOption, *, options: ServiceOptions) -> None:
    """Pause a canary: it keeps its share, and no further step begins."""
    _change("Paused", api.pause_canary, place, reason, options)


@app.command("resume")
@examples("kneo canary resume prod/refunds --reason 'the rejections were a mistake'")
def resume(place: ReleaseArgument, reason: ReasonOption, *, options: ServiceOptions) -> None:
    """Resume a paused canary with the share of its step."""
    _change("Resumed", api.resume_canary, place, reason, options)


@app.command("promote")
@examples("kneo canary promote prod/refunds --reason 'a fix that cannot wait'")
def promote(place: ReleaseArgument, reason: ReasonOption, *, options: ServiceOptions) -> None:
    """Promote the version of a canary without its further steps. That needs kneo approve --full."""
    _change("Asked to promote", api.promote_canary, place, reason, options)


@app.command("abort")
@examples("kneo canary abort prod/refunds --reason 'wrong version'")
def abort(place: ReleaseArgument, reason: ReasonOption, *, options: ServiceOptions) -> None:
    """End a canary; its version stays blocked until it is restarted."""
    _change("Aborted", api.abort_canary, place, reason, options)


@app.command("restart")
@examples("kneo canary restart prod/refunds --reason 'the outage was elsewhere'")
def restart(place: ReleaseArgument, reason: ReasonOption, *, options: ServiceOptions) -> None:
    """Let a canary begin again that was rolled back or aborted."""
    _change("Restarted", api.restart_canary, place, reason, options)


def _change(verb: str, change: Change, place: str, reason: str, options: ServiceOptions) -> None:
    def text(view: api.CanaryView) -> None:
        render.success(f"{verb} the canary of {view.bundle} {view.version} in {view.environment}")
        _show(view)

    options.show_existing(change, text, *split_target(place, "canary status"), request(api.CanaryChange, reason=reason))


@app.command("result")
@examples("kneo canary result prod/refunds --output bundles/refunds/1.1.0.evidence/canary.dsse.json")
def result(
    place: ReleaseArgument,
    output: Annotated[Path | None, typer.Option("--output", help="Write the signed result to this file.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Print or write the signed result of a canary that has ended, to commit it to Git."""
    envelope = options.call(api.get_canary_result, *split_target(place, "canary result"))
    if output is not None:
        write_whole(output, canonical_json(envelope) + b"\n")
        render.success(f"Wrote {output}. Commit it, so that a registry that is rebuilt from Git decides the same.")
        return
    render.emit(envelope, as_json=True, text=lambda: None)
