"""``kneo runs``: cancel, retry, repeat and fork runs, and answer a run with a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from kneo.api.run_answers import RunInput, put_run_input
from kneo.api.run_history import (
    CheckpointDiffView,
    RunRecoveryView,
    RunReplayView,
    diff_run_checkpoints,
    get_run_recovery,
    get_run_replay,
)
from kneo.api.run_start import RunFork, cancel_run, continue_run, fork_run
from kneo.api.run_views import RunStartedView
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.options import OptionGroup
from kneo.cli.runs.run import note_of, show_outcome
from kneo.cli.runs.runs import RunArgument, show_run
from kneo.errors import Usage
from kneo.json_text import RepeatedMember, parse_json


@dataclass(frozen=True)
class ReuseOptions(OptionGroup):
    """The options about the answers of the other run."""

    answers: Annotated[
        list[str] | None,
        typer.Option("--answer", metavar="KEY=JSON", help="Use this answer for a question (repeatable)."),
    ] = None
    ask: Annotated[
        list[str] | None,
        typer.Option("--ask", metavar="KEY", help="Ask a question again (repeatable); all asks every question."),
    ] = None


@examples("kneo runs cancel run_01JD8Z4V6M3Q", "kneo runs cancel run_01JD8Z4V6M3Q --json")
def cancel(run_id: RunArgument, *, options: ServiceOptions) -> None:
    """Cancel a run and withdraw its open tasks."""
    options.show(cancel_run, show_run, run_id)


@examples(
    "kneo runs replay run_01JD8Z4V6M3Q", "kneo runs replay run_01JD8Z4V6M3Q --from draft --input 'Write it shorter'"
)
def replay(
    run_id: RunArgument,
    step: Annotated[str | None, typer.Option("--from", help="Start a new run at this step.")] = None,
    text: Annotated[str | None, typer.Option("--input", help="With --from: the new input of the step.")] = None,
    *,
    reuse: ReuseOptions,
    options: ServiceOptions,
) -> None:
    """Show a run's checkpoints as a timeline, or run it again from a step."""
    if step is not None:
        _fork(run_id, request(RunFork, step=step, input=text, **_reused(reuse)), options)
        return
    if text is not None or reuse.answers or reuse.ask:
        msg = "--input, --answer and --ask need --from."
        raise Usage(msg, hint="kneo runs replay RUN --from STEP --input TEXT")
    options.show(get_run_replay, _show_timeline, run_id)


def _show_timeline(view: RunReplayView) -> None:
    rows = [
        [item["sequence"], item["type"], item["step_id"], item["status"], item["created_at"]] for item in view.timeline
    ]
    render.table("Timeline", ["#", "Type", "Step", "Status", "At"], rows)


@examples("kneo runs recovery run_01JD8Z4V6M3Q", "kneo runs recovery run_01JD8Z4V6M3Q --json")
def recovery(run_id: RunArgument, *, options: ServiceOptions) -> None:
    """Show the steps a run completed and whether it can be retried."""
    options.show(get_run_recovery, lambda view: _show_recovery(view, run_id), run_id)


def _show_recovery(view: RunRecoveryView, run_id: str) -> None:
    context = view.replay_context
    lines = [
        ("Status", view.status),
        ("Done", ", ".join(context.completed_steps) or "nothing"),
        ("Failed", context.failed_step or "nothing"),
        ("Continue", f"kneo runs continue {run_id}" if context.can_continue else "no"),
    ]
    render.panel(f"Run {run_id}", lines)


@examples("kneo runs continue run_01JD8Z4V6M3Q", "kneo runs continue run_01JD8Z4V6M3Q --json")
def continue_(run_id: RunArgument, *, options: ServiceOptions) -> None:
    """Retry a failed run from the step that failed."""
    with options.open() as opened:
        view = opened.call(continue_run, run_id)
    _finish(view, as_json=options.as_json)


@examples(
    "kneo runs fork run_01JD8Z4V6M3Q --from review/legal#2", "kneo runs fork run_01JD8Z4V6M3Q --checkpoint 3 --ask all"
)
def fork(
    run_id: RunArgument,
    step: Annotated[str | None, typer.Option("--from", help="Step to start at, for example review/legal#2.")] = None,
    checkpoint: Annotated[int | None, typer.Option("--checkpoint", help="Number of a checkpoint to start at.")] = None,
    text: Annotated[str | None, typer.Option("--input", "-i", help="New input of the step.")] = None,
    *,
    reuse: ReuseOptions,
    options: ServiceOptions,
) -> None:
    """Start a new run from a step or checkpoint of another run.

    Answers that people gave in the other run are used again where they still apply.
    """
    if (step is None) == (checkpoint is None):
        msg = "Pass either --from or --checkpoint."
        raise Usage(msg, hint="kneo runs fork RUN --from STEP")
    _fork(run_id, request(RunFork, step=step, checkpoint=checkpoint, input=text, **_reused(reuse)), options)


def _reused(reuse: ReuseOptions) -> dict[str, object]:
    return {"answers": dict(map(_answer, reuse.answers)) if reuse.answers else None, "ask": reuse.ask or None}


def _fork(run_id: str, body: RunFork, options: ServiceOptions) -> None:
    with options.open() as opened:
        view = opened.call(fork_run, run_id, body)
        reused = opened.call(get_run_replay, view.run_id).answers
    if reused and not options.as_json:
        rows = [[item["key"], "used again" if item["reused"] else "not used", item["reason"]] for item in reused]
        render.table("Answers", ["Question", "Answer", "Reason"], rows)
    _finish(view, as_json=options.as_json, answers=reused)


def _answer(option: str) -> tuple[str, object]:
    key, sign, value = option.partition("=")
    if not sign or not key:
        msg = f"--answer {option[:80]!r} is not KEY=JSON."
        raise Usage(msg, hint='--answer \'approve.step={"decision": "edited", "content": "better"}\'')
    return key, _json(value)


def _finish(view: RunStartedView, note: str | None = None, /, *, as_json: bool, **more: object) -> None:
    render.emit({**vars(view), **more}, as_json=as_json, text=lambda: show_outcome(view, note))
    if view.status == "failed":
        raise typer.Exit(1)


@examples(
    "kneo runs input run_01JD8Z4V6M3Q --value '{\"amount\": 20}'",
    "kneo runs input run_01JD8Z4V6M3Q --abort --reason 'Not needed'",
)
def give_input(
    run_id: RunArgument,
    value: Annotated[str | None, typer.Option("--value", help="The value, as JSON or as text.")] = None,
    abort: Annotated[bool, typer.Option("--abort", help="Reject the request for a value.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", help="Prompt for the value.")] = False,
    key: Annotated[
        str | None, typer.Option("--key", help="Key of the question; every question after the first needs it.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Reason, with --abort.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Answer the question of a paused run with a value."""
    if sum((value is not None, abort, interactive)) != 1:
        msg = "Pass exactly one of --value, --abort and --interactive."
        raise Usage(msg)
    if interactive:
        value = typer.prompt("Value")
    body = RunInput(abort=True, reason=reason, key=key) if abort else RunInput(value=_json(value or ""), key=key)
    with options.open() as opened:
        view = opened.call(put_run_input, run_id, body)
        note = note_of(opened, view)
    _finish(view, note, as_json=options.as_json, **({"note": note} if note else {}))


def _json(text: str) -> object:
    """Return the value of a text in JSON, any other text as it is."""
    try:
        return parse_json(text)
    except RepeatedMember as error:
        raise Usage(error.msg, hint="Write each key of the value once.") from error
    except ValueError:
        return text


@examples(
    "kneo runs checkpoint-diff run_01JD8Z4V6M3Q",
    "kneo runs checkpoint-diff run_01JD8Z4V6M3Q --from-sequence 1 --to-sequence 4",
)
def checkpoint_diff(
    run_id: RunArgument,
    before: Annotated[
        int | None, typer.Option("--from-sequence", min=1, help="Number of the older checkpoint.")
    ] = None,
    after: Annotated[int | None, typer.Option("--to-sequence", min=1, help="Number of the newer checkpoint.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Compare two checkpoints of a run, by default the last two."""
    options.show(diff_run_checkpoints, _show_changes, run_id, before, after)


def _show_changes(view: CheckpointDiffView) -> None:
    rows = [
        *(["+", item.path, f"{item.value}"[:120]] for item in view.added),
        *(["-", item.path, f"{item.value}"[:120]] for item in view.removed),
        *(["~", item.path, f"{item.before} → {item.after}"[:120]] for item in view.changed),
    ]
    render.table(f"{view.change_count} changes", ["", "Path", "Value"], rows)
    if view.truncated:
        render.warning("Further changes are left out.", "Compare checkpoints that are closer together.")
