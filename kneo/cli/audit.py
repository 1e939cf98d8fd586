"""Commands on the audit log: events, provenance, verification, checkpoints and proofs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kneo.api import audit as api
from kneo.api.environments import trace as trace_reference
from kneo.api.release_views import ProvenanceView
from kneo.cli import render
from kneo.cli.audit_pack import pack, show_verdict, verify_pack
from kneo.cli.backend import Json
from kneo.cli.commands import examples
from kneo.cli.compose import find_store
from kneo.cli.connection import ServiceOptions
from kneo.cli.files import read_bytes
from kneo.cli.options import JsonOption
from kneo.cli.serve.database_checks import ADOPT_HINT, describe_unauthenticated
from kneo.cli.specs.keys import load_public
from kneo.clock import SystemClock
from kneo.digest import parse_digest
from kneo.errors import Invalid, Untrusted, Usage
from kneo.records.audit import Kept, leaf_of, verify_inclusion
from kneo.settings import from_env
from kneo.spec.reading.reader import read_json
from kneo.store import audit
from kneo.store.adoption import count_without
from kneo.store.service_key import find_service_key
from kneo.trust.checkpoint import NOTE_BYTES, SignedCheckpoint, read_checkpoint
from kneo.trust.keys import PublicKey

app = typer.Typer(no_args_is_help=True)
app.command("pack")(pack)

TypeOption = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]


@examples("kneo events", "kneo events --type release.promoted --limit 50")
def events(
    event_type: TypeOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    *,
    options: ServiceOptions,
) -> None:
    """Show recent events."""
    options.show_existing(api.list_audit_events, _show_events, event_type=event_type, limit=limit)


def _show_events(answer: api.AuditPageView) -> None:
    now = SystemClock().now()
    rows = [
        [
            item.seq,
            render.relative(item.created_at, now),
            item.event_type,
            item.actor,
            item.environment or item.run_id,
            _details(item),
        ]
        for item in answer.events
    ]
    render.table("", ["Seq", "When", "Event", "Actor", "Environment or run", "Details"], rows)


def _details(item: api.AuditEventView) -> str:
    names = ("bundle", "version", "decision", "reason", "message", "error")
    return " ".join(str(item.metadata[name]) for name in names if item.metadata.get(name))


@examples("kneo trace run_01jd8z4v6m3q", "kneo trace sha256:3fb5f52a…")
def trace(reference: Annotated[str, typer.Argument(metavar="RUN_OR_DIGEST")], *, options: ServiceOptions) -> None:
    """Trace a run or digest back to its release, commit, signers and approvers."""
    options.show_existing(trace_reference, _show_provenance, reference)


def _show_provenance(answer: ProvenanceView) -> None:
    run, bundle = answer.run, answer.bundle
    if run is not None:
        render.text(f"run        {run.id}  {run.status}, requested by {run.requester}")
    if bundle is not None:
        render.text(f"bundle     {bundle.name} {bundle.version}  {answer.digest}")
        render.text(f"signed by  {', '.join(bundle.signers)}")
    for item in answer.promotions:
        approvers = ", ".join(record.principal for record in item.approvals) or "none required"
        render.text(f"{item.kind:<10} {item.environment} at {item.at} by {item.actor}")
        render.text(f"  commit   {item.commit}")
        render.text(f"  release approval: {approvers}")
        render.text(f"  audit    event {item.audit.seq if item.audit is not None else None}")
    for receipt in answer.receipts:
        render.text(f"{receipt.decision:<10} {receipt.gate} by {receipt.who} at {receipt.decidedAt}")
        render.text(f"  receipt  {receipt.id}  {receipt.digest}")


@app.command("list")
@examples(
    "kneo audit list", "kneo audit list --run-id run_01jd8z4v6m3q --json", "kneo audit list --actor ann --env prod"
)
def list_events(
    event_type: TypeOption = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only events of this run.")] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Only events of this person.")] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Only events of this environment.")] = None,
    created_after: Annotated[
        str | None, typer.Option("--after", metavar="TIME", help="Only from this time on.")
    ] = None,
    created_before: Annotated[str | None, typer.Option("--before", metavar="TIME", help="Only before it.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Skip this many events.")] = 0,
    *,
    options: ServiceOptions,
) -> None:
    """List audit events, newest first."""
    options.show_existing(
        api.list_audit_events,
        _show_events,
        event_type=event_type,
        run_id=run_id,
        limit=limit,
        offset=offset,
        actor=actor,
        environment=environment,
        created_after=created_after,
        created_before=created_before,
    )


KeyOption = Annotated[
    list[Path] | None,
    typer.Option("--key", help="Public key (PEM) of the service, from a safe place; repeatable after a rotation."),
]


@app.command("verify")
@examples("kneo audit verify", "kneo audit verify --key service.pem --checkpoint saved.txt")
def verify(
    keys: KeyOption = None,
    heads: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="SEQ:HASH", help="A head that an earlier verification printed; repeatable."),
    ] = None,
    notes: Annotated[list[Path] | None, typer.Option("--checkpoint", help="A saved checkpoint; repeatable.")] = None,
    archive: Annotated[
        Path | None, typer.Option("--pack", help="Verify this audit pack, without a database. Needs --key.")
    ] = None,
    trust_root: Annotated[
        str | None,
        typer.Option("--trust-root", help="With --pack: digest of the first trust root, from another source."),
    ] = None,
    service_url: Annotated[str | None, typer.Option("--service-url", hidden=True)] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the audit log of the local database, and compare it with saved heads and checkpoints; or verify an audit pack.

    Exit status 3 if the log or the pack was changed. Other records without a code of the service key are counted.
    """
    if service_url is not None:
        msg = "kneo audit verify reads the local database, not a service."
        raise Usage(
            msg, hint="Run it on the machine of the service; or check one event: kneo audit prove SEQ --service-url URL"
        )
    given = [*map(load_public, keys or [])]
    if archive is not None:
        _verify_pack(archive, given, _kept(heads, notes, given), trust_root, as_json=as_json)
        return
    settings = from_env()
    store = find_store(settings)
    try:
        mine = find_service_key(settings)
        public = [*given, *([mine.public] if mine is not None else [])]
        saved = _kept(heads, notes, public)
        audit.seal(store)
        verdict = audit.verify(store, keys=public, kept=saved)
        with store.read() as tx:
            unauthenticated = count_without(tx, store.macs) if mine is not None else {}
    finally:
        store.close()

    def show() -> None:
        if not verdict.valid:
            render.failure(
                f"The audit log was changed: {verdict.problem}.",
                f"Events before number {verdict.broken_at} are unchanged." if verdict.broken_at else None,
            )
            return
        render.success(f"Audit log verified: {verdict.size} events. Head: {verdict.size}:{verdict.head}")
        if saved.heads or saved.roots:
            render.success(f"The log continues all {len(saved.heads) + len(saved.roots)} saved heads and checkpoints.")
        if not verdict.signatures:
            render.warning(
                "Signatures of checkpoints were not verified: this machine has no service key. Pass --key FILE."
            )
        if verdict.unauthenticated:
            render.warning(
                f"{verdict.unauthenticated} events have no code of the service key, and follow one that has: they were inserted "
                "or changed, or a process without the key recorded them. See kneo audit list."
            )
        if unauthenticated:
            render.warning(f"{describe_unauthenticated(unauthenticated)}. {ADOPT_HINT}")

    render.emit({**asdict(verdict), "unauthenticated_records": unauthenticated}, as_json=as_json, text=show)
    if not verdict.valid:
        raise typer.Exit(3)


def _kept(heads: list[str] | None, notes: list[Path] | None, public: Sequence[PublicKey]) -> Kept:
    if notes and not public:
        msg = "A checkpoint is verified with the public key of the service, and no key is given."
        raise Usage(msg, hint="Pass --key FILE; kneo task receipt key writes the key.")
    roots = {note.size: note.root for note in (read_checkpoint(_note(path), *public) for path in notes or [])}
    return Kept(heads=_heads(heads or []), roots=roots)


def _verify_pack(path: Path, keys: Sequence[PublicKey], kept: Kept, trust_root: str | None, *, as_json: bool) -> None:
    """Verify an audit pack, and end with status 3 where it has a problem."""
    if not keys or kept.heads:
        msg = "A pack is verified with the public key of the service; it has no heads." if keys else "No key is given."
        raise Usage(
            msg, hint="Pass --key FILE (kneo task receipt key writes it), and --checkpoint FILE in place of --head."
        )
    verdict = verify_pack(path, keys, kept, parse_digest(trust_root) if trust_root is not None else None)
    answer = {"valid": not verdict.problems, **asdict(verdict)}
    render.emit(answer, as_json=as_json, text=lambda: show_verdict(verdict, pinned=trust_root is not None))
    if verdict.problems:
        raise typer.Exit(3)


def _heads(texts: list[str]) -> dict[int, str]:
    """Read heads as ``audit verify`` prints them.

    Raises:
        Usage: a text is not a head, or two heads contradict each other.
    """
    heads: dict[int, str] = {}
    for text in texts:
        match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
        if match is None or heads.setdefault(int(match[1]), match[2]) != match[2]:
            msg = f"{text[:80]} is not a head, or contradicts another one."
            raise Usage(msg, hint="A head is SEQ:HASH, as kneo audit verify prints it: 17:8f7b….")
    return heads


def _note(path: Path) -> str:
    return read_bytes(path, max_bytes=NOTE_BYTES * 4, what="checkpoint").decode("utf-8", "replace")


@app.command("checkpoint")
@examples("kneo audit checkpoint", "kneo audit checkpoint --json")
def checkpoint(*, options: ServiceOptions) -> None:
    """Sign the size and root of the log. Keep the checkpoint elsewhere: it proves later that the log was not rewritten."""
    options.show_existing(api.get_audit_checkpoint, lambda answer: render.text(answer.note))


@app.command("prove")
@examples("kneo audit prove 17", "kneo audit prove 17 --key service.pem --checkpoint saved.txt")
def prove(
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="The event's number in the log.")],
    keys: KeyOption = None,
    note: Annotated[Path | None, typer.Option("--checkpoint", help="Prove it against a saved checkpoint.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Prove that an event is in the log, and verify the proof here with the key."""
    public = [load_public(path) for path in keys or []]
    if note is not None and not public:
        msg = "A checkpoint is verified with the public key of the service, and no key is given."
        raise Usage(msg, hint="Pass --key FILE; kneo task receipt key writes the key.")
    saved = read_checkpoint(_note(note), *public) if note is not None else None
    if saved is not None and seq > saved.size:
        msg = f"The checkpoint covers {saved.size} events; event {seq} is later."
        raise Usage(msg, hint="Prove it without --checkpoint, or against a newer one.")
    answer = options.call(api.get_audit_proof, seq, saved.size if saved is not None else None)
    proof = check_proof(answer, seq, keys=public, kept=saved)

    def show() -> None:
        event = proof["event"]
        assert isinstance(event, dict)
        who = f"  by {event['actor']}" if event.get("actor") else ""
        where = "the saved checkpoint" if saved is not None else "the log"
        render.success(f"Event {seq} is in {where} of {proof['size']} events with the root {proof['root']}")
        render.text(f"  {event.get('at')}  {event.get('event_type')}{who}")
        if not public:
            render.warning("The key came with the proof. Pass a key from a safe place: --key FILE.")
        if saved is None:
            render.text(str(proof["checkpoint"]))

    render.emit(proof, as_json=options.as_json, text=show)


MAX_PATH = 64
"""The longest inclusion path."""


def check_proof(
    proof: api.AuditProofView, seq: int, *, keys: Sequence[PublicKey] = (), kept: SignedCheckpoint | None = None
) -> Json:
    """Verify a proof: the event hashes to the leaf, the leaf leads to the root, and the key signed the root.

    Args:
        proof: The proof of a service.
        seq: The number of the event.
        keys: The accepted keys; without any, the key of the proof.
        kept: A saved checkpoint, which replaces the one of the proof.

    Returns:
        The verified facts, all from the signed checkpoint and the proved bytes.

    Raises:
        Untrusted: ``ProofInvalid``: the proof does not hold, or is about another event. ``SignatureInvalid``.
        Invalid: ``Malformed``: the path is not one of a proof.
    """
    if len(proof.path) > MAX_PATH or not all(re.fullmatch(r"[0-9a-f]{64}", item) for item in proof.path):
        msg = "The proof has a malformed path."
        raise Invalid(msg, code="Malformed")
    checkpoint = kept or read_checkpoint(proof.checkpoint, *(keys or [PublicKey.load(proof.key)]))
    canonical = proof.canonical.encode()
    leaf = leaf_of(canonical)
    if proof.seq != seq or not verify_inclusion(leaf, seq - 1, checkpoint.size, proof.path, checkpoint.root):
        msg = f"The proof of event {seq} does not hold."
        raise Untrusted(msg, code="ProofInvalid", hint="Compare with a checkpoint that was saved elsewhere.")
    event = read_json(canonical, file=f"event {seq}").value
    if not isinstance(event, dict):
        msg = f"The proved bytes are not an event: {proof.canonical[:80]}"
        raise Untrusted(msg, code="ProofInvalid")
    return {
        "seq": seq,
        "leaf": leaf,
        "size": checkpoint.size,
        "root": checkpoint.root,
        "path": proof.path,
        "checkpoint": proof.checkpoint if kept is None else None,
        "event": event,
        "canonical": proof.canonical,
    }
