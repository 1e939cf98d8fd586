"""``kneo human receipt``: proof of what was decided, and checking it without whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption
from cli.deployments import deployments
from cli.files import read_bytes, write_whole
from kneo.clock import SystemClock
from kneo.digest import parse_digest
from kneo.errors import Usage
from kneo.settings import from_env
from kneo.spec.reading.reader import read_json
from kneo.trust.answer import ReviewerKeys
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import PEM_BYTES, PublicKey
from kneo.trust.receipt import LIMITS, read_receipts, wrap_envelope
from kneo.trust.receipt_check import check_receipts, verdict_json

app = typer.Typer(no_args_is_help=True)


@app.command("show")
def show(
    task_or_run: Annotated[
        str, typer.Argument(metavar="TASK_OR_RUN", help="A task, or a run for all of its receipts.")
    ],
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the receipt of a decision, or all of a run's; with --json as a file that proves it elsewhere."""
    with deployments(service_url, profile) as asked:
        of_run = task_or_run.startswith("run_")
        answer = asked.receipts(task_or_run) if of_run else asked.receipt(task_or_run)
    found = answer["receipts"] if of_run else [answer]
    assert isinstance(found, list)

    def text() -> None:
        if not found:
            render.text("Nothing was decided in this run, or nothing that there is a receipt of.")
        for item in found:
            _show(item)

    render.emit(answer, as_json=as_json, text=text)


def _show(shown: Json) -> None:
    said, unsigned = shown["receipt"], shown["unsigned"]
    assert isinstance(said, dict)
    assert isinstance(unsigned, dict)
    lines = [
        ("Decision", f"{said['decision']} by {said['actor']} ({said['by']}) at {said['decidedAt']}"),
        ("Gate", f"{said['gate']} of {said['run']}" + (f" in {said['environment']}" if said["environment"] else "")),
        ("Shown", said["subjectDigest"]),
        ("Answered", said["contentDigest"] or "nothing but the decision"),
        ("Bundle", said["bundleDigest"]),
        ("Policy", said["policyDigest"] or "no environment"),
        ("Audit", f"event {said['auditEvent']}, number {unsigned['audit_seq'] or '(not sealed yet)'}"),
        ("Chain", f"number {said['sequence']} of its run, after {said['previous'] or 'nothing'}"),
        ("Digest", unsigned["digest"]),
    ]
    lines[1:1] = [("Voter", _voter(voter)) for voter in said["voters"]]
    render.panel(f"Receipt {said['id']} of {said['task']}", lines)


def _voter(voter: Json) -> str:
    roles, groups = voter["roles"], voter["groups"]
    assert isinstance(roles, list)
    assert isinstance(groups, list)
    known = [f"role {name}" for name in roles] + [f"group {name}" for name in groups]
    said = f"{voter['actor']} {voter['decision']}" + (f" as {', '.join(known)}" if known else "")
    return f"{said}, signed with a key of their own" if voter["statement"] is not None else said


@app.command("key")
def key(
    output: Annotated[Path | None, typer.Option("--output", help="Write the PEM here.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the public key that checks receipts. Keep it elsewhere: one that comes with a receipt proves nothing."""
    with deployments(service_url, profile) as asked:
        answer = asked.receipt_key()
    if output is not None:
        write_whole(output, str(answer["key"]).encode())
    render.emit(answer, as_json=as_json, text=lambda: render.text(str(answer["key"]).rstrip("\n")))


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="What kneo human receipt show --json wrote, or a bare envelope.")],
    keys: Annotated[
        list[Path] | None, typer.Option("--key", help="Public key (PEM) to check with, needing no service; repeatable.")
    ] = None,
    reviewer_keys: Annotated[
        list[str] | None,
        typer.Option("--reviewer-key", metavar="NAME=FILE", help="Public key of somebody who answered; repeatable."),
    ] = None,
    trust: Annotated[Path | None, typer.Option("--trust", help="Or the trust root that names their keys.")] = None,
    trust_root: Annotated[
        str | None, typer.Option("--trust-root", help="Digest of the first trust root, from elsewhere.")
    ] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a receipt, or the chain of a run; exit 3 when a field was changed, and say which one.

    With --key nothing but the files and the keys is used. Without, the installation that wrote it is asked. What people signed
    themselves is checked with --reviewer-key, or with the trust root that names their keys.
    """
    data = read_bytes(file, max_bytes=LIMITS.max_bytes, what="file of receipts")
    if keys:
        handed = read_receipts(data, file=str(file))
        reviewers = _reviewers(file, reviewer_keys or [], trust, trust_root)
        answer = verdict_json(check_receipts(handed, [_load(path) for path in keys], reviewers))
    elif reviewer_keys or trust:
        msg = "Without --key the installation is asked, and it has a trust root of its own."
        raise Usage(msg, hint="kneo human receipt key --output service.pem, and then --key service.pem.")
    else:
        handed_over = read_json(data, file=str(file), limits=LIMITS).value
        with deployments(service_url, profile) as asked:
            answer = asked.verify_receipts(wrap_envelope(handed_over))
    problems, found = answer["problems"], answer["receipts"]
    assert isinstance(problems, list)
    assert isinstance(found, list)

    def text() -> None:
        if answer["valid"]:
            what = "Receipt is" if len(found) == 1 else f"{len(found)} receipts are"
            render.success(f"{what} as signed.")
            for item in found:
                _show_signers(item, reviewed=bool(reviewer_keys or trust))
        for problem in problems:
            render.failure(f"{problem['field']}: {problem['message']}", f"Receipt {problem['receipt']}")

    render.emit(answer, as_json=as_json, text=text)
    if not answer["valid"]:
        raise typer.Exit(3)


def _show_signers(item: Json, *, reviewed: bool) -> None:
    said, signed_by = item["said"], item["signed_by"]
    assert isinstance(said, dict)
    assert isinstance(signed_by, list)
    for voter in said["voters"]:
        if voter["statement"] is None:
            if reviewed:
                render.warning(f"{voter['actor']} signed nothing of this; it is the service's word alone.")
            continue
        if voter["actor"] in signed_by:
            render.success(f"{voter['actor']} signed it with a key of their own.")
        elif reviewed:
            last = said["voters"][-1]["actor"]
            render.warning(
                f"What {voter['actor']} signed cannot be compared with what was recorded: the answer is {last}'s, who signed none."
            )
        else:
            render.warning(
                f"{voter['actor']}'s own signature was not checked; --reviewer-key {voter['actor']}=FILE does."
            )


def _reviewers(file: Path, given: list[str], trust: Path | None, pin: str | None) -> ReviewerKeys | None:
    """Find whose keys count; None where nobody's were given.

    Raises:
        Usage: keys and a trust root, or something that is no NAME=FILE.
    """
    if given and trust is not None:
        msg = "Give the keys of reviewers or the trust root that names them, one of the two."
        raise Usage(msg)
    if trust is not None:
        # What checks bundles brings Git and the whole spec along.
        from cli.specs.bundle_check import choose_root

        believed = choose_root(file, trust, parse_digest(pin) if pin else None, from_env(), SystemClock().now())
        if believed.pinned_by is None:
            render.warning(
                f"Nobody vouched for {believed.pin}, the first version of {believed.file}; --trust-root does."
            )
        return ReviewerKeys(keys=believed.root.keys, void=believed.root.void)
    keys = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not name or not equals:
            msg = f"{text[:80]!r} is not NAME=FILE."
            raise Usage(msg, hint="--reviewer-key ann=ann.pem")
        public = _load(Path(path))
        keys[public.keyid] = TrustedKey(public, name)
    return ReviewerKeys(keys=keys) if keys else None


def _load(path: Path) -> PublicKey:
    return PublicKey.load(read_bytes(path, max_bytes=PEM_BYTES, what="public key"))
