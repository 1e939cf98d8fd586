"""Commands that decide about pending changes. A person sees and confirms what is signed before it is signed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.environments import RewriteRequest, accept_rewrite, get_source
from kneo.api.promotions import DecisionRequest, approve_promotion, get_promotion, list_promotions, reject_promotion
from kneo.api.release_views import DecidedView, PendingPromotionView, PromotionDetailView, SourceView
from kneo.cli import render
from kneo.cli.backend import Backend
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.files import write_whole
from kneo.cli.options import OptionGroup, time_after
from kneo.cli.releases.environments import show_result
from kneo.cli.releases.subjects import (
    CONTENT_HINT,
    POLICY,
    PRUNE,
    Reading,
    Subject,
    confirm,
    review,
    show_review,
    sign_decision,
)
from kneo.cli.specs.keys import load_private
from kneo.clock import SystemClock
from kneo.digest import Digest
from kneo.errors import KneoError, NotFound, Untrusted, Usage
from kneo.trust.dsse import read_record
from kneo.trust.statement import ApprovalDecision, DecisionSubject, rewrite_subject

REJECTION_LIFE = "366d"
"""The expiry of a rejection: the format requires one, and nothing reads it."""

REMOVAL_HINT = "A clone cannot confirm a removal: review it with kneo plan, then pass --yes."

TargetArgument = Annotated[
    str, typer.Argument(metavar="ENV[/BUNDLE[@VERSION]]", help="Environment, and bundle or sha256: digest.")
]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Reason, in one line, kept with the decision.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Sign without confirmation.")]


@dataclass(frozen=True)
class ApprovalOptions(OptionGroup):
    """The options of a decision about a pending change."""

    key: Annotated[
        Path | None, typer.Option("--key", help="Your private key. Without it the service signs for you.")
    ] = None
    full: Annotated[
        bool, typer.Option("--full", help="The bundle itself, where the change is a canary: no canary is needed then.")
    ] = False
    prune: Annotated[bool, typer.Option("--prune", help="The removal of more releases at once than allowed.")] = False
    policy: Annotated[bool, typer.Option("--policy", help="A change of the environment's own rules.")] = False
    reason: ReasonOption = None
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Also write the signed decision to this file, to commit it to Git."),
    ] = None
    yes: YesOption = False
    whole: Annotated[bool, typer.Option("--whole", help="Print every line of long texts before signing.")] = False
    pager: Annotated[
        bool, typer.Option("--pager/--no-pager", help="Show a long change page by page at a terminal.")
    ] = True

    @property
    def gate(self) -> str | None:
        """The gate of a whole environment that the decision is about; None for a bundle."""
        if self.prune + self.policy + self.full > 1:
            msg = "--prune, --policy and --full are separate decisions."
            raise Usage(msg, hint="Run the command once for each.")
        return PRUNE if self.prune else POLICY if self.policy else None


@examples(
    "kneo approve prod/research-agent --key ann.pem",
    'kneo approve prod --policy --key ann.pem --reason "reviewed in #41"',
)
def approve(
    target: TargetArgument,
    expires: Annotated[
        str, typer.Option("--expires", help="Lifetime of the approval, such as 7d; at most 366d.")
    ] = "7d",
    *,
    approval: ApprovalOptions,
    options: ServiceOptions,
) -> None:
    """Approve a pending change.

    The change is shown, with --key compared with the config repository of the working directory, and confirmed at a terminal
    before it is signed. Without a terminal it is signed only if every line of it was shown (--whole prints all), and with
    --key only if a version or digest is named or the repository has the same content. --yes signs in any case; the audit
    event records that the change was not read.
    """
    _decide(target, ApprovalDecision.APPROVE, approval, expires, options)


@examples(
    'kneo reject prod/research-agent@1.4.0 --key ann.pem --reason "prompt is too broad"',
    "kneo reject prod --prune --key ann.pem",
)
def reject(
    target: TargetArgument,
    *,
    approval: ApprovalOptions,
    options: ServiceOptions,
) -> None:
    """Reject a pending change.

    A rejection does not expire: it counts until the same person approves the same change.
    """
    _decide(target, ApprovalDecision.REJECT, approval, REJECTION_LIFE, options)


def _decide(
    target: str, decision: ApprovalDecision, approval: ApprovalOptions, expires: str, options: ServiceOptions
) -> None:
    change = replace(parse_target(target, approval.gate), full=approval.full)
    with options.open(existing=True) as service:
        answer = _signed_decision(service, change, decision, approval, expires)

    def show() -> None:
        found = answer.approval
        verb = "Approved" if decision is ApprovalDecision.APPROVE else "Rejected"
        render.success(f"{verb} {found.subject_name} in {found.environment} as {found.principal}")
        render.text(f"Receipt: kneo promotion receipt show {found.id}")
        show_result(answer)

    render.emit(answer, as_json=options.as_json, text=show)


def _signed_decision(
    service: Backend, change: ChangeReference, decision: ApprovalDecision, options: ApprovalOptions, expires: str
) -> DecidedView:
    if options.output is not None and options.key is None:
        msg = "--output writes a signed decision, so it needs --key."
        raise Usage(msg)
    pending = find_pending(
        change, service.call(list_promotions, environment=change.environment, phase="waiting", limit=1000).promotions
    )
    subject = subject_of(change, pending)
    detail = _detail(service, pending)
    approves = decision is ApprovalDecision.APPROVE
    reading = Reading(confirmed=options.yes, whole=options.whole, pager=options.pager)
    found = review(subject, pending, detail, spec=options.whole)
    private = load_private(options.key) if options.key is not None else None
    show_review(found, reading, approves=approves, is_named=bool(change.digest))
    question = f"{'Approve' if approves else 'Reject'}{' and sign' if private is not None else ''} this?"
    hint = REMOVAL_HINT if change.gate == PRUNE else CONTENT_HINT
    known = private is None or found.same or change.is_exact
    confirm(question, confirmed=options.yes, known=known, hint=hint)
    given: dict[str, object] = {"reason": options.reason, **({"full": True} if change.full else {})}
    if private is not None:
        now = SystemClock().now()
        envelope = sign_decision(subject, decision, private, now, time_after(expires, now), options.reason)
        if options.output is not None:
            write_whole(options.output, envelope)
        given = {"envelope": envelope.decode(), **({"full": True} if change.full else {})}
    body = request(DecisionRequest, **given, **({"unread": True} if options.yes and approves else {}))
    operation = approve_promotion if decision is ApprovalDecision.APPROVE else reject_promotion
    return service.call(operation, pending.id, body)


def _detail(service: Backend, pending: PendingPromotionView) -> PromotionDetailView | None:
    """Read what a pending change changes; None from a service that does not say it."""
    try:
        return service.call(get_promotion, pending.id, whole=True)
    except KneoError:
        return None


# ---- references ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangeReference:
    """A reference to a pending change, from the command line.

    Args:
        environment: The name of the environment.
        bundle: The name of a bundle; empty for rules or a removal.
        version: The version; empty where none is named.
        digest: The digest; empty where none is named.
        gate: ``policy``, ``prune`` or None for a bundle.
        full: Whether it is about the bundle itself, where the change is a canary.
    """

    environment: str
    bundle: str
    version: str
    digest: str
    gate: str | None
    full: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the reference matches one content only."""
        return bool(self.version or self.digest)


def parse_target(target: str, gate: str | None) -> ChangeReference:
    """Read ``ENV``, ``ENV/BUNDLE``, ``ENV/BUNDLE@VERSION``, ``ENV/sha256:…`` or, with a gate, ``ENV@sha256:…``.

    Raises:
        Usage: the target has another form, or does not fit the gate.
    """
    environment, _, rest = target.partition("/")
    if gate is not None:
        environment, _, digest = environment.partition("@")
        if rest:
            msg = f"--{gate} is about the whole environment {environment[:80]}, not about {rest[:80]}."
            raise Usage(msg, hint=f"kneo approve {environment} --{gate}")
        return ChangeReference(environment, "", "", digest, gate)
    if not rest:
        msg = f"{target[:100]!r} names no bundle."
        raise Usage(msg, hint=f"kneo approve {environment}/BUNDLE, or --prune or --policy.")
    if rest.startswith("sha256:"):
        return ChangeReference(environment, "", "", rest, None)
    bundle, _, version = rest.partition("@")
    return ChangeReference(environment, bundle, version, "", None)


def find_pending(change: ChangeReference, promotions: Iterable[object]) -> PendingPromotionView:
    """Find the pending change of a reference.

    Raises:
        NotFound: ``nothing_waits``: the change is not pending.
    """
    for item in promotions:
        if not isinstance(item, PendingPromotionView):
            continue
        if change.gate is not None:
            matches = item.gate == change.gate
        elif change.bundle:
            matches = item.bundle == change.bundle and change.version in {"", item.version}
        else:
            matches = item.digest == change.digest
        if matches:
            return item
    what = change.gate or "@".join(part for part in (change.bundle, change.version) if part) or change.digest
    msg = f"No pending change for {change.environment}/{what}."
    raise NotFound(msg, code="nothing_waits", hint=f"List pending changes: kneo status {change.environment}")


def subject_of(change: ChangeReference, item: PendingPromotionView) -> Subject:
    """Check that the service offers the referenced change for signing, and no other one.

    Raises:
        Usage: the change needs no approval.
        Untrusted: ``SubjectMismatch``.
    """
    if item.subject is None or item.policy_digest is None:
        msg = f"{item.bundle} needs no approval: {item.message}"
        raise Usage(msg, hint=f"kneo why {change.environment}/{item.bundle}")
    of_canary = item.about if not change.full else None
    about = read_record(DecisionSubject, of_canary, file="pending change") if of_canary else None
    subject = Subject(
        environment=change.environment,
        name=about.name if about is not None else item.bundle,
        digest=Digest(item.digest if change.full and item.digest is not None else item.subject),
        policy_digest=Digest(item.policy_digest),
        about=about,
    )
    wrong = next(_mismatches(change, item, subject), None)
    if wrong is not None:
        msg = f"The service offers another change for signing: {wrong}. Nothing was signed."
        hint = f"List pending changes: kneo status {change.environment}"
        raise Untrusted(msg, code="SubjectMismatch", hint=hint)
    return subject


def _mismatches(change: ChangeReference, item: PendingPromotionView, subject: Subject) -> Iterator[str]:
    if item.environment != change.environment:
        yield f"its environment is {item.environment}"
    if change.digest and change.digest != subject.of_bundle.digest:
        yield f"its digest is {subject.of_bundle.digest}"
    kinds = {POLICY: _policy_mismatches, PRUNE: _prune_mismatches}
    yield from kinds[change.gate](change, subject) if change.gate else _release_mismatches(item, subject)


def _policy_mismatches(change: ChangeReference, subject: Subject) -> Iterator[str]:
    files = {f"environments/{change.environment}.{suffix}" for suffix in ("yaml", "yml")}
    if subject.about is not None or subject.name not in files or subject.digest != subject.policy_digest:
        yield f"it is not the rules of {change.environment}"


def _prune_mismatches(change: ChangeReference, subject: Subject) -> Iterator[str]:
    prune = subject.about.prune if subject.about is not None else None
    if subject.about is None or prune is None or subject.about.digest != subject.digest:
        yield "it is not a removal of releases"
    elif prune.environment != change.environment:
        yield f"it is a removal in {prune.environment}"


def _release_mismatches(item: PendingPromotionView, subject: Subject) -> Iterator[str]:
    bundle, canary = subject.of_bundle, subject.about.canary if subject.about is not None else None
    if (subject.about is not None and canary is None) or item.kind == POLICY:
        yield "it is not a release of a bundle"
    elif canary is not None and (canary.environment, canary.bundle) != (item.environment, item.bundle):
        yield f"it is a canary of {canary.bundle} in {canary.environment}"
    elif subject.about is not None and subject.about.digest != subject.digest:
        yield f"its digest is {subject.digest}"
    elif item.digest != bundle.digest:
        yield f"the bundle is {item.digest}, and the subject of the decision {bundle.digest}"
    elif subject.digest == subject.policy_digest:
        yield "its digest is that of rules"


# ---- the config repository ----------------------------------------------------------------------------------------


source = typer.Typer(no_args_is_help=True)


@source.command("show")
@examples("kneo source show", "kneo source show --json")
def show_source(*, options: ServiceOptions) -> None:
    """Show the accepted commit of the config repository, and any refused one."""
    options.show_existing(get_source, lambda answer: render.panel("Source", _source_lines(answer)))


def _source_lines(source: SourceView) -> Iterator[tuple[str, object]]:
    yield "Repository", f"{source.url} {source.ref}"
    yield (
        "Accepted commit",
        f"{source.accepted_commit or 'none'}" + (f" at {source.accepted_at}" if source.accepted_at else ""),
    )
    if source.refused_code:
        yield "Refused commit", f"{source.refused_commit or 'none'}: {source.refused_code}: {source.refused_message}"
    else:
        yield "Refused commit", "none"
    if source.failed_code:
        yield "Fetch fails", f"since {source.failed_at}: {source.failed_code}: {source.failed_message}"
    if source.rebuilding_since:
        yield "Rebuilding", f"since {source.rebuilding_since}"
    yield "Trust root", source.trust_root or "none"


@source.command("accept-rewrite")
@examples(
    "kneo source accept-rewrite --key root.pem",
    "kneo source accept-rewrite --key root.pem --commit 3fb5f52c9a1d0e7b6f48e2a5d3c1b0f9e8d7c6a5",
)
def accept_rewritten_history(
    key: Annotated[Path, typer.Option("--key", help="Private key with the role root.")],
    commit: Annotated[
        str | None, typer.Option("--commit", help="The whole id of the refused commit that you reviewed.")
    ] = None,
    reason: ReasonOption = None,
    yes: YesOption = False,
    *,
    options: ServiceOptions,
) -> None:
    """Accept a rewritten history: from exactly the accepted commit to exactly the refused one.

    Both commits are shown and confirmed at a terminal before the decision is signed. Without a terminal it is signed only
    if --commit names the refused one, or with --yes.
    """
    with options.open(existing=True) as service:
        source_view = service.call(get_source)
        old, new = source_view.accepted_commit, source_view.refused_commit
        if source_view.refused_code != "HistoryRewritten" or old is None or new is None:
            msg = "History was not rewritten; there is nothing to accept."
            raise NotFound(msg, code="nothing_waits", hint="kneo source show prints the refused commit.")
        if commit is not None and commit != new:
            msg = f"The refused commit is {new}, not {commit[:80]}. Nothing was signed."
            raise Untrusted(msg, code="SubjectMismatch", hint="kneo source show prints the refused commit.")
        private, about = load_private(key), rewrite_subject(old, new)
        lines = [f"repository   {source_view.url} {source_view.ref}", f"accepted     {old}", f"replaced by  {new}"]
        render.text("\n".join(lines), err=True)
        confirm("Accept and sign this?", confirmed=yes, known=commit is not None)
        root = Digest(str(source_view.trust_root))
        subject = Subject(environment="source", name=about.name, digest=about.digest, policy_digest=root, about=about)
        now = SystemClock().now()
        envelope = sign_decision(subject, ApprovalDecision.APPROVE, private, now, time_after("1d", now), reason)
        answer = service.call(accept_rewrite, request(RewriteRequest, envelope=envelope.decode()))
    render.emit(answer, as_json=options.as_json, text=lambda: render.success(f"Accepted: {old} may become {new}"))
