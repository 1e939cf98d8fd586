"""``kneo spec``: check a spec, show what it means, bring it up to date, and turn it into one file."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.files import read_bytes, write_whole
from cli.project import open_project
from cli.specs.check import Format, check, print_findings, require_usable
from cli.specs.report import print_report
from cli.specs.spec_service import ask_service
from kneo.digest import digest_of_json
from kneo.errors import Invalid, NotFound
from kneo.spec.coverage.policy import policy_report
from kneo.spec.documents import DEFAULT_LIMITS
from kneo.spec.graph import GraphNode, as_dot, as_mermaid, spec_graph
from kneo.spec.messages import describe, suggest
from kneo.spec.models import LeafStep, Spec
from kneo.spec.reading.migrate import migrate as bring_up_to_date
from kneo.spec.reading.reader import read
from kneo.spec.reading.yaml_writer import write_yaml
from kneo.spec.summary import compiled, explained, linted, names_of, worth_a_look

app = typer.Typer(no_args_is_help=True)


class Drawing(StrEnum):
    MERMAID = "mermaid"
    DOT = "dot"
    JSON = "json"


SpecArgument = Annotated[
    Path | None, typer.Argument(metavar="SPEC", help="A YAML or JSON file; left out: the project's default spec.")
]
EnvOption = Annotated[
    str | None, typer.Option("--env", help="The environment whose overlays, defaults and policy apply.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How findings are printed.")]
ServiceUrlOption = Annotated[str | None, typer.Option("--service-url", help="Let this service check it.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="Let the service of this profile check it.")]


@app.command()
def validate(
    spec: SpecArgument = None,
    *,
    env: EnvOption = None,
    as_json: JsonOption = False,
    shape: FormatOption = Format.TEXT,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Say whether a spec can be used. Exits 1 when it cannot."""
    checked = check(open_project(env), spec)
    if service_url or profile:
        checked = checked.answered(ask_service("validate", checked, service_url, profile))
    answer: dict[str, object] = {
        "valid": checked.valid,
        "diagnostics": [found.as_json() for found in checked.findings],
        "report": names_of(checked.spec),
        **checked.origin(),
    }
    print_findings(checked, checked.findings, shape, answer if as_json else None)
    raise typer.Exit(0 if checked.valid else 1)


@app.command()
def lint(
    spec: SpecArgument = None,
    *,
    env: EnvOption = None,
    as_json: JsonOption = False,
    shape: FormatOption = Format.TEXT,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Show warnings and errors. Exits 1 when there is any."""
    checked = check(open_project(env), spec)
    if service_url or profile:
        checked = checked.answered(ask_service("validate", checked, service_url, profile))
    shown = worth_a_look(checked.findings)
    answer: dict[str, object] = {**linted(checked.findings), **checked.origin()}
    print_findings(checked, shown, shape, answer if as_json else None)
    raise typer.Exit(1 if shown else 0)


@app.command("compile")
def compile_spec(
    spec: SpecArgument = None,
    *,
    env: EnvOption = None,
    as_json: JsonOption = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Check that a spec can be run, without running it."""
    checked = check(open_project(env), spec)
    if service_url or profile:
        answer = {**ask_service("compile", checked, service_url, profile), **checked.origin()}
        render.emit(answer, as_json=as_json, text=lambda: render.success(f"The service can run {checked.name}."))
        return
    require_usable(checked, as_json=as_json)
    usable = checked.usable()
    answer = {
        "ok": True,
        "summary": compiled(usable),
        "diagnostics": [found.as_json() for found in checked.findings],
        **checked.origin(),
    }

    def show() -> None:
        render.success(f"{checked.name} can be run: agent {usable.agent.name}, {_workflow_words(usable)}.")

    render.emit(answer, as_json=as_json, text=show)


@app.command()
def explain(
    spec: SpecArgument = None,
    *,
    env: EnvOption = None,
    as_json: JsonOption = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Say what a spec does, and where people are asked."""
    checked = check(open_project(env), spec)
    require_usable(checked, as_json=as_json)
    usable = checked.usable()
    nodes = spec_graph(usable).nodes
    asked = ask_service("explain", checked, service_url, profile) if service_url or profile else explained(usable)
    answer: dict[str, object] = {**asked, **checked.origin()}

    def show() -> None:
        render.text(f"{checked.name}: agent {usable.agent.name}, {_workflow_words(usable)}.")
        for node in nodes:
            depth = node.id.count("/") if node.parent else 0
            render.text(f"{'  ' * (depth + 1)}{_step_words(node)}")

    render.emit(answer, as_json=as_json, text=show)


@app.command("resolve")
def resolve_spec(
    spec: SpecArgument = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it; - is standard output.")],
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the spec as one file.

    Overlays and defaults are applied, prompts and skills taken in: it is what would be signed.
    """
    checked = check(open_project(env), spec)
    require_usable(checked, as_json=as_json)
    tree = checked.file.loaded.tree
    _write(tree, output)
    answer = {"output": str(output), "digest": digest_of_json(tree), **checked.origin()}
    if str(output) != "-":
        render.emit(answer, as_json=as_json, text=lambda: render.success(f"Resolved {checked.name} into {output}."))


@app.command()
def migrate(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML or JSON file.")],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result there.")] = None,
    only_check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 when something would change.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring an older spec into the shape of v1."""
    data = read_bytes(spec, max_bytes=DEFAULT_LIMITS.max_bytes, what="spec")
    value = read(data, file=str(spec)).value
    if not isinstance(value, dict):
        message = f"{spec}: A spec is a map, not {describe(value)}."
        raise Invalid(message, file=str(spec))
    result = bring_up_to_date(value)
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
def report_policy(
    spec: SpecArgument = None,
    *,
    env: EnvOption = None,
    as_json: JsonOption = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Say what whoever approves a spec wants to know.

    Memory, tools and their permissions, guardrails, and where people are asked. Exits 1 when the spec has the wrong
    shape or does not satisfy the environment's policy.
    """
    checked = check(open_project(env), spec)
    report = policy_report(checked.spec, checked.findings)
    told: object = report.flat()
    if service_url or profile:
        told = ask_service("policy-report", checked, service_url, profile)["report"]
    assert isinstance(told, dict)
    # Flat as beside the database, and under a name as from services: both have readers.
    answer: dict[str, object] = {**told, "report": told, **checked.origin()}
    violated = any(found.code.startswith("E_ENV_POLICY_") for found in checked.findings)
    render.emit(answer, as_json=as_json, text=lambda: print_report(checked, report))
    raise typer.Exit(1 if violated or not report.valid else 0)


@app.command()
def graph(
    spec: SpecArgument = None,
    *,
    env: EnvOption = None,
    drawing: Annotated[Drawing, typer.Option("--format", help="The language of the drawing.")] = Drawing.MERMAID,
    as_json: JsonOption = False,
) -> None:
    """Draw the workflow."""
    checked = check(open_project(env), spec)
    if checked.spec is None:
        require_usable(checked, as_json=as_json)
    drawn = spec_graph(checked.gated())
    if as_json or drawing is Drawing.JSON:
        render.print_json(drawn.as_json())
    else:
        render.text((as_mermaid if drawing is Drawing.MERMAID else as_dot)(drawn).rstrip("\n"))


@app.command()
def schema(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="spec (the default), environment, project, answers, …")
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this folder: the one named, or all of them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON Schema of one kind of file."""
    # The models of every room are imported here and nowhere else in this module.
    from cli.specs.schemas import rendered

    schemas = rendered()
    wanted = f"{kind or 'spec'}.schema.json"
    if wanted not in schemas:
        known = [name.removesuffix(".schema.json") for name in schemas]
        message = f"There is no schema of {str(kind)[:60]!r}."
        raise NotFound(message, hint=suggest(str(kind), known))
    if output is None:
        render.text(schemas[wanted].rstrip("\n"))
        return
    files = {output / name: text for name, text in schemas.items() if kind is None or name == wanted}
    for path, text in files.items():
        write_whole(path, text.encode())
    answer = {"files": [str(path) for path in files]}
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Wrote {len(files)} to {output}."))


def _workflow_words(spec: Spec) -> str:
    workflow = spec.workflow
    if workflow is None:
        return "which answers by itself"
    return f"{workflow.type} workflow {workflow.name}" if workflow.name else f"a {workflow.type} workflow"


def _step_words(node: GraphNode) -> str:
    step = node.step
    what = f"{node.kind} {step.ref}" if isinstance(step, LeafStep) else node.kind
    asked = [f"asks {place}" for place in node.gates]
    fails = [f"on error: {step.on_error}"] if step.on_error != "fail" else []
    return f"{node.name}: {', '.join([what, *asked, *fails])}"


def _write(tree: dict[str, object], output: Path) -> None:
    as_json = output.suffix.lower() == ".json"
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n" if as_json else write_yaml(tree)
    if str(output) == "-":
        render.text(text.rstrip("\n"))
    else:
        write_whole(output, text.encode())
