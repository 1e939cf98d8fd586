"""``kneo task receipt``: signed proof of decisions, checked with or without the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kneo.api import receipts as api
from kneo.cli import render
from kneo.cli.backend import Json
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.files import read_bytes, write_whole
from kneo.cli.specs.keys import load_public
from kneo.clock import SystemClock
from kneo.errors import Usage
from kneo.spec.reading.reader import read_json
from kneo.trust.answer import ReviewerKeys
from kneo.trust.dsse import TrustedKey
from kneo.trust.grant import TermsStatement, read_grant
from kneo.trust.receipt import LIMITS, read_receipts, wrap_envelope
from kneo.trust.receipt_check import check_receipts, verdict_json

app = typer.Typer(no_args_is_help=True)


@app.command("show")
@examples("kneo task receipt show cont_01m0", "kneo task receipt show run_01m0 --json")
def show(
    task_or_run: Annotated[
        str, typer.Argument(metavar="TASK_OR_RUN", help="A task, or a run for all of its receipts.")
    ],
    *,
    options: ServiceOptions,
) -> None:
    """Show the receipt of a decision, or all receipts of a run; with --json as a file to verify elsewhere."""
    view: api.ReceiptView | api.ReceiptListView
    if task_or_run.startswith("run_"):
        view = options.call(api.list_receipts, task_or_run)
    else:
        view = options.call(api.get_receipt, task_or_run)
    receipts = view.receipts if isinstance(view, api.ReceiptListView) else [view]

    def text() -> None:
        if not receipts:
            render.text("The run has no receipts.")
        for receipt in receipts:
            _show(receipt)

    render.emit(view, as_json=options.as_json, text=text)


def _show(view: api.ReceiptView) -> None:
    receipt, unsigned = view.receipt, view.unsigned
    voters = receipt["voters"]
    assert isinstance(voters, list)
    lines = [
        ("Decision", f"{receipt['decision']} by {receipt['actor']} ({receipt['by']}) at {receipt['decidedAt']}"),
        *(("Voter", _voter(voter)) for voter in voters),
        (
            "Gate",
            f"{receipt['gate']} of {receipt['run']}"
            + (f" in {receipt['environment']}" if receipt["environment"] else ""),
        ),
        ("Subject", receipt["subjectDigest"]),
        ("Content", receipt["contentDigest"] or "none except the decision"),
        ("Bundle", receipt["bundleDigest"]),
        ("Policy", receipt["policyDigest"] or "no environment"),
        ("Audit", f"event {receipt['auditEvent']}, number {unsigned['audit_seq'] or '(not sealed yet)'}"),
        ("Chain", f"number {receipt['sequence']} of its run, after {receipt['previous'] or 'none'}"),
        ("Digest", unsigned["digest"]),
    ]
    render.panel(f"Receipt {receipt['id']} of {receipt['task']}", lines)


def _voter(voter: Json) -> str:
    roles, groups = voter["roles"], voter["groups"]
    assert isinstance(roles, list)
    assert isinstance(groups, list)
    known = [f"role {name}" for name in roles] + [f"group {name}" for name in groups]
    text = f"{voter['actor']} {voter['decision']}" + (f" as {', '.join(known)}" if known else "")
    return f"{text}, signed with a key of their own" if voter["statement"] is not None else text


@app.command("key")
@examples("kneo task receipt key --output service.pem", "kneo task receipt key --json")
def key(
    output: Annotated[Path | None, typer.Option("--output", help="File to write the PEM to.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Show the public key that verifies receipts. Keep a copy: a key that comes with a receipt proves nothing."""
    view = options.call(api.get_receipt_key)
    if output is not None:
        write_whole(output, view.key.encode())
    render.emit(view, as_json=options.as_json, text=lambda: render.text(view.key.rstrip("\n")))


@app.command("verify")
@examples(
    "kneo task receipt verify receipt.json --key service.pem",
    "kneo task receipt verify receipts.json --key service.pem --reviewer-key ann=ann.pem",
)
def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File that kneo task receipt show --json wrote, or an envelope.")
    ],
    keys: Annotated[
        list[Path] | None, typer.Option("--key", help="Public key (PEM) of the service; works offline. Repeatable.")
    ] = None,
    reviewer_keys: Annotated[
        list[str] | None,
        typer.Option("--reviewer-key", metavar="NAME=FILE", help="Public key of a reviewer. Repeatable."),
    ] = None,
    trust: Annotated[Path | None, typer.Option("--trust", help="Or the trust root with the reviewers' keys.")] = None,
    trust_root: Annotated[
        str | None, typer.Option("--trust-root", help="Digest of the first trust root, from another source.")
    ] = None,
    grants: Annotated[
        list[Path] | None,
        typer.Option("--grant", help="File that kneo grant show --json wrote; its terms are verified. Repeatable."),
    ] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Verify a receipt, or the chain of a run. Exit status 3 if a field was changed, with its name.

    With --key only the files and the keys are used; without it the service that wrote the receipts verifies them. The signatures of
    reviewers are verified with --reviewer-key, or with the trust root that holds their keys.
    """
    data = read_bytes(file, max_bytes=LIMITS.max_bytes, what="file of receipts")
    if keys:
        reviewers = _reviewers(file, reviewer_keys or [], trust, trust_root)
        terms = dict(map(_read_grant, grants)) if grants else None
        found = read_receipts(data, file=str(file))
        result = verdict_json(check_receipts(found, [load_public(path) for path in keys], reviewers, terms))
    elif reviewer_keys or trust or grants:
        msg = "Without --key the service verifies, with its own trust root."
        raise Usage(msg, hint="kneo task receipt key --output service.pem, and then --key service.pem.")
    else:
        content = read_json(data, file=str(file), limits=LIMITS).value
        result = vars(options.call(api.verify_receipts, request(api.ReceiptsToVerify, **wrap_envelope(content))))
    problems, receipts = result["problems"], result["receipts"]
    assert isinstance(problems, list)
    assert isinstance(receipts, list)

    def text() -> None:
        if result["valid"]:
            render.success("Receipt verified." if len(receipts) == 1 else f"{len(receipts)} receipts verified.")
            for receipt in receipts:
                _show_signers(receipt, reviewed=bool(reviewer_keys or trust))
        for problem in problems:
            render.failure(f"{problem['field']}: {problem['message']}", f"Receipt {problem['receipt']}")

    render.emit(result, as_json=options.as_json, text=text)
    if not result["valid"]:
        raise typer.Exit(3)


def _read_grant(path: Path) -> tuple[str, TermsStatement]:
    """Read the terms of a grant, by its id: those that its fields show, with the reason of its creator.

    Raises:
        Untrusted: ``SubjectMismatch``: the fields and the terms of the file differ.
    """
    data = read_bytes(path, max_bytes=LIMITS.max_bytes, what="file of a grant")
    return read_grant(read_json(data, file=str(path), limits=LIMITS).value, file=str(path))


def _show_signers(item: Json, *, reviewed: bool) -> None:
    statement, signed_by = item["said"], item["signed_by"]
    assert isinstance(statement, dict)
    assert isinstance(signed_by, list)
    for voter in statement["voters"]:
        if voter["statement"] is None:
            if reviewed:
                render.warning(f"{voter['actor']} did not sign the decision; only the service did.")
            continue
        if voter["actor"] in signed_by:
            render.success(f"{voter['actor']} signed the decision with a key of their own.")
        elif reviewed:
            last = statement["voters"][-1]["actor"]
            render.warning(
                f"The statement of {voter['actor']} cannot be compared with the record: the decision is that of {last}, who signed none."
            )
        else:
            render.warning(
                f"The signature of {voter['actor']} was not verified. Pass --reviewer-key {voter['actor']}=FILE."
            )


def _reviewers(file: Path, options: list[str], trust: Path | None, pin: str | None) -> ReviewerKeys | None:
    """Return the keys of the reviewers; ``None`` where no option names any.

    Raises:
        Usage: the options are keys and a trust root, or not NAME=FILE.
    """
    if options and trust is not None:
        msg = "Pass --reviewer-key or --trust, not both."
        raise Usage(msg)
    if trust is not None:
        # The verification of bundles imports Git and the language of specs.
        from kneo.cli.specs.bundle_check import choose_root_or_warn

        root = choose_root_or_warn(file, trust, pin, SystemClock().now())
        return ReviewerKeys(keys=root.keys, void=root.void)
    keys = {}
    for text in options:
        name, equals, path = text.partition("=")
        if not name or not equals:
            msg = f"{text[:80]!r} is not NAME=FILE."
            raise Usage(msg, hint="--reviewer-key ann=ann.pem")
        public = load_public(Path(path))
        keys[public.keyid] = TrustedKey(public, name)
    return ReviewerKeys(keys=keys) if keys else None
