"""``kneo policy``: server-side policies that add to those in Git."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

from kneo.api import policies as api
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.options import OptionGroup
from kneo.spec.policy import PolicyFlags

app = typer.Typer(no_args_is_help=True)

EnvironmentArgument = Annotated[str, typer.Argument(metavar="ENV")]


@dataclass(frozen=True)
class PolicyOptions(OptionGroup):
    """The flags of a policy; a flag that is not set has its default."""

    enabled: Annotated[bool, typer.Option("--enabled/--disabled", help="Whether the policy is enforced.")] = True
    fail_on_warnings: Annotated[bool, typer.Option("--fail-on-warnings", help="Treat warnings as violations.")] = False
    blocked_diagnostic_codes: Annotated[
        list[str], typer.Option("--block", help="Treat a diagnostic code as a violation; repeatable.")
    ] = field(default_factory=list)
    require_human_review: Annotated[
        bool, typer.Option("--require-human-review", help="Require a human step or gate.")
    ] = False
    require_tool_permissions: Annotated[
        bool, typer.Option("--require-tool-permissions", help="Require permissions of agents with tools.")
    ] = False
    deny_unrestricted_tools: Annotated[
        bool,
        typer.Option("--deny-unrestricted-tools", help="Deny shell, file system and unlimited network access."),
    ] = False
    require_guardrails: Annotated[bool, typer.Option("--require-guardrails", help="Require a guardrail.")] = False

    def request(self) -> api.PolicyRequest:
        return request(api.PolicyRequest, **vars(self))


@app.command("list")
@examples("kneo policy list", "kneo policy list --json")
def list_policies(*, options: ServiceOptions) -> None:
    """List the server-side policies."""
    options.show(api.list_environment_policies, _show_list)


def _show_list(answer: api.PolicyListView) -> None:
    rows = [[name, _rules(flags)] for name, flags in sorted(answer.policies.items())]
    render.table("", ["Environment", "Requires"], rows)


@app.command("get")
@examples("kneo policy get prod", "kneo policy get prod --json")
def get(environment: EnvironmentArgument, *, options: ServiceOptions) -> None:
    """Show the server-side policy of an environment, and the policy in force with Git's and the project's."""
    options.show(api.get_environment_policy, _show, environment)


@app.command("set")
@examples(
    "kneo policy set prod --require-human-review",
    "kneo policy set prod --block W_TOOLS_UNRESTRICTED --fail-on-warnings",
)
def set_(environment: EnvironmentArgument, *, policy: PolicyOptions, options: ServiceOptions) -> None:
    """Replace the server-side policy of an environment. It adds to Git's policy and never weakens it."""
    options.show(api.set_environment_policy, _show, environment, policy.request())


@app.command("preview")
@examples("kneo policy preview prod --require-guardrails", "kneo policy preview prod --fail-on-warnings --json")
def preview(environment: EnvironmentArgument, *, policy: PolicyOptions, options: ServiceOptions) -> None:
    """Preview the changes of a policy, and which of the latest runs it would refuse."""
    body = policy.request()
    options.show(api.preview_environment_policy, lambda view: _show_preview(view, environment), environment, body)


def _show_preview(answer: api.PolicyPreviewView, environment: str) -> None:
    rows = [[name, change["from"], change["to"]] for name, change in answer.diff.items()]
    render.table(f"{environment}: {render.count(len(rows), 'change')}", ["Field", "Now", "Then"], rows)
    refused = answer.affected_run_ids
    message = f"{len(refused)} of the latest {answer.runs_evaluated} runs would be refused"
    render.text(f"{message}: {', '.join(refused)}" if refused else f"{message}.")


def _show(answer: api.PolicyView) -> None:
    own = _rules(answer.policy) if answer.policy is not None else "no policy"
    render.panel(f"Policy of {answer.environment}", [("Server-side", own), ("In force", _rules(answer.effective))])


def _rules(flags: PolicyFlags) -> str:
    if not flags.enabled:
        return "nothing (disabled)"
    names = [name for name, value in flags if value is True and name != "enabled"]
    return ", ".join([*names, *flags.blocked_diagnostic_codes]) or "nothing"
