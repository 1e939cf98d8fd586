"""``kneo grant``: standing grants, the recorded approvals of future calls of a tool within limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from kneo.api import grants as api
from kneo.cli import render
from kneo.cli.backend import Backend, Json
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.releases.subjects import confirm
from kneo.cli.specs.keys import signing_key
from kneo.errors import Untrusted, Usage
from kneo.trust.dsse import decode_base64, serialise, sign
from kneo.trust.grant import TermsStatement, parse_terms
from kneo.trust.keys import SigningKey
from kneo.trust.statement import PAYLOAD_TYPE

app = typer.Typer(no_args_is_help=True)

GrantArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the grant (grt_…), as kneo grant list shows.")]
BundleArgument = Annotated[
    str, typer.Argument(metavar="ENV/BUNDLE", help="The environment, and the bundle that is released there.")
]
ToolOption = Annotated[str, typer.Option("--tool", help="The tool, by its name in the spec.")]
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="Your private key, which signs the terms. It stays on this machine.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Sign without a confirmation.")]


def _place(text: str) -> tuple[str, str]:
    environment, slash, bundle = text.partition("/")
    if not (environment and slash and bundle):
        msg = f"{text[:80]!r} is not ENV/BUNDLE."
        raise Usage(msg, hint="kneo grant create prod/refunds --tool refund …")
    return environment, bundle


def _totals(options: list[str]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for text in options:
        name, _, number = text.partition("=")
        try:
            totals[name] = json.loads(number)
        except ValueError:
            msg = f"{text[:80]!r} is not ARGUMENT=NUMBER."
            raise Usage(msg, hint="--total amount=2000") from None
    return totals


@app.command("create")
@examples(
    "kneo grant create prod/refunds --tool refund --when 'args.amount <= 100' --uses 50 --expires 14d --key ann.pem",
    "kneo grant create prod/refunds --tool refund --uses 20 --total amount=400 --expires 7d --key ann.pem --yes",
)
def create(
    place: BundleArgument,
    tool: ToolOption,
    uses: Annotated[int, typer.Option("--uses", help="The most calls that it covers.")],
    expires: Annotated[str, typer.Option("--expires", help="How long it counts, up to 90d.")],
    when: Annotated[str | None, typer.Option("--when", help="An expression. Default: every call.")] = None,
    uses_per_day: Annotated[int | None, typer.Option("--uses-per-day", help="The most calls in a day (UTC).")] = None,
    uses_per_run: Annotated[int | None, typer.Option("--uses-per-run", help="The most calls in one run.")] = None,
    total: Annotated[
        list[str] | None,
        typer.Option("--total", metavar="ARG=N", help="The largest sum of an argument. Repeatable."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for those who vote.")] = "",
    key: KeyOption = None,
    yes: YesOption = False,
    *,
    options: ServiceOptions,
) -> None:
    """Create a standing grant with your vote. It covers calls once its votes meet the quorum of a gate."""
    environment, bundle = _place(place)
    values: Json = {
        "bundle": bundle,
        "tool": tool,
        "when": when,
        "uses": uses,
        "uses_per_day": uses_per_day,
        "uses_per_run": uses_per_run,
        "total": _totals(total or []),
        "expires_in": expires,
        "reason": reason,
    }
    private = signing_key(key, None, None)
    with options.open() as opened:
        statement = _signed_terms(opened, environment, values, private, confirmed=yes) if private is not None else None
        caller = opened.as_signer(private.keyid) if private is not None else opened
        body = request(api.GrantCreate, **values, statement=statement)
        view = caller.call(api.create_grant, environment, body)
    render.emit(view, as_json=options.as_json, text=lambda: _show_status("Recorded", view))


def _signed_terms(opened: Backend, environment: str, values: Json, private: SigningKey, *, confirmed: bool) -> Json:
    """Fetch the terms of a grant, compare them with the options, and sign them."""
    to_sign = request(api.GrantToSign, **values)
    view = opened.as_signer(private.keyid).call(api.get_grant_to_sign, environment, to_sign)
    statement = parse_terms(decode_base64(view.payload), file="the terms to sign")
    asked = {name: value for name, value in values.items() if name != "expires_in"} | {"environment": environment}
    wrong = next((name for name, value in asked.items() if getattr(statement.terms, name) != value), None)
    if wrong is not None:
        msg = f"The terms to sign are not yours: {wrong} differs. Nothing was signed."
        raise Untrusted(msg, code="SubjectMismatch", field=wrong)
    return _sign(statement, private, confirmed=confirmed)


def _sign(statement: TermsStatement, private: SigningKey, *, confirmed: bool) -> Json:
    for name, value in _terms(statement):
        render.text(f"{name}: {value}", err=True)
    confirm("Sign these terms?", confirmed=confirmed, known=True)
    envelope: Json = json.loads(serialise(sign(PAYLOAD_TYPE, statement.payload, private)))
    return envelope


def _terms(statement: TermsStatement) -> Iterator[tuple[str, object]]:
    terms = statement.terms
    yield "Calls", f"{terms.tool} of {terms.bundle} in {terms.environment}"
    yield "Digest", terms.bundle_digest
    yield "When", terms.when or "every call"
    per = [f"{terms.uses_per_day} in a day"] if terms.uses_per_day else []
    per += [f"{terms.uses_per_run} in a run"] if terms.uses_per_run else []
    yield "Uses", ", ".join([f"{terms.uses} in all", *per])
    yield from ((f"Total of {name}", f"{most:g}") for name, most in terms.total.items())
    yield "Expires", terms.expires.isoformat()
    yield "Reason", terms.reason or "none"


def _show_status(verb: str, view: api.GrantView) -> None:
    needs = [f"{gate} needs {count} more approval{'s' * (count > 1)}" for gate, count in view.needs.items()]
    covers = f"covers {', '.join(view.covers)}" if view.covers else ""
    about = "; ".join(part for part in (covers, *needs) if part)
    render.success(f"{verb} {view.id} ({view.status}{f': {about}' if about else ''})")


@app.command("propose")
@examples("kneo grant propose prod/refunds --tool refund", "kneo grant propose prod/refunds --tool refund --since 90d")
def propose(
    place: BundleArgument,
    tool: ToolOption,
    since: Annotated[str, typer.Option("--since", help="How far back answers count.")] = "30d",
    *,
    options: ServiceOptions,
) -> None:
    """Draft a standing grant from the answers of people for the present release. Creates nothing."""
    environment, bundle = _place(place)
    view = options.call(api.propose_grant, environment, bundle, tool, since)

    def text() -> None:
        render.text(
            f"Answers: {view.answers} of {render.count(view.reviewers, 'reviewer')}, {view.approvals} approvals"
        )
        render.text(
            f"Edited: {view.edited_share:.0%}; approved before the call could have been read: {view.quick_share:.0%}"
        )
        if view.when is None:
            render.line(render.CAREFUL, f"Nothing is drafted. {view.problem}")
            return
        render.text(f"When: {view.when}")
        if view.unbounded:
            render.line(render.CAREFUL, f"Not limited: {', '.join(view.unbounded)}")
        render.text(f"It would have covered {render.count(view.covered, 'call')}. To create it, with your key:")
        render.text(f"{view.command} --key FILE")

    render.emit(view, as_json=options.as_json, text=text)


@app.command("approve")
@examples("kneo grant approve grt_01m0 --key ben.pem", "kneo grant approve grt_01m0 --key ben.pem --yes --json")
def approve(grant: GrantArgument, key: KeyOption = None, yes: YesOption = False, *, options: ServiceOptions) -> None:
    """Vote for a standing grant, and print what it still lacks."""
    private = signing_key(key, None, None)
    with options.open() as opened:
        statement = None
        if private is not None:
            shown = opened.call(api.get_grant, grant)
            statement = _sign(parse_terms(decode_base64(shown.payload)), private, confirmed=yes)
        caller = opened.as_signer(private.keyid) if private is not None else opened
        view = caller.call(api.approve_grant, grant, request(api.GrantApprove, statement=statement))
    render.emit(view, as_json=options.as_json, text=lambda: _show_status("Approved", view))


@app.command("revoke")
@examples("kneo grant revoke grt_01m0", "kneo grant revoke grt_01m0 --reason 'new fraud case'")
def revoke(
    grant: GrantArgument,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; the audit log has its digest.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Revoke a standing grant. No decision of it is recorded or applied afterwards."""
    with options.open() as opened:
        view = opened.call(api.revoke_grant, grant, request(api.GrantRevoke, reason=reason))
    render.emit(view, as_json=options.as_json, text=lambda: _show_status("Revoked", view))


@app.command("list")
@examples("kneo grant list", "kneo grant list --env prod --status active --json")
def list_grants(
    environment: Annotated[str | None, typer.Option("--env", help="Only grants of this environment.")] = None,
    bundle: Annotated[str | None, typer.Option("--bundle", help="Only grants of this bundle.")] = None,
    tool: Annotated[str | None, typer.Option("--tool", help="Only grants of this tool.")] = None,
    status: Annotated[
        Literal["pending", "active", "ended"] | None, typer.Option("--status", help="Only grants of this status.")
    ] = None,
    *,
    options: ServiceOptions,
) -> None:
    """List standing grants, the newest first."""
    options.show(api.list_grants, _show_list, environment=environment, bundle=bundle, tool=tool, status=status)


def _show_list(listed: api.GrantListView) -> None:
    if not listed.grants:
        render.text("No grants.")
        return
    render.table("", ["Id", "Bundle", "Tool", "When", "Status", "Left", "Expires"], map(_row, listed.grants))


def _row(view: api.GrantView) -> list[object]:
    place = f"{view.environment}/{view.bundle}"
    return [view.id, place, view.tool, view.when, _status(view), view.uses_left, view.expires_at]


def _amounts(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in amounts.items())


def _status(view: api.GrantView) -> str:
    return f"{view.status}: {view.reason}" if view.status == "ended" else view.status


@app.command("show")
@examples("kneo grant show grt_01m0", "kneo grant show grt_01m0 --uses", "kneo grant show grt_01m0 --json")
def show(
    grant: GrantArgument,
    uses: Annotated[bool, typer.Option("--uses", help="List the calls that it covered.")] = False,
    *,
    options: ServiceOptions,
) -> None:
    """Show a standing grant: its terms, its votes and what is left of it."""
    with options.open() as opened:
        view = opened.call(api.get_grant, grant)
        calls = opened.call(api.list_grant_uses, grant).uses if uses else []

    def text() -> None:
        lines = [
            ("Status", _status(view)),
            *_terms(parse_terms(decode_base64(view.payload))),
            ("Left", ", ".join(filter(None, [render.count(view.uses_left, "use"), _amounts(view.total_left)]))),
            ("Voters", ", ".join(view.voters)),
            ("Covers", ", ".join(view.covers) or "no gate"),
            *(("Lacks", f"{gate}: {count} more") for gate, count in view.needs.items()),
            ("Terms", view.terms_digest),
        ]
        render.panel(view.id, lines)
        if uses:
            rows = [[each.number, each.task_id, each.run_id, _amounts(each.amounts), each.at] for each in calls]
            render.table("", ["Number", "Task", "Run", "Amounts", "At"], rows)

    value = {**vars(view), "calls": [vars(each) for each in calls]} if uses else view
    render.emit(value, as_json=options.as_json, text=text)
