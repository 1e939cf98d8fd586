"""What an environment asks of every spec: Git's policy, the service's and the project's, the strictest of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kneo.names import check_environment_name
from kneo.registry.resolve import declared
from kneo.spec.policy_flags import PolicyFlags, strictest
from kneo.store import audit, policies, releases
from kneo.store.engine import Tx

if TYPE_CHECKING:
    from kneo.spec.project import ProjectConfig


def policy_in_force(
    tx: Tx, environment: str | None, project: ProjectConfig | None = None, *, with_git: bool = True
) -> PolicyFlags:
    """Combine what everybody who has a say asks for.

    Args:
        tx: An open transaction.
        environment: Its name; None, no environment, asks for nothing.
        project: The config of the project that this process works in.
        with_git: Whether to look at the environment's file too.
    """
    if environment is None:
        return strictest()
    asked = [policies.find(tx, environment), project.policy(environment) if project is not None else None]
    if with_git and releases.environment(tx, environment) is not None:
        asked.append(declared(tx, environment).spec.policy)
    return strictest(*(flags for flags in asked if flags is not None))


def change_policy(tx: Tx, environment: str, flags: PolicyFlags, *, actor: str | None) -> PolicyFlags | None:
    """Set what an environment asks for beside what Git says; return what was set before.

    Raises:
        InvalidValue: ``invalid_name``.
    """
    before = policies.put(tx, check_environment_name(environment), flags)
    now = flags.model_dump(mode="json")
    then = before.model_dump(mode="json") if before is not None else None
    audit.record(
        tx,
        "policy.changed",
        actor=actor,
        environment=environment,
        metadata={
            "surface": policies.KEY,
            "environment": environment,
            "previous": then,
            "current": now,
            "changed_fields": sorted(name for name in now if then is None or then[name] != now[name]),
        },
    )
    return before
