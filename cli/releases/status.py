"""``kneo status``, ``kneo history``, ``kneo events``, ``kneo reconcile``: what serves, since when, and why not more."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.deployments import deployments
from kneo.errors import KneoError, Transient

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


def events(
    event_type: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened lately, newest first."""
    with backend(service_url, profile) as asked:
        answer = asked.audit_events({"event_type": event_type, "limit": limit})
    render.emit(answer, as_json=as_json, text=lambda: show_events(answer))


def show_events(answer: Json) -> None:
    """Print audit events as a table."""
    items = answer["events"]
    assert isinstance(items, list)
    rows = [
        [
            item["seq"],
            item["created_at"],
            item["event_type"],
            item["actor"],
            item["environment"] or item["run_id"],
            _about(item),
        ]
        for item in items
    ]
    render.table("", ["Seq", "At", "What", "Who", "Where", "About"], rows)


def _about(item: Json) -> str:
    metadata = item["metadata"]
    assert isinstance(metadata, dict)
    known = ("bundle", "version", "decision", "reason", "message", "error")
    return " ".join(str(metadata[key]) for key in known if metadata.get(key))


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
