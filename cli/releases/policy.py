"""``kneo policy``: what an environment asks of specs beside what Git says."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend

app = typer.Typer(no_args_is_help=True)

EnvironmentArgument = Annotated[str, typer.Argument(metavar="ENV")]
EnabledOption = Annotated[bool, typer.Option("--enabled/--disabled", help="Whether it is looked at.")]
WarningsOption = Annotated[bool, typer.Option("--fail-on-warnings", help="A warning is a violation.")]
CodesOption = Annotated[list[str], typer.Option("--block", help="A diagnostic code that is a violation; repeatable.")]
HumanOption = Annotated[bool, typer.Option("--require-human-review", help="A person has to be asked somewhere.")]
ToolsOption = Annotated[
    bool, typer.Option("--require-tool-permissions", help="Agents with tools have to state permissions.")
]
UnrestrictedOption = Annotated[
    bool, typer.Option("--deny-unrestricted-tools", help="No shell, file system or unlimited network.")
]
GuardrailsOption = Annotated[bool, typer.Option("--require-guardrails", help="An agent has to have a guardrail.")]


@app.command("list")
def list_policies(
    service_url: ServiceUrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """List the policies that were set here."""
    with backend(service_url, profile) as asked:
        answer = asked.policies()
    policies = answer["policies"]
    assert isinstance(policies, dict)
    rows = [[name, _asks(flags)] for name, flags in sorted(policies.items())]
    render.emit(answer, as_json=as_json, text=lambda: render.table("", ["Environment", "Asks for"], rows))


@app.command("get")
def get(
    environment: EnvironmentArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was set for an environment, and what holds with Git's and the project's policy."""
    with backend(service_url, profile) as asked:
        answer = asked.policy(environment)
    render.emit(answer, as_json=as_json, text=lambda: _show(answer))


@app.command("set")
def set_(
    environment: EnvironmentArgument,
    enabled: EnabledOption = True,
    fail_on_warnings: WarningsOption = False,
    block: CodesOption = [],  # noqa: B006 - it is read by the framework and never changed
    require_human_review: HumanOption = False,
    require_tool_permissions: ToolsOption = False,
    deny_unrestricted_tools: UnrestrictedOption = False,
    require_guardrails: GuardrailsOption = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace an environment's policy: what is not named is not asked for. It only ever adds to what Git says."""
    flags = _flags(
        enabled,
        fail_on_warnings,
        block,
        require_human_review,
        require_tool_permissions,
        deny_unrestricted_tools,
        require_guardrails,
    )
    with backend(service_url, profile) as asked:
        answer = asked.set_policy(environment, flags)
    render.emit(answer, as_json=as_json, text=lambda: _show(answer))


@app.command("preview")
def preview(
    environment: EnvironmentArgument,
    enabled: EnabledOption = True,
    fail_on_warnings: WarningsOption = False,
    block: CodesOption = [],  # noqa: B006 - as above
    require_human_review: HumanOption = False,
    require_tool_permissions: ToolsOption = False,
    deny_unrestricted_tools: UnrestrictedOption = False,
    require_guardrails: GuardrailsOption = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what such a policy would change, and which of the latest runs could not be started under it."""
    flags = _flags(
        enabled,
        fail_on_warnings,
        block,
        require_human_review,
        require_tool_permissions,
        deny_unrestricted_tools,
        require_guardrails,
    )
    with backend(service_url, profile) as asked:
        answer = asked.preview_policy(environment, flags)
    changes, blocked = answer["diff"], answer["affected_run_ids"]
    assert isinstance(changes, dict)
    assert isinstance(blocked, list)

    def show() -> None:
        rows = [[name, change["from"], change["to"]] for name, change in changes.items()]
        render.table(f"{environment}: {len(rows)} changes", ["What", "Now", "Then"], rows)
        said = f"{len(blocked)} of the latest {answer['runs_evaluated']} runs could not be started under it"
        render.text(f"{said}: {', '.join(blocked)}" if blocked else f"{said}.")

    render.emit(answer, as_json=as_json, text=show)


def _flags(
    enabled: bool,
    fail_on_warnings: bool,
    block: list[str],
    require_human_review: bool,
    require_tool_permissions: bool,
    deny_unrestricted_tools: bool,
    require_guardrails: bool,
) -> Json:
    return {
        "enabled": enabled,
        "fail_on_warnings": fail_on_warnings,
        "blocked_diagnostic_codes": block,
        "require_human_review": require_human_review,
        "require_tool_permissions": require_tool_permissions,
        "deny_unrestricted_tools": deny_unrestricted_tools,
        "require_guardrails": require_guardrails,
    }


def _show(answer: Json) -> None:
    policy, effective = answer["policy"], answer.get("effective")
    lines = [("Set here", _asks(policy) if isinstance(policy, dict) else "nothing")]
    if isinstance(effective, dict):
        lines.append(("In force", _asks(effective)))
    render.panel(f"Policy of {answer['environment']}", lines)


def _asks(flags: Json) -> str:
    if not flags["enabled"]:
        return "nothing: it is disabled"
    codes = flags["blocked_diagnostic_codes"]
    assert isinstance(codes, list)
    named = [name for name, value in flags.items() if value is True and name != "enabled"]
    return ", ".join([*named, *codes]) or "nothing"
