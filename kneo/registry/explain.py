"""Status of environments, why a change is pending, where a run or a digest comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kneo.errors import KneoError, NotFound
from kneo.records.audit import SealedEvent
from kneo.records.grant import Grant
from kneo.records.release import (
    ApprovalRecord,
    BundleRecord,
    Condition,
    ConditionType,
    EnvironmentRecord,
    Hold,
    Pending,
    Promotion,
    Release,
    Suspension,
    also_closed,
)
from kneo.records.run import Run
from kneo.records.task import HumanTask, ReceiptRecord
from kneo.registry.controls import holds_in_force, suspension_in_force
from kneo.registry.decisions import check_declared, environment_not_found
from kneo.registry.record import environment_subject
from kneo.registry.resolve import declared, find_declared, spec_in
from kneo.registry.served import DoubtedRelease, ReadReleases, read_releases
from kneo.store import audit, grants, receipts, releases, runs, tasks
from kneo.store.engine import Tx
from kneo.store.task_filter import TaskFilter

COMMANDS: Mapping[str, str] = {
    "approvals": "kneo approve {environment}/{bundle} --key FILE",
    "policy": "kneo approve {environment} --policy --key FILE",
    "prune": "kneo approve {environment} --prune --key FILE",
    "hold": "kneo unhold {environment}/{bundle}",
    "suspend": "kneo unsuspend {environment}",
    "promoteFrom": "kneo promote {bundle} --from {environment} --to {origin}",
    "environment": "kneo plan --env {environment}",
    "verify": "kneo spec bundle verify bundles/{bundle}/{version}.dsse.json",
    "trust": "kneo trust sign --expires 365d --key FILE",
    "dependsOn": "kneo plan --env {environment}",
    "atomic": "kneo plan --env {environment}",
    "canary": "kneo canary status {environment}/{bundle}",
}
"""The command that unblocks a gate or shows more about it. Windows and soak times need none."""


@dataclass(frozen=True)
class ClosedGate:
    """A gate that blocks a bundle, and the command that unblocks it or shows more about it."""

    gate: str
    reason: str
    message: str
    since: str | None
    who: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True)
class Explanation:
    """The blocked gates of a bundle in an environment; none when the release is up to date."""

    environment: str
    bundle: str
    serving: Release | None
    pending: Pending | None
    hold: Hold | None
    suspension: Suspension | None
    conditions: tuple[Condition, ...]
    """Unhealthy conditions of the whole environment."""

    origin: str | None = None
    """The environment that this one promotes from."""

    unpinned: tuple[str, ...] = ()
    """The tools of MCP servers without a pin that the environment serves to other programs."""

    grants: tuple[Grant, ...] = ()
    """The active standing grants for its tools."""

    returns: bool = False
    """Whether the pending version was released here before, so that a rollback can release it again."""

    @property
    def gates(self) -> tuple[ClosedGate, ...]:
        """Every blocked gate, those of the whole environment first."""
        closed: list[ClosedGate] = []
        stalled = next((item for item in self.conditions if item.type is ConditionType.STALLED), None)
        if stalled is not None and (self.pending is None or self.pending.gate != "verify"):
            closed.append(self._gate("environment", stalled.reason, stalled.message, stalled.since))
        if self.suspension is not None:
            by = (self.suspension.actor,)
            closed.append(self._gate("suspend", "Suspended", _until(self.suspension), self.suspension.since, by))
        if self.hold is not None:
            closed.append(self._gate("hold", "Held", _until(self.hold), self.hold.since, (self.hold.actor,)))
        if self.pending is not None:
            item, known = self.pending, {item.gate for item in closed}
            message = item.message.removesuffix(also_closed(item.also))
            first = self._gate(item.gate, item.reason, message, item.since, item.who)
            further = (self._gate(one.gate, one.reason, one.message, None, one.who) for one in item.also)
            closed += [one for one in (first, *further) if one.gate not in known]
        return tuple(closed)

    @property
    def command(self) -> str | None:
        """The command of the first gate that has one."""
        return next((item.command for item in self.gates if item.command is not None), None)

    @property
    def way_back(self) -> str | None:
        """The command that releases the pending version at once, where it was released here before."""
        if self.pending is None or not self.returns:
            return None
        return f"kneo rollback {self.environment}/{self.bundle} --to {self.pending.version} --reason TEXT"

    def _gate(self, gate: str, reason: str, message: str, since: str | None, who: tuple[str, ...] = ()) -> ClosedGate:
        pattern = COMMANDS.get(gate)
        known = {
            "environment": self.environment,
            "bundle": self.bundle,
            "version": self.pending.version if self.pending is not None else "",
            "origin": self.origin or "OTHER",
        }
        return ClosedGate(gate, reason, message, since, who, pattern.format(**known) if pattern else None)


def _until(item: Hold | Suspension) -> str:
    verb = "Held" if isinstance(item, Hold) else "Suspended"
    until = f" until {item.until}" if item.until else ""
    return f"{verb} by {item.actor}{until}: {item.reason}"


def why(tx: Tx, environment: str, bundle: str) -> Explanation:
    """Explain which gates block a bundle, since when, and who can unblock it.

    Raises:
        NotFound: the environment is not declared, or the bundle neither released nor pending there.
    """
    check_declared(tx, environment)
    read = read_releases(tx, environment)
    serving = next((item for item in read.served if item.bundle == bundle), None)
    changes = sorted(releases.pending(tx, environment), key=lambda item: item.bundle != bundle)
    pending = next((item for item in changes if item.bundle == bundle or item.kind == "policy"), None)
    hold = holds_in_force(tx, environment).get(bundle)
    is_doubted = any(item.release.bundle == bundle for item in read.doubted)
    if serving is None and pending is None and not is_doubted:
        msg = f"{bundle[:200]} is neither released to {environment} nor pending there."
        raise NotFound(msg, code="bundle_not_found", hint=f"Declare it in environments/{environment}.yaml.")
    bad = tuple(item for item in _conditions(tx, environment, read.doubted) if _is_bad(item))
    suspension = suspension_in_force(tx, environment)
    digest = pending.digest if pending is not None else None
    return Explanation(
        environment,
        bundle,
        serving,
        pending,
        hold,
        suspension,
        bad,
        origin=_origin(tx, environment),
        unpinned=_unpinned(tx, serving) if serving is not None else (),
        grants=grants.list_grants(tx, environment=environment, bundle=bundle, status="active", unexpired=True),
        returns=digest is not None and bool(releases.served_before(tx, environment, [digest])),
    )


def _unpinned(tx: Tx, release: Release) -> tuple[str, ...]:
    record, rules = releases.bundle(tx, release.digest), find_declared(tx, release.environment)
    if record is None or rules is None or not rules.spec.protocols.calls:
        return ()
    # It needs all that specs are made of, and most of these commands look at no spec.
    from kneo.spec.coverage.calls import served_calls
    from kneo.spec.index import SpecIndex
    from kneo.spec.models.spec import Spec

    index = SpecIndex.of(Spec.model_validate(spec_in(record)))
    return tuple(each.tool for each in served_calls(index, release.bundle, rules.spec) if each.is_unpinned)


def _conditions(tx: Tx, environment: str, doubted: Sequence[DoubtedRelease]) -> tuple[Condition, ...]:
    """Return the conditions of an environment; rows of releases that do not count are among them at once."""
    reported = releases.list_conditions(tx, environment_subject(environment))
    if not doubted:
        return reported
    reason, message = doubted[0].error.code, doubted[0].error.message
    revision = next((item.revision for item in reported), "unknown")
    found = {
        kind: Condition(type=kind, status=status, reason=reason, message=message, revision=revision, since=tx.at)
        for kind, status in (
            (ConditionType.DRIFT_DETECTED, True),
            (ConditionType.READY, False),
            (ConditionType.STALLED, True),
        )
    }
    kept = [item for item in reported if item.type not in {*found, ConditionType.RECONCILING}]
    return (*kept, *found.values())


def _origin(tx: Tx, environment: str) -> str | None:
    try:
        return declared(tx, environment).spec.promote_from
    except KneoError:
        return None


def _is_bad(item: Condition) -> bool:
    return item.status is (item.type.value in {"Stalled", "Reconciling", "Held", "DriftDetected"})


@dataclass(frozen=True)
class Trace:
    """The trace of a run or digest: release, promotion, approvals, commit and signers."""

    digest: str
    run: Run | None
    bundle: BundleRecord | None
    promotions: tuple[Promotion, ...]
    """Newest first; for a run the promotion of its release."""

    approvals: Mapping[str, tuple[ApprovalRecord, ...]]
    """By promotion."""

    events: Mapping[str, SealedEvent]
    """The audit event of each promotion."""

    receipts: tuple[ReceiptRecord, ...]
    """Receipts of the run, in order."""

    granted: Mapping[str, int]
    """The uses that the standing grant allows which decided a task, by the task."""


def trace(tx: Tx, reference: str) -> Trace:
    """Trace a run id or a digest back to its commit.

    Raises:
        NotFound: there is no such run, and no release ever had that digest.
    """
    run = runs.get(tx, reference) if not reference.startswith("sha256:") else None
    if run is not None and run.release is not None:
        promotion = releases.promotion(tx, run.release.promotion_id)
        digest = run.release.digest
        # A run of a canary has none, until its version is promoted.
        promotions = (promotion,) if promotion else releases.list_promotions(tx, to_digest=digest)
    else:
        digest = run.spec_digest if run is not None else reference
        promotions = releases.list_promotions(tx, to_digest=digest)
    if run is None and not promotions:
        msg = f"No run or release has the id or digest {reference[:100]}."
        raise NotFound(msg, code="not_found", hint="Pass a run id or the sha256: digest of a bundle.")
    found = receipts.of_run(tx, run.id) if run is not None else ()
    return Trace(
        digest=digest,
        run=run,
        bundle=releases.bundle(tx, digest),
        promotions=promotions,
        approvals={item.id: releases.approvals_by_id(tx, item.approvals) for item in promotions},
        events={item.id: event for item in promotions if (event := audit.event(tx, item.audit_event_id)) is not None},
        receipts=found,
        granted=grants.uses_allowed(tx, [receipt.task_id for receipt in found]),
    )


@dataclass(frozen=True)
class EnvironmentStatus:
    """The status of one environment."""

    record: EnvironmentRecord | None
    name: str
    conditions: tuple[Condition, ...]
    releases: tuple[Release, ...]
    pending: tuple[Pending, ...] = ()
    holds: tuple[Hold, ...] = ()
    suspension: Suspension | None = None
    grants: int = 0
    """Active standing grants."""


def status(tx: Tx, name: str) -> EnvironmentStatus | None:
    """Return the status of an environment; None when Git never declared it."""
    return _status(tx, name, read_releases(tx, name))


def _status(tx: Tx, name: str, read: ReadReleases) -> EnvironmentStatus | None:
    """Return the status of an environment, whose releases are among these."""
    record = releases.environment(tx, name)
    served = tuple(item for item in read.served if item.environment == name)
    conditions = _conditions(tx, name, [item for item in read.doubted if item.release.environment == name])
    if record is None and not conditions:
        return None
    return EnvironmentStatus(
        record,
        name,
        conditions,
        served,
        releases.pending(tx, name),
        tuple(holds_in_force(tx, name).values()),
        suspension_in_force(tx, name),
        grants.count_active(tx, name),
    )


def find_status(tx: Tx, name: str) -> EnvironmentStatus:
    """Return the status of a declared environment.

    Raises:
        NotFound: Git never declared it.
    """
    current = status(tx, name)
    if current is None:
        raise environment_not_found(name)
    return current


def statuses(tx: Tx) -> tuple[EnvironmentStatus, ...]:
    """Return the status of every environment, by name."""
    read = read_releases(tx)
    current = (_status(tx, name, read) for name in releases.environment_names(tx))
    return tuple(item for item in current if item is not None)


SHOWN = 5
"""Number of open tasks that are listed; the others are counted."""


@dataclass(frozen=True)
class OpenTasks:
    """The number of open tasks in an environment, and the oldest of them."""

    count: int
    first: Sequence[HumanTask]

    def __str__(self) -> str:
        if not self.count:
            return "No open tasks."
        named = ", ".join(f"{task.id} ({task.workflow_name}: {task.key})" for task in self.first)
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        head = f"{self.count} questions are open there" if self.count > 1 else "1 question is open there"
        return (
            f"{head}: {named}{more}. Answers are still taken, and each run keeps the bundle that it was started with."
        )

    def as_json(self) -> dict[str, object]:
        named = [
            {
                "continuation_id": task.id,
                "run_id": task.run_id,
                "workflow_name": task.workflow_name,
                "key": task.key,
                "bundle_digest": task.bundle_digest,
            }
            for task in self.first
        ]
        return {"count": self.count, "first": named}


def open_tasks(tx: Tx, environment: str) -> OpenTasks:
    """Return the open tasks of an environment, oldest first."""
    where = TaskFilter(environment=environment)
    return OpenTasks(tasks.count_tasks(tx, where), tasks.list_tasks(tx, where, limit=SHOWN))
