"""Receipts of decisions about changes of environments, verified without the registry. Pure.

A receipt is the decision itself as the registry recorded it: the envelope that the person signed, or that the service signed
for an authenticated person. It is verified by the code that counts decisions in a reconciliation, against a trust root, the
service's public key and the environment file whose rules the decision names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from kneo.clock import isoformat
from kneo.controller.stages.approvals import ApprovalVote, may_decide, verify_decision, vote_of
from kneo.controller.stages.verify import TrustContext
from kneo.errors import KneoError
from kneo.spec.models.environment import Approvals, Environment
from kneo.trust.approvals import approval_id
from kneo.trust.dsse import Envelope, find_signers, read_envelope, read_strict, serialise
from kneo.trust.keys import PublicKey
from kneo.trust.receipt import PresentedReceipt
from kneo.trust.receipt_check import (
    SIGNATURE,
    Deviation,
    ReceiptProblem,
    misread,
    other_key,
    problems_of,
    service_keys,
    verdict_of,
)
from kneo.trust.result import VerifiedResult, attestation_id, parse_result, verify_result
from kneo.trust.root import ROOT_ROLE, TrustRoot
from kneo.trust.statement import ApprovalDecision, ApprovalStatement, approval_content, parse_approval

MOST_RECEIPTS = 1_000
"""Most receipts in one file."""


@dataclass(frozen=True, kw_only=True)
class ReceiptTerms:
    """The trust and the rules that receipts are verified against.

    Attributes:
        root: The trust root.
        service_keys: Public keys of the services whose word for an authenticated person is accepted.
        file_of: Returns the environment file for decisions about the environment of this name.
        before: The file in force before it, whose approvers decide about rules; None where no decision is about rules.
        seen_at: The time at which the decisions were first seen; a key that was revoked before it does not count.
    """

    root: TrustRoot
    service_keys: tuple[PublicKey, ...]
    file_of: Callable[[str], Environment]
    before: Environment | None
    seen_at: datetime


@dataclass(frozen=True, kw_only=True)
class CheckedApproval:
    """The result of verifying one receipt; ``statement`` and ``votes`` are set only without problems.

    Attributes:
        receipt: The id that the receipt claims, or the digest of its payload.
        digest: Digest of the payload.
        statement: The decision.
        votes: The decision as that of each person who signed it.
        problems: The reasons for a refusal.
    """

    receipt: str
    digest: str
    statement: ApprovalStatement | None = None
    votes: tuple[ApprovalVote, ...] = ()
    problems: tuple[ReceiptProblem, ...] = ()

    def sentences(self) -> Iterator[str]:
        """Yield who approved or rejected which digest for which environment, and when; nothing for a refused receipt."""
        if self.statement is None:
            return
        predicate = self.statement.predicate
        verb = "approved" if predicate.decision is ApprovalDecision.APPROVE else "rejected"
        when = f" on {isoformat(predicate.issued_at)}" if predicate.issued_at is not None else ""
        for vote in self.votes:
            key = "their own key" if vote.signed else "the service's key, which states who decided"
            yield (
                f"{vote.principal} {verb} {self.statement.subject_name} {predicate.bundle_digest}"
                f" for {predicate.environment}{when}, signed with {key}."
            )


def check_approval_receipt(presented: PresentedReceipt, terms: ReceiptTerms) -> CheckedApproval:
    """Verify one receipt.

    1. The envelope carries a decision about a change of an environment.
    2. Its signer is a person of the trust root, or a service that names the person, as a reconciliation requires.
    3. It is about this environment under these rules, and the person is an approver by them.
    4. The claimed content is that of the signed bytes, and the claimed id and person belong to it.
    """
    envelope, digest = presented.envelope, presented.envelope.digest
    name = str(presented.unsigned.get("id") or digest)[:80]

    def refuse(*deviations: Deviation) -> CheckedApproval:
        return CheckedApproval(receipt=name, digest=digest, problems=problems_of(name, deviations))

    try:
        statement = parse_approval(envelope.payload, file=name)
    except KneoError as error:
        return refuse(("envelope.payload", error.message))
    file = terms.file_of(statement.predicate.environment)
    try:
        votes = _votes(envelope, statement, terms)
        signers = find_signers(envelope, {**terms.root.keys, **service_keys(terms.service_keys)})
        problems = [
            *misread(presented.view, approval_content(statement)),
            *_other_rules(statement, file),
            *other_key(envelope, signers),
            *_misattributed(presented, votes),
            *_no_approver(statement, votes, file, terms.before),
        ]
    except KneoError as error:
        return refuse((SIGNATURE, error.message))
    if problems:
        return refuse(*problems)
    return CheckedApproval(receipt=name, digest=digest, statement=statement, votes=votes)


def _votes(envelope: Envelope, statement: ApprovalStatement, terms: ReceiptTerms) -> tuple[ApprovalVote, ...]:
    """Verify the signatures of a decision; return it as the vote of each signer.

    The time of the decision is the one that it states, so that an approval which has lapsed since is no less a proof.
    """
    predicate = statement.predicate
    signed = predicate.approver is None
    approval = verify_decision(
        serialise(envelope),
        signed=signed,
        subject=predicate.bundle_digest,
        environment=predicate.environment,
        policy_digest=predicate.policy_digest,
        first_seen=terms.seen_at,
        trust=TrustContext(
            root=terms.root,
            before=None,
            service_key=_service_key(envelope, terms.service_keys),
            now=predicate.issued_at or terms.seen_at,
        ),
    )
    return tuple(
        vote_of(
            approval,
            signer,
            terms.root,
            id=approval_id(envelope.digest, signer.principal),
            signed=signed,
            first_seen=terms.seen_at,
        )
        for signer in approval.signers
    )


def _service_key(envelope: Envelope, keys: Sequence[PublicKey]) -> PublicKey | None:
    """Return the key that signed an envelope; where none did, any of them, which then refuses it."""
    signers = {signer.keyid for signer in find_signers(envelope, service_keys(keys))}
    return next((key for key in keys if key.keyid in signers), keys[0] if keys else None)


def _misattributed(presented: PresentedReceipt, votes: Sequence[ApprovalVote]) -> Iterator[Deviation]:
    """Compare the claimed id, person and digest with those of the verified decision."""
    known: Mapping[str, set[str]] = {
        "id": {vote.id for vote in votes},
        "principal": {vote.principal for vote in votes},
        "digest": {presented.envelope.digest},
    }
    for key, values in known.items():
        claimed = presented.unsigned.get(key)
        if claimed is not None and (not isinstance(claimed, str) or claimed not in values):
            yield (
                f"unsigned.{key}",
                f"The {key} is shown as {str(claimed)[:80]}, expected {' or '.join(sorted(values))}.",
            )


def _other_rules(statement: ApprovalStatement, environment: Environment) -> Iterator[Deviation]:
    predicate = statement.predicate
    if predicate.environment != environment.name:
        yield "environment", f"It is about {predicate.environment}, and {environment.file} is of {environment.name}."
    elif predicate.policy_digest != environment.policy_digest:
        message = (
            f"It is under the rules {predicate.policy_digest}, and those of {environment.file} are"
            f" {environment.policy_digest}: pass the file of the commit that was decided about."
        )
        yield "policyDigest", message


def _no_approver(
    statement: ApprovalStatement, votes: Sequence[ApprovalVote], file: Environment, before: Environment | None
) -> Iterator[Deviation]:
    """Refuse a decision by a person who is no approver by the rules."""
    if statement.predicate.about is not None and statement.predicate.about.rewrite is not None:
        yield "about", "It is a decision about the history of the repository, which is no promotion."
        return
    rule = file.spec.approvals or Approvals()
    if is_about_rules(statement):
        if statement.subject_name not in {f"environments/{file.name}.{suffix}" for suffix in ("yaml", "yml")}:
            yield "name", f"Its digest is that of the rules of {file.name}, and it names {statement.subject_name}."
            return
        if before is None:
            yield "before", "Approvers of the file in force before decide about rules, and that file is not here."
            return
        file, rule = _deciding_file(file, before)
    for vote in votes:
        if may_decide(vote, rule, file):
            continue
        roles = " or ".join(rule.roles)
        if rule.signed and not vote.signed:
            message = f"{file.name} counts only decisions that people sign with their own keys."
        else:
            message = f"{vote.principal} is not an approver for {file.name} (role {roles} required)."
        yield "approver", message


def is_about_rules(statement: ApprovalStatement) -> bool:
    """Return whether a decision is about the rules of an environment, which are then its subject."""
    return statement.predicate.bundle_digest == statement.predicate.policy_digest


def _deciding_file(after: Environment, before: Environment) -> tuple[Environment, Approvals]:
    """Return the file whose people decide about rules, and its rule.

    Where no file was in force, the new one is passed as both: its people are unverified, so only keys of the trust root count.
    """
    rule = before.spec.approvals or Approvals()
    if before.policy_digest != after.policy_digest:
        return before, rule
    roles = (*rule.roles, ROOT_ROLE)
    no_people = after.spec.model_copy(update={"people": {}})
    return replace(after, spec=no_people), rule.model_copy(update={"signed": True, "roles": roles})


@dataclass(frozen=True, kw_only=True)
class CheckedAttestation:
    """The result of verifying one attestation of a promotion; ``result`` is set only without problems."""

    receipt: str
    result: VerifiedResult | None = None
    problems: tuple[ReceiptProblem, ...] = ()

    def sentences(self) -> Iterator[str]:
        """Yield who stated what about which digest; nothing for a refused attestation."""
        if self.result is None:
            return
        statement, who = self.result.statement, ", ".join(signer.principal for signer in self.result.signers)
        metrics = ", ".join(f"{name} {item.value}" for name, item in statement.facts.metrics.items())
        about = f"{statement.bundle_name} {statement.bundle_digest}"
        yield f"{who} stated {statement.predicate.result} about {about} on {isoformat(statement.facts.issued_at)}: {metrics}."


def check_attestation(value: object, terms: ReceiptTerms) -> CheckedAttestation:
    """Verify one attestation: its signature by a person of the trust root, and that its claimed content is the signed one."""
    item: Mapping[str, object] = value if isinstance(value, Mapping) else {}
    unsigned = item.get("unsigned")
    claimed: Mapping[str, object] = unsigned if isinstance(unsigned, Mapping) else {}
    name = str(claimed.get("id") or "an attestation")[:80]
    try:
        envelope = read_envelope(item.get("envelope"), file=name)
        result = _verify_result(envelope, terms, name)
        signed = read_strict(envelope.payload, file=name)
    except KneoError as error:
        return CheckedAttestation(receipt=name, problems=problems_of(name, [(SIGNATURE, error.message)]))
    assert isinstance(signed, dict), "it is a statement"
    view = item.get("statement")
    deviations = [*misread(view if isinstance(view, Mapping) else None, signed)]
    known = {"id": attestation_id(envelope.digest), "digest": envelope.digest}
    deviations += [
        (f"unsigned.{key}", f"The {key} is shown as {str(claimed[key])[:80]}, expected {expected}.")
        for key, expected in known.items()
        if key in claimed and claimed[key] != expected
    ]
    if deviations:
        return CheckedAttestation(receipt=name, problems=problems_of(name, deviations))
    return CheckedAttestation(receipt=name, result=result)


def _verify_result(envelope: Envelope, terms: ReceiptTerms, name: str) -> VerifiedResult:
    """Verify a result: signed by a person of the trust root, or, of a canary, by a service."""
    known = find_signers(envelope, service_keys(terms.service_keys))
    if known:
        statement = parse_result(envelope.payload, file=name)
        if statement.facts.type == "canary":
            return VerifiedResult(statement, tuple(known))
    roles = tuple(terms.root.document.roles)
    return verify_result(serialise(envelope), root=terms.root, roles=roles, first_seen=terms.seen_at, file=name)


def verdict_json(
    checked: Sequence[CheckedApproval], attestations: Sequence[CheckedAttestation] = ()
) -> dict[str, object]:
    """Return the result of verifying a file of receipts as JSON."""
    every: list[CheckedApproval | CheckedAttestation] = [*checked, *attestations]
    problems = [problem for item in every for problem in item.problems]
    verdict = verdict_of(problems, [_checked_json(item) for item in checked])
    listed = [{"id": item.receipt, "valid": item.result is not None} for item in attestations]
    return {**verdict, "attestations": listed}


def _checked_json(item: CheckedApproval) -> dict[str, object]:
    statement = item.statement
    return {
        "receipt": item.receipt,
        "digest": item.digest,
        "valid": statement is not None,
        "approvers": [{"name": vote.principal, "signed": vote.signed} for vote in item.votes],
        "said": approval_content(statement) if statement is not None else None,
    }
