"""What a person sees and confirms before signing a decision: what they named, never merely what a service answered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from cli import render
from cli.backend import Json
from cli.releases.approvals import Subject
from cli.repository.layout import ConfigRepository, find_repository, read_bundle
from kneo.digest import Digest
from kneo.errors import KneoError, NotFound, Untrusted, Usage
from kneo.spec.diff import diff
from kneo.spec.reading.load import load_tree
from kneo.trust.about import DecisionSubject
from kneo.trust.dsse import parse_envelope
from kneo.trust.reading import read_record
from kneo.trust.statement import BundleStatement, parse_bundle
from kneo.trust.verify import parse_bundle_path

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
    found = repository.environment(subject.environment).policy_digest
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
