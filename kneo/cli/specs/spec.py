"""``kneo spec``: validate, explain, draw, migrate and resolve specs; print schemas."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import choose
from kneo.cli.files import read_bytes, write_whole
from kneo.cli.options import JsonOption, OptionGroup
from kneo.cli.specs.check import Checked, Format, check, check_file, print_findings, require_usable
from kneo.digest import digest_of_json
from kneo.errors import Invalid, NotFound
from kneo.names import visible
from kneo.spec.base import describe, suggest
from kneo.spec.coverage.calls import call_words
from kneo.spec.coverage.policy import policy_report
from kneo.spec.diff import escaped
from kneo.spec.documents import DEFAULT_LIMITS, Diagnostic, as_text
from kneo.spec.graph import (
    GraphNode,
    as_dot,
    as_mermaid,
    compiled,
    explained,
    linted,
    missing_here,
    names_of,
    spec_graph,
    worth_a_look,
)
from kneo.spec.models.spec import Spec
from kneo.spec.models.workflow import LeafStep
from kneo.spec.policy import NO_TOOL_RULES
from kneo.spec.reading.migrate import migrate as migrate_tree
from kneo.spec.reading.reader import read
from kneo.spec.reading.yaml import write_yaml
from kneo.spec.schemas import json_schema, write_schema

if TYPE_CHECKING:
    from pydantic import BaseModel


app = typer.Typer(no_args_is_help=True)


SpecArgument = Annotated[
    Path | None, typer.Argument(metavar="SPEC", help="A YAML or JSON file. Default: the project's default spec.")
]
EnvOption = Annotated[
    str | None, typer.Option("--env", help="The environment whose overlays, defaults and policy apply.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="The format of the findings.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write the result to this file.")]


@dataclass(frozen=True)
class CheckOptions(OptionGroup):
    """The options of a check of a spec, here or on a service."""

    env: EnvOption = None
    as_json: JsonOption = False
    service_url: Annotated[str | None, typer.Option("--service-url", help="Check the spec on this service.")] = None
    profile: Annotated[str | None, typer.Option("--profile", help="Check the spec on the service of this profile.")] = (
        None
    )

    @property
    def is_remote(self) -> bool:
        return bool(self.service_url or self.profile)

    def call(self, checked: Checked, verb: str) -> dict[str, object]:
        """Send the resolved spec to the service, which has its own modules, tools and policies.

        Args:
            checked: The spec.
            verb: ``validate``, ``compile``, ``explain`` or ``policy-report``.

        Raises:
            typer.Exit: the spec does not match the schema; the findings are printed.
        """
        if checked.spec is None:
            require_usable(checked, as_json=self.as_json)
        settings = checked.project.settings
        address = choose(settings, self.service_url, self.profile)
        assert address is not None, "the options name a service"
        from kneo.cli.client import ServiceBackend  # imports the HTTP library, which local checks do without

        body = {"spec": checked.file.loaded.tree, "environment": checked.project.environment}
        with contextlib.closing(ServiceBackend(address.url, address.key, settings)) as service:
            return service.send("POST", f"/specs/{verb}", body=body)


@app.command()
@examples("kneo spec validate spec.yaml", "kneo spec validate spec.yaml --env prod --format sarif")
def validate(
    spec: SpecArgument = None,
    *,
    shape: FormatOption = Format.TEXT,
    options: CheckOptions,
) -> None:
    """Validate a spec, or an environment file. Exit status 1 if it has errors."""
    checked = _validated(spec, options)
    answer: dict[str, object] = {
        "valid": checked.valid,
        "diagnostics": [found.as_json() for found in checked.findings],
        "report": names_of(checked.spec),
        **checked.origin(),
    }
    print_findings(checked, checked.findings, shape, answer if options.as_json else None)
    raise typer.Exit(0 if checked.valid else 1)


@app.command()
@examples("kneo spec lint spec.yaml", "kneo spec lint spec.yaml --format github")
def lint(
    spec: SpecArgument = None,
    *,
    shape: FormatOption = Format.TEXT,
    options: CheckOptions,
) -> None:
    """Check a spec, or an environment file, for errors and warnings. Exit status 1 if any are found; kneo spec validate shows
    information, too.
    """
    checked = _validated(spec, options)
    findings = worth_a_look(checked.findings)
    answer: dict[str, object] = {**linted(findings), **checked.origin()}
    print_findings(checked, findings, shape, answer if options.as_json else None)
    raise typer.Exit(1 if findings else 0)


def _validated(spec: Path | None, options: CheckOptions) -> Checked:
    checked = check_file(spec, options.env)
    if checked.is_environment or not options.is_remote:
        return checked  # the rules of environment files are the same everywhere
    return checked.with_findings(options.call(checked, "validate"))


@app.command("compile")
@examples("kneo spec compile spec.yaml", "kneo spec compile spec.yaml --service-url http://127.0.0.1:8000")
def compile_spec(spec: SpecArgument = None, *, options: CheckOptions) -> None:
    """Check that a spec can run, without running it."""
    checked = check(spec, options.env)
    lacking: list[Diagnostic] = []
    if options.is_remote:
        answer = options.call(checked, "compile")
        subject = f"The service can run {checked.name}."
    else:
        require_usable(checked, as_json=options.as_json)
        usable = checked.usable()
        lacking = missing_here(checked.findings)
        findings = [found.as_json() for found in checked.findings]
        answer = {"ok": True, "summary": compiled(usable), "diagnostics": findings}
        subject = f"{checked.name} can run: {_roots(usable)}."

    def show() -> None:
        for found in lacking:
            render.text(as_text(found, checked.file.sources))
        if lacking:
            render.line(render.CAREFUL, f"{checked.name} is valid, and a run here would be refused.")
        else:
            render.success(subject)

    render.emit({**answer, **checked.origin()}, as_json=options.as_json, text=show)


@app.command()
@examples("kneo spec explain spec.yaml", "kneo spec explain spec.yaml --json")
def explain(spec: SpecArgument = None, *, options: CheckOptions) -> None:
    """List the steps of a spec and its human gates."""
    checked = check(spec, options.env)
    require_usable(checked, as_json=options.as_json)
    usable = checked.usable()
    answer = options.call(checked, "explain") if options.is_remote else explained(usable)

    def show() -> None:
        render.text(f"{checked.name}: {_roots(usable)}.")
        for node in spec_graph(usable).nodes:
            depth = node.id.count("/") if node.parent else 0
            render.text(f"{'  ' * (depth + 1)}{_step(node)}")

    render.emit({**answer, **checked.origin()}, as_json=options.as_json, text=show)


@app.command("resolve")
@examples("kneo spec resolve spec.yaml --output resolved.yaml", "kneo spec resolve spec.yaml --env prod --output -")
def resolve_spec(
    spec: SpecArgument = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; - is standard output.")],
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a spec as one file, as it would be signed.

    Overlays and defaults are applied; prompts and skills are inlined.
    """
    checked = check(spec, env)
    require_usable(checked, as_json=as_json)
    tree = checked.file.loaded.tree
    _write(tree, output)
    answer = {"output": str(output), "digest": digest_of_json(tree), **checked.origin()}
    if str(output) != "-":
        render.emit(answer, as_json=as_json, text=lambda: render.success(f"Resolved {checked.name} into {output}."))


@app.command()
@examples("kneo spec migrate old.yaml --output spec.yaml", "kneo spec migrate spec.yaml --check")
def migrate(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML or JSON file.")],
    *,
    output: OutputOption = None,
    only_check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit status 1 if the spec would change.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Migrate an older spec to version v1."""
    data = read_bytes(spec, max_bytes=DEFAULT_LIMITS.max_bytes, what="spec")
    value = read(data, file=str(spec)).value
    if not isinstance(value, dict):
        message = f"{spec}: A spec is a map, not {describe(value)}."
        raise Invalid(message, file=str(spec))
    result = migrate_tree(value)
    answer: dict[str, object] = {
        "source_version": result.source_version,
        "target_version": "v1",
        "changed": result.changed,
        "applied": list(result.applied),
    }
    if output is not None and not only_check:
        _write(result.tree, output)
        answer["output"] = str(output)
    elif not only_check:
        answer["spec"] = result.tree

    def show() -> None:
        if "spec" in answer:
            render.text(write_yaml(result.tree).rstrip("\n"))
        elif output is not None:
            render.success(f"Migrated {spec} into {output}.")

    render.emit(answer, as_json=as_json, text=show)
    raise typer.Exit(1 if only_check and result.changed else 0)


@app.command("policy-report")
@examples("kneo spec policy-report spec.yaml", "kneo spec policy-report spec.yaml --env prod --json")
def report_policy(
    spec: SpecArgument = None,
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a section for the summary of a CI job.")] = False,
    options: CheckOptions,
) -> None:
    """Summarize permissions, tools and human gates for a reviewer.

    Exit status 1 if the spec does not match the schema or violates the environment's policy.
    """
    checked = check(spec, options.env)
    declared = checked.file.declared
    rules = declared.spec.tools if declared is not None else NO_TOOL_RULES
    report = policy_report(checked.gated() if checked.spec is not None else None, checked.findings, rules)
    answer: Mapping[str, object] = report.flat()
    findings = checked.findings
    if options.is_remote:
        received = options.call(checked, "policy-report")["report"]
        assert isinstance(received, dict)
        answer, findings = received, (*findings, *checked.with_findings(received).findings)

    def show() -> None:
        sections = [*_sections(report.body)] if report.valid else []
        if markdown:
            sections += [("Findings", [line for found in checked.findings for line in as_text(found, {}).splitlines()])]
            render.text("\n".join(_markdown(checked.name, sections)))
            return
        for heading, lines in sections:
            render.text("\n  ".join((heading, *map(visible, lines))))
        print_findings(checked, checked.findings, Format.TEXT, None)

    # The keys of a local report and of a service's report: both have readers.
    render.emit({**answer, "report": answer, **checked.origin()}, as_json=options.as_json, text=show)
    violated = any(found.code.startswith("E_ENV_POLICY_") for found in findings)
    raise typer.Exit(1 if violated or not (report.valid and answer.get("valid", True)) else 0)


@app.command()
@examples("kneo spec graph spec.yaml", "kneo spec graph spec.yaml --format dot")
def graph(
    spec: SpecArgument = None,
    *,
    env: EnvOption = None,
    drawing: Annotated[
        Literal["mermaid", "dot", "json"], typer.Option("--format", help="The language of the drawing.")
    ] = "mermaid",
    as_json: JsonOption = False,
) -> None:
    """Draw the workflow of a spec."""
    checked = check(spec, env)
    if checked.spec is None:
        require_usable(checked, as_json=as_json)
    drawn = spec_graph(checked.gated())
    if as_json or drawing == "json":
        render.print_json(drawn.as_json())
    else:
        render.text((as_mermaid if drawing == "mermaid" else as_dot)(drawn).rstrip("\n"))


@app.command()
@examples("kneo spec schema", "kneo spec schema environment", "kneo spec schema --output schemas")
def schema(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="The kind of file: spec, environment, project, answers, … Default: spec."),
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the schema, or all schemas, to this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON Schema of a kind of file."""
    schemas = rendered()
    name = f"{kind or 'spec'}.schema.json"
    if name not in schemas:
        known = [each.removesuffix(".schema.json") for each in schemas]
        message = f"There is no schema of {str(kind)[:60]!r}."
        raise NotFound(message, hint=suggest(str(kind), known))
    if output is None:
        render.text(schemas[name].rstrip("\n"))
        return
    files = {output / each: text for each, text in schemas.items() if kind is None or each == name}
    for path, text in files.items():
        write_whole(path, text.encode())
    answer = {"files": [str(path) for path in files]}
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Wrote {len(files)} to {output}."))


def _roots(spec: Spec) -> str:
    workflow = spec.workflow
    if workflow is None:
        return f"agent {spec.agent.name}, without a workflow"
    return f"agent {spec.agent.name}, {workflow.type} workflow {workflow.name or ''}".rstrip()


def _step(node: GraphNode) -> str:
    step = node.step
    kind = f"{node.kind} {step.ref}" if isinstance(step, LeafStep) else node.kind
    gates = [f"asks {position}" for position in node.gates]
    on_error = [f"on error: {step.on_error}"] if step.on_error != "fail" else []
    return f"{node.name}: {', '.join([kind, *gates, *on_error])}"


def _sections(body: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    """Yield the headings and lines of a policy report."""
    agents = [(_list(body, part, key)) for part, key in _AGENT_PARTS]
    tools, memory, guardrails = agents
    yield "Tools", [f"{each['agent']}: {_tools(each)}" for each in tools]
    yield "Memory", [f"{each['agent']}: {each['policy'] or 'everything'}" for each in memory]
    yield "Guardrails", [f"{each['agent']}: {_stages(each['stages'])}" for each in guardrails]
    gates = [f"{each['step_id']} asks {each['ref']}" for each in _list(body, "human_review", "workflow_steps")]
    gates += [
        f"{each['path']} asks {each['human'] or 'the default reviewer'}"
        for each in _list(body, "human_review", "gates")
    ]
    yield "Human gates", gates or ["none"]
    yield "Privileged calls", [call_words(each) for each in _dicts(body["calls"])] or ["none"]
    reasons = _list(body, "human_review", "requirements")
    yield "Reasons for a review", [f"{each['code']}: {each['reason']}" for each in reasons]


def _markdown(name: str, sections: Iterable[tuple[str, list[str]]]) -> Iterator[str]:
    """Yield a policy report as Markdown that shows every name as it is written."""
    yield f"### {escaped(visible(name))}\n"
    for heading, lines in sections:
        yield from (f"**{heading}**\n", *(f"- {escaped(visible(line.strip()))}" for line in lines or ["none"]), "")


_AGENT_PARTS = (("tools", "agent_policies"), ("memory", "agents"), ("guardrails", "agents"))


def _list(body: Mapping[str, object], part: str, key: str) -> list[dict[str, object]]:
    section = body[part]
    return _dicts(section[key] if isinstance(section, dict) else [])


def _dicts(value: object) -> list[dict[str, object]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _tools(policy: Mapping[str, object]) -> str:
    names = policy["include"]
    if not isinstance(names, list) or not names:
        return "none"
    return f"{', '.join(names)} ({'unrestricted' if policy['unrestricted'] else 'restricted'})"


def _stages(stages: object) -> str:
    counts = stages.items() if isinstance(stages, dict) else ()
    return ", ".join(f"{count} at {stage}" for stage, count in counts) or "none"


def _write(tree: dict[str, object], output: Path) -> None:
    as_json = output.suffix.lower() == ".json"
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n" if as_json else write_yaml(tree)
    if str(output) == "-":
        render.text(text.rstrip("\n"))
    else:
        write_whole(output, text.encode())


def kinds() -> Mapping[str, type[BaseModel]]:
    """Return the model of each kind of file. Imports the models of every room; other commands need those of specs alone."""
    from kneo.spec.models.answers import AnswersFile
    from kneo.spec.models.environment import EnvironmentFile
    from kneo.spec.models.spec import Spec
    from kneo.spec.models.suite import Suite
    from kneo.spec.project import ProjectConfig
    from kneo.trust.answer import SignedAnswer
    from kneo.trust.receipt import Receipt
    from kneo.trust.root import RootDocument
    from kneo.trust.statement import ApprovalPredicate, BundlePredicate

    return {
        "spec": Spec,
        "environment": EnvironmentFile,
        "project": ProjectConfig,
        "answers": AnswersFile,
        "suite": Suite,
        "trust-root": RootDocument,
        "bundle": BundlePredicate,
        "approval": ApprovalPredicate,
        "receipt": Receipt,
        "signed-answer": SignedAnswer,
    }


def rendered() -> Mapping[str, str]:
    """Return every schema's text by the name of its file."""
    return {f"{kind}.schema.json": write_schema(json_schema(model, kind)) for kind, model in kinds().items()}
