"""Commands that decide about pending changes. A person sees and confirms what is signed before it is signed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.environments import RewriteRequest, accept_rewrite, get_source
from kneo.api.promotions import DecisionRequest, approve_promotion, list_promotions, reject_promotion
from kneo.api.release_views import DecidedView, PendingPromotionView, SourceView
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import Backend, ServiceOptions, request
from kneo.cli.files import write_whole
from kneo.cli.options import OptionGroup, time_after
from kneo.cli.project import read_environment
from kneo.cli.releases.environments import show_result
from kneo.cli.repository import ConfigRepository, find_repository, read_bundle
from kneo.cli.specs.keys import load_private
from kneo.clock import SystemClock
from kneo.digest import Digest
from kneo.errors import KneoError, NotFound, Untrusted, Usage
from kneo.spec.diff import diff
from kneo.spec.reading.load import load_tree
from kneo.trust.dsse import parse_envelope, read_record, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import (
    PAYLOAD_TYPE,
    ApprovalDecision,
    BundleStatement,
    DecisionSubject,
    build_approval,
    parse_bundle,
    rewrite_subject,
)
from kneo.trust.verify import parse_bundle_path

POLICY, PRUNE = "policy", "prune"
"""The gates of a whole environment."""

DIFF_LINES = 40
"""The most lines of a diff in a review; ``kneo spec diff`` shows all."""

MIN_COMMIT = 7
"""The shortest prefix of a commit's id that identifies it."""

REJECTION_LIFE = "366d"
"""The expiry of a rejection: the format requires one, and nothing reads it."""

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
    prune: Annotated[bool, typer.Option("--prune", help="The removal of more releases at once than allowed.")] = False
    policy: Annotated[bool, typer.Option("--policy", help="A change of the environment's own rules.")] = False
    reason: ReasonOption = None
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Also write the signed decision to this file, to commit it to Git."),
    ] = None
    yes: YesOption = False

    @property
    def gate(self) -> str | None:
        """The gate of a whole environment that the decision is about; None for a bundle."""
        if self.prune and self.policy:
            msg = "--prune and --policy are separate decisions."
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

    With --key the decision is compared with the config repository of the working directory, shown, and confirmed at a
    terminal before it is signed. Without a terminal it is signed only if a version or digest is named, if the repository
    has the same content, or with --yes.
    """
    change = parse_target(target, approval.gate)
    with options.open(existing=True) as service:
        answer = _decide(service, change, ApprovalDecision.APPROVE, approval, expires)
    _show_decision(answer, "Approved", as_json=options.as_json)


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
    change = parse_target(target, approval.gate)
    with options.open(existing=True) as service:
        answer = _decide(service, change, ApprovalDecision.REJECT, approval, REJECTION_LIFE)
    _show_decision(answer, "Rejected", as_json=options.as_json)


def _decide(
    service: Backend, change: ChangeReference, decision: ApprovalDecision, options: ApprovalOptions, expires: str
) -> DecidedView:
    if options.output is not None and options.key is None:
        msg = "--output writes a signed decision, so it needs --key."
        raise Usage(msg)
    pending = find_pending(
        change, service.call(list_promotions, environment=change.environment, phase="waiting", limit=1000).promotions
    )
    subject = subject_of(change, pending)
    body = request(DecisionRequest, reason=options.reason)
    if options.key is not None:
        private = load_private(options.key)
        lines, same = review(subject, pending)
        verb = "Approve" if decision is ApprovalDecision.APPROVE else "Reject"
        hint = REMOVAL_HINT if change.gate == PRUNE else CONTENT_HINT
        known = same or change.is_exact
        confirm(lines, f"{verb} and sign this?", confirmed=options.yes, known=known, hint=hint)
        envelope = sign_decision(subject, decision, private, SystemClock().now(), time_after(expires), options.reason)
        if options.output is not None:
            write_whole(options.output, envelope)
        body = request(DecisionRequest, envelope=envelope.decode())
    operation = approve_promotion if decision is ApprovalDecision.APPROVE else reject_promotion
    return service.call(operation, pending.id, body)


def _show_decision(answer: DecidedView, verb: str, *, as_json: bool) -> None:
    def show() -> None:
        approval = answer.approval
        render.success(f"{verb} {approval.subject_name} in {approval.environment} as {approval.principal}")
        render.text(f"Receipt: kneo promotion receipt show {approval.id}")
        show_result(answer)

    render.emit(answer, as_json=as_json, text=show)


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
    """

    environment: str
    bundle: str
    version: str
    digest: str
    gate: str | None

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


# ---- what is signed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The subject of a decision.

    Args:
        environment: The name of the environment.
        name: The name of the bundle, the path of the environment file, or the name of ``about``.
        digest: The digest of the bundle, of the rules, or of ``about``.
        policy_digest: The rules in force.
        about: The subject where that is neither a bundle nor rules.
    """

    environment: str
    name: str
    digest: Digest
    policy_digest: Digest
    about: DecisionSubject | None = None


def sign_decision(
    subject: Subject,
    decision: ApprovalDecision,
    key: PrivateKey,
    now: datetime,
    expires: datetime,
    reason: str | None = None,
) -> bytes:
    """Sign a decision with a person's own key.

    Raises:
        Invalid: a field is out of its bounds.
    """
    statement = build_approval(
        bundle_name=subject.name,
        bundle_digest=subject.digest,
        environment=subject.environment,
        policy_digest=subject.policy_digest,
        decision=decision,
        issued_at=now,
        expires=expires,
        reason=reason,
        about=subject.about,
    )
    return serialise(sign(PAYLOAD_TYPE, statement.payload, key))


def subject_of(change: ChangeReference, item: PendingPromotionView) -> Subject:
    """Check that the service offers the referenced change for signing, and no other one.

    Raises:
        Usage: the change needs no approval.
        Untrusted: ``SubjectMismatch``.
    """
    if item.subject is None or item.policy_digest is None:
        msg = f"{item.bundle} needs no approval: {item.message}"
        raise Usage(msg, hint=f"kneo why {change.environment}/{item.bundle}")
    about = read_record(DecisionSubject, item.about, file="pending change") if item.about else None
    subject = Subject(
        environment=change.environment,
        name=about.name if about is not None else item.bundle,
        digest=Digest(item.subject),
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
    if change.digest and change.digest != subject.digest:
        yield f"its digest is {subject.digest}"
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
    if subject.about is not None or item.kind == POLICY:
        yield "it is not a release of a bundle"
    elif item.digest != subject.digest:
        yield f"the bundle is {item.digest}, and the subject of the decision {subject.digest}"
    elif subject.digest == subject.policy_digest:
        yield "its digest is that of rules"


def review(subject: Subject, item: PendingPromotionView) -> tuple[list[str], bool]:
    """Describe the subject of a signature, compared with the config repository of the working directory.

    Returns:
        The lines, and whether the repository has the same content.

    Raises:
        Untrusted: ``SubjectMismatch``: the repository has other content.
    """
    repository = find_repository(Path.cwd())
    lines = [f"environment  {subject.environment}"]
    if subject.about is not None and subject.about.prune is not None:
        prune = subject.about.prune
        lines += [f"removes      {prune.count} releases, by {prune.revision}", f"digest       {subject.digest}"]
        return lines, False
    if item.kind == POLICY:
        lines += [f"rules of     {subject.name}", f"digest       {subject.digest}"]
        rules = _rules(repository, subject)
        return [*lines, *_comparison(rules, subject.name)], rules is not None
    lines += [
        f"bundle       {subject.name} {item.version}",
        f"digest       {subject.digest}",
        f"under rules  {subject.policy_digest}",
    ]
    _rules(repository, subject)
    bundle = _bundle(repository, subject, item.version)
    lines += _comparison(bundle, f"bundles/{subject.name}/{item.version}.dsse.json")
    if bundle is not None and repository is not None:
        lines += _changes(repository, bundle)
    return lines, bundle is not None


def _comparison(content: object | None, path: str) -> list[str]:
    result = f"{path} in this folder is the same" if content else f"with nothing: this folder has no {path}"
    return [f"compared     {result}"]


def _rules(repository: ConfigRepository | None, subject: Subject) -> Digest | None:
    """Read the digest of the repository's rules for the environment; None where there are none."""
    if repository is None or subject.environment not in repository.environment_names():
        return None
    digest = read_environment(repository, subject.environment).policy_digest
    if digest != subject.policy_digest:
        raise _mismatch(f"environments/{subject.environment}.yaml", digest, subject.policy_digest)
    return digest


def _bundle(repository: ConfigRepository | None, subject: Subject, version: str) -> BundleStatement | None:
    """Read the repository's bundle of this name and version; None where there is none."""
    path = f"bundles/{subject.name}/{version}.dsse.json"
    if repository is None or parse_bundle_path(path) is None or not (repository.root / path).is_file():
        return None
    statement = parse_bundle(parse_envelope(read_bundle(repository.root / path), file=path).payload, file=path)
    if statement.digest != subject.digest:
        raise _mismatch(path, statement.digest, subject.digest)
    return statement


def _mismatch(path: str, local: str, offered: str) -> Untrusted:
    msg = f"{path} in this folder is {local}, and the service offers {offered}. Nothing was signed."
    hint = "Update this clone (git pull), or run the command outside of it and name the digest that you reviewed."
    return Untrusted(msg, code="SubjectMismatch", hint=hint)


def _changes(repository: ConfigRepository, bundle: BundleStatement) -> list[str]:
    """Describe the changes from the previous version, where the repository has it."""
    before = _previous(repository, bundle)
    old = load_tree(dict(before.predicate.spec)).spec if before is not None else None
    new = load_tree(dict(bundle.predicate.spec)).spec
    if new is None:
        return []
    since = f"from {before.predicate.version}" if before is not None else "first version in this folder"
    changes = diff(old, new).to_text().splitlines()
    more = [f"  … {len(changes) - DIFF_LINES} more lines: kneo spec diff"] if len(changes) > DIFF_LINES else []
    return [f"changes      {since}", *(f"  {line}" for line in changes[:DIFF_LINES]), *more]


def _previous(repository: ConfigRepository, bundle: BundleStatement) -> BundleStatement | None:
    folder = repository.root / "bundles" / bundle.predicate.name
    for path in sorted(folder.glob("*.dsse.json")):
        try:
            statement = parse_bundle(parse_envelope(read_bundle(path)).payload)
        except KneoError:
            continue
        if statement.digest == bundle.predicate.prev:
            return statement
    return None


CONTENT_HINT = "Name the version or the digest, run the command in an up-to-date clone, or pass --yes."
REMOVAL_HINT = "A clone cannot confirm a removal: review it with kneo plan, then pass --yes."


def confirm(lines: list[str], question: str, *, confirmed: bool, known: bool, hint: str = CONTENT_HINT) -> None:
    """Show the subject of a signature and ask for a confirmation at a terminal.

    Args:
        lines: The description of the subject.
        question: The question.
        confirmed: Whether --yes was given.
        known: Whether the reference is exact or the repository has the same content; needed without a terminal.
        hint: The hint without a terminal.

    Raises:
        Usage: there is no terminal, or the answer was no.
    """
    render.text("\n".join(lines), err=True)
    if confirmed:
        return
    if sys.stdin.isatty():
        if not typer.confirm(question, err=True):
            msg = "Nothing was signed."
            raise Usage(msg)
        return
    if not known:
        msg = "There is no terminal to confirm this, and the command names neither a version nor a digest. Nothing was signed."
        raise Usage(msg, hint=hint)


# ---- the config repository ----------------------------------------------------------------------------------------


source = typer.Typer(no_args_is_help=True)


@source.command("show")
@examples("kneo source show", "kneo source show --json")
def show_source(*, options: ServiceOptions) -> None:
    """Show the accepted commit of the config repository, and any refused one."""
    with options.open(existing=True) as service:
        answer = service.call(get_source)
    render.emit(answer, as_json=options.as_json, text=lambda: render.panel("Source", _source_lines(answer)))


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
@examples("kneo source accept-rewrite --key root.pem", "kneo source accept-rewrite --key root.pem --commit 3fb5f52")
def accept_rewritten_history(
    key: Annotated[Path, typer.Option("--key", help="Private key with the role root.")],
    commit: Annotated[
        str | None, typer.Option("--commit", help="The refused commit that you reviewed, or a prefix of it.")
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
        if commit is not None and (len(commit) < MIN_COMMIT or not new.startswith(commit)):
            msg = f"The refused commit is {new}, not {commit[:80]}. Nothing was signed."
            raise Untrusted(msg, code="SubjectMismatch", hint="kneo source show prints the refused commit.")
        private, about = load_private(key), rewrite_subject(old, new)
        lines = [f"repository   {source_view.url} {source_view.ref}", f"accepted     {old}", f"replaced by  {new}"]
        confirm(lines, "Accept and sign this?", confirmed=yes, known=commit is not None)
        root = Digest(str(source_view.trust_root))
        subject = Subject(environment="source", name=about.name, digest=about.digest, policy_digest=root, about=about)
        now, expires = SystemClock().now(), time_after("1d")
        envelope = sign_decision(subject, ApprovalDecision.APPROVE, private, now, expires, reason)
        answer = service.call(accept_rewrite, request(RewriteRequest, envelope=envelope.decode()))
    render.emit(answer, as_json=options.as_json, text=lambda: render.success(f"Accepted: {old} may become {new}"))
