"""The subject of a signed decision: shown, compared with the config repository of the working directory, and confirmed."""

from __future__ import annotations

import pydoc
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import typer

from kneo.api.release_views import PendingPromotionView, PromotionDetailView, PromotionPlanView
from kneo.cli import render
from kneo.cli.project import read_environment
from kneo.cli.repository import ConfigRepository, find_repository, read_bundle
from kneo.digest import Digest
from kneo.errors import KneoError, Untrusted, Usage
from kneo.names import plain, visible
from kneo.spec.diff import SpecDiff, change_lines, compare_specs, fact_lines, shortened, whole_command
from kneo.spec.diff.rules import WHOLE as RULES_WHOLE
from kneo.spec.diff.rules import shown_rule
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

    @property
    def of_bundle(self) -> Subject:
        """The subject of a decision about the bundle of a canary; of any other subject itself."""
        canary = self.about.canary if self.about is not None else None
        return self if canary is None else replace(self, name=canary.bundle, digest=canary.digest, about=None)


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


@dataclass(frozen=True)
class SubjectReview:
    """The content of a decision, as a person reads it before signing.

    Args:
        lines: The content, long texts shortened.
        whole: The same with every line.
        same: Whether the repository of the working directory has the same content.
        is_known: Whether the content could be shown at all.
    """

    lines: list[str]
    whole: list[str]
    same: bool
    is_known: bool = True


NOT_SHOWN = "changes      not shown: neither this folder nor the service can compare it"


def review(
    subject: Subject, item: PendingPromotionView, detail: PromotionDetailView | None, *, spec: bool
) -> SubjectReview:
    """Describe the subject of a signature, compared with the config repository of the working directory.

    Args:
        subject: The subject.
        item: The pending change, as the service offers it.
        detail: The plan of the service, with every line, for what the repository does not have; None without one.
        spec: Whether the whole spec follows the facts of a first version.

    Raises:
        Untrusted: ``SubjectMismatch``: the repository has other content.
    """
    repository = find_repository(Path.cwd())
    lines = [f"environment  {subject.environment}"]
    if subject.about is not None and subject.about.prune is not None:
        prune = subject.about.prune
        lines += [f"removes      {prune.count} releases, by {prune.revision}", f"digest       {subject.digest}"]
        return SubjectReview(lines, lines, same=False)
    plan = detail.plan if detail is not None else None
    rules = _rules(repository, subject)
    if item.kind == POLICY:
        lines += [f"rules of     {subject.name}", f"digest       {subject.digest}", *_comparison(rules, subject.name)]
        shown = _first_rules(repository, subject) if rules is not None and (plan is None or not plan.rules) else []
        short, whole = ([*lines, *_changed_rules(plan, subject, whole=each), *shown] for each in (False, True))
        return SubjectReview(short, whole, rules is not None, is_known=short != lines)
    lines += _steps(repository, subject)
    subject = subject.of_bundle
    lines += [
        f"bundle       {subject.name} {item.version}",
        f"digest       {subject.digest}",
        f"under rules  {subject.policy_digest}",
    ]
    bundle = _bundle(repository, subject, item.version)
    lines += _comparison(bundle, f"bundles/{subject.name}/{item.version}.dsse.json")
    found = _compare(repository, bundle, subject, plan) if bundle is not None and repository is not None else None
    if found is not None:
        short, whole = (found[1].to_text(whole=each).splitlines() for each in (found[1].is_new and spec, True))
        since, is_first = found[0], found[1].is_new
    elif plan is not None:
        short, whole = (list(_described(plan, item, whole=each)) for each in (plan.from_version is None and spec, True))
        since, is_first = f"{_since(plan.from_version)}, as the service describes them", plan.from_version is None
    else:
        return SubjectReview([*lines, NOT_SHOWN], [*lines, NOT_SHOWN], bundle is not None, is_known=False)
    lines.append(f"changes      {since}")
    short, whole = ([*lines, *(f"  {line}" for line in each)] for each in (short, short if is_first else whole))
    return SubjectReview(short, whole, bundle is not None)


def _steps(repository: ConfigRepository | None, subject: Subject) -> Iterator[str]:
    """Yield the plan of a canary: as the repository has it, which must be the offered one, else its digest."""
    canary = subject.about.canary if subject.about is not None else None
    if canary is None:
        return
    if repository is None or subject.environment not in repository.environment_names():
        yield f"canary       {canary.plan}, which this folder does not have"
        return
    plan = read_environment(repository, subject.environment).canaries.get(canary.bundle)
    if plan is None or plan.digest != canary.plan:
        there = plan.digest if plan is not None else "not there"
        raise _mismatch(f"the canary of {canary.bundle} in environments/{subject.environment}.yaml", there, canary.plan)
    stops = ", ".join(f"{rule.metric} worse by {rule.worse_by}" for rule in plan.stop_if)
    yield f"canary       {', '.join(plan.steps)} of new runs, each for {plan.every} and {plan.min_runs} ended runs"
    yield f"stops if     {stops}"


def _first_rules(repository: ConfigRepository | None, subject: Subject) -> list[str]:
    """Return the lines of an environment file that replaces none, or whose changes the service does not describe."""
    file = repository.environment_file(subject.environment) if repository is not None else None
    return [f"  {visible(line)}" for line in file.read_text().split("\n")] if file is not None else []


def _since(version: str | None) -> str:
    return f"from {version}" if version is not None else "first version here"


def _changed_rules(plan: PromotionPlanView | None, subject: Subject, *, whole: bool) -> Iterator[str]:
    for rule in plan.rules if plan is not None else ():
        verb = "weakens" if rule["direction"] == "loosened" else "tightens"
        message = str(rule.get("message", rule["field"])).removesuffix(".")
        yield f"  {message} ({verb} protection)"
        lines = rule.get("lines", ())
        rows = tuple(map(str, lines)) if isinstance(lines, list | tuple) else ()
        command = RULES_WHOLE.replace("NAME", subject.environment)
        yield from (f"        {row}" for row in (rows if whole else shown_rule(rows, command)))


def _described(plan: PromotionPlanView, item: PendingPromotionView, *, whole: bool) -> Iterator[str]:
    """Return the changes of a plan of the service."""
    command = whole_command(item.bundle, plan.from_version, item.version)
    items = [vars(change) for change in plan.changes]
    shown = items if whole else [shortened(change, command) for change in items]
    yield from (fact_lines if plan.from_version is None else change_lines)(shown)
    if plan.more:
        yield f"… {plan.more} more changes: {command}"


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


def _compare(
    repository: ConfigRepository, bundle: BundleStatement, subject: Subject, plan: PromotionPlanView | None
) -> tuple[str, SpecDiff] | None:
    """Compare a bundle with what the service says it replaces, else with its previous version, from the repository.

    Returns:
        The version that it is compared with, and the changes; None where the repository does not have that version.
    """
    base = plan.from_digest if plan is not None else bundle.predicate.prev
    before = _stored(repository, bundle.predicate.name, base)
    if before is None and plan is not None and base is not None:
        return None
    environment = None
    if before is None and subject.environment in repository.environment_names():
        environment = read_environment(repository, subject.environment)
    version = before.predicate.version if before is not None else None
    command = whole_command(bundle.predicate.name, version, bundle.predicate.version)
    old = before.predicate.spec if before is not None else None
    code = before.code if before is not None else None, bundle.code
    found = compare_specs(old, bundle.predicate.spec, environment=environment, command=command, code=code)
    return _since(version), found


def _stored(repository: ConfigRepository, name: str, digest: str | None) -> BundleStatement | None:
    """Read the bundle of a digest from the repository; None where it has none."""
    for path in sorted((repository.root / "bundles" / name).glob("*.dsse.json")) if digest is not None else ():
        try:
            statement = parse_bundle(parse_envelope(read_bundle(path)).payload)
        except KneoError:
            continue
        if statement.digest == digest:
            return statement
    return None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a person reads what is signed.

    Args:
        confirmed: Whether --yes was given: nothing is asked.
        whole: Whether every line is printed.
        pager: Whether a terminal shows long content page by page.
    """

    confirmed: bool = False
    whole: bool = False
    pager: bool = True


def show_review(found: SubjectReview, reading: Reading, *, approves: bool, is_named: bool) -> None:
    """Show the content of a decision: at a terminal whole and page by page, elsewhere shortened.

    Args:
        found: The content.
        reading: How it is read.
        approves: Whether the decision is an approval, which must not cover what was not shown.
        is_named: Whether the command names the digest of the content.

    Raises:
        Usage: an approval would cover lines that were not shown.
    """
    at_terminal = sys.stdin.isatty() and not reading.confirmed
    shows_all = at_terminal or reading.whole
    text = plain("\n".join(found.whole if shows_all else found.lines))
    if at_terminal and reading.pager and sys.stdout.isatty() and text.count("\n") >= shutil.get_terminal_size().lines:
        pydoc.pager(text)
    else:
        render.text(text, err=True)
    if not approves or reading.confirmed:
        return
    if not found.is_known and not is_named:
        msg = "The content of this change cannot be shown here. Nothing was signed."
        hint = "Run the command in an up-to-date clone, name the digest that you reviewed, or pass --yes."
        raise Usage(msg, hint=hint)
    if found.lines != found.whole and not shows_all:
        msg = (
            "A part of this change was left out above, and there is no terminal to show all of it. Nothing was signed."
        )
        hint = "Pass --whole to print every line, or --yes to approve without reading; the audit log records that."
        raise Usage(msg, hint=hint)


def confirm(question: str, *, confirmed: bool, known: bool, hint: str = CONTENT_HINT) -> None:
    """Ask for a confirmation at a terminal.

    Args:
        question: The question.
        confirmed: Whether --yes was given.
        known: Whether the reference is exact or the repository has the same content; needed without a terminal.
        hint: The hint without a terminal.

    Raises:
        Usage: there is no terminal, or the answer was no.
    """
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
