"""``kneo audit pack``, and the verification of a pack on another machine: one archive with an auditor's evidence."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.compose import find_store
from kneo.cli.options import JsonOption, parse_since
from kneo.clock import SystemClock, isoformat, parse_time
from kneo.digest import Digest
from kneo.errors import Invalid, Usage
from kneo.records.audit import Kept
from kneo.settings import from_env
from kneo.spec.reading.reader import read_json
from kneo.store import audit_pack
from kneo.store.audit_pack import DECISIONS, PROMOTIONS, LoggedEvent, PackIndex, PackReader, tampered
from kneo.store.service_key import service_key
from kneo.trust.dsse import parse_envelope
from kneo.trust.keys import PublicKey
from kneo.trust.receipt import PresentedReceipt, read_receipts
from kneo.trust.receipt_check import check_receipts

if TYPE_CHECKING:
    from kneo.spec.models.environment import Environment


@examples("kneo audit pack --env prod --since 2026-08-01", "kneo audit pack --env prod --output prod-q3.zip --json")
def pack(
    environment: Annotated[str, typer.Option("--env", help="Environment.")],
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="Beginning: a date in UTC, a time, or 90d. Default: the first event."
        ),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="End, excluded. Default: now.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Archive to write. Default: audit-ENV-DATE.zip.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one signed archive for an auditor: who approved what, receipts, rules, interventions, and proof that none is missing.

    It is verified on any machine: kneo audit verify --pack FILE --key service.pem. Run it on a machine with the database and the service key.
    """
    # The collection of a pack imports the operations of the service.
    from kneo.api.audit_pack import write_pack

    settings = from_env()
    begin, end = (parse_time(text) if text is not None else None for text in map(parse_since, (since, until)))
    if begin is not None and end is not None and begin >= end:
        msg = f"--since {since} is not before --until {until}."
        raise Usage(msg)
    target = output or Path(f"audit-{environment}-{isoformat(SystemClock().now())[:10]}.zip")
    with contextlib.closing(find_store(settings)) as store, _replaced(target) as draft, draft.open("w+b") as stream:
        index, summary = write_pack(store, service_key(settings), stream, environment, since=begin, until=end)

    def show() -> None:
        render.success(f"{target} has the events {index.first} to {index.last}, {len(index.files)} files.")
        render.text(f"Verify it on another machine: kneo audit verify --pack {target.name} --key service.pem")

    render.emit(
        {"file": str(target), "events": {"first": index.first, "last": index.last}, **summary},
        as_json=as_json,
        text=show,
    )


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Give a draft that becomes the file at the end, and is removed on an error.

    Raises:
        Invalid: the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}."
        raise Invalid(msg, file=str(path)) from error


@dataclass(frozen=True, kw_only=True)
class PackVerdict:
    """The result of verifying a pack; each problem names the file and what is wrong."""

    environment: str
    first: int
    last: int
    root: str
    root_before: str
    """Root of the log before the first event: that of the checkpoint of the pack before this one."""

    trust_root: str | None
    decisions: int
    promotions: int
    problems: tuple[str, ...]


def verify_pack(path: Path, keys: Sequence[PublicKey], kept: Kept, pin: Digest | None) -> PackVerdict:
    """Verify a pack with public keys, what an auditor has kept, and the digest of the first trust root.

    1. One of the keys signed the index; each file is the one that it names.
    2. The events lead, without a gap, from the tree before the first one to the signed root.
    3. Each receipt of a decision is valid and belongs to its event; each promotion of the log is there.
    4. Each approval of a promotion was made by an approver, under the rules in the pack.

    Raises:
        Invalid: it is no pack.
        Untrusted: none of the keys signed it, or a file is not the one that was signed.
    """
    with contextlib.closing(PackReader(path, keys)) as pack:
        checkpoint, events = audit_pack.check_log(pack, keys, kept)
        index = pack.index
        files = {name: pack.read(name) for name in index.files if name not in {audit_pack.EVENTS, audit_pack.NOTE}}
    decisions, problems = _check_decisions(files[DECISIONS], keys, events, index.environment)
    roots = [data for name, data in files.items() if name.startswith("trust/")]
    first_root = pin or (parse_envelope(roots[0], file="trust/").digest if roots else None)
    promotions, more = _check_promotions(files, keys, events, index, first_root)
    return PackVerdict(
        environment=index.environment,
        first=index.first,
        last=index.last,
        root=checkpoint.root,
        root_before=audit_pack.root_before(index),
        trust_root=first_root,
        decisions=decisions,
        promotions=promotions,
        problems=(*problems, *more),
    )


def _check_decisions(
    data: bytes, keys: Sequence[PublicKey], events: Sequence[LoggedEvent], environment: str
) -> tuple[int, list[str]]:
    """Verify the receipts, and compare each with the event of its decision."""
    decided = {event.fields["id"]: event.leaf for event in events if event.is_of(environment, {"human.decision"})}
    problems = []
    lines = data.splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{DECISIONS}, line {number}"
        verdict = check_receipts(read_receipts(line, file=where), keys)
        problems += [f"{where}: {item.field}: {item.message}" for item in verdict.problems]
        for receipt in (item.receipt for item in verdict.checked if item.receipt is not None):
            if decided.get(receipt.audit_event) != receipt.audit_leaf:
                problems.append(f"{where}: its event {receipt.audit_event} is not among the events of {environment}.")
    return len(lines), problems


def _check_promotions(
    files: Mapping[str, bytes],
    keys: Sequence[PublicKey],
    events: Sequence[LoggedEvent],
    index: PackIndex,
    first_root: Digest | None,
) -> tuple[int, list[str]]:
    """Verify the approvals of each promotion, and that each promotion of the log is in the pack."""
    # The verification of decisions imports the language of specs and the gates of the controller.
    from kneo.controller.approval_receipts import ReceiptTerms, check_approval_receipt
    from kneo.registry.served import EVENTS
    from kneo.trust.root import verify_chain

    expected = {event.seq: event for event in events if event.is_of(index.environment, frozenset(EVENTS.values()))}
    roots = [data for name, data in files.items() if name.startswith("trust/")]
    root = verify_chain(first_root, roots, index.made_at) if first_root is not None else None
    problems: list[str] = []
    lines = files[PROMOTIONS].splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{PROMOTIONS}, line {number}"
        view = read_json(line, file=where).value
        if not isinstance(view, dict):
            raise tampered(where, "is not a promotion")
        event = expected.pop(cast("int", view.get("audit_seq")), None)
        if event is None:
            problems.append(f"{where}: its event is not among the events of {index.environment}.")
        elif view.get("receipts") and root is not None:
            seen_at = parse_time(str(event.fields["at"]))
            for presented in read_receipts(line, file=where).receipts:
                terms = ReceiptTerms(
                    root=root,
                    service_keys=tuple(keys),
                    file_of=partial(_rules_of, presented, files),
                    before=None,
                    seen_at=seen_at,
                )
                checked = check_approval_receipt(presented, terms)
                problems += [f"{where}: {item.field}: {item.message}" for item in checked.problems]
    problems += [f"{PROMOTIONS}: the promotion of event {seq} is missing." for seq in expected]
    return len(lines), problems


def _rules_of(presented: PresentedReceipt, files: Mapping[str, bytes], environment: str) -> Environment:
    """Return the environment file under which a decision was made.

    Raises:
        Untrusted: the pack does not have it.
    """
    from kneo.spec.environment import parse_environment
    from kneo.trust.statement import parse_approval

    digest = parse_approval(presented.envelope.payload).predicate.policy_digest
    name = f"environment/{digest.removeprefix('sha256:')}.yaml"
    if name not in files:
        raise tampered(name, "is missing")
    return replace(parse_environment(files[name], file=f"{environment}.yaml", accepted=True), file=name)


def show_verdict(verdict: PackVerdict, pinned: bool) -> None:
    """Print the result of verifying a pack."""
    for problem in verdict.problems:
        render.failure(problem)
    if verdict.problems:
        return
    render.success(
        f"The pack of {verdict.environment} is complete: events {verdict.first} to {verdict.last}, "
        f"{render.count(verdict.decisions, 'decision')} with receipts, {render.count(verdict.promotions, 'promotion')}."
    )
    if verdict.first > 1:
        render.text(f"The log before it had {verdict.first - 1} events with the root {verdict.root_before}.")
        render.text("Compare it with the last checkpoint that you kept: --checkpoint FILE does.")
    if not pinned and verdict.trust_root is not None:
        hint = f"Check the digest of the first trust root, {verdict.trust_root}, and pass it with --trust-root."
        render.warning("The approvers were verified with the trust root of the pack, which is not pinned.", hint)
