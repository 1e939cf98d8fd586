"""Attestations: signed statements of facts about bundles, and the evidence rules that they satisfy. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from kneo.clock import isoformat, parse_time
from kneo.controller.stages.verify import Candidate
from kneo.errors import KneoError
from kneo.names import person_key
from kneo.records.release import AttestationRecord, BundleRecord
from kneo.spec.models.evidence import EvidenceRule, MetricRequirement
from kneo.trust.dsse import CLOCK_TOLERANCE, find_signers, parse_envelope
from kneo.trust.result import Metric, ResultStatement, attestation_id, decimal_text, parse_result, verify_result
from kneo.trust.root import TrustRoot
from kneo.trust.statement import parse_bundle


@dataclass(frozen=True)
class StatedResult:
    """A verified attestation.

    Args:
        id: The id of its record.
        statement: The facts.
        signers: The people whose keys were not revoked at its first sight, each with the roles of the key.
    """

    id: str
    statement: ResultStatement
    signers: tuple[tuple[str, frozenset[str]], ...]

    @property
    def issued_at(self) -> datetime:
        return self.statement.facts.issued_at


@dataclass(frozen=True)
class Makers:
    """The people with a part in a bundle: those who signed it, and its author."""

    signers: tuple[str, ...] = ()
    author: str | None = None

    def excluded_by(self, rule: EvidenceRule) -> frozenset[str]:
        """Return the keys of the people whose statement does not count under a rule."""
        names = [*self.signers] if "bundle_signer" in rule.signers.exclude else []
        if "author" in rule.signers.exclude and self.author is not None:
            names.append(self.author)
        return frozenset(map(person_key, names))


@dataclass(frozen=True)
class StatedFacts:
    """The attestations about the bundles of an environment.

    Args:
        results: The verified ones, by the digest of the bundle, in the order of their issue.
        current: The makers of each current release, by its digest, for comparisons.
        lost: The id of one that the audit log has and the registry does not.
    """

    results: Mapping[str, tuple[StatedResult, ...]] = field(default_factory=dict)
    current: Mapping[str, Makers] = field(default_factory=dict)
    lost: str | None = None


@dataclass(frozen=True)
class Unmet:
    """An evidence rule that nothing satisfies, with reason and message of a condition."""

    rule: EvidenceRule
    reason: str
    message: str


def makers_of(record: BundleRecord) -> Makers:
    """Return the makers of an accepted bundle; a bundle of the older format states no author."""
    try:
        author = parse_bundle(record.payload).predicate.approved_by
    except KneoError:
        author = None
    return Makers(tuple(record.signers), author)


def read_attestations(
    envelopes: Iterable[bytes], root: TrustRoot, now: datetime, revision: str = ""
) -> tuple[AttestationRecord, ...]:
    """Read the attestations of a commit that a key of the trust root signed; other files have no effect.

    Args:
        envelopes: The files.
        root: The trust root in force.
        now: The time of this reconciliation.
        revision: The commit.
    """
    found: dict[str, AttestationRecord] = {}
    for envelope in envelopes:
        try:
            verified = verify_result(envelope, root=root, roles=tuple(root.document.roles), first_seen=now)
        except KneoError:
            continue
        statement = verified.statement
        issued = statement.facts.issued_at
        found[statement.digest] = AttestationRecord(
            id=attestation_id(statement.digest),
            subject=statement.bundle_digest,
            type=statement.facts.type,
            name=statement.bundle_name,
            suite_digest=statement.suite_digest,
            environment=statement.facts.environment,
            issued_at=isoformat(issued),
            payload_digest=statement.digest,
            envelope=envelope,
            first_seen_at=isoformat(now),
            revision=revision,
        )
    return tuple(found.values())


def not_recorded(
    found: Iterable[AttestationRecord], recorded: Iterable[AttestationRecord], root: TrustRoot
) -> tuple[AttestationRecord, ...]:
    """Return the attestations that are not recorded, or that a person has signed whose signature is not recorded."""
    known = {item.payload_digest: item for item in recorded}

    def is_new(item: AttestationRecord) -> bool:
        before = known.get(item.payload_digest)
        if before is None:
            return True
        same = before.envelope == item.envelope
        return not same and not _keyids(item.envelope, root) <= _keyids(before.envelope, root)

    return tuple(item for item in found if is_new(item))


def is_not_yet_valid(envelope: bytes, now: datetime) -> bool:
    """Return whether a file is an attestation that is dated in the future: it is read again later."""
    try:
        return parse_result(parse_envelope(envelope).payload).facts.issued_at > now + CLOCK_TOLERANCE
    except KneoError:
        return False


def _keyids(envelope: bytes, root: TrustRoot) -> frozenset[str]:
    return frozenset(signer.keyid for signer in find_signers(parse_envelope(envelope), root.keys))


def verify_attestation(record: AttestationRecord, root: TrustRoot) -> StatedResult | None:
    """Verify an attestation under the trust root in force; None for one that fails."""
    seen, roles = parse_time(record.first_seen_at), tuple(root.document.roles)
    try:
        result = verify_result(record.envelope, root=root, roles=roles, first_seen=seen)
    except KneoError:
        return None
    signers = tuple((signer.principal, _roles(root, signer.keyid)) for signer in result.signers)
    return StatedResult(record.id, result.statement, signers)


def by_bundle(results: Iterable[StatedResult | None]) -> Mapping[str, tuple[StatedResult, ...]]:
    """Group verified attestations by the digest of their bundle, each group in the order of their issue."""
    found: dict[str, list[StatedResult]] = {}
    for item in sorted(filter(None, results), key=lambda item: (item.issued_at, item.id)):
        found.setdefault(item.statement.bundle_digest, []).append(item)
    return {subject: tuple(items) for subject, items in found.items()}


def _roles(root: TrustRoot, keyid: str) -> frozenset[str]:
    return frozenset(name for name in root.document.roles if keyid in root.role_keys(name))


# ---- rules ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvidenceCase:
    """A bundle, and what its evidence is judged by.

    Args:
        environment: The environment.
        bundle: The bundle to release.
        current: The digest of the current release; None without one.
        facts: The attestations.
        now: The time of this reconciliation.
        replayed_at: The date of the replayed commit, while a registry is rebuilt from Git.
    """

    environment: str
    bundle: Candidate
    current: str | None
    facts: StatedFacts
    now: datetime
    replayed_at: datetime | None = None

    def fitting(self, rule: EvidenceRule, digest: str, makers: Makers) -> tuple[StatedResult, ...]:
        """Return the newest attestations about a bundle that count under a rule: several, where they are of one time."""
        stated = self.facts.results.get(digest, ())
        return newest_fitting(rule, self.bundle.name, stated, self.environment, makers.excluded_by(rule), self.now)

    def age_at(self, issued: datetime) -> datetime:
        """Return the time up to which the age of a statement counts: in a rebuild the date of the replayed commit.

        A commit date is set by its author, so that it counts for no time before a signed one.
        """
        if self.replayed_at is None:
            return self.now
        return max(self.replayed_at, issued, self.bundle.issued_at or self.now)


def newest_fitting(
    rule: EvidenceRule,
    bundle: str,
    stated: Sequence[StatedResult],
    environment: str,
    excluded: Collection[str],
    now: datetime,
) -> tuple[StatedResult, ...]:
    """Return the newest attestations about a bundle that count under a rule: several, where they are of one time.

    Args:
        rule: The rule.
        bundle: The name of the bundle.
        stated: The attestations about its digest, in the order of their issue.
        environment: The environment of the rule.
        excluded: The keys of the people whose statements do not count.
        now: The time of this reconciliation.
    """
    found: list[StatedResult] = []
    for item in reversed(stated):
        if found and item.issued_at != found[0].issued_at:
            break
        if (
            item.statement.bundle_name == bundle
            and _is_about(item.statement, rule, environment)
            and item.issued_at <= now + CLOCK_TOLERANCE
            and any(rule.signers.role in roles and person_key(name) not in excluded for name, roles in item.signers)
        ):
            found.append(item)
    return tuple(reversed(found))


def _is_about(statement: ResultStatement, rule: EvidenceRule, environment: str) -> bool:
    facts = statement.facts
    if facts.type != rule.type or (facts.scripted and not rule.allow_scripted):
        return False
    if rule.suite is not None:
        return statement.suite_digest == rule.suite.digest and facts.environment in {None, environment}
    return facts.environment == rule.environment


def satisfy(rule: EvidenceRule, case: EvidenceCase) -> tuple[str, ...] | Unmet:
    """Return the ids of the attestations that satisfy a rule, or why none does."""
    bundle = case.bundle
    makers = Makers(tuple(bundle.record.signers), bundle.author)
    if case.facts.lost is not None:
        message = f"The registry does not have {case.facts.lost} any more, which it accepted. Restore it from a backup."
        return Unmet(rule, "EvidenceLost", message)
    newest = case.fitting(rule, bundle.digest, makers)
    if not newest:
        message = f"No evidence {rule.name} about {bundle.name} {bundle.version} signed by {rule.signers.role} for {rule.origin}."
        return Unmet(rule, "AwaitingEvidence", message)
    unmet = next(filter(None, (_unmet(rule, item, case) for item in newest)), None)
    return unmet or tuple(item.id for item in newest)


def _unmet(rule: EvidenceRule, item: StatedResult, case: EvidenceCase) -> Unmet | None:
    """Return why an attestation does not satisfy a rule; None where it does."""
    age = case.age_at(item.issued_at) - item.issued_at
    if age > rule.max_age:
        return Unmet(rule, "EvidenceExpired", f"Evidence {rule.name}: {_too_old(age, rule.max_age)}")
    checked = (_unmet_requirement(each, item.statement.facts.metrics, rule, case) for each in rule.require)
    return next(filter(None, checked), None)


def _unmet_requirement(
    requirement: MetricRequirement, metrics: Mapping[str, Metric], rule: EvidenceRule, case: EvidenceCase
) -> Unmet | None:
    metric = metrics.get(requirement.metric)
    text = _out_of_bounds(requirement, metric)
    if text is None and requirement.not_worse_than is not None and case.current is not None:
        assert metric is not None
        before = case.fitting(rule, case.current, case.facts.current.get(case.current, Makers()))
        known = [item.statement.facts.metrics.get(requirement.metric) for item in before]
        if not known or None in known:
            message = f"Evidence {rule.name}: {requirement.metric} cannot be compared. The current release has none."
            return Unmet(rule, "EvidenceIncomparable", message)
        text = _worse(requirement, metric, [item for item in known if item is not None])
    return Unmet(rule, "EvidenceFailed", f"Evidence {rule.name}: {text}") if text is not None else None


def _out_of_bounds(requirement: MetricRequirement, metric: Metric | None) -> str | None:
    if metric is None:
        return f"{requirement.metric} is not stated."
    if metric.samples < requirement.min_samples:
        return f"{requirement.metric} is of {_cases(metric)}; {requirement.min_samples} are required."
    stated = f"{requirement.metric} is {metric.value} of {_cases(metric)}"
    if requirement.at_least is not None and metric.number < _decimal(requirement.at_least):
        return f"{stated}; {decimal_text(_decimal(requirement.at_least))} is required."
    if requirement.at_most is not None and metric.number > _decimal(requirement.at_most):
        return f"{stated}; at most {decimal_text(_decimal(requirement.at_most))} is allowed."
    return None


def _worse(requirement: MetricRequirement, metric: Metric, current: Sequence[Metric]) -> str | None:
    for before in current:
        by = metric.number - before.number if requirement.less_is_better else before.number - metric.number
        if by > _decimal(requirement.margin):
            margin = f" with a margin of {decimal_text(_decimal(requirement.margin))}" if requirement.margin else ""
            stated = f"{requirement.metric} is {metric.value} of {_cases(metric)}"
            return f"{stated}, which is worse than {before.value} of the current release{margin}."
    return None


def _too_old(age: timedelta, most: timedelta) -> str:
    unit, of = ("days", timedelta(days=1)) if most >= timedelta(days=1) else ("seconds", timedelta(seconds=1))
    return f"It is {age // of} {unit} old; {most // of} are allowed."


def _cases(metric: Metric) -> str:
    return f"{metric.samples} case{'s' if metric.samples != 1 else ''}"


def _decimal(number: float) -> Decimal:
    return Decimal(str(number))


def stated_facts(rule: EvidenceRule, case: EvidenceCase) -> dict[str, object]:
    """Return what a rule requires next to what the newest attestation that counts states, as JSON for reviewers.

    Of several of one time it is the one that does not satisfy the rule. Times are absolute, so that the facts stay the same while the
    attestations do.
    """
    makers = Makers(tuple(case.bundle.record.signers), case.bundle.author)
    result = satisfy(rule, case)
    fitting = case.fitting(rule, case.bundle.digest, makers)
    newest = min(fitting, key=lambda item: _unmet(rule, item, case) is None, default=None)
    stated = newest.statement.facts if newest is not None else None
    metrics = stated.metrics if stated is not None else {}
    signers = [name for name, roles in newest.signers if rule.signers.role in roles] if newest is not None else []
    return {
        "rule": rule.name,
        "type": rule.type,
        "origin": rule.origin,
        "role": rule.signers.role,
        "problem": result.message if isinstance(result, Unmet) else None,
        "attestation": newest.id if newest is not None else None,
        "signed_by": signers,
        "scripted": stated.scripted if stated is not None else None,
        "issued_at": isoformat(stated.issued_at) if stated is not None else None,
        "expires_at": isoformat(stated.issued_at + rule.max_age) if stated is not None else None,
        "requirements": [
            {
                "required": _describe(item),
                "stated": metrics[item.metric].value if item.metric in metrics else None,
                "samples": metrics[item.metric].samples if item.metric in metrics else 0,
            }
            for item in rule.require
        ],
    }


def describe_rule(rule: EvidenceRule) -> str:
    """Describe what a rule requires, in words."""
    return "; ".join(_describe(item) for item in rule.require)


def _describe(item: MetricRequirement) -> str:
    parts: list[str] = []
    if item.at_least is not None:
        parts.append(f"at least {decimal_text(_decimal(item.at_least))}")
    if item.at_most is not None:
        parts.append(f"at most {decimal_text(_decimal(item.at_most))}")
    if item.not_worse_than is not None:
        margin = f" by more than {decimal_text(_decimal(item.margin))}" if item.margin else ""
        parts.append(f"not worse than the current release{margin}")
    if item.min_samples > 1:
        parts.append(f"of {item.min_samples} cases or more")
    return f"{item.metric} {' and '.join(parts)}"
