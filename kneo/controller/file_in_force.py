"""The file of an environment in force, as the registry keeps it."""

from __future__ import annotations

from kneo.controller.registry_cache import Served
from kneo.controller.stages.load import SourceProblem
from kneo.errors import KneoError
from kneo.records.release import EnvironmentRecord
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment


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
