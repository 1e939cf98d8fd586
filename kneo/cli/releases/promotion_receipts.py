"""``kneo promotion receipt``: the signed decisions about a promotion, shown, and verified without the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_json

from kneo.api.environments import get_environment_history
from kneo.api.promotion_receipts import (
    ApprovalReceiptView,
    PromotionReceiptsView,
    get_approval_receipt,
    list_promotion_receipts,
)
from kneo.cli import render
from kneo.cli.backend import Json
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.cli.files import read_bytes, write_whole
from kneo.cli.options import JsonOption
from kneo.cli.repository import find_repository
from kneo.cli.specs.keys import load_public
from kneo.clock import SystemClock, parse_time
from kneo.errors import NotFound

if TYPE_CHECKING:
    from kneo.controller.approval_receipts import CheckedApproval, CheckedAttestation
    from kneo.spec.models.environment import Environment

app = typer.Typer(no_args_is_help=True)
receipt = typer.Typer(no_args_is_help=True)


@receipt.command("show")
@examples(
    "kneo promotion receipt show appr_4fzq8 --output receipt.json",
    "kneo promotion receipt show prod/research-agent --output receipts.json",
)
def show(
    promotion: Annotated[
        str,
        typer.Argument(
            metavar="PROMOTION",
            help="Id of a promotion, of a pending change, or of one decision; or ENV/BUNDLE for the newest promotion.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Also write the receipts to this file, to verify them elsewhere.")
    ] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Show the receipts of a promotion, or the receipt of one decision about it."""
    view: ApprovalReceiptView | PromotionReceiptsView
    if promotion.startswith("appr_"):
        view = options.call(get_approval_receipt, promotion)
    else:
        view = options.call(list_promotion_receipts, _promotion_id(options, promotion))
    if output is not None:
        write_whole(output, to_json(view, indent=2) + b"\n")

    def text() -> None:
        receipts = view.receipts if isinstance(view, PromotionReceiptsView) else [view]
        if not receipts:
            render.text(
                "The promotion has no receipts: its environment requires no approvals, or no person has decided yet."
            )
        for each in receipts:
            title = f"Receipt {each.unsigned['id']}"
            render.panel(title, _lines(each.receipt, str(each.unsigned["principal"])))
        for item in view.attestations if isinstance(view, PromotionReceiptsView) else ():
            render.text(f"Attestation {item.unsigned['id']}, first seen at {item.unsigned['first_seen_at']}")
        canary = view.canary if isinstance(view, PromotionReceiptsView) else None
        if canary is not None:
            render.text(
                f"Result of its canary {canary.unsigned['id']}, which ended at {canary.unsigned['first_seen_at']}"
            )

    render.emit(view, as_json=options.as_json, text=text)


def _promotion_id(options: ServiceOptions, promotion: str) -> str:
    """Return the id of a promotion; of ``ENV/BUNDLE`` that of the newest one.

    Raises:
        NotFound: the bundle was never released to the environment.
    """
    environment, slash, bundle = promotion.partition("/")
    if not slash:
        return promotion
    found = options.call(get_environment_history, environment, bundle, limit=1).promotions
    if not found:
        msg = f"{bundle[:80]} was never released to {environment[:80]}."
        hint = f"Decisions about a pending change: GET /v1/environments/{environment[:80]}/decisions lists their ids."
        raise NotFound(msg, code="promotion_not_found", hint=hint)
    return found[0].id


def _lines(content: Json, person: str) -> Iterator[tuple[str, object]]:
    yield "Decision", f"{content['decision']} by {person} at {content.get('issuedAt') or 'an unknown time'}"
    yield "Signed by", "a service, which authenticated the person" if content.get("approver") else "the person"
    yield "Subject", f"{content['name']} {content['bundleDigest']}"
    yield "Environment", f"{content['environment']}, under the rules {content['policyDigest']}"
    if content.get("reason"):
        yield "Reason", content["reason"]
    if content["decision"] == "approve":
        yield "Counts until", content["expires"]


@receipt.command("verify")
@examples(
    "kneo promotion receipt verify receipt.json --key service.pem",
    "kneo promotion receipt verify receipt.json --trust trust.json --trust-root sha256:… --environment prod.yaml",
)
def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File that kneo promotion receipt show wrote, or an envelope.")
    ],
    keys: Annotated[
        list[Path] | None,
        typer.Option("--key", help="Public key (PEM) of the service, for decisions that it signed. Repeatable."),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="Trust root file. Default: that of the repository.")
    ] = None,
    trust_root: Annotated[
        str | None, typer.Option("--trust-root", help="Digest of the trust root to pin (sha256:…).")
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option("--environment", help="Environment file of the decision. Default: that of the repository."),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option("--before", help="For a decision about rules: the file in force before, whose approvers decide."),
    ] = None,
    seen_at: Annotated[
        str | None,
        typer.Option("--seen-at", help="Time at which the decision was known to exist. Default: now."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Verify who approved or rejected which digest for which environment. Exit status 3 if a receipt is refused.

    Only files are used: the receipts, the trust root, the environment file and the service's public key. The decisions are
    verified like in a reconciliation, at the time that they state; a key that was revoked before --seen-at does not count.
    """
    # The verification of decisions imports the language of specs and the gates of the controller.
    from kneo.cli.specs.bundle_check import choose_root_or_warn
    from kneo.controller.approval_receipts import (
        MOST_RECEIPTS,
        ReceiptTerms,
        check_approval_receipt,
        check_attestation,
        verdict_json,
    )
    from kneo.spec.reading.reader import read_json
    from kneo.trust.receipt import LIMITS, find_receipts

    data = read_bytes(file, max_bytes=LIMITS.max_bytes, what="file of receipts")
    value = read_json(data, file=str(file), limits=LIMITS).value
    stated = value.get("attestations") if isinstance(value, dict) else None
    stated = stated[:MOST_RECEIPTS] if isinstance(stated, list) else []
    if isinstance(value, dict) and value.get("canary") is not None:
        stated.append(value["canary"])
    only_stated = isinstance(value, dict) and bool(stated) and value.get("receipts") == []
    presented = () if only_stated else find_receipts(value, file=str(file), most=MOST_RECEIPTS).receipts
    at = parse_time(seen_at) if seen_at is not None else SystemClock().now()
    terms = ReceiptTerms(
        root=choose_root_or_warn(file, trust, trust_root, at),
        service_keys=tuple(load_public(path) for path in keys or ()),
        file_of=_file_of(environment),
        before=_read(before) if before is not None else None,
        seen_at=at,
    )
    checked = [check_approval_receipt(item, terms) for item in presented]
    attested = [check_attestation(item, terms) for item in stated]
    result = verdict_json(checked, attested)

    def text() -> None:
        every: list[CheckedApproval | CheckedAttestation] = [*checked, *attested]
        for item in every:
            for sentence in item.sentences():
                render.success(sentence)
            for problem in item.problems:
                render.failure(f"{problem.field}: {problem.message}", f"Receipt {problem.receipt}")

    render.emit(result, as_json=as_json, text=text)
    if not result["valid"]:
        raise typer.Exit(3)


def _file_of(path: Path | None) -> Callable[[str], Environment]:
    """Return the lookup of environment files: always the one of a path, else those of the repository."""
    if path is not None:
        given = _read(path)
        return lambda _name: given

    def look_up(name: str) -> Environment:
        from kneo.cli.project import read_environment

        repository = find_repository(Path.cwd())
        if repository is None:
            msg = f"There is no config repository here, so there is no environment file of {name}."
            raise NotFound(msg, hint=f"Pass one: --environment {name}.yaml")
        return read_environment(repository, name)

    return look_up


def _read(path: Path) -> Environment:
    from kneo.spec.environment import ENVIRONMENT_LIMITS, parse_environment

    data = read_bytes(path, max_bytes=ENVIRONMENT_LIMITS.max_bytes, what="environment")
    # The file was accepted when the decision was made; the digest that the decision names says which file it was.
    return parse_environment(data, file=str(path), accepted=True)
