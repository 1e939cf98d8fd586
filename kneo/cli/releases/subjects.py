"""The subject of a signed decision: shown, compared with the config repository of the working directory, and confirmed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import typer

from kneo.api.release_views import PendingPromotionView
from kneo.cli import render
from kneo.cli.project import read_environment
from kneo.cli.repository import ConfigRepository, find_repository, read_bundle
from kneo.digest import Digest
from kneo.errors import KneoError, Untrusted, Usage
from kneo.spec.diff import diff
from kneo.spec.reading.load import load_tree
from kneo.trust.dsse import parse_envelope, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import (
    PAYLOAD_TYPE,
    ApprovalDecision,
    BundleStatement,
    DecisionSubject,
    build_approval,
    parse_bundle,
)
from kneo.trust.verify import parse_bundle_path

POLICY, PRUNE = "policy", "prune"
"""The gates of a whole environment."""

DIFF_LINES = 40
"""The most lines of a diff in a review; ``kneo spec diff`` shows all."""

CONTENT_HINT = "Name the version or the digest, run the command in an up-to-date clone, or pass --yes."


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
