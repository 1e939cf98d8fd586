"""``kneo audit``: the log, and the proof that nobody edited it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli import render
from cli.backend import Json
from cli.compose import find_store
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.deployments import deployments
from cli.files import read_bytes
from kneo.errors import Invalid, Untrusted, Usage
from kneo.records.audit import Kept, leaf_of, verify_inclusion
from kneo.settings import from_env
from kneo.spec.reading.reader import read_json
from kneo.store import audit
from kneo.store.service_key import find_service_key
from kneo.trust.checkpoint import NOTE_BYTES, SignedCheckpoint, read_checkpoint
from kneo.trust.keys import PEM_BYTES, PublicKey

app = typer.Typer(no_args_is_help=True)


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


@app.command("list")
def list_events(
    event_type: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only events of this run.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Leave out the first so many.")] = 0,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List audit events, newest first."""
    with backend(service_url, profile) as asked:
        answer = asked.audit_events({"event_type": event_type, "run_id": run_id, "limit": limit, "offset": offset})
    render.emit(answer, as_json=as_json, text=lambda: show_events(answer))


KeyOption = Annotated[
    list[Path] | None,
    typer.Option("--key", help="Public key (PEM) of the service, kept elsewhere; repeatable where it was replaced."),
]


@app.command("verify")
def verify(
    keys: KeyOption = None,
    heads: Annotated[
        list[str] | None, typer.Option("--head", metavar="SEQ:HASH", help="A head that was written down; repeatable.")
    ] = None,
    notes: Annotated[
        list[Path] | None, typer.Option("--checkpoint", help="A checkpoint that was kept; repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Walk the whole log of the database beside us, and compare it with what you have kept; exit 3 when it was changed."""
    settings = from_env()
    store = find_store(settings)
    try:
        mine = find_service_key(settings)
        public = [*_keys(keys or []), *([mine.public] if mine is not None else [])]
        if notes and not public:
            msg = "Whose signature should the checkpoint have?"
            raise Usage(msg, hint="Give the service's public key with --key; kneo human receipt key writes it.")
        kept = Kept(
            heads=_heads(heads or []),
            roots={note.size: note.root for note in (read_checkpoint(_note(path), *public) for path in notes or [])},
        )
        audit.seal(store)
        verdict = audit.verify(store, keys=public, kept=kept)
    finally:
        store.close()

    def show() -> None:
        if not verdict.valid:
            render.failure(
                f"The audit log was changed: {verdict.problem}.",
                f"Everything before number {verdict.broken_at} is as it was recorded." if verdict.broken_at else None,
            )
            return
        render.success(f"{verdict.size} events, unbroken. Head: {verdict.size}:{verdict.head}")
        if kept.heads or kept.roots:
            render.success(f"It continues the {len(kept.heads) + len(kept.roots)} that you have kept.")
        if not verdict.signatures:
            render.warning(
                "Signatures of checkpoints were not checked: there is no service key here. --key FILE gives it."
            )

    render.emit(asdict(verdict), as_json=as_json, text=show)
    if not verdict.valid:
        raise typer.Exit(3)


def _heads(given: list[str]) -> dict[int, str]:
    """Read heads as ``audit verify`` prints them.

    Raises:
        Usage: one is not, or two of them contradict each other.
    """
    heads: dict[int, str] = {}
    for one in given:
        match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", one)
        if match is None or heads.setdefault(int(match[1]), match[2]) != match[2]:
            msg = f"{one[:80]} is not a head, or contradicts another one."
            raise Usage(msg, hint="A head is SEQ:HASH, as kneo audit verify prints it: 17:8f7b….")
    return heads


def _keys(paths: list[Path]) -> list[PublicKey]:
    return [PublicKey.load(read_bytes(path, max_bytes=PEM_BYTES, what="public key")) for path in paths]


def _note(path: Path) -> str:
    return read_bytes(path, max_bytes=NOTE_BYTES * 4, what="checkpoint").decode("utf-8", "replace")


@app.command("checkpoint")
def checkpoint(
    service_url: ServiceUrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Sign how long the log is and what is in it. Keep it elsewhere: it shows later whether the log was rewritten."""
    with deployments(service_url, profile) as asked:
        answer = asked.checkpoint()
    render.emit(answer, as_json=as_json, text=lambda: render.text(str(answer["note"])))


@app.command("prove")
def prove(
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="The event's number in the log.")],
    keys: KeyOption = None,
    note: Annotated[
        Path | None, typer.Option("--checkpoint", help="Prove it against a checkpoint that was kept.")
    ] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that an event is in the log, and check the proof here: nothing of it is taken on trust but the key."""
    public = _keys(keys or [])
    if note is not None and not public:
        msg = "Whose signature should the checkpoint have?"
        raise Usage(msg, hint="Give the service's public key with --key; kneo human receipt key writes it.")
    kept = read_checkpoint(_note(note), *public) if note is not None else None
    if kept is not None and seq > kept.size:
        msg = f"The checkpoint is of {kept.size} events; number {seq} came later."
        raise Usage(msg, hint="Prove it without --checkpoint, or against a newer one.")
    with deployments(service_url, profile) as asked:
        answer = asked.prove(seq, kept.size if kept is not None else None)
    proof = check_proof(answer, seq, keys=public, kept=kept)

    def show() -> None:
        event = proof["event"]
        assert isinstance(event, dict)
        who = f"  by {event['actor']}" if event.get("actor") else ""
        where = "the checkpoint that you have kept" if kept is not None else "the log"
        render.success(f"Event {seq} is in {where} of {proof['size']} events with the root {proof['root']}")
        render.text(f"  {event.get('at')}  {event.get('event_type')}{who}")
        if not public:
            render.warning("The key came with the answer. Give the one that you have kept: --key FILE.")
        if kept is None:
            render.text(str(proof["checkpoint"]))

    render.emit(proof, as_json=as_json, text=show)


def check_proof(
    answer: Json, seq: int, *, keys: Sequence[PublicKey] = (), kept: SignedCheckpoint | None = None
) -> dict[str, object]:
    """Check a proof as anybody could: the event hashes to the leaf, the leaf leads to the root, the key signed the root.

    Args:
        answer: What a service says.
        seq: The event that was asked for.
        keys: Whose signature counts; without any, that of the key in the answer.
        kept: A checkpoint from elsewhere, whose root counts instead of that of the answer.

    Returns:
        What the proof shows, all of it from the signed checkpoint and the bytes that are proved.

    Raises:
        Untrusted: ``ProofInvalid``: one of the three is not so, or it is about another event. ``SignatureInvalid``.
        Invalid: it is not a proof.
    """
    try:
        proof = _Proof.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        msg = f"The answer is not a proof: {'.'.join(map(str, first['loc']))}: {first['msg']}."
        raise Invalid(msg, code="Malformed") from error
    said = kept or read_checkpoint(proof.checkpoint, *(keys or [PublicKey.load(proof.key)]))
    canonical = proof.canonical.encode()
    leaf = leaf_of(canonical)
    if proof.seq != seq or not verify_inclusion(leaf, seq - 1, said.size, proof.path, said.root):
        msg = f"The proof of event {seq} does not hold."
        raise Untrusted(msg, code="ProofInvalid", hint="Compare with a checkpoint that was kept elsewhere.")
    event = read_json(canonical, file=f"event {seq}").value
    if not isinstance(event, dict):
        msg = f"What is proved is not an event: {proof.canonical[:80]}"
        raise Untrusted(msg, code="ProofInvalid")
    return {
        "seq": seq,
        "leaf": leaf,
        "size": said.size,
        "root": said.root,
        "path": proof.path,
        "checkpoint": proof.checkpoint if kept is None else None,
        "event": event,
        "canonical": proof.canonical,
    }


class _Proof(BaseModel):
    """What of an answer is looked at."""

    model_config = ConfigDict(extra="ignore", strict=True)

    seq: int
    path: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(max_length=64)
    checkpoint: str
    key: str
    canonical: str
