"""Receipts of decisions about changes of environments, verified without the registry. Pure.

A receipt is the decision itself as the registry recorded it: the envelope that the person signed, or that the service signed
for an authenticated person. It is verified by the code that counts decisions in a reconciliation, against a trust root, the
service's public key and the environment file whose rules the decision names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from kneo.clock import isoformat
from kneo.controller.stages.approvals import ApprovalVote, may_decide, verify_decision, vote_of
from kneo.controller.stages.verify import TrustContext
from kneo.digest import canonical_json
from kneo.errors import Invalid, KneoError
from kneo.spec.models.environment import Approvals, Environment
from kneo.spec.reading.reader import read_json
from kneo.trust.approvals import approval_id
from kneo.trust.dsse import Envelope, TrustedKey, find_signers, read_envelope, serialise
from kneo.trust.keys import KeyId, PublicKey
from kneo.trust.receipt import LIMITS
from kneo.trust.root import ROOT_ROLE, TrustRoot
from kneo.trust.statement import ApprovalDecision, ApprovalStatement, approval_content, parse_approval

RECEIPTS = 1_000
"""Most receipts in one file."""

SIGNATURE = "signature"

Json = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class PresentedApproval:
    """A receipt of a decision as presented, before verification.

    Attributes:
        envelope: The signed decision.
        content: The claimed content of the payload; None for an envelope alone.
        unsigned: The claims about the decision that no key signed.
    """

    envelope: Envelope
    content: object = None
    unsigned: Json


def read_approval_receipts(data: bytes, *, file: str) -> tuple[PresentedApproval, ...]:
    """Parse a file of receipts: an envelope, ``{"envelope", "receipt"}``, or ``{"receipts": [...]}``.

    Raises:
        Invalid: it is not JSON, too large, or holds no receipts.
    """
    value = read_json(data, file=file, limits=LIMITS).value
    if isinstance(value, dict) and isinstance(listed := value.get("receipts"), list):
        if not 0 < len(listed) <= RECEIPTS:
            msg = f"{file}: {len(listed)} receipts; from 1 to {RECEIPTS} are read at once."
            raise Invalid(msg, code="Malformed")
        return tuple(_presented(item, f"{file}: receipts[{index}]") for index, item in enumerate(listed))
    return (_presented(value, file),)


def _presented(value: object, where: str) -> PresentedApproval:
    if not isinstance(value, dict) or not isinstance(unsigned := value.get("unsigned", {}), dict):
        msg = f"{where}: a receipt is a JSON object, and so is its field unsigned."
        raise Invalid(msg, code="Malformed", hint="kneo promotion receipt show --output FILE writes one.")
    if "envelope" not in value:
        return PresentedApproval(envelope=read_envelope(value, file=where), unsigned={})
    envelope = read_envelope(value["envelope"], file=f"{where}: envelope")
    return PresentedApproval(envelope=envelope, content=value.get("receipt"), unsigned=unsigned)


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
class ApprovalProblem:
    """A reason why a receipt is refused.

    Attributes:
        receipt: The id or digest of the receipt.
        field: The field that is wrong, or ``signature``, or ``approver``.
        message: One sentence about it.
    """

    receipt: str
    field: str
    message: str


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
    problems: tuple[ApprovalProblem, ...] = ()

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


def check_approval_receipt(presented: PresentedApproval, terms: ReceiptTerms) -> CheckedApproval:
    """Verify one receipt.

    1. The envelope carries a decision about a change of an environment.
    2. Its signer is a person of the trust root, or a service that names the person, as a reconciliation requires.
    3. It is about this environment under these rules, and the person is an approver by them.
    4. The claimed content is that of the signed bytes, and the claimed id and person belong to it.
    """
    digest = presented.envelope.digest
    name = str(presented.unsigned.get("id") or digest)[:80]
    try:
        statement = parse_approval(presented.envelope.payload, file=name)
    except KneoError as error:
        return _refused(name, digest, [("envelope.payload", error.message)])
    file = terms.file_of(statement.predicate.environment)
    try:
        problems = [*_misstated(presented, statement), *_other_rules(statement, file)]
        votes = _votes(presented.envelope, statement, terms)
        problems += [*_other_key(presented.envelope, terms), *_misattributed(presented, votes)]
        problems += _no_approver(statement, votes, file, terms.before)
    except KneoError as error:
        return _refused(name, digest, [(SIGNATURE, error.message)])
    if problems:
        return _refused(name, digest, problems)
    return CheckedApproval(receipt=name, digest=digest, statement=statement, votes=votes)


def _refused(name: str, digest: str, problems: Sequence[tuple[str, str]]) -> CheckedApproval:
    found = tuple(ApprovalProblem(receipt=name, field=where, message=message) for where, message in problems)
    return CheckedApproval(receipt=name, digest=digest, problems=found)


Problems = Iterator[tuple[str, str]]


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
    signers = {signer.keyid for signer in find_signers(envelope, _by_id(keys))}
    return next((key for key in keys if key.keyid in signers), keys[0] if keys else None)


def _by_id(keys: Sequence[PublicKey]) -> dict[KeyId, TrustedKey]:
    return {key.keyid: TrustedKey(key, "service") for key in keys}


def _misstated(presented: PresentedApproval, statement: ApprovalStatement) -> Problems:
    """Compare the claimed content with the signed one."""
    claimed, signed = presented.content, approval_content(statement)
    if claimed is None:
        return
    if not isinstance(claimed, dict):
        yield "receipt", "The content is no JSON object."
        return
    for key in dict.fromkeys([*signed, *claimed]):
        # In canonical form, because Python considers false and 0 equal.
        if key not in claimed or key not in signed or canonical_json(claimed[key]) != canonical_json(signed[key]):
            yield key[:80], f"{key[:80]} is shown as something else than what the envelope says."


def _misattributed(presented: PresentedApproval, votes: Sequence[ApprovalVote]) -> Problems:
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


def _other_key(envelope: Envelope, terms: ReceiptTerms) -> Problems:
    """Refuse an envelope that names other keys than those that signed it."""
    signers = find_signers(envelope, {**terms.root.keys, **_by_id(terms.service_keys)})
    hints = {signature.keyid for signature in envelope.signatures}
    if "" not in hints and hints.isdisjoint(signer.keyid for signer in signers):
        yield "envelope.signatures.keyid", f"{signers[0].keyid} made the signature, and the envelope names another key."


def _other_rules(statement: ApprovalStatement, environment: Environment) -> Problems:
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
) -> Problems:
    """Refuse a decision by a person who is no approver by the rules."""
    if statement.predicate.about is not None and statement.predicate.about.prune is None:
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


def verdict_json(checked: Sequence[CheckedApproval]) -> dict[str, object]:
    """Return the result of verifying a file of receipts as JSON."""
    problems = [asdict(problem) for item in checked for problem in item.problems]
    return {"valid": not problems, "problems": problems, "receipts": [_checked_json(item) for item in checked]}


def _checked_json(item: CheckedApproval) -> dict[str, object]:
    statement = item.statement
    return {
        "receipt": item.receipt,
        "digest": item.digest,
        "valid": statement is not None,
        "approvers": [{"name": vote.principal, "signed": vote.signed} for vote in item.votes],
        "said": approval_content(statement) if statement is not None else None,
    }
