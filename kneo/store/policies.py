"""What people ask of specs through the service, by environment."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.spec.policy_flags import PolicyFlags
from kneo.store import project_metadata
from kneo.store.engine import Tx

KEY = "environment_policy_enforcement"


def listed(tx: Tx) -> Mapping[str, PolicyFlags]:
    """Return every policy that was set, by environment."""
    return {name: PolicyFlags.model_validate(flags) for name, flags in project_metadata.read(tx, KEY).items()}


def find(tx: Tx, environment: str) -> PolicyFlags | None:
    """Return an environment's policy; None where nobody set one."""
    flags = project_metadata.read(tx, KEY).get(environment)
    return PolicyFlags.model_validate(flags) if flags is not None else None


def put(tx: Tx, environment: str, flags: PolicyFlags) -> PolicyFlags | None:
    """Set a policy; return the one it replaces."""
    project_metadata.lock(tx, KEY)
    known = dict(project_metadata.read(tx, KEY))
    before = known.get(environment)
    known[environment] = flags.model_dump(mode="json")
    project_metadata.write(tx, KEY, known)
    return PolicyFlags.model_validate(before) if before is not None else None
