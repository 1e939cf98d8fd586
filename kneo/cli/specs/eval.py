"""``kneo eval`` and ``kneo evidence``: evaluate a bundle, and sign, import and verify results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.files import read_bytes, write_whole
from kneo.cli.options import JsonOption
from kneo.cli.repository import find_repository
from kneo.cli.specs import eval_markdown
from kneo.cli.specs.check import read_tree
from kneo.cli.specs.keys import load_private
from kneo.cli.specs.result_files import MAX_BYTES, ResultFormat, read_results
from kneo.cli.specs.signing import read_statement
from kneo.clock import SystemClock
from kneo.digest import Digest, digest_of
from kneo.errors import Invalid, KneoError, NotFound, Untrusted, Usage
from kneo.names import visible
from kneo.project import read_config
from kneo.settings import from_env
from kneo.spec.code import BundleCode
from kneo.spec.reading.suite import SUITE_LIMITS, LoadedSuite, parse_suite, suite_digest
from kneo.trust.dsse import serialise, sign
from kneo.trust.result import ResultStatement, build_result, check_commitments, decimal_text, verify_result
from kneo.trust.statement import PAYLOAD_TYPE

if TYPE_CHECKING:
    from kneo.runtime.trials.evaluation import Evaluation
    from kneo.runtime.trials.trial import TrialBench, TrialSubject
    from kneo.settings import Settings
    from kneo.spec.models.suite import ModelMode

app = typer.Typer(no_args_is_help=True)

MAX_REPORT_BYTES = 256 * 1_048_576


@dataclass(frozen=True)
class EvaluatedBundle:
    """What is evaluated: a bundle, or a spec that is not signed yet and has no digest."""

    name: str
    version: str | None
    digest: Digest | None
    spec: Mapping[str, object]
    code: BundleCode | None = None


SuiteArgument = Annotated[Path, typer.Argument(metavar="SUITE", help="Suite file (YAML or JSON).")]
BundleOption = Annotated[
    str,
    typer.Option("--bundle", metavar="NAME@VERSION|FILE", help="Bundle of the repository, bundle file, or spec file."),
]
KeyOption = Annotated[Path | None, typer.Option("--key", help="Private key file of the evaluator.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="File of the signed result.")]


@examples(
    "kneo eval evals/support.yaml --bundle specs/support.yaml",
    "kneo eval evals/support.yaml --bundle support@1.1.0 --env prod --key evaluator.pem "
    "--output bundles/support/1.1.0.evidence/support.dsse.json",
)
def evaluate(
    suite: SuiteArgument,
    *,
    bundle: BundleOption,
    env: Annotated[str | None, typer.Option("--env", help="Environment whose gates and rules the trials have.")] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, max=20, help="Trials of each case. Default: that of the suite.")
    ] = None,
    models: Annotated[
        Literal["scripted", "live"] | None,
        typer.Option("--models", help="Scripted replies or real models. Default: that of the suite."),
    ] = None,
    key: KeyOption = None,
    output: OutputOption = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write each case with its texts, in the clear, to this file.")
    ] = None,
    no_code: Annotated[
        bool,
        typer.Option(
            "--no-code",
            help="Execute no code of the repository: a function without an output in its case ends the case.",
        ),
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the figures as a part of a comment on a pull request.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a bundle by the cases of a suite. Exit status 1 if a case fails, 2 if the suite asks models and may not.

    Each case is a run on a temporary database: tools, people and, unless live, models are what the case says. No tool is called. With
    --key and --output the result is signed, also a failed one.
    """
    loaded = parse_suite(read_bytes(suite, max_bytes=SUITE_LIMITS.max_bytes, what="suite"), file=str(suite))
    if (key is None) != (output is None):
        msg = "--key and --output belong together."
        raise Usage(msg)
    if key is not None and repeats is not None and repeats < loaded.spec.repeats:
        msg = f"A signed result has at least the {loaded.spec.repeats} repetitions of its suite."
        raise Usage(msg)
    chosen: ModelMode = models or loaded.spec.models
    if no_code and chosen == "live":
        msg = "Models are not asked with --no-code."
        raise Usage(msg, hint="Pass --models scripted too.")
    if chosen == "scripted" and (needed := _live_part(loaded)) is not None:
        if markdown:
            render.text("\n".join(eval_markdown.unevaluated(suite, needed)))
        msg = f"{needed}: evaluate it with --models live."
        raise Usage(msg)
    subject = find_bundle(bundle, env)
    if key is not None and subject.digest is None:
        msg = "A spec file has no digest that a result could be about."
        raise Usage(msg, hint="Sign a bundle: kneo spec bundle sign.")
    private = load_private(key) if key is not None else None
    evaluation = _evaluate(loaded, subject, env, chosen, repeats or loaded.spec.repeats, runs_code=not no_code)
    signed: ResultStatement | None = None
    if private is not None and output is not None and subject.digest is not None:
        signed = build_result(
            bundle_name=subject.name,
            bundle_digest=subject.digest,
            type="eval",
            suite=loaded.name,
            suite_digest=loaded.digest,
            issued_at=SystemClock().now(),
            scripted=evaluation.scripted,
            metrics=evaluation.metrics(),
            passed=[case.id for case in evaluation.cases if case.passed],
            failed=[case.id for case in evaluation.cases if not case.passed],
            environment=env,
            models=evaluation.models,
            commitments=evaluation.commitments(),
            cost=evaluation.cost,
        )
        write_whole(output, serialise(sign(PAYLOAD_TYPE, signed.payload, private)))
    answer = _answer(evaluation, subject)
    if report is not None:
        content = {**answer, "environment": env, "cases": evaluation.report()}
        write_whole(report, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    if markdown and not as_json:
        render.text("\n".join(eval_markdown.evaluated(suite, evaluation)))
    else:
        render.emit(answer, as_json=as_json, text=lambda: _print(evaluation, subject, output, report))
    raise typer.Exit(0 if evaluation.passed else 1)


def _live_part(suite: LoadedSuite) -> str | None:
    """Return which part of a suite only live models can give; None where scripted ones can."""
    if suite.spec.judges:
        return "The suite has judges, which are models"
    if suite.spec.models == "live" and not any(case.replies for case in suite.spec.cases):
        return "The suite has no replies for scripted models"
    return None


def find_bundle(reference: str, env: str | None) -> EvaluatedBundle:
    """Return the bundle of a reference.

    Raises:
        NotFound, Invalid, Usage: there is none.
    """
    name, at, version = reference.partition("@")
    path = Path(reference)
    if at and not path.exists():
        repository = find_repository(Path.cwd())
        if repository is None:
            msg = f"There is no config repository here, so there is no bundle {reference[:200]}."
            raise NotFound(msg, hint="Pass the bundle's file.")
        path = repository.bundle_file(name, version)
    elif not path.name.endswith(".dsse.json"):
        return EvaluatedBundle(path.stem, None, None, read_tree(path, env))
    _, statement = read_statement(path)
    predicate = statement.predicate
    return EvaluatedBundle(predicate.name, predicate.version, statement.digest, predicate.spec, statement.code)


def _evaluate(
    suite: LoadedSuite, subject: EvaluatedBundle, env: str | None, models: ModelMode, repeats: int, *, runs_code: bool
) -> Evaluation:
    # The engine is imported here, because most commands start no run.
    from kneo.cli.project import registered_tools, spec_compiler
    from kneo.runtime.trials.evaluation import Evaluator
    from kneo.runtime.trials.trial import TrialSubject, open_bench

    settings: Settings = from_env()
    if not runs_code and settings.execution.platform:
        msg = "KNEO_SERV_PLATFORM names code, and --no-code executes none."
        raise Usage(msg, hint="Unset one of them.")
    project, compiler = read_config(settings), spec_compiler(settings)

    def opened(stack: ExitStack, subject: TrialSubject) -> TrialBench:
        bench = open_bench(
            settings,
            subject,
            models,
            check_spec=compiler.compile,
            project=project,
            tools=registered_tools(settings),
            runs_code=runs_code,
        )
        return stack.enter_context(bench)

    declaration = read_declaration(env) if env is not None else None
    about = TrialSubject(spec=subject.spec, code=subject.code, environment=env, declaration=declaration)
    return asyncio.run(Evaluator(suite, about, models, repeats, opened).evaluate())


def read_declaration(name: str) -> bytes:
    """Return the environment file of a name in the repository.

    Raises:
        NotFound: there is none.
    """
    from kneo.spec.environment import ENVIRONMENT_LIMITS

    repository = find_repository(Path.cwd())
    path = repository.environment_file(name) if repository is not None else None
    if path is None:
        msg = f"There is no environment file of {name[:80]} here."
        raise NotFound(msg, hint="Change to the config repository, or leave --env out.")
    return read_bytes(path, max_bytes=ENVIRONMENT_LIMITS.max_bytes, what="environment")


def _answer(evaluation: Evaluation, subject: EvaluatedBundle) -> dict[str, object]:
    return {
        "ok": evaluation.passed,
        "suite": evaluation.suite.name,
        "suite_digest": evaluation.suite.digest,
        "bundle": subject.name,
        "version": subject.version,
        "digest": subject.digest,
        "scripted": evaluation.scripted,
        "models": [item.model_dump() for item in evaluation.models],
        "metrics": {name: item.model_dump() for name, item in evaluation.metrics().items()},
        "cases": [case.as_json() for case in evaluation.cases],
        "cost": decimal_text(evaluation.cost) if evaluation.cost is not None else None,
    }


def _print(evaluation: Evaluation, subject: EvaluatedBundle, output: Path | None, report: Path | None) -> None:
    for case in evaluation.cases:
        if case.passed:
            render.success(visible(case.id))
        for failure in case.failures:
            render.failure(visible(f"{case.id}: {failure}"))
    for name, metric in evaluation.metrics().items():
        render.text(f"{name}: {metric.value} ({metric.samples} cases)")
    if evaluation.scripted:
        render.text("The models were scripted, so that no prompt was tried; --models live asks those of the spec.")
    if output is not None:
        render.success(f"Signed the result about {subject.name} {subject.version}: {output}")
    if report is not None:
        render.warning(f"{report} holds the texts of all cases in the clear.")


# ---- evidence ---------------------------------------------------------------------------------------------------


@app.command("digest")
@examples("kneo evidence digest evals/support.yaml")
def digest(suite: SuiteArgument, *, as_json: JsonOption = False) -> None:
    """Print the digest of a suite, which an environment pins."""
    found = suite_digest(read_bytes(suite, max_bytes=SUITE_LIMITS.max_bytes, what="suite"), file=str(suite))
    render.emit({"suite": str(suite), "digest": found}, as_json=as_json, text=lambda: render.text(found))


@app.command("import")
@examples(
    "kneo evidence import junit.xml --format junit --suite tests/test_support.py --bundle support@1.1.0 --key evaluator.pem "
    "--output bundles/support/1.1.0.evidence/junit.dsse.json"
)
def import_results(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of results.")],
    *,
    format: Annotated[ResultFormat, typer.Option("--format", help="Format of the file.")],  # noqa: A002 - the option
    suite: Annotated[Path, typer.Option("--suite", help="File of the cases, whose digest an environment pins.")],
    bundle: BundleOption,
    key: Annotated[Path, typer.Option("--key", help="Private key file of the evaluator.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the signed result.")],
    as_json: JsonOption = False,
) -> None:
    """Sign the results of another tool about a bundle."""
    results = read_results(read_bytes(file, max_bytes=MAX_BYTES + 1, what="file of results"), format)
    cases = read_bytes(suite, max_bytes=SUITE_LIMITS.max_bytes, what="suite")
    subject = find_bundle(bundle, None)
    if subject.digest is None:
        msg = "A spec file has no digest that a result could be about."
        raise Usage(msg, hint="Pass a bundle: NAME@VERSION or its file.")
    statement = build_result(
        bundle_name=subject.name,
        bundle_digest=subject.digest,
        type="eval",
        suite=suite.stem,
        suite_digest=digest_of(cases),
        issued_at=SystemClock().now(),
        scripted=False,
        metrics=results.metrics(),
        passed=[name for name, passed in results.cases.items() if passed],
        failed=[name for name, passed in results.cases.items() if not passed],
        models=results.models,
    )
    write_whole(output, serialise(sign(PAYLOAD_TYPE, statement.payload, load_private(key))))
    answer = _facts(statement) | {"output": str(output)}
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Signed {len(results.cases)} cases: {output}"))


@app.command("verify")
@examples("kneo evidence verify bundles/support/1.1.0.evidence/support.dsse.json --report report.json")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Signed result.")],
    *,
    report: Annotated[Path | None, typer.Option("--report", help="Report to compare with the signed result.")] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="Trust root file. Default: that of the repository.")
    ] = None,
    trust_root: Annotated[
        str | None, typer.Option("--trust-root", help="Digest of the trust root to pin (sha256:…).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a signed result, and that a report has exactly its cases. Exit status 3 if one is refused."""
    from kneo.cli.specs.bundle_check import choose_root_or_warn
    from kneo.trust.dsse import ENVELOPE_BYTES

    now = SystemClock().now()
    envelope = read_bytes(file, max_bytes=ENVELOPE_BYTES, what="result")
    root = choose_root_or_warn(file.absolute(), trust, trust_root, now)
    try:
        verified = verify_result(envelope, root=root, roles=tuple(root.document.roles), first_seen=now, file=str(file))
        if report is not None:
            _compare(verified.statement, report)
    except Invalid as error:
        raise Untrusted(error.message, code=error.code, hint=error.hint) from error
    signers = [
        {
            "name": signer.principal,
            "roles": [name for name in root.document.roles if signer.keyid in root.role_keys(name)],
        }
        for signer in verified.signers
    ]
    statement = verified.statement
    answer = {"valid": True, **_facts(statement), "signers": signers, "report": report is not None}

    def text() -> None:
        who = ", ".join(f"{item['name']} ({', '.join(item['roles'])})" for item in signers)
        render.success(f"{statement.predicate.result} for {statement.bundle_name} {statement.bundle_digest}, by {who}")
        for name, metric in statement.facts.metrics.items():
            render.text(f"{name}: {metric.value} ({metric.samples} cases)")
        if report is not None:
            render.success(f"{report} has exactly the signed cases.")

    render.emit(answer, as_json=as_json, text=text)


def _compare(statement: ResultStatement, report: Path) -> None:
    try:
        content = json.loads(read_bytes(report, max_bytes=MAX_REPORT_BYTES, what="report"))
        cases = [(str(item["id"]), str(item["salt"]), dict(item["result"])) for item in content["cases"]]
    except KneoError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{report} is not a report of an evaluation."
        raise Invalid(msg, code="Malformed") from error
    check_commitments(statement, cases, str(report))


def _facts(statement: ResultStatement) -> dict[str, object]:
    facts = statement.facts
    return {
        "result": statement.predicate.result,
        "bundle": statement.bundle_name,
        "digest": statement.bundle_digest,
        "type": facts.type,
        "suite": statement.suite,
        "suite_digest": statement.suite_digest,
        "environment": facts.environment,
        "scripted": facts.scripted,
        "issued_at": facts.model_dump(mode="json")["issued_at"],
        "metrics": {name: item.model_dump() for name, item in facts.metrics.items()},
    }
