"""Decisions about releases: approve, reject, hold, suspend, roll back; and the questions why and from where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption
from cli.deployments import Deployments, deployments
from cli.files import write_whole
from cli.releases.approval_review import POLICY, PRUNE, Named, confirm, find_item, parse_target, review, subject_of
from cli.releases.approvals import Subject, sign_decision
from cli.specs.keys import load_private
from kneo.clock import SystemClock, isoformat, parse_duration, parse_time
from kneo.digest import Digest
from kneo.errors import NotFound, Untrusted, Usage
from kneo.trust.about import rewrite_subject
from kneo.trust.statement import ApprovalDecision

Target = Annotated[
    str, typer.Argument(metavar="ENV[/BUNDLE[@VERSION]]", help="Environment, and bundle or sha256: digest.")
]
Both = Annotated[str, typer.Argument(metavar="ENV/BUNDLE", help="Where, and what of it.")]
Environment = Annotated[str, typer.Argument(metavar="ENV")]
Key = Annotated[Path | None, typer.Option("--key", help="Your own private key; the service's word counts without it.")]
Expires = Annotated[str, typer.Option("--expires", help="How long the approval counts, such as 7d; at most 366d.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why, in one line; signed and kept with the decision.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Also write the signed decision to this file, to be kept in Git.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Sign without asking.")]
Prune = Annotated[bool, typer.Option("--prune", help="The removal of more releases at once than allowed.")]
Policy = Annotated[bool, typer.Option("--policy", help="A change of the environment's own rules.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for everybody who asks later.")]
MIN_COMMIT = 7
"""Shortest beginning of a commit's id that names it."""

REJECTED_FOR = "366d"
"""What a rejection names as its end: the format wants one, and nothing looks at it."""

Until = Annotated[str | None, typer.Option("--until", help="A time, or a duration from now such as 4h.")]


def approve(
    target: Target,
    key: Key = None,
    prune: Prune = False,
    policy: Policy = False,
    reason: Why = None,
    expires: Expires = "7d",
    output: Output = None,
    yes: Yes = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a pending change.

    With --key the decision is shown before it is signed, compared with the config repository that the command runs in, and
    has to be confirmed at a terminal. Without a terminal it is signed only where a version or a digest was named, where the
    repository has the very same, or with --yes.
    """
    order = _Order(
        parse_target(target, _gate(prune, policy)), ApprovalDecision.APPROVE, key, expires, reason, output, yes
    )
    with deployments(service_url, profile) as asked:
        answer = _decide(asked, order)
    _show_decision(answer, "Approved", as_json=as_json)


def reject(
    target: Target,
    key: Key = None,
    prune: Prune = False,
    policy: Policy = False,
    reason: Why = None,
    output: Output = None,
    yes: Yes = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reject a pending change.

    A rejection has no end: it counts until the same person approves the same thing later.
    """
    order = _Order(
        parse_target(target, _gate(prune, policy)), ApprovalDecision.REJECT, key, REJECTED_FOR, reason, output, yes
    )
    with deployments(service_url, profile) as asked:
        answer = _decide(asked, order)
    _show_decision(answer, "Rejected", as_json=as_json)


def _gate(prune: bool, policy: bool) -> str | None:
    if prune and policy:
        msg = "--prune and --policy are two things to decide about."
        raise Usage(msg, hint="Run the command once for each.")
    return PRUNE if prune else POLICY if policy else None


@dataclass(frozen=True)
class _Order:
    named: Named
    decision: ApprovalDecision
    key: Path | None
    expires: str
    reason: str | None
    output: Path | None
    sure: bool


def _decide(asked: Deployments, order: _Order) -> Json:
    environment = order.named.environment
    if order.output is not None and order.key is None:
        msg = "--output keeps a decision that you signed, so it needs --key."
        raise Usage(msg)
    waits = find_item(order.named, asked.promotions(environment)["promotions"])
    subject = subject_of(order.named, waits)
    envelope = None
    if order.key is not None:
        private = load_private(order.key)
        lines, same = review(subject, waits)
        verb = "Approve" if order.decision is ApprovalDecision.APPROVE else "Reject"
        confirm(lines, f"{verb} and sign this?", sure=order.sure, known=same or order.named.is_exact)
        now, life = SystemClock().now(), parse_duration(order.expires)
        envelope = sign_decision(subject, order.decision, private, now, life, order.reason)
        if order.output is not None:
            write_whole(order.output, envelope)
    reason = order.reason if envelope is None else None
    signed = envelope.decode() if envelope is not None else None
    return asked.decide(environment, str(waits["id"]), order.decision.value, signed, reason)


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
    commit: Annotated[
        str | None, typer.Option("--commit", help="The commit that was refused, or its beginning, as you reviewed it.")
    ] = None,
    reason: Why = None,
    yes: Yes = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a rewritten history: from exactly the accepted commit to exactly the one that was refused.

    Both commits are shown before the decision is signed, and have to be confirmed at a terminal. Without a terminal it is
    signed only where --commit names the new one, or with --yes.
    """
    with deployments(service_url, profile) as asked:
        found = asked.source()
        old, new = found["accepted_commit"], found["refused_commit"]
        if found["refused_code"] != "HistoryRewritten" or old is None or new is None:
            msg = "History was not rewritten; there is nothing to accept."
            raise NotFound(msg, code="nothing_waits", hint="kneo source show says what was refused.")
        if commit is not None and (len(commit) < MIN_COMMIT or not str(new).startswith(commit)):
            msg = f"The commit that was refused is {new}, not {commit[:80]}. Nothing was signed."
            raise Untrusted(msg, code="SubjectMismatch", hint="kneo source show says what was refused.")
        private, about = load_private(key), rewrite_subject(str(old), str(new))
        lines = [f"repository   {found['url']} {found['ref']}", f"accepted     {old}", f"replaced by  {new}"]
        confirm(lines, "Accept and sign this?", sure=yes, known=commit is not None)
        root = Digest(str(found["trust_root"]))
        subject = Subject(environment="source", name=about.name, digest=about.digest, policy_digest=root, about=about)
        life = parse_duration("1d")
        envelope = sign_decision(subject, ApprovalDecision.APPROVE, private, SystemClock().now(), life, reason)
        answer = asked.accept_rewrite(envelope.decode())
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Accepted: {old} may become {new}"))
