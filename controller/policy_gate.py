"""Who has to agree before an environment file comes into force. Pure.

A changed file is judged by the rules in force in its own environment. Two files are dangerous beyond their own environment,
because with them things run that no other environment would let run: the first file of an environment, and one that lets
runs bring their own specs. Wherever an environment requires approvals, such a file needs them too; and so does one that
retires an environment, or takes that back. While a retired environment still serves releases, their removal asks for the
approval instead.

Where no file is in force that requires approvals, as on an empty database, the other new files of the commit are all there
is to go by, and on an empty database the file itself. Nobody vouches for the people they list, so only keys of the pinned trust root count then: those of the roles that a
file asks for, or as many of the role root as it takes to change the trust root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from controller.stages.gates import Allowed, Blocked, Evidence, GateVerdict, Rules, count_approvals, evaluate_own_policy
from controller.stages.load import SourceProblem
from kneo.errors import KneoError
from kneo.records.release import EnvironmentRecord
from kneo.spec.diff.weakening import weakenings
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Approvals, Environment
from kneo.trust.root import ROOT_ROLE, TrustRoot

REJECTED = "Rejected"


@dataclass(frozen=True)
class EnvironmentFiles:
    """The environment files that a commit is judged beside.

    Args:
        in_force: Those in force before the commit; a problem for one that this version cannot read.
        first: Those that the commit brings for environments that had none.
        root_threshold: How many people it takes to change the trust root.
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
    """Sort the environment files of a commit and of the registry.

    Args:
        records: Environments of the registry.
        declared: Environment files of the commit.
        revision: The commit.
        root_threshold: How many people it takes to change the trust root.
    """
    in_force = {name: file for name, record in records.items() if (file := _file_before(record, revision)) is not None}
    first = tuple(file for name, file in declared.items() if name not in in_force)
    return EnvironmentFiles(tuple(in_force.values()), first, root_threshold)


def _file_before(record: EnvironmentRecord, revision: str) -> Environment | SourceProblem | None:
    """Read the file in force before a commit; None where this very commit brought the first one."""
    text = record.previous if record.policy_revision == revision else record.declaration
    if text is None:
        return None
    try:
        return parse_environment(text, file=f"environments/{record.name}.yaml", accepted=True)
    except KneoError as error:
        message = f"The rules in force in {record.name} cannot be read, so it is unknown which approvals they ask for."
        return SourceProblem("PolicyUnreadable", f"{message} {error}")


def evaluate_policy_gate(
    after: Environment, before: Environment | None, files: EnvironmentFiles, evidence: Evidence
) -> GateVerdict:
    """Decide whether an environment file may come into force.

    Args:
        after: The file that a commit brings.
        before: The file in force in its environment; None for the first one.
        files: The environment files around it.
        evidence: What the gates may look at.
    """
    own = evaluate_own_policy(after, before, weakenings(before, after) if before else (), evidence)
    what = _guarded_by_all(after, before, serves=bool(evidence.served.get(after.name)))
    if isinstance(own, Blocked) or what is None:
        return own
    approvals = [*own.approvals]
    for verdict in _verdicts(after, what, files, evidence):
        if isinstance(verdict, Blocked):
            return verdict
        approvals += verdict.approvals
    return Allowed(tuple(dict.fromkeys(approvals)))


def _guarded_by_all(after: Environment, before: Environment | None, *, serves: bool) -> str | None:
    """Name the change that every environment with approvals has a say in; None where there is none."""
    if before is None:
        return f"the first file of the environment {after.name}"
    if after.spec.inline_specs and not before.spec.inline_specs:
        return f"runs in {after.name} that bring their own specs"
    if before.spec.retired and not after.spec.retired:
        return f"runs in {after.name}, which is retired"
    if after.spec.retired and not before.spec.retired and not serves:
        return f"the retirement of {after.name}"
    return None


def _verdicts(after: Environment, what: str, files: EnvironmentFiles, evidence: Evidence) -> Iterator[GateVerdict]:
    for file in files.in_force:
        if isinstance(file, SourceProblem):
            yield Blocked("policy", file.reason, file.message)
    asking = [file for file in files.in_force if isinstance(file, Environment) and _required(file)]
    for file in asking:
        rules = Rules(file, frozenset({after.policy_digest}))
        yield _told(count_approvals(after.policy_digest, after.file, _rule(file), rules, evidence, what), file.name)
    if asking:
        return
    for first in files.first:
        if files.in_force and isinstance(first, Environment) and first.name == after.name:
            continue  # it adds approvals where none are required
        yield _agreed_by_keys(after, first, what, files, evidence)


def _agreed_by_keys(
    after: Environment, first: Environment | SourceProblem, what: str, files: EnvironmentFiles, evidence: Evidence
) -> GateVerdict:
    """Count signatures of the trust root alone: nobody vouches for what an environment file says before one is in force."""
    if isinstance(first, Environment) and not _required(first):
        return Allowed()
    # A file that cannot be read may ask for approvals.
    rule = (_rule(first) if isinstance(first, Environment) else Approvals()).model_copy(update={"signed": True})
    nobody = replace(after, spec=after.spec.model_copy(update={"people": {}}))
    rules = Rules(nobody, frozenset({after.policy_digest}))
    verdict = count_approvals(after.policy_digest, after.file, rule, rules, evidence, what)
    if isinstance(verdict, Blocked) and verdict.reason != REJECTED:
        root = rule.model_copy(update={"required": files.root_threshold, "roles": (ROOT_ROLE,)})
        by_root = count_approvals(after.policy_digest, after.file, root, rules, evidence, what)
        if isinstance(by_root, Allowed) or by_root.reason == REJECTED:
            verdict = by_root
        else:
            verdict = replace(verdict, who=tuple(sorted({*verdict.who, *by_root.who})))
    return _told(verdict, first.name if isinstance(first, Environment) else "another file of this commit", signed=True)


def _told(verdict: GateVerdict, asking: str, *, signed: bool = False) -> GateVerdict:
    if isinstance(verdict, Allowed):
        return verdict
    keys = ", by keys of the trust root because no rules are in force yet" if signed else ""
    return replace(verdict, gate="policy", message=f"{verdict.message} The rules of {asking} require them{keys}.")


def _required(file: Environment) -> bool:
    return file.spec.approvals is not None and file.spec.approvals.required > 0


def _rule(file: Environment) -> Approvals:
    return file.spec.approvals or Approvals()


def root_threshold(root: TrustRoot) -> int:
    """Say how many people it takes to change a trust root."""
    return root.document.roles[ROOT_ROLE].threshold
