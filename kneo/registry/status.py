"""What is known of environments, for whoever asks."""

from __future__ import annotations

from dataclasses import dataclass

from kneo.errors import NotFound
from kneo.records.release import Condition, EnvironmentRecord, Hold, Pending, Release, Suspension
from kneo.registry.record import environment_subject
from kneo.store import approvals, releases
from kneo.store.engine import Tx


@dataclass(frozen=True)
class EnvironmentStatus:
    """Everything that is known of one environment."""

    record: EnvironmentRecord | None
    name: str
    conditions: tuple[Condition, ...]
    releases: tuple[Release, ...]
    pending: tuple[Pending, ...] = ()
    holds: tuple[Hold, ...] = ()
    suspension: Suspension | None = None


def status(tx: Tx, name: str) -> EnvironmentStatus | None:
    """Read everything known of an environment; ``None`` when Git never declared it."""
    record = releases.environment(tx, name)
    conditions = releases.list_conditions(tx, environment_subject(name))
    if record is None and not conditions:
        return None
    return EnvironmentStatus(
        record,
        name,
        conditions,
        releases.list_releases(tx, name),
        releases.pending(tx, name),
        approvals.list_holds(tx, name),
        approvals.suspension(tx, name),
    )


def find_status(tx: Tx, name: str) -> EnvironmentStatus:
    """Read everything known of an environment.

    Raises:
        NotFound: Git never declared it.
    """
    found = status(tx, name)
    if found is None:
        msg = f"There is no environment {name[:80]!r}."
        raise NotFound(msg, code="environment_not_found", hint="kneo status lists them.")
    return found


def statuses(tx: Tx) -> tuple[EnvironmentStatus, ...]:
    """Read every environment's status, by name."""
    found = (status(tx, name) for name in releases.environment_names(tx))
    return tuple(item for item in found if item is not None)
