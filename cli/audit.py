"""``kneo audit``: the log, and the proof that nobody edited it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.compose import find_store
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.deployments import deployments
from cli.status import show_events
from kneo.errors import Untrusted
from kneo.settings import from_env
from kneo.state.audit import leaf_of
from kneo.state.merkle import verify_inclusion
from kneo.store import audit
from kneo.trust.checkpoint import read_checkpoint
from kneo.trust.keys import PublicKey

app = typer.Typer(no_args_is_help=True)


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


@app.command("verify")
def verify(as_json: JsonOption = False) -> None:
    """Walk the whole chain of the database beside us; exit 3 when an event is not what was recorded."""
    store = find_store(from_env())
    audit.seal(store)
    verdict = audit.verify(store)
    store.close()

    def show() -> None:
        if verdict.valid:
            render.success(f"{verdict.size} events, unbroken. Head: {verdict.head}")
        else:
            render.failure(
                f"The audit log was changed: {verdict.problem}.",
                f"Everything before number {verdict.broken_at} is as it was recorded." if verdict.broken_at else None,
            )

    render.emit(asdict(verdict), as_json=as_json, text=show)
    if not verdict.valid:
        raise typer.Exit(3)


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
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that an event is in the log, and check the proof here: nothing of it is taken on trust but the key."""
    with deployments(service_url, profile) as asked:
        answer = asked.prove(seq)
    check_proof(answer)

    def show() -> None:
        render.success(f"Event {seq} is in the log of {answer['size']} events with the root {answer['root']}")
        render.text(str(answer["checkpoint"]))

    render.emit(answer, as_json=as_json, text=show)


def check_proof(answer: Json) -> None:
    """Check a proof as anybody could: the event hashes to the leaf, the leaf leads to the root, the key signed the root.

    Raises:
        Untrusted: one of the three is not so.
    """
    said = read_checkpoint(str(answer["checkpoint"]), PublicKey.load(str(answer["key"])))
    path, seq = answer["path"], answer["seq"]
    assert isinstance(path, list)
    assert isinstance(seq, int)
    leaf = leaf_of(str(answer["canonical"]).encode())
    if not verify_inclusion(leaf, seq - 1, said.size, path, said.root):
        msg = f"The proof of event {seq} does not hold."
        raise Untrusted(msg, code="ProofInvalid", hint="Compare with a checkpoint that was kept elsewhere.")
