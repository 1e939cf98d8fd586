"""Decisions about pending changes: what a person sees and confirms before signing, and the signed statement."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption
from cli.deployments import Deployments, deployments
from cli.files import write_whole
from cli.releases.environments import show_environment_after
from cli.repository.environments import read_environment
from cli.repository.layout import ConfigRepository, find_repository, read_bundle
from cli.specs.keys import load_private
from kneo.clock import SystemClock, parse_duration
from kneo.digest import Digest
from kneo.errors import KneoError, NotFound, Untrusted, Usage
from kneo.spec.diff import diff
from kneo.spec.reading.load import load_tree
from kneo.trust.dsse import parse_envelope, serialise, sign
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.keys import PrivateKey
from kneo.trust.reading import read_record
from kneo.trust.statement import (
    ApprovalDecision,
    BundleStatement,
    DecisionSubject,
    build_approval,
    parse_bundle,
    rewrite_subject,
)
from kneo.trust.verify import parse_bundle_path


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a decision is about.

    Args:
        environment: Its name.
        name: Name of the bundle, path of the environment file, or what else is decided about.
        digest: Digest of the bundle, of the rules, or of ``about``.
        policy_digest: The rules it is decided under.
        about: What is decided about where that is no bundle and no set of rules.
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
    life: timedelta,
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
        expires=now + life,
        reason=reason,
        about=subject.about,
    )
    return serialise(sign(PAYLOAD_TYPE, statement.payload, key))


DIFF_LINES = 40
"""Most lines of a diff that are shown; ``kneo spec diff`` shows them all."""

POLICY, PRUNE = "policy", "prune"


@dataclass(frozen=True)
class Named:
    """What a person named on the command line.

    Args:
        environment: Its name.
        bundle: Name of a bundle; empty where the rules or a removal are decided about.
        version: Its version; empty where none was named.
        digest: A digest that was named; empty where none was.
        gate: ``policy``, ``prune`` or None for a bundle.
    """

    environment: str
    bundle: str
    version: str
    digest: str
    gate: str | None

    @property
    def is_exact(self) -> bool:
        """Whether there is only one thing this can mean."""
        return bool(self.version or self.digest)


def parse_target(target: str, gate: str | None) -> Named:
    """Read ``ENV``, ``ENV/BUNDLE``, ``ENV/BUNDLE@VERSION``, ``ENV/sha256:…`` or, with a gate, ``ENV@sha256:…``.

    Raises:
        Usage: it is none of these, or does not fit the gate.
    """
    environment, _, what = target.partition("/")
    if gate is not None:
        environment, _, digest = environment.partition("@")
        if what:
            msg = f"--{gate} is about the whole environment {environment[:80]}, not about {what[:80]}."
            raise Usage(msg, hint=f"kneo approve {environment} --{gate}")
        return Named(environment, "", "", digest, gate)
    if not what:
        msg = "What should be decided about?"
        raise Usage(msg, hint=f"kneo approve {environment}/BUNDLE, or --prune or --policy.")
    if what.startswith("sha256:"):
        return Named(environment, "", "", what, None)
    bundle, _, version = what.partition("@")
    return Named(environment, bundle, version, "", None)


def find_item(named: Named, items: object) -> Json:
    """Find what was named among the changes that wait.

    Raises:
        NotFound: it does not wait.
    """
    assert isinstance(items, list)
    for item in items:
        if named.gate is not None:
            fits = item["gate"] == named.gate
        elif named.bundle:
            fits = item["bundle"] == named.bundle and named.version in {"", item["version"]}
        else:
            fits = item["digest"] == named.digest
        if fits:
            found: Json = item
            return found
    what = named.gate or "@".join(part for part in (named.bundle, named.version) if part) or named.digest
    msg = f"Nothing of {what} waits in {named.environment}."
    raise NotFound(msg, code="nothing_waits", hint=f"kneo status {named.environment} lists what does.")


def subject_of(named: Named, item: Json) -> Subject:
    """Check that the service offers for signing what was named, and nothing else.

    Raises:
        Usage: it does not wait for an approval.
        Untrusted: ``SubjectMismatch``.
    """
    if item["subject"] is None or item["policy_digest"] is None:
        msg = f"{item['bundle']} does not wait for an approval: {item['message']}"
        raise Usage(msg, hint=f"kneo why {named.environment}/{item['bundle']}")
    about = read_record(DecisionSubject, item["about"], file="what waits") if item.get("about") else None
    subject = Subject(
        environment=named.environment,
        name=about.name if about is not None else str(item["bundle"]),
        digest=Digest(str(item["subject"])),
        policy_digest=Digest(str(item["policy_digest"])),
        about=about,
    )
    wrong = next(_mismatches(named, item, subject), None)
    if wrong is not None:
        msg = f"What the service offers to be signed is not what you named: {wrong}. Nothing was signed."
        raise Untrusted(msg, code="SubjectMismatch", hint=f"kneo status {named.environment} shows what waits.")
    return subject


def _mismatches(named: Named, item: Json, subject: Subject) -> Iterator[str]:
    if item.get("environment", named.environment) != named.environment:
        yield f"it is about the environment {item['environment']}"
    if named.digest and named.digest != subject.digest:
        yield f"its digest is {subject.digest}"
    kinds = {POLICY: _no_rules, PRUNE: _no_removal}
    yield from kinds[named.gate](named, subject) if named.gate else _no_release(item, subject)


def _no_rules(named: Named, subject: Subject) -> Iterator[str]:
    files = {f"environments/{named.environment}.{suffix}" for suffix in ("yaml", "yml")}
    if subject.about is not None or subject.name not in files or subject.digest != subject.policy_digest:
        yield f"it is not the rules of {named.environment}"


def _no_removal(named: Named, subject: Subject) -> Iterator[str]:
    prune = subject.about.prune if subject.about is not None else None
    if subject.about is None or prune is None or subject.about.digest != subject.digest:
        yield "it is not a removal of releases"
    elif prune.environment != named.environment:
        yield f"it is a removal in {prune.environment}"


def _no_release(item: Json, subject: Subject) -> Iterator[str]:
    if subject.about is not None or item["kind"] == POLICY:
        yield "it is no release of a bundle"
    elif item["digest"] != subject.digest:
        yield f"the bundle is {item['digest']}, and the decision would be about {subject.digest}"
    elif subject.digest == subject.policy_digest:
        yield "its digest is that of rules"


def review(subject: Subject, item: Json) -> tuple[list[str], bool]:
    """Put in words what would be signed, compared with the clone that the command runs in.

    Returns:
        The lines, and whether the clone has the very thing.

    Raises:
        Untrusted: ``SubjectMismatch``: the clone has something else.
    """
    repository = find_repository(Path.cwd())
    lines = [f"environment  {subject.environment}"]
    if subject.about is not None and subject.about.prune is not None:
        prune = subject.about.prune
        lines += [f"removes      {prune.count} releases, by {prune.revision}", f"digest       {subject.digest}"]
        return lines, False
    if item["kind"] == POLICY:
        lines += [f"rules of     {subject.name}", f"digest       {subject.digest}"]
        rules = _rules(repository, subject)
        return [*lines, *_compared(rules, subject.name)], rules is not None
    lines += [
        f"bundle       {subject.name} {item['version']}",
        f"digest       {subject.digest}",
        f"under rules  {subject.policy_digest}",
    ]
    _rules(repository, subject)
    bundle = _bundle(repository, subject, str(item["version"]))
    lines += _compared(bundle, f"bundles/{subject.name}/{item['version']}.dsse.json")
    if bundle is not None and repository is not None:
        lines += _changes(repository, bundle)
    return lines, bundle is not None


def _compared(found: object | None, path: str) -> list[str]:
    return [
        f"compared     {path} in this folder is the same" if found else f"compared     with nothing: no {path} here"
    ]


def _rules(repository: ConfigRepository | None, subject: Subject) -> Digest | None:
    """Read the digest of the rules that the clone has for the environment; None where it has none."""
    if repository is None or subject.environment not in repository.environment_names():
        return None
    found = read_environment(repository, subject.environment).policy_digest
    if found != subject.policy_digest:
        _refuse(f"environments/{subject.environment}.yaml", found, subject.policy_digest)
    return found


def _bundle(repository: ConfigRepository | None, subject: Subject, version: str) -> BundleStatement | None:
    """Read the bundle that the clone has under this name and version; None where it has none."""
    path = f"bundles/{subject.name}/{version}.dsse.json"
    if repository is None or parse_bundle_path(path) is None or not (repository.root / path).is_file():
        return None
    statement = parse_bundle(parse_envelope(read_bundle(repository.root / path), file=path).payload, file=path)
    if statement.digest != subject.digest:
        _refuse(path, statement.digest, subject.digest)
    return statement


def _refuse(path: str, here: str, offered: str) -> None:
    msg = f"{path} in this folder is {here}, and the decision would be about {offered}. Nothing was signed."
    hint = "Bring this clone up to date (git pull), or run the command outside of it and name the digest you reviewed."
    raise Untrusted(msg, code="SubjectMismatch", hint=hint)


def _changes(repository: ConfigRepository, bundle: BundleStatement) -> list[str]:
    """Say what changes from the version before, as far as the clone knows it."""
    before = _previous(repository, bundle)
    old = load_tree(dict(before.predicate.spec)).spec if before is not None else None
    new = load_tree(dict(bundle.predicate.spec)).spec
    if new is None:
        return []
    since = f"from {before.predicate.version}" if before is not None else "it is the first version here"
    changes = diff(old, new).to_text().splitlines()
    more = [f"  … {len(changes) - DIFF_LINES} more lines: kneo spec diff"] if len(changes) > DIFF_LINES else []
    return [f"changes      {since}", *(f"  {line}" for line in changes[:DIFF_LINES]), *more]


def _previous(repository: ConfigRepository, bundle: BundleStatement) -> BundleStatement | None:
    folder = repository.root / "bundles" / bundle.predicate.name
    for path in sorted(folder.glob("*.dsse.json")):
        try:
            found = parse_bundle(parse_envelope(read_bundle(path)).payload)
        except KneoError:
            continue
        if found.digest == bundle.predicate.prev:
            return found
    return None


def confirm(lines: list[str], question: str, *, sure: bool, known: bool) -> None:
    """Show what would be signed and ask, at a terminal; elsewhere go on only where it is known what it is.

    Args:
        lines: What would be signed.
        question: What to ask.
        sure: Whether the person said --yes.
        known: Whether the person named exactly this, or the clone has it.

    Raises:
        Usage: nobody can be asked, or the answer was no.
    """
    render.text("\n".join(lines), err=True)
    if sure:
        return
    if sys.stdin.isatty():
        if not typer.confirm(question, err=True):
            msg = "Nothing was signed."
            raise Usage(msg)
        return
    if not known:
        msg = "Nobody is there to confirm this, and the command does not name exactly what is to be signed."
        hint = "Name the version or the digest, run the command in an up-to-date clone, or pass --yes."
        raise Usage(msg, hint=hint)


Target = Annotated[
    str, typer.Argument(metavar="ENV[/BUNDLE[@VERSION]]", help="Environment, and bundle or sha256: digest.")
]
Key = Annotated[Path | None, typer.Option("--key", help="Your own private key; the service's word counts without it.")]
Expires = Annotated[str, typer.Option("--expires", help="How long the approval counts, such as 7d; at most 366d.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why, in one line; signed and kept with the decision.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Also write the signed decision to this file, to be kept in Git.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Sign without asking.")]
Prune = Annotated[bool, typer.Option("--prune", help="The removal of more releases at once than allowed.")]
Policy = Annotated[bool, typer.Option("--policy", help="A change of the environment's own rules.")]
MIN_COMMIT = 7
"""Shortest beginning of a commit's id that names it."""

REJECTED_FOR = "366d"
"""What a rejection names as its end: the format wants one, and nothing looks at it."""


def approve(
    target: Target,
    key: Key = None,
    prune: Prune = False,
    policy: Policy = False,
    reason: Why = None,
    expires: Expires = "7d",
    output: Output = None,
    yes: Yes = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a pending change.

    With --key the decision is shown before it is signed, compared with the config repository that the command runs in, and
    has to be confirmed at a terminal. Without a terminal it is signed only where a version or a digest was named, where the
    repository has the very same, or with --yes.
    """
    order = _Order(
        parse_target(target, _gate(prune, policy)), ApprovalDecision.APPROVE, key, expires, reason, output, yes
    )
    with deployments(service_url, profile) as asked:
        answer = _decide(asked, order)
    _show_decision(answer, "Approved", as_json=as_json)


def reject(
    target: Target,
    key: Key = None,
    prune: Prune = False,
    policy: Policy = False,
    reason: Why = None,
    output: Output = None,
    yes: Yes = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reject a pending change.

    A rejection has no end: it counts until the same person approves the same thing later.
    """
    order = _Order(
        parse_target(target, _gate(prune, policy)), ApprovalDecision.REJECT, key, REJECTED_FOR, reason, output, yes
    )
    with deployments(service_url, profile) as asked:
        answer = _decide(asked, order)
    _show_decision(answer, "Rejected", as_json=as_json)


def _gate(prune: bool, policy: bool) -> str | None:
    if prune and policy:
        msg = "--prune and --policy are two things to decide about."
        raise Usage(msg, hint="Run the command once for each.")
    return PRUNE if prune else POLICY if policy else None


@dataclass(frozen=True)
class _Order:
    named: Named
    decision: ApprovalDecision
    key: Path | None
    expires: str
    reason: str | None
    output: Path | None
    sure: bool


def _decide(asked: Deployments, order: _Order) -> Json:
    environment = order.named.environment
    if order.output is not None and order.key is None:
        msg = "--output keeps a decision that you signed, so it needs --key."
        raise Usage(msg)
    waits = find_item(order.named, asked.promotions(environment)["promotions"])
    subject = subject_of(order.named, waits)
    envelope = None
    if order.key is not None:
        private = load_private(order.key)
        lines, same = review(subject, waits)
        verb = "Approve" if order.decision is ApprovalDecision.APPROVE else "Reject"
        confirm(lines, f"{verb} and sign this?", sure=order.sure, known=same or order.named.is_exact)
        now, life = SystemClock().now(), parse_duration(order.expires)
        envelope = sign_decision(subject, order.decision, private, now, life, order.reason)
        if order.output is not None:
            write_whole(order.output, envelope)
    reason = order.reason if envelope is None else None
    signed = envelope.decode() if envelope is not None else None
    return asked.decide(environment, str(waits["id"]), order.decision.value, signed, reason)


def _show_decision(answer: Json, verb: str, *, as_json: bool) -> None:
    approval = answer["approval"]
    assert isinstance(approval, dict)

    def show() -> None:
        render.success(f"{verb} {approval['subject_name']} in {approval['environment']} as {approval['principal']}")
        show_environment_after(answer)

    render.emit(answer, as_json=as_json, text=show)


source = typer.Typer(no_args_is_help=True)


@source.command("show")
def show_source(
    service_url: ServiceUrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Say how far the repository was followed, and why not further."""
    with deployments(service_url, profile) as asked:
        answer = asked.source()
    render.emit(answer, as_json=as_json, text=lambda: render.panel("Source", answer.items()))


@source.command("accept-rewrite")
def accept_rewrite(
    key: Annotated[Path, typer.Option("--key", help="Private key of somebody with the role root.")],
    commit: Annotated[
        str | None, typer.Option("--commit", help="The commit that was refused, or its beginning, as you reviewed it.")
    ] = None,
    reason: Why = None,
    yes: Yes = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a rewritten history: from exactly the accepted commit to exactly the one that was refused.

    Both commits are shown before the decision is signed, and have to be confirmed at a terminal. Without a terminal it is
    signed only where --commit names the new one, or with --yes.
    """
    with deployments(service_url, profile) as asked:
        found = asked.source()
        old, new = found["accepted_commit"], found["refused_commit"]
        if found["refused_code"] != "HistoryRewritten" or old is None or new is None:
            msg = "History was not rewritten; there is nothing to accept."
            raise NotFound(msg, code="nothing_waits", hint="kneo source show says what was refused.")
        if commit is not None and (len(commit) < MIN_COMMIT or not str(new).startswith(commit)):
            msg = f"The commit that was refused is {new}, not {commit[:80]}. Nothing was signed."
            raise Untrusted(msg, code="SubjectMismatch", hint="kneo source show says what was refused.")
        private, about = load_private(key), rewrite_subject(str(old), str(new))
        lines = [f"repository   {found['url']} {found['ref']}", f"accepted     {old}", f"replaced by  {new}"]
        confirm(lines, "Accept and sign this?", sure=yes, known=commit is not None)
        root = Digest(str(found["trust_root"]))
        subject = Subject(environment="source", name=about.name, digest=about.digest, policy_digest=root, about=about)
        life = parse_duration("1d")
        envelope = sign_decision(subject, ApprovalDecision.APPROVE, private, SystemClock().now(), life, reason)
        answer = asked.accept_rewrite(envelope.decode())
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Accepted: {old} may become {new}"))
