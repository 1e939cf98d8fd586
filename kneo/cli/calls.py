"""``kneo call``: calls of the tools that an environment serves to the caller."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import urljoin

import typer

from kneo.api import calls as api
from kneo.api.calls import CallListView, CallToolListView, CallView
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.clock import SystemClock
from kneo.errors import Usage
from kneo.json_text import RepeatedMember, parse_json

app = typer.Typer(no_args_is_help=True)

CallArgument = Annotated[str, typer.Argument(metavar="CALL", help="Id of the call (run_…), as kneo call list shows.")]
EnvironmentOption = Annotated[str, typer.Option("--env", help="The environment that serves the tool.")]
BundleOption = Annotated[str, typer.Option("--bundle", help="The bundle that has the tool.")]
WaitOption = Annotated[str | None, typer.Option("--wait", help="How long to wait for people: 50s, 10m.")]


@app.callback()
def call() -> None:
    """Call tools of released bundles; people approve calls first where a gate asks them."""


@app.command("make")
@examples(
    """kneo call make refund --env prod --bundle payments --arguments '{"id":"7","amount":20}'""",
    """kneo call make lookup --env prod --bundle payments --arguments '{"id":"7"}' --wait 10m --json""",
)
def make(
    tool: Annotated[str, typer.Argument(help="The tool, by its name in the spec.")],
    environment: EnvironmentOption,
    bundle: BundleOption,
    arguments: Annotated[str, typer.Option("--arguments", help="The arguments, as a JSON object.")] = "{}",
    key: Annotated[str | None, typer.Option("--key", help="Make the call once under this idempotency key.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Conversation that the call belongs to.")] = None,
    wait: WaitOption = None,
    *,
    options: ServiceOptions,
) -> None:
    """Make a call, and wait until it has ended or is allowed.

    Without --key the same call, sent again before its result was returned, is the earlier call.
    """
    body = request(
        api.CallCreate,
        environment=environment,
        bundle=bundle,
        tool=tool,
        arguments=_arguments(arguments),
        session_id=session,
    )
    with options.open() as opened:
        _show_result(opened.with_key(key).call(api.create_call, body, wait), opened.url, options)


def _arguments(text: str) -> dict[str, object]:
    try:
        value = parse_json(text)
    except (ValueError, RepeatedMember):
        value = None
    if not isinstance(value, dict):
        msg = "--arguments is not a JSON object."
        raise Usage(msg, hint="""--arguments '{"id":"7"}'""")
    return value


@app.command("get")
@examples("kneo call get run_01JD8Z4V6M3Q", "kneo call get run_01JD8Z4V6M3Q --wait 10m --json")
def get(call_id: CallArgument, wait: WaitOption = None, *, options: ServiceOptions) -> None:
    """Show a call of yours; with --wait, when it has ended or is allowed."""
    with options.open() as opened:
        _show_result(opened.call(api.get_call, call_id, wait), opened.url, options)


@app.command("cancel")
@examples("kneo call cancel run_01JD8Z4V6M3Q")
def cancel(call_id: CallArgument, *, options: ServiceOptions) -> None:
    """End a call of yours, and withdraw its questions."""
    options.show(api.cancel_call, show_call, call_id)


@app.command("list")
@examples("kneo call list --env prod --waiting", "kneo call list --env prod --bundle payments --json")
def list_(
    environment: Annotated[str | None, typer.Option("--env", help="Only calls in this environment.")] = None,
    bundle: Annotated[str | None, typer.Option("--bundle", help="Only calls of this bundle.")] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only calls that wait for people.")] = False,
    *,
    options: ServiceOptions,
) -> None:
    """List your calls, the newest first."""
    status: api.CallStatus | None = "waiting" if waiting else None
    options.show(api.list_calls, _show_list, environment, bundle, status)


@app.command("tools")
@examples("kneo call tools --env prod --bundle payments")
def tools(environment: EnvironmentOption, bundle: BundleOption, *, options: ServiceOptions) -> None:
    """List the tools of a bundle that you may call."""
    options.show(api.list_call_tools, _show_tools, environment, bundle)


def _show_result(view: CallView, address: str | None, options: ServiceOptions) -> None:
    render.emit(view, as_json=options.as_json, text=lambda: show_call(view, address))
    if view.status == "ended" and view.outcome != "success":
        raise typer.Exit(1)


def show_call(view: CallView, address: str | None = None) -> None:
    """Print a call; the links to its questions begin with the address of the service where that knows none of its own."""
    lines: list[tuple[str, object]] = [("Status", view.outcome or view.status)]
    lines.append(("Tool", f"{view.tool} of {view.bundle} {view.version} in {view.environment}"))
    if view.result is not None:
        lines.append(("Result", json.dumps(view.result, ensure_ascii=False)))
    if view.error is not None:
        lines.append(("Error", f"{view.error.type}: {view.error.message}"))
    render.panel(f"Call {view.id}", lines)
    for question in view.questions:
        render.warning(f"Waiting for approval: {urljoin(address or '', question.url)}")


def _show_list(view: CallListView) -> None:
    now = SystemClock().now()
    rows = [
        [each.id, each.tool, each.bundle, each.outcome or each.status, render.relative(each.created_at, now)]
        for each in view.calls
    ]
    render.table("Calls", ["Call", "Tool", "Bundle", "Status", "Made"], rows)


def _show_tools(view: CallToolListView) -> None:
    rows = [[each.name, each.description, "yes" if each.has_effects else "no"] for each in view.tools]
    render.table("Tools", ["Tool", "Description", "Effects"], rows)
