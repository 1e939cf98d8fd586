"""The file of an environment in force, and the policy gate: the approvals that a changed file needs before it comes into force. Pure.

A changed file needs the approvals that the file in force in its environment requires. Some files affect every environment:
the first file of an environment, one that allows inline specs, and one that retires an environment or takes that back. They
need the approvals of every environment that requires approvals. While a retired environment still has releases, their
removal needs the approval instead.

Without a file in force that requires approvals, as on an empty database, the new files of the commit count. The people that
they list are unverified, so only keys of the pinned trust root count then: keys of the roles that a file requires, or as
many of the role root as a change of the trust root needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from kneo.controller.registry_cache import Served
from kneo.controller.stages import gates
from kneo.controller.stages.load import SourceProblem
from kneo.errors import KneoError
from kneo.records.release import EnvironmentRecord
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Approvals, Environment
from kneo.trust.root import ROOT_ROLE, TrustRoot

REJECTED = "Rejected"


@dataclass(frozen=True)
class EnvironmentFiles:
    """The environment files whose rules apply to a new environment file.

    Args:
        in_force: Files in force before the commit; a problem for one that this version cannot read.
        first: Files in the commit for environments that had none.
        root_threshold: Threshold of the root role.
    """

    in_force: tuple[Environment | SourceProblem, ...]
    first: tuple[Environment | SourceProblem, ...]
    root_threshold: int


def environment_files(
    records: Mapping[str, EnvironmentRecord],
    declared: Mapping[str, Environment | SourceProblem],
    revision: str,
    root_threshold: int,
) -> EnvironmentFiles:
    """Collect the environment files of a commit and of the registry.

    Args:
        records: Environments of the registry.
        declared: Environment files of the commit.
        revision: The commit.
        root_threshold: Threshold of the root role.
    """
    in_force = {name: file for name, record in records.items() if (file := _file_before(record, revision)) is not None}
    first = tuple(file for name, file in declared.items() if name not in in_force)
    return EnvironmentFiles(tuple(in_force.values()), first, root_threshold)


def _file_before(record: EnvironmentRecord, revision: str) -> Environment | SourceProblem | None:
    """Return the file in force before a commit; None where this very commit brought the first one."""
    text = record.previous if record.policy_revision == revision else record.declaration
    if text is None:
        return None
    try:
        return parse_environment(text, file=f"environments/{record.name}.yaml", accepted=True)
    except KneoError as error:
        message = f"The rules in force in {record.name} cannot be read, so the required approvals are unknown."
        return SourceProblem("PolicyUnreadable", f"{message} {error}")


def evaluate_policy_gate(
    after: Environment, before: Environment | None, files: EnvironmentFiles, evidence: gates.Evidence
) -> gates.GateVerdict:
    """Evaluate whether an environment file may come into force.

    Args:
        after: The file in the commit.
        before: The file in force in its environment; None for the first one.
        files: The other environment files.
        evidence: The evidence for gates.
    """
    own = gates.evaluate_own_policy(after, before, gates.weakened(after, before, evidence), evidence)
    what = _affects_all(after, before, serves=bool(evidence.served.get(after.name)))
    if isinstance(own, gates.Blocked) or what is None:
        return own
    approvals = [*own.approvals]
    for verdict in _verdicts(after, what, files, evidence):
        if isinstance(verdict, gates.Blocked):
            return verdict
        approvals += verdict.approvals
    return gates.Allowed(tuple(dict.fromkeys(approvals)))


def _affects_all(after: Environment, before: Environment | None, *, serves: bool) -> str | None:
    """Return the change that needs the approvals of every environment; None without one."""
    if before is None:
        return f"The first file of the environment {after.name}"
    if after.spec.inline_specs and not before.spec.inline_specs:
        return f"inlineSpecs in {after.name}"
    if before.spec.retired and not after.spec.retired:
        return f"The reopening of {after.name}"
    if after.spec.retired and not before.spec.retired and not serves:
        return f"The retirement of {after.name}"
    return None


def _verdicts(
    after: Environment, what: str, files: EnvironmentFiles, evidence: gates.Evidence
) -> Iterator[gates.GateVerdict]:
    for file in files.in_force:
        if isinstance(file, SourceProblem):
            yield gates.Blocked("policy", file.reason, file.message)
    asking = [file for file in files.in_force if isinstance(file, Environment) and _required(file)]
    for file in asking:
        rules = gates.Rules(file, frozenset({after.policy_digest}))
        yield _with_source(
            gates.count_approvals(after.policy_digest, after.file, _rule(file), rules, evidence, what), file.name
        )
    if asking:
        return
    for first in files.first:
        if files.in_force and isinstance(first, Environment) and first.name == after.name:
            continue  # it adds approvals where none are required
        yield _approved_by_keys(after, first, what, files, evidence)


def _approved_by_keys(
    after: Environment, first: Environment | SourceProblem, what: str, files: EnvironmentFiles, evidence: gates.Evidence
) -> gates.GateVerdict:
    """Count signatures of the trust root alone: people in an environment file count only once it is in force."""
    if isinstance(first, Environment) and not _required(first):
        return gates.Allowed()
    # A file that cannot be read may ask for approvals.
    rule = (_rule(first) if isinstance(first, Environment) else Approvals()).model_copy(update={"signed": True})
    no_people = replace(after, spec=after.spec.model_copy(update={"people": {}}))
    rules = gates.Rules(no_people, frozenset({after.policy_digest}))
    verdict = gates.count_approvals(after.policy_digest, after.file, rule, rules, evidence, what)
    if isinstance(verdict, gates.Blocked) and verdict.reason != REJECTED:
        root = rule.model_copy(update={"required": files.root_threshold, "roles": (ROOT_ROLE,)})
        by_root = gates.count_approvals(after.policy_digest, after.file, root, rules, evidence, what)
        if isinstance(by_root, gates.Allowed) or by_root.reason == REJECTED:
            verdict = by_root
        else:
            verdict = replace(verdict, who=tuple(sorted({*verdict.who, *by_root.who})))
    return _with_source(
        verdict, first.name if isinstance(first, Environment) else "another file of this commit", signed=True
    )


def _with_source(verdict: gates.GateVerdict, requiring: str, *, signed: bool = False) -> gates.GateVerdict:
    if isinstance(verdict, gates.Allowed):
        return verdict
    keys = ", by keys of the trust root because no rules are in force yet" if signed else ""
    return replace(verdict, gate="policy", message=f"{verdict.message} Required by the rules of {requiring}{keys}.")


def _required(file: Environment) -> bool:
    return file.spec.approvals is not None and file.spec.approvals.required > 0


def _rule(file: Environment) -> Approvals:
    return file.spec.approvals or Approvals()


def root_threshold(root: TrustRoot) -> int:
    """Return the threshold of the root role."""
    return root.document.roles[ROOT_ROLE].threshold


def is_retired(record: EnvironmentRecord | None, served: Served) -> bool:
    """Return whether an environment is retired by the file in force and has no release left."""
    if record is None or served.get(record.name):
        return False
    try:
        file = f"environments/{record.name}.yaml"
        return parse_environment(record.declaration, file=file, accepted=True).spec.retired
    except KneoError:
        return False


def pending_bundles(record: EnvironmentRecord | None) -> frozenset[str]:
    """Return the digests of the bundles that were verified for an environment before and are pending."""
    pending = record.pending if record is not None else ()
    return frozenset(item.digest for item in pending if item.digest is not None)


def rules_before(
    record: EnvironmentRecord | None, environment: Environment, revision: str
) -> Environment | SourceProblem | None:
    """Return the environment file in force before a commit, where its rules differ from the commit's.

    A file that came into force with this very commit does not count as in force before it, unless people approved the change.

    Returns:
        The file; None without an earlier file or with the same rules; a problem for a file that this version cannot read,
        because then no change can be compared with it.
    """
    if record is None:
        return None
    text: bytes | None = record.declaration
    if record.policy_digest == environment.policy_digest:
        came_now = record.policy_revision == revision and not record.policy_approved
        text = record.previous if came_now else None
    if text is None:
        return None
    try:
        before = parse_environment(text, file=environment.file, accepted=True)
    except KneoError as error:
        message = (
            f"The rules in force before this commit cannot be read, so it is unknown what the commit loosens: {error} "
            "Run the version that accepted them, and let it accept a file that this version can read."
        )
        return SourceProblem("PolicyUnreadable", message)
    # Compare digests as this version computes them: an earlier version may have known fewer rules.
    return before if before.policy_digest != environment.policy_digest else None
