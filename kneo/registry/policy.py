"""The policy in force for an environment: the strictest of Git's, the service's and the project's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kneo.names import check_environment_name
from kneo.registry.resolve import declared
from kneo.spec.policy_flags import PolicyFlags, strictest
from kneo.store import audit, project_metadata, releases
from kneo.store.engine import Tx

if TYPE_CHECKING:
    from kneo.spec.project import ProjectConfig


def policy_in_force(
    tx: Tx, environment: str | None, project: ProjectConfig | None = None, *, with_git: bool = True
) -> PolicyFlags:
    """Return the policy in force: the strictest of all sources.

    Args:
        tx: An open transaction.
        environment: Its name; None has no policy.
        project: The config of the project that this process works in.
        with_git: Whether to look at the environment's file too.
    """
    if environment is None:
        return strictest()
    flags = [
        project_metadata.find_policy(tx, environment),
        project.policy(environment) if project is not None else None,
    ]
    if with_git and releases.environment(tx, environment) is not None:
        flags.append(declared(tx, environment).spec.policy)
    return strictest(*(item for item in flags if item is not None))


def change_policy(tx: Tx, environment: str, flags: PolicyFlags, *, actor: str | None) -> PolicyFlags | None:
    """Set the service's policy for an environment, which adds to Git's; return the previous one.

    Raises:
        InvalidValue: ``invalid_name``.
    """
    before = project_metadata.put_policy(tx, check_environment_name(environment), flags)
    now = flags.model_dump(mode="json")
    then = before.model_dump(mode="json") if before is not None else None
    audit.record(
        tx,
        "policy.changed",
        actor=actor,
        environment=environment,
        metadata={
            "surface": project_metadata.POLICIES,
            "environment": environment,
            "previous": then,
            "current": now,
            "changed_fields": sorted(name for name in now if then is None or then[name] != now[name]),
        },
    )
    return before
