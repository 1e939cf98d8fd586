"""``kneo rehearse``: a bundle on the inputs of recorded runs, before it is released."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kneo.api import recordings as api
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.cli.files import write_whole
from kneo.cli.options import parse_since
from kneo.cli.specs.eval import EvaluatedBundle, KeyOption, OutputOption, find_bundle, read_declaration
from kneo.cli.specs.keys import load_private
from kneo.clock import SystemClock
from kneo.digest import digest_of
from kneo.errors import Invalid, NotFound, Usage
from kneo.names import visible
from kneo.project import read_config
from kneo.settings import from_env
from kneo.trust.dsse import serialise, sign
from kneo.trust.result import ResultStatement, build_result, decimal_text
from kneo.trust.statement import PAYLOAD_TYPE

if TYPE_CHECKING:
    from kneo.records.recording import Recording, Redaction
    from kneo.runtime.trials.rehearsal import Rehearsal, RehearsedRun

MAX_RUNS = 10_000
PAGE = 100


@examples(
    "kneo rehearse refunds@1.1.0 --against prod",
    "kneo rehearse refunds@1.1.0 --against prod --runs 200 --key evaluator.pem "
    "--output bundles/refunds/1.1.0.evidence/rehearsal.dsse.json",
)
def rehearse(
    bundle: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Bundle of the repository.")],
    *,
    against: Annotated[str, typer.Option("--against", metavar="ENV", help="Environment with the recorded runs.")],
    runs: Annotated[int, typer.Option("--runs", min=1, max=MAX_RUNS, help="The newest runs of the bundle.")] = 100,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Only created since: a time, or a duration ago.")
    ] = "30d",
    key: KeyOption = None,
    output: OutputOption = None,
    options: ServiceOptions,
) -> None:
    """Rehearse a bundle on recorded runs of an environment. Exit status 1 if a run is unsafe.

    Each run is tried again on a temporary database with the models of the bundle; results of tools and decisions of people are the
    recorded ones. No tool is called: a trial ends at the first call or question that its recording does not have. With --key and
    --output the result is signed.
    """
    if (key is None) != (output is None):
        msg = "--key and --output belong together."
        raise Usage(msg)
    subject = find_bundle(bundle, against)
    if subject.digest is None:
        msg = f"{bundle[:200]} is no bundle, so that it has no recorded runs."
        raise Usage(msg, hint="Pass NAME@VERSION.")
    private, declaration = load_private(key) if key is not None else None, read_declaration(against)
    recordings, redaction = _read(options, subject.name, against, runs, parse_since(since))
    if not recordings:
        msg = f"{against} has no ended run of {subject.name} since {since}."
        raise NotFound(
            msg, code="no_recordings", hint="Rehearse since an earlier time, or evaluate a suite: kneo eval."
        )
    done = _rehearse(subject, against, declaration, recordings, redaction, is_quiet=options.as_json)
    if private is not None and output is not None:
        statement = _statement(done, subject, against, recordings)
        write_whole(output, serialise(sign(PAYLOAD_TYPE, statement.payload, private)))
    answer = _answer(done, subject, against)
    render.emit(answer, as_json=options.as_json, text=lambda: _print(done, subject, output))
    raise typer.Exit(0 if done.passed else 1)


def _read(
    options: ServiceOptions, bundle: str, environment: str, most: int, since: str | None
) -> tuple[list[Recording], Redaction]:
    """Read the newest recordings of a bundle, page by page."""
    found: list[Recording] = []
    redaction: Redaction | None = None
    after: str | None = None
    with options.open(existing=True) as opened:
        while True:
            limit = min(PAGE, most - len(found))
            view = opened.call(api.list_recordings, environment, since=since, limit=limit, bundle=bundle, after=after)
            if redaction is not None and view.redact != redaction:
                msg = f"{environment} changed the redaction of its recordings meanwhile."
                raise Invalid(msg, code="rehearsal_incomplete", hint="Rehearse again.")
            found, redaction, after = [*found, *view.recordings], view.redact, view.next_after
            if after is None or len(found) >= most:
                return found, redaction


def _rehearse(
    subject: EvaluatedBundle,
    environment: str,
    declaration: bytes,
    recordings: list[Recording],
    redaction: Redaction,
    *,
    is_quiet: bool,
) -> Rehearsal:
    # The engine is imported here, because most commands start no run.
    from kneo.cli.project import registered_tools, spec_compiler
    from kneo.runtime.trials.rehearsal import rehearse as rehearse_runs
    from kneo.runtime.trials.trial import TrialSubject, open_bench

    settings = from_env()
    done = 0

    def show(run: RehearsedRun) -> None:
        nonlocal done
        done += 1
        if not is_quiet:
            reason = f": {run.reason}" if run.reason is not None else ""
            render.text(visible(f"{done}/{len(recordings)} {run.run_id} {run.outcome.replace('_', ' ')}{reason}"))

    about = TrialSubject(spec=subject.spec, code=subject.code, environment=environment, declaration=declaration)
    with open_bench(
        settings,
        about,
        "live",
        check_spec=spec_compiler(settings).compile,
        project=read_config(settings),
        tools=registered_tools(settings),
    ) as bench:
        return asyncio.run(rehearse_runs(bench, recordings, redaction, show))


def _statement(
    done: Rehearsal, subject: EvaluatedBundle, environment: str, recordings: list[Recording]
) -> ResultStatement:
    from pydantic_core import to_json

    assert subject.digest is not None
    return build_result(
        bundle_name=subject.name,
        bundle_digest=subject.digest,
        type="rehearsal",
        suite="recordings",
        suite_digest=digest_of(to_json([asdict(item) for item in recordings])),
        issued_at=SystemClock().now(),
        scripted=False,
        metrics=done.metrics(),
        passed=[*done.of("matched"), *done.of("diverged_safe")],
        warned=done.of("unknown"),
        failed=done.of("unsafe"),
        environment=environment,
        models=done.models,
        cost=done.cost,
    )


def _answer(done: Rehearsal, subject: EvaluatedBundle, environment: str) -> dict[str, object]:
    return {
        "ok": done.passed,
        "environment": environment,
        "bundle": subject.name,
        "version": subject.version,
        "digest": subject.digest,
        "runs": len(done.runs),
        **done.counts(),
        "new_calls": done.new_calls,
        "gates_lost": done.gates_lost,
        "cost": decimal_text(done.cost) if done.cost is not None else None,
        "models": [item.model_dump() for item in done.models],
        "results": [asdict(run) for run in done.runs],
    }


def _print(done: Rehearsal, subject: EvaluatedBundle, output: Path | None) -> None:
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in done.counts().items())
    (render.success if done.passed else render.failure)(f"{len(done.runs)} runs: {counts}")
    render.text(f"New calls: {done.new_calls}. Lost gates: {done.gates_lost}.")
    if output is not None:
        render.success(f"Signed the result about {subject.name} {subject.version}: {output}")
