"""``kneo sessions``, ``kneo runs get``, ``kneo runs steps`` and ``kneo runs conversation``: what steps did, and what agents wrote and remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kneo.api.conversation_messages import MessageCallView, MessageView
from kneo.api.run_conversation import ConversationsView, get_run_conversation, get_tool_result
from kneo.api.run_steps import StepGateView, StepPageView, StepView, list_run_steps
from kneo.api.runs import get_run
from kneo.api.sessions import (
    DeletedSessionsView,
    SessionMessagesView,
    SessionPageView,
    delete_session,
    list_session_messages,
    list_sessions,
)
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.cli.runs.runs import RunArgument, cost_of, show_run
from kneo.clock import SystemClock
from kneo.records.run import dollars


@examples("kneo runs get run_01JD8Z4V6M3Q", "kneo runs get run_01JD8Z4V6M3Q --json")
def get(run_id: RunArgument, *, options: ServiceOptions) -> None:
    """Show one run and the answers that people gave."""
    with options.open() as opened:
        run = opened.call(get_run, run_id)
        gates = opened.call(list_run_steps, run_id, limit=1).gates

    def show() -> None:
        show_run(run)
        show_gates(gates)

    render.emit({**vars(run), "gates": gates}, as_json=options.as_json, text=show)


def show_gates(gates: Sequence[StepGateView]) -> None:
    """Print the gates of a run: a line for each vote, and one for what no vote decided."""
    rows: list[list[object]] = []
    for gate in gates:
        rows += [[gate.path, gate.position, vote.decision, vote.actor, gate.headline, vote.at] for vote in gate.votes]
        if not gate.votes or gate.decision is None:
            state = gate.decision or gate.status
            rows.append([gate.path, gate.position, state, gate.actor, gate.headline, gate.resolved_at])
    if rows:
        render.table("Gates", ["Step", "Position", "Status", "Actor", "Prompt", "At"], rows)


@examples("kneo runs steps run_01JD8Z4V6M3Q", "kneo runs steps run_01JD8Z4V6M3Q --json")
def steps(
    run_id: RunArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of steps to show.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Number of steps to skip.")] = 0,
    *,
    options: ServiceOptions,
) -> None:
    """List the steps of a run with their models, tokens and cost."""
    options.show(list_run_steps, _show_steps, run_id, limit=limit, offset=offset)


def _show_steps(page: StepPageView) -> None:
    if not page.steps and not page.gates:
        render.text("No steps.")
        return
    heads = ["Step", "Kind", "Attempt", "Status", "Model", "Requests", "Tool calls", "Tokens", "Cost", "Completed"]
    render.table("Steps", heads, [_row(step) for step in page.steps])
    show_gates(page.gates)
    _show_next_page(page)


def _row(step: StepView) -> list[object]:
    usage, model = step.usage, step.model
    counts: list[object] = [None] * 4
    if usage is not None:
        cost = cost_of(usage.cost_micros) if usage.requests else None
        counts = [usage.requests, usage.tool_calls, usage.total_tokens, cost]
    name = f"{model.provider}/{model.name}" if model is not None else None
    return [step.path, step.kind, step.attempt, step.status, name, *counts, step.completed_at]


@examples("kneo runs conversation run_01JD8Z4V6M3Q", "kneo runs conversation run_01JD8Z4V6M3Q draft --json")
def conversation(
    run_id: RunArgument,
    step: Annotated[str | None, typer.Argument(metavar="STEP", help="Only this step, by its path.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show personal data too; secrets are never shown.")] = False,
    *,
    options: ServiceOptions,
) -> None:
    """Show what the agents of a run and their models wrote."""
    options.show(get_run_conversation, _show_conversations, run_id, step=step, whole=whole)


@examples("kneo runs result run_01JD8Z4V6M3Q call_1", "kneo runs result run_01JD8Z4V6M3Q 2.call_1 --json")
def result(
    run_id: RunArgument,
    call: Annotated[
        str, typer.Argument(metavar="CALL", help="ID of the call in the conversation, or its key in the trace.")
    ],
    conversation: Annotated[
        str | None, typer.Option("--conversation", help="The conversation, where several have such a call.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show personal data too; secrets are never shown.")] = False,
    *,
    options: ServiceOptions,
) -> None:
    """Show the whole result of a tool call that the model was shown cut."""
    options.show(
        get_tool_result, lambda found: render.text(found.text), run_id, call, conversation=conversation, whole=whole
    )


def _show_conversations(found: ConversationsView) -> None:
    if not found.conversations:
        render.text("No conversations.")
    for one in found.conversations:
        render.text(f"{one.step} ({one.agent or 'agent'})")
        for message in one.messages:
            _show_message(message)
    if not found.may_read_content:
        render.text("Texts, arguments and results need the scope runs:content.")
    if found.truncated:
        render.warning("The conversations are cut.", "Name a step: kneo runs conversation RUN_ID STEP")


def _show_message(message: MessageView) -> None:
    hit = message.guardrail
    if hit is not None:
        render.text(f"  guardrail {hit.id} ({hit.stage}): {hit.outcome}")
        return
    label = f"{message.role} {message.tool_name}" if message.tool_name else message.role
    usage = message.usage
    if usage is not None:
        cost = f", {dollars(usage.cost_micros)}" if usage.cost_micros is not None else ""
        label += f" ({usage.total_tokens:,} tokens{cost})"
    if message.text or message.text is None or usage is not None:
        render.text(f"  {label}: {_indented(message.text or '')}".rstrip(": "))
    for call in message.tool_calls:
        _show_call(call)


def _show_call(call: MessageCallView) -> None:
    parts = [call.title, call.outcome, call.at, call.decided]
    render.text(f"    calls {_indented('; '.join(part for part in parts if part))}")
    if call.requested is not None:
        render.text(f"      requested: {_indented(call.requested)}")
    if call.arguments is not None:
        render.text(f"      arguments: {_indented(call.arguments)}")
    if call.result:
        render.text(f"      result: {_indented(call.result)}")


def _indented(text: str) -> str:
    return text.replace("\n", "\n      ")


app = typer.Typer(no_args_is_help=True)

EnvironmentOption = Annotated[str | None, typer.Option("--env", help="Only sessions of this environment.")]
RequesterOption = Annotated[str | None, typer.Option("--requester", help="Whose sessions; default: yours.")]


@app.command("list")
@examples("kneo sessions list", "kneo sessions list --env prod --requester ann --json")
def list_(
    environment: EnvironmentOption = None,
    requester: RequesterOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of sessions to show.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Number of sessions to skip.")] = 0,
    *,
    options: ServiceOptions,
) -> None:
    """List the sessions whose messages agents remember, the last used first."""
    options.show(
        list_sessions, _show_sessions, environment=environment, requester=requester, limit=limit, offset=offset
    )


def _show_sessions(page: SessionPageView) -> None:
    if not page.sessions:
        render.text("No sessions.")
        return
    now = SystemClock().now()
    rows = [
        [each.session_id, each.environment, each.message_count]
        + [render.relative(at, now) for at in (each.created_at, each.updated_at)]
        for each in page.sessions
    ]
    render.table("Sessions", ["Session", "Environment", "Messages", "Created", "Last used"], rows)
    _show_next_page(page)


@app.command("show")
@examples("kneo sessions show trip", "kneo sessions show trip --env prod --agent support --json")
def show(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session, as kneo sessions list shows.")],
    environment: Annotated[
        str | None, typer.Option("--env", help="The environment, where several have the session.")
    ] = None,
    requester: RequesterOption = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only the messages of this agent.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show personal data too.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of messages to show.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Number of messages to skip.")] = 0,
    *,
    options: ServiceOptions,
) -> None:
    """Show the messages that agents remember of a session, in their order."""
    options.show(
        list_session_messages,
        _show_messages,
        session,
        environment=environment,
        requester=requester,
        agent=agent,
        whole=whole,
        limit=limit,
        offset=offset,
    )


def _show_messages(page: SessionMessagesView) -> None:
    for message in page.messages:
        render.text(f"{message.created_at}  {message.agent}  {message.role}")
        render.text(f"  {message.text}")
    if not page.messages:
        render.text("No messages.")
    if page.truncated:
        render.warning("The texts of these messages are cut.", "List fewer: --limit N --offset N")
    _show_next_page(page)


def _show_next_page(page: StepPageView | SessionPageView | SessionMessagesView) -> None:
    shown = page.offset + page.count
    if shown < page.total:
        render.text(f"{page.count} of {page.total}. Next page: --offset {shown}")


@app.command("delete")
@examples("kneo sessions delete trip", "kneo sessions delete trip --env prod --requester ann --json")
def delete(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session, as kneo sessions list shows.")],
    environment: EnvironmentOption = None,
    requester: RequesterOption = None,
    *,
    options: ServiceOptions,
) -> None:
    """Delete what agents remember of a session. Its runs stay until their own retention ends."""
    options.show(delete_session, _show_deleted, session, environment=environment, requester=requester)


def _show_deleted(view: DeletedSessionsView) -> None:
    render.success(f"Deleted the session {view.session_id} of {view.requester}: {view.message_count} messages.")
