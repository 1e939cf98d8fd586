"""Decisions about releases: approve, reject, hold, suspend, roll back; and the questions why and from where."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption
from cli.deployments import Deployments, deployments
from cli.keys import load_private
from kneo.clock import SystemClock, isoformat, parse_duration, parse_time
from kneo.digest import Digest
from kneo.errors import NotFound, Usage
from kneo.trust.about import About, about_rewrite
from kneo.trust.dsse import serialise, sign
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.reading import read_record
from kneo.trust.statement import Decision, build_approval

Target = Annotated[str, typer.Argument(metavar="ENV[/BUNDLE]", help="Where, and what of it.")]
Both = Annotated[str, typer.Argument(metavar="ENV/BUNDLE", help="Where, and what of it.")]
Environment = Annotated[str, typer.Argument(metavar="ENV")]
Key = Annotated[Path | None, typer.Option("--key", help="Your own private key; the service's word counts without it.")]
Expires = Annotated[str, typer.Option("--expires", help="How long the decision counts, such as 7d.")]
Prune = Annotated[bool, typer.Option("--prune", help="The removal of more releases at once than allowed.")]
Policy = Annotated[bool, typer.Option("--policy", help="A change of the environment's own rules.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for everybody who asks later.")]
Until = Annotated[str | None, typer.Option("--until", help="A time, or a duration from now such as 4h.")]


def approve(
    target: Target,
    key: Key = None,
    prune: Prune = False,
    policy: Policy = False,
    expires: Expires = "7d",
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Agree to something that waits."""
    with deployments(service_url, profile) as asked:
        answer = _decide(asked, target, Decision.APPROVE, key, _gate(prune, policy), expires)
    _show_decision(answer, "Approved", as_json=as_json)


def reject(
    target: Target,
    key: Key = None,
    prune: Prune = False,
    policy: Policy = False,
    expires: Expires = "7d",
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse something that waits, until you take that back."""
    with deployments(service_url, profile) as asked:
        answer = _decide(asked, target, Decision.REJECT, key, _gate(prune, policy), expires)
    _show_decision(answer, "Rejected", as_json=as_json)


def _gate(prune: bool, policy: bool) -> str | None:
    return "prune" if prune else "policy" if policy else None


def _decide(
    asked: Deployments, target: str, decision: Decision, key: Path | None, gate: str | None, expires: str
) -> Json:
    environment, _, bundle = target.partition("/")
    waits = _find(asked, environment, bundle, gate)
    envelope = _signed(environment, waits, decision, key, expires) if key is not None else None
    return asked.decide(environment, str(waits["id"]), decision.value, envelope)


def _find(asked: Deployments, environment: str, bundle: str, gate: str | None) -> Json:
    items = asked.promotions(environment)["promotions"]
    assert isinstance(items, list)
    for item in items:
        names = {item["bundle"], f"{item['bundle']}@{item['version']}", item["digest"]}
        if item["gate"] == gate if gate else bundle in names:
            found: Json = item
            return found
    if not bundle and gate is None:
        msg = "What should be decided about?"
        raise Usage(msg, hint=f"kneo approve {environment}/BUNDLE, or --prune or --policy.")
    msg = f"Nothing of {gate or bundle} waits in {environment}."
    raise NotFound(msg, code="nothing_waits", hint=f"kneo status {environment} lists what does.")


def _signed(environment: str, waits: Json, decision: Decision, key: Path, expires: str) -> str:
    if waits["subject"] is None or waits["policy_digest"] is None:
        msg = f"{waits['bundle']} does not wait for an approval: {waits['message']}"
        raise Usage(msg, hint=f"kneo why {environment}/{waits['bundle']}")
    about = read_record(About, waits["about"], file="what waits") if waits.get("about") else None
    statement = build_approval(
        bundle_name=about.name if about else str(waits["bundle"]),
        bundle_digest=Digest(str(waits["subject"])),
        environment=environment,
        policy_digest=Digest(str(waits["policy_digest"])),
        decision=decision,
        expires=SystemClock().now() + parse_duration(expires),
        about=about,
    )
    return serialise(sign(PAYLOAD_TYPE, statement.payload, load_private(key))).decode()


def _show_decision(answer: Json, verb: str, *, as_json: bool) -> None:
    approval = answer["approval"]
    assert isinstance(approval, dict)

    def show() -> None:
        render.success(f"{verb} {approval['subject_name']} in {approval['environment']} as {approval['principal']}")
        _show_after(answer)

    render.emit(answer, as_json=as_json, text=show)


def _show_after(answer: Json) -> None:
    environment = answer.get("environment")
    if not isinstance(environment, dict):
        return
    if answer.get("result") is None:
        render.text("  No controller is running; the next one acts on it.")
    for item in environment["releases"]:
        render.text(f"  serves  {item['bundle']} {item['version']}")
    for item in environment["pending"]:
        render.text(f"  waits   {item['bundle']} {item['version']}  {item['reason']}: {item['message']}")


# ---- holds, suspensions, rollback -------------------------------------------------------------------------------


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
        _show_after(answer)

    render.emit(answer, as_json=as_json, text=show)


# ---- why and from where -----------------------------------------------------------------------------------------


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
        render.line(render.CAREFUL, f"{answer['gate']}: {answer['reason']} since {answer['since']}")
        render.text(f"  {answer['message']}")
        who = answer["who"]
        if isinstance(who, list) and who:
            render.text(f"  {', '.join(map(str, who))} can change that")
        if answer["command"]:
            render.text(f"  {answer['command']}")

    render.emit(answer, as_json=as_json, text=show)


def trace(
    reference: Annotated[str, typer.Argument(metavar="RUN_OR_DIGEST")],
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a run or a digest back: decisions, release, promotion, approvals, commit, signers, audit."""
    with deployments(service_url, profile) as asked:
        answer = asked.trace(reference)

    def show() -> None:
        run, bundle, promotions = answer["run"], answer["bundle"], answer["promotions"]
        if isinstance(run, dict):
            render.text(f"run        {run['id']}  {run['status']}, asked for by {run['requester']}")
        if isinstance(bundle, dict):
            render.text(f"bundle     {bundle['name']} {bundle['version']}  {answer['digest']}")
            render.text(f"signed by  {', '.join(bundle['signers'])}")
        assert isinstance(promotions, list)
        for item in promotions:
            people = ", ".join(record["principal"] for record in item["approvals"]) or "nobody was asked"
            event = item["audit"] or {}
            render.text(f"{item['kind']:<10} {item['environment']} at {item['at']} by {item['actor']}")
            render.text(f"  commit   {item['commit']}\n  approved {people}\n  audit    event {event.get('seq')}")
        assert isinstance(answer["receipts"], list)
        for said in answer["receipts"]:
            render.text(f"{said['decision']:<10} {said['gate']} by {said['actor']} at {said['decidedAt']}")
            render.text(f"  receipt  {said['id']}  {said['digest']}")

    render.emit(answer, as_json=as_json, text=show)


source = typer.Typer(no_args_is_help=True)


@source.command("show")
def show_source(
    service_url: ServiceUrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Say how far the repository was followed, and why not further."""
    with deployments(service_url, profile) as asked:
        answer = asked.source()
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Source", answer.items()))


@source.command("accept-rewrite")
def accept_rewrite(
    key: Annotated[Path, typer.Option("--key", help="Private key of somebody with the role root.")],
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Agree that history was rewritten: from exactly the accepted commit to exactly the one that was refused."""
    with deployments(service_url, profile) as asked:
        found = asked.source()
        old, new = found["accepted_commit"], found["refused_commit"]
        if found["refused_code"] != "HistoryRewritten" or old is None or new is None:
            msg = "History was not rewritten; there is nothing to accept."
            raise NotFound(msg, code="nothing_waits", hint="kneo source show says what was refused.")
        about = about_rewrite(str(old), str(new))
        statement = build_approval(
            bundle_name=about.name,
            bundle_digest=about.digest,
            environment="source",
            policy_digest=Digest(str(found["trust_root"])),
            decision=Decision.APPROVE,
            expires=SystemClock().now() + timedelta(days=1),
            about=about,
        )
        envelope = serialise(sign(PAYLOAD_TYPE, statement.payload, load_private(key))).decode()
        answer = asked.accept_rewrite(envelope)
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Agreed: {old} may become {new}"))
