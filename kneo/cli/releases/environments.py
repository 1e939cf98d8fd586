"""Commands on environments: status, history, explanations, reconciliation, holds, suspensions and rollbacks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, TypeVar

import typer

from kneo.api import environments as api
from kneo.api.operation import Operation
from kneo.api.release_views import ChangedView, EnvironmentView, HistoryView, PromotionView
from kneo.cli import render
from kneo.cli.backend import Backend, P
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.options import parse_until
from kneo.clock import SystemClock
from kneo.errors import KneoError, Transient, Usage
from kneo.records.release import ConditionType, Pending

C = TypeVar("C", bound=ChangedView)

RETIRED = "Retired"
"""The reason of the condition Ready whose message names the open tasks of a retired environment."""

ReleaseArgument = Annotated[str, typer.Argument(metavar="ENV/BUNDLE", help="Environment and bundle.")]
EnvironmentArgument = Annotated[str, typer.Argument(metavar="ENV")]
OptionalEnvironment = Annotated[str | None, typer.Argument(metavar="[ENV]")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Reason, kept in the audit log.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="End: a time, or a duration from now such as 4h.")]


@examples("kneo status", "kneo status prod --json")
def status(environment: OptionalEnvironment = None, *, options: ServiceOptions) -> None:
    """Show environments, conditions and pending changes."""
    with options.open() as service:
        one = service.call(api.get_environment, environment) if environment else None
        every = service.call(api.list_environments) if one is None else None
        views = [one] if one is not None else every.environments if every is not None else []

        def show() -> None:
            if not _show_source(service) and not views:
                render.text("No environments found.")
                render.text("Start with a config repository: kneo up --repo DIR. Create one: kneo init DIR")
            for item in views:
                show_environment(item, SystemClock().now())

        render.emit(one or every, as_json=options.as_json, text=show)


def show_environment(item: EnvironmentView, now: datetime) -> None:
    """Print the state of an environment, its releases, holds and pending changes."""
    ready = next((one for one in item.conditions if one.type is ConditionType.READY), None)
    is_ready = ready is not None and ready.status
    total = len({one.bundle for one in item.releases} | {one.bundle for one in item.pending if one.kind == "promote"})
    state = "Ready" if is_ready else "Pending" if item.pending else "Not ready"
    revision = render.short_revision(item.revision) if item.revision else "-"
    render.line(
        render.DONE if is_ready else render.CAREFUL,
        f"{item.name}  {state}  {len(item.releases)}/{total} releases  {revision}",
    )
    repeated = {pending.message for pending in item.pending}
    if ready is not None and (not is_ready or ready.reason == RETIRED) and ready.message not in repeated:
        render.text(f"    {ready.reason}: {ready.message}")
    for release in item.releases:
        since = render.relative(release.since, now)
        render.text(f"    {release.bundle} {release.version}  {render.short_digest(release.digest)}  released {since}")
    if item.grants:
        render.text(f"    {render.count(item.grants, 'active grant')}: kneo grant list --env {item.name}")
    if item.calls_wait_since is not None:
        oldest = render.relative(item.calls_wait_since, now)
        render.text(f"    {render.count(item.waiting_calls, 'call')} waiting for people, the oldest since {oldest}")
    for hold in item.holds:
        until = f" until {hold.until}" if hold.until else ""
        render.text(f"    {hold.bundle}  held by {hold.actor}{until}: {hold.reason}")
    if item.suspension is not None:
        until = f" until {item.suspension.until}" if item.suspension.until else ""
        render.text(f"    suspended by {item.suspension.actor}{until}: {item.suspension.reason}")
    for pending in item.pending:
        render.text(f"    {_pending_text(pending, item)}")


def _pending_text(pending: Pending, item: EnvironmentView) -> str:
    current = next((one.version for one in item.releases if one.bundle == pending.bundle), None)
    change = f"{current} → {pending.version}" if current and current != pending.version else pending.version
    who = f" ({', '.join(pending.who)})" if pending.who else ""
    return f"{pending.bundle} {change}  pending  {pending.reason}{who}: {pending.message}"


def _show_source(service: Backend) -> bool:
    """Print why the config repository cannot be reconciled, if so; return whether something was printed."""
    try:
        source = service.call(api.get_source)
    except KneoError:
        return False  # nothing was reconciled yet, or the caller may not read the source
    where = f"{source.url} ({source.ref})"
    if source.failed_code:
        render.line(render.CAREFUL, f"{where} cannot be fetched since {source.failed_at}: {source.failed_message}")
    elif source.refused_code:
        commit = f" at {source.refused_commit}" if source.refused_commit else ""
        render.line(render.CAREFUL, f"{where}{commit} was refused: {source.refused_message}")
    return bool(source.failed_code or source.refused_code)


@examples("kneo history prod", "kneo history prod research-agent")
def history(
    environment: EnvironmentArgument,
    bundle: Annotated[str | None, typer.Argument(metavar="[BUNDLE]")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Show the changes of an environment, newest first."""
    options.show_existing(api.get_environment_history, _show_history, environment, bundle)


def _show_history(answer: HistoryView) -> None:
    now = SystemClock().now()
    heads = ["When", "Change", "Bundle", "Version", "By", "Reason", "Digest", "Revision", "Approved by"]
    render.table("", heads, [_history_row(item, now) for item in answer.promotions])


def _history_row(item: PromotionView, now: datetime) -> list[object]:
    approvers = (f"{one.principal}: {one.reason}" if one.reason else one.principal for one in item.decisions)
    return [
        render.relative(item.at, now),
        item.kind,
        item.bundle,
        item.version,
        item.actor,
        item.reason,
        render.short_digest(item.to_digest) if item.to_digest else None,
        render.short_revision(item.revision),
        "; ".join(approvers),
    ]


@examples("kneo why prod/research-agent", "kneo why prod/research-agent --json")
def why(target: ReleaseArgument, *, options: ServiceOptions) -> None:
    """Explain why a release is pending and who can unblock it."""
    environment, bundle = split_target(target, "why")
    answer = options.call(api.explain_release, environment, bundle)
    now = SystemClock().now()

    def show() -> None:
        if answer.serving is not None:
            since = render.relative(answer.serving.since, now)
            render.text(f"{environment} serves {bundle} {answer.serving.version}, released {since}")
        if not answer.blocked:
            render.success(answer.message)
        for gate in answer.gates:
            since = f", since {render.relative(gate.since, now)}" if gate.since else ""
            render.line(render.CAREFUL, f"{gate.gate}: {gate.reason}{since}")
            render.text(f"  {gate.message}")
            if gate.who:
                render.text(f"  Can be unblocked by: {', '.join(gate.who)}")
            if gate.command:
                render.text(f"  {gate.command}")
        for tool in answer.unpinned:
            render.line(render.CAREFUL, f"{tool} has no pin, and its MCP server may change it.")
            render.text("  kneo spec bundle sign --pin-tools")
        for grant in answer.grants:
            render.text(
                f"  Grant {grant.id}: {grant.tool}, {render.count(grant.uses_left, 'use')} left, until {grant.expires_at}"
            )
        if answer.way_back:
            render.text(f"  Released here before. To roll back to it now: {answer.way_back}")

    render.emit(answer, as_json=options.as_json, text=show)


@examples("kneo reconcile", "kneo reconcile prod")
def reconcile(
    environment: OptionalEnvironment = None,
    wait: Annotated[bool, typer.Option("--wait", hidden=True)] = True,
    *,
    options: ServiceOptions,
) -> None:
    """Reconcile with Git now, and wait for the result."""
    del wait
    answer = options.call(api.reconcile_environment, environment or "-")
    result = answer.result or {}
    if "error" in result:
        raise Transient(str(result.get("message")), code=str(result["error"]))

    def show() -> None:
        render.success(f"Reconciled {result.get('revision')}")
        states = result.get("environments")
        if isinstance(states, dict):
            render.table("", ["Environment", "State"], sorted(states.items()))

    render.emit(answer, as_json=options.as_json, text=show)


@examples(
    'kneo rollback prod/research-agent --reason "incident 42"',
    'kneo rollback prod/research-agent --to 1.3.0 --reason "incident 42"',
)
def rollback(
    target: ReleaseArgument,
    reason: ReasonOption,
    to: Annotated[
        str | None, typer.Option("--to", help="A version released before; default: the previous one.")
    ] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Roll back to the previous release and hold it."""
    environment, bundle = split_target(target, "rollback")
    body = request(api.RollbackRequest, bundle=bundle, reason=reason, to=to)
    done = f"Rolled back and held: {target}. To follow Git again: kneo unhold {target}"
    _change(options, done, api.rollback_release, environment, body)


@examples(
    'kneo hold prod/research-agent --reason "incident 42"', 'kneo hold prod/research-agent --reason "audit" --until 4h'
)
def hold(target: ReleaseArgument, reason: ReasonOption, until: UntilOption = None, *, options: ServiceOptions) -> None:
    """Keep the current release of a bundle, ignoring Git."""
    environment, bundle = split_target(target, "hold")
    body = request(api.HoldRequest, bundle=bundle, reason=reason, until=parse_until(until))
    done = f"Held: {target}. To follow Git again: kneo unhold {target}"
    _change(options, done, api.hold_release, environment, body)


@examples("kneo unhold prod/research-agent", "kneo unhold prod/research-agent --service-url https://kneo.example.com")
def unhold(target: ReleaseArgument, *, options: ServiceOptions) -> None:
    """Remove a hold; the release follows Git again."""
    environment, bundle = split_target(target, "unhold")
    body = request(api.UnholdRequest, bundle=bundle)
    _change(options, f"Hold removed: {target} follows Git", api.unhold_release, environment, body)


@examples(
    'kneo suspend prod --reason "change freeze"',
    'kneo suspend prod --reason "change freeze" --until 2026-12-27T06:00:00Z',
)
def suspend(
    environment: EnvironmentArgument, reason: ReasonOption, until: UntilOption = None, *, options: ServiceOptions
) -> None:
    """Pause all changes to an environment; runs continue."""
    body = request(api.SuspendRequest, reason=reason, until=parse_until(until))
    done = f"Suspended: {environment}. To resume changes: kneo unsuspend {environment}"
    _change(options, done, api.suspend_environment, environment, body)


@examples("kneo unsuspend prod", "kneo unsuspend prod --json")
def unsuspend(environment: EnvironmentArgument, *, options: ServiceOptions) -> None:
    """Resume changes to an environment."""
    _change(options, f"Resumed: {environment} follows Git", api.unsuspend_environment, environment)


def split_target(target: str, command: str) -> tuple[str, str]:
    """Return the environment and the bundle of ``ENV/BUNDLE``.

    Raises:
        Usage: the target has another form.
    """
    environment, _, bundle = target.partition("/")
    if not environment or not bundle:
        msg = f"{target[:100]!r} is not ENV/BUNDLE."
        raise Usage(msg, hint=f"Example: kneo {command} prod/research-agent")
    return environment, bundle


def _change(options: ServiceOptions, done: str, change: Operation[P, C], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call an operation that changes an environment; print what was done, and the environment as it is then."""

    def show(answer: C) -> None:
        render.success(done)
        show_result(answer)

    options.show_existing(change, show, *args, **kwargs)


def show_result(answer: ChangedView) -> None:
    """Print an environment after a change."""
    if answer.environment is None:
        return
    if answer.result is None:
        render.text("  No controller is running; the change applies when one starts.")
    show_environment(answer.environment, SystemClock().now())
