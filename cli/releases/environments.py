"""Environments: what each one serves, what is pending and why; holds, suspensions and rollbacks."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.deployments import deployments
from kneo.clock import SystemClock, isoformat, parse_duration, parse_time
from kneo.errors import KneoError, Transient, Usage

Both = Annotated[str, typer.Argument(metavar="ENV/BUNDLE", help="Where, and what of it.")]
Environment = Annotated[str, typer.Argument(metavar="ENV")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for everybody who asks later.")]
Until = Annotated[str | None, typer.Option("--until", help="A time, or a duration from now such as 4h.")]
EnvironmentArgument = Annotated[str | None, typer.Argument(metavar="[ENV]")]


def status(
    environment: EnvironmentArgument = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show conditions, releases and what waits, for one environment or all."""
    with backend(service_url, profile) as asked:
        answer = asked.environment(environment) if environment else asked.environments()
    found = [answer] if environment else answer["environments"]
    assert isinstance(found, list)

    def show() -> None:
        if not _show_source(service_url, profile) and not found:
            render.text("No environment is declared yet. kneo up --repo DIR follows a config repository.")
        for item in found:
            _show_environment(item)

    render.emit(answer, as_json=as_json, text=show)


def _show_environment(item: Json) -> None:
    conditions, releases, pending = item["conditions"], item["releases"], item["pending"]
    assert isinstance(conditions, list)
    assert isinstance(releases, list)
    assert isinstance(pending, list)
    ready = next((entry for entry in conditions if entry["type"] == "Ready"), None)
    mark = render.DONE if ready and ready["status"] else render.CAREFUL
    said = f": {ready['message']}" if ready else ""
    render.line(mark, f"{item['name']}  {item['revision'] or '-'}{said}")
    for entry in releases:
        render.text(f"    serves  {entry['bundle']} {entry['version']}  {entry['digest']}  since {entry['since']}")
    for entry in _rows(item["holds"]):
        until = f" until {entry['until']}" if entry["until"] else ""
        render.text(f"    held    {entry['bundle']}  by {entry['actor']}{until}: {entry['reason']}")
    suspended = item["suspension"]
    if isinstance(suspended, dict):
        until = f" until {suspended['until']}" if suspended["until"] else ""
        render.text(f"    suspended  by {suspended['actor']}{until}: {suspended['reason']}")
    for entry in pending:
        who = f" ({', '.join(entry['who'])})" if entry["who"] else ""
        render.text(f"    waits   {entry['bundle']} {entry['version']}  {entry['reason']}{who}: {entry['message']}")


def _rows(value: object) -> list[Json]:
    assert isinstance(value, list)
    return value


def _show_source(service_url: str | None, profile: str | None) -> bool:
    """Print why the repository is not followed further, where it is not; say whether something was printed."""
    try:
        with deployments(service_url, profile) as asked:
            source = asked.source()
    except KneoError:
        return False  # nothing was followed yet, or who may see environments may not see the source
    for kind, verb in (("failed", "cannot be fetched"), ("refused", "was refused")):
        if source.get(f"{kind}_code"):
            commit = f" at {source['refused_commit']}" if kind == "refused" and source["refused_commit"] else ""
            since = f" since {source['failed_at']}" if kind == "failed" else ""
            said = f"{source['url']} ({source['ref']}){commit} {verb}{since}: {source[f'{kind}_message']}"
            render.line(render.CAREFUL, said)
            return True
    return False


def history(
    environment: Annotated[str, typer.Argument(metavar="ENV")],
    bundle: Annotated[str | None, typer.Argument(metavar="[BUNDLE]")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an environment served before, newest first."""
    with backend(service_url, profile) as asked:
        answer = asked.history(environment, bundle)
    items = answer["promotions"]
    assert isinstance(items, list)
    rows = [
        [
            item["at"],
            item["kind"],
            item["bundle"],
            item["version"],
            item["actor"],
            item["reason"],
            item["to_digest"],
            item["revision"],
            _approvers(item),
        ]
        for item in items
    ]
    render.emit(
        answer,
        as_json=as_json,
        text=lambda: render.table(
            "", ["At", "What", "Bundle", "Version", "Who", "Why", "Digest", "Revision", "Approved by"], rows
        ),
    )


def _approvers(promotion: Json) -> str:
    """Name who approved a change, each with the reason they gave."""
    decisions = promotion.get("decisions")
    assert isinstance(decisions, list)
    names = (f"{item['principal']}: {item['reason']}" if item["reason"] else item["principal"] for item in decisions)
    return "; ".join(names)


def reconcile(
    environment: EnvironmentArgument = None,
    wait: Annotated[bool, typer.Option("--wait", help="Kept for scripts: this always waits for the answer.")] = True,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the controller to look at the repository now."""
    del wait
    with backend(service_url, profile) as asked:
        answer = asked.reconcile(environment)
    result = answer["result"]
    assert isinstance(result, dict)
    if "error" in result:
        raise Transient(str(result.get("message")), code=str(result["error"]))

    def show() -> None:
        render.success(f"Looked at {result.get('revision')}")
        states = result.get("environments")
        if isinstance(states, dict):
            render.table("", ["Environment", "State"], sorted(states.items()))

    render.emit(answer, as_json=as_json, text=show)


def rollback(
    target: Both,
    reason: Reason,
    to: Annotated[str | None, typer.Option("--to", help="A version served before; else the one before this.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve what was served before, and hold it there."""
    environment, bundle = _parted(target)
    body = {"bundle": bundle, "reason": reason} | ({"to": to} if to else {})
    with deployments(service_url, profile) as asked:
        answer = asked.act(environment, "rollback", body)
    _show(answer, f"Rolled back {bundle} in {environment}; kneo unhold {target} lets it follow Git again", as_json)


def hold(
    target: Both,
    reason: Reason,
    until: Until = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep what is served of a bundle as it is, whatever Git says."""
    environment, bundle = _parted(target)
    with deployments(service_url, profile) as asked:
        answer = asked.act(environment, "hold", {"bundle": bundle, "reason": reason, "until": _until(until)})
    _show(answer, f"{bundle} stays as it is in {environment}", as_json)


def unhold(
    target: Both, service_url: ServiceUrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Let a bundle follow Git again."""
    environment, bundle = _parted(target)
    with deployments(service_url, profile) as asked:
        answer = asked.act(environment, "unhold", {"bundle": bundle})
    _show(answer, f"{bundle} follows Git again in {environment}", as_json)


def suspend(
    environment: Environment,
    reason: Reason,
    until: Until = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change nothing in an environment; what runs keeps running."""
    with deployments(service_url, profile) as asked:
        answer = asked.act(environment, "suspend", {"reason": reason, "until": _until(until)})
    _show(answer, f"Nothing changes in {environment} until it is unsuspended", as_json)


def unsuspend(
    environment: Environment,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an environment change again."""
    with deployments(service_url, profile) as asked:
        answer = asked.act(environment, "unsuspend", {})
    _show(answer, f"{environment} changes again", as_json)


def _parted(target: str) -> tuple[str, str]:
    environment, _, bundle = target.partition("/")
    if not environment or not bundle:
        msg = f"{target[:100]!r} is not ENV/BUNDLE."
        raise Usage(msg, hint="Write it like prod/research-agent.")
    return environment, bundle


def _until(text: str | None) -> str | None:
    if text is None:
        return None
    short = text[-1:] in {"s", "m", "h", "d"} and text[:-1].isdigit()
    moment = SystemClock().now() + parse_duration(text) if short else parse_time(text)
    return isoformat(moment + timedelta(0))


def _show(answer: Json, said: str, as_json: bool) -> None:
    def show() -> None:
        render.success(said)
        show_environment_after(answer)

    render.emit(answer, as_json=as_json, text=show)


def why(
    target: Both, service_url: ServiceUrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Say which gate blocks a bundle, since when, who can open it, and the command that does."""
    environment, bundle = _parted(target)
    with deployments(service_url, profile) as asked:
        answer = asked.why(environment, bundle)

    def show() -> None:
        serving = answer["serving"]
        if isinstance(serving, dict):
            render.text(f"{environment} serves {bundle} {serving['version']} since {serving['since']}")
        if not answer["blocked"]:
            render.success(str(answer["message"]))
            return
        gates = answer["gates"]
        assert isinstance(gates, list)
        for gate in gates:
            since = f" since {gate['since']}" if gate["since"] else ""
            render.line(render.CAREFUL, f"{gate['gate']}: {gate['reason']}{since}")
            render.text(f"  {gate['message']}")
            if gate["who"]:
                render.text(f"  Can be changed by: {', '.join(map(str, gate['who']))}")
            if gate["command"]:
                render.text(f"  {gate['command']}")
        if answer["way_back"]:
            render.text(f"  Served here before; to serve it at once and hold it: {answer['way_back']}")

    render.emit(answer, as_json=as_json, text=show)


def show_environment_after(answer: Json) -> None:
    environment = answer.get("environment")
    if not isinstance(environment, dict):
        return
    if answer.get("result") is None:
        render.text("  No controller is running; the next one acts on it.")
    for item in environment["releases"]:
        render.text(f"  serves  {item['bundle']} {item['version']}")
    for item in environment["pending"]:
        render.text(f"  waits   {item['bundle']} {item['version']}  {item['reason']}: {item['message']}")
