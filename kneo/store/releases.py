"""The registry's rows: trust roots, bundles, environments, pending changes and their plans, releases, promotions, conditions, approvals, holds and suspensions."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, bindparam, delete, exists, func, insert, or_, select, update

from kneo.digest import digest_of
from kneo.errors import Untrusted
from kneo.records.audit import SealedEvent
from kneo.records.release import (
    ApprovalRecord,
    BundleRecord,
    Condition,
    ConditionType,
    EnvironmentRecord,
    Hold,
    OutdatedApproval,
    Pending,
    PendingGate,
    PendingPlan,
    Promotion,
    PromotionKind,
    Release,
    Suspension,
)
from kneo.records.run import RunStatus
from kneo.store import audit
from kneo.store.authenticated import MAC, check, is_authentic, with_mac
from kneo.store.engine import Tx, insert_ignoring_duplicates, insert_many_ignoring_duplicates, upsert, upsert_many
from kneo.store.prepared import Prepared, Row
from kneo.store.project_metadata import POLICIES
from kneo.store.tables import (
    approvals,
    audit_chain,
    audit_events,
    bundles,
    canaries,
    conditions,
    environment_files,
    environments,
    holds,
    pending_plans,
    pending_releases,
    project_metadata,
    promotions,
    qualified_bundles,
    releases,
    runs,
    sources,
    suspensions,
    trust_roots,
)

_KEYS_PER_STATEMENT = 500

_newer = promotions.alias("newer")


# ---- trust roots ------------------------------------------------------------------------------------------------


def insert_trust_root(tx: Tx, version: int, digest: str, envelope: bytes, revision: str | None = None) -> None:
    row = {"version": version, "digest": digest, "envelope": envelope, "accepted_at": tx.at, "revision": revision}
    insert_ignoring_duplicates(tx, trust_roots, **with_mac(tx, trust_roots, row))


def trust_revisions(tx: Tx) -> tuple[str | None, ...]:
    """Read which commit brought each accepted trust root, oldest first."""
    rows = tx.connection.execute(select(trust_roots.c.revision).order_by(trust_roots.c.version))
    return tuple(row.revision for row in rows)


_TRUST_ROOTS = Prepared(select(trust_roots).order_by(trust_roots.c.version))


def _trust_rows(tx: Tx) -> Sequence[Row]:
    return tx.once(trust_roots, lambda: tuple(_TRUST_ROOTS.rows(tx, {})))


def trust_chain(tx: Tx) -> tuple[tuple[int, str, bytes], ...]:
    """Read the accepted trust roots, oldest first: version, digest of the payload, envelope."""
    return tuple((row.version, row.digest, bytes(row.envelope)) for row in _trust_rows(tx))


def check_trust_chain(tx: Tx) -> None:
    """Check that a process with the service key stored the accepted trust roots, for processes that pin none themselves.

    Raises:
        Untrusted, Invalid: see ``kneo.store.authenticated``.
    """
    for row in _trust_rows(tx):
        check(tx, trust_roots, row)


# ---- bundles ----------------------------------------------------------------------------------------------------


def insert_bundles(tx: Tx, items: Sequence[BundleRecord]) -> None:
    """Store accepted bundles, unless they are stored.

    Raises:
        Untrusted: ``Equivocation``: another content was accepted under the same name and sequence number.
    """
    accepted = {"first_seen_at": tx.at, "envelope_seen_at": None}
    rows = [
        with_mac(
            tx,
            bundles,
            vars(item) | accepted | {"signers": list(item.signers), "envelope_digest": digest_of(item.envelope)},
        )
        for item in items
    ]
    insert_many_ignoring_duplicates(tx, bundles, rows)
    by_digest = {str(row["digest"]): row for row in rows}
    for start in range(0, len(items), _KEYS_PER_STATEMENT):
        some = items[start : start + _KEYS_PER_STATEMENT]
        stored = select(*_LISTED).where(bundles.c.digest.in_([item.digest for item in some]))
        found = {row.digest: is_authentic(tx, bundles, row) for row in tx.connection.execute(stored)}
        for item in some:
            if not found.get(item.digest, True):
                # Something else has stored or changed it.
                replaced = update(bundles).where(bundles.c.digest == item.digest)
                tx.connection.execute(replaced.values(**by_digest[item.digest]))
            if item.digest not in found:
                msg = f"{item.name} {item.version} has the sequence number {item.seq} of another accepted bundle."
                raise Untrusted(msg, code="Equivocation", hint="Find out who signed both, then sign a new version.")


def put_envelope(tx: Tx, digest: str, envelope: bytes, signers: Iterable[str]) -> None:
    """Replace the signatures of an accepted bundle by others that were verified.

    Raises:
        Untrusted, Invalid: as ``check_bundle``.
    """
    record = bundle(tx, digest)
    assert record is not None, "it was accepted"
    check_bundle(tx, record)
    changes = {
        "envelope": envelope,
        "envelope_digest": digest_of(envelope),
        "envelope_seen_at": tx.at,
        "signers": list(signers),
    }
    row = with_mac(tx, bundles, vars(record) | changes)
    tx.connection.execute(update(bundles).where(bundles.c.digest == digest).values(**changes, mac=row[MAC]))


_BUNDLE = Prepared(select(bundles).where(bundles.c.digest == bindparam("of_digest")))


def bundle(tx: Tx, digest: str) -> BundleRecord | None:
    """Read a bundle; ``check_bundle`` checks what its payload and signatures do not prove."""

    def read() -> BundleRecord | None:
        row = _BUNDLE.first(tx, {"of_digest": digest})
        return _bundle(row) if row else None

    return tx.once((BundleRecord, digest), read)


def check_bundle(tx: Tx, record: BundleRecord) -> BundleRecord:
    """Return a bundle as it was read, after a check that a process with the service key stored when and how it was accepted.

    Raises:
        Untrusted, Invalid: see ``kneo.store.authenticated``.
    """
    return check(tx, bundles, record)


def released_payloads(tx: Tx, limit: int) -> tuple[bytes, ...]:
    """Return the payloads of bundles that environments serve, those released last first."""
    served = select(bundles.c.payload).join(releases, releases.c.digest == bundles.c.digest)
    latest = served.where(releases.c.retired_at.is_(None)).order_by(releases.c.since.desc()).limit(limit)
    return tuple(tx.connection.execute(latest).scalars())


def released_bundles(tx: Tx, limit: int) -> tuple[tuple[Release, bytes], ...]:
    """Return the releases of all environments with the payloads of their bundles, those released last first."""
    served = select(releases, bundles.c.payload).join(bundles, releases.c.digest == bundles.c.digest)
    latest = served.where(releases.c.retired_at.is_(None)).order_by(releases.c.since.desc()).limit(limit)
    return tuple(
        (Release(**_without(row, "retired_at", "payload")), row.payload) for row in tx.connection.execute(latest)
    )


_LISTED = [column for column in bundles.c if column.name not in {"payload", "envelope"}]


def known_bundles(
    tx: Tx, digests: Collection[str] | None = None, *, name: str | None = None
) -> tuple[BundleRecord, ...]:
    """List accepted bundles, all or those with these digests or this name, without payload and envelope.

    A row that a process with the service key did not write is not among them.
    """
    named = [] if name is None else [bundles.c.name == name]
    records: list[BundleRecord] = []
    for some in _batches(digests):
        conditions = named if some is None else [*named, bundles.c.digest.in_(some)]
        rows = tx.connection.execute(select(*_LISTED).where(*conditions).order_by(bundles.c.name, bundles.c.seq))
        records += (
            BundleRecord(payload=b"", envelope=b"", **row._asdict() | {"signers": tuple(row.signers)})
            for row in rows
            if is_authentic(tx, bundles, row)
        )
    return tuple(records)


def _batches(keys: Collection[str] | None) -> Iterator[list[str] | None]:
    """Split keys into batches for one statement each; ``None`` stands for all rows."""
    if keys is None:
        yield None
        return
    ordered = sorted(keys)
    yield from (ordered[start : start + _KEYS_PER_STATEMENT] for start in range(0, len(ordered), _KEYS_PER_STATEMENT))


# ---- environments -----------------------------------------------------------------------------------------------


def put_environments(tx: Tx, items: Iterable[EnvironmentRecord]) -> None:
    """Write environments as accepted now."""
    rows = (_without_pending(item) | {"updated_at": tx.at} for item in items)
    upsert_many(tx, environments, ("name",), [with_mac(tx, environments, row) for row in rows])


def _without_pending(item: EnvironmentRecord) -> dict[str, object]:
    return {name: value for name, value in vars(item).items() if name != "pending"}


_ENVIRONMENTS = Prepared(select(environments).order_by(environments.c.name))
_ENVIRONMENT = Prepared(select(environments).where(environments.c.name == bindparam("called")))


def list_environments(tx: Tx) -> tuple[EnvironmentRecord, ...]:
    """List the environments; see ``environment`` for a file in force that something other than Kneo has changed."""

    def read() -> tuple[EnvironmentRecord, ...]:
        waiting: dict[str, list[Pending]] = {}
        for name, item in list_pending(tx):
            waiting.setdefault(name, []).append(item)
        rows = (row for row in _ENVIRONMENTS.rows(tx, {}) if tx.sees(row.name))
        return tuple(_authenticated(tx, row, tuple(waiting.get(row.name, ()))) for row in rows)

    return tx.once(environments, read)


def environment_names(tx: Tx) -> tuple[str, ...]:
    """List the environments that were declared or have conditions."""
    declared = {row.name for row in tx.connection.execute(select(environments.c.name))}
    prefix = "environment/"
    subjects = tx.connection.execute(
        select(conditions.c.object).where(conditions.c.object.startswith(prefix)).distinct()
    )
    names = declared | {row.object.removeprefix(prefix) for row in subjects}
    return tuple(sorted(name for name in names if tx.sees(name)))


def environment(tx: Tx, name: str) -> EnvironmentRecord | None:
    """Read an environment. A file in force that something other than Kneo has changed is empty, so that its rules are unreadable."""
    row = _environment_row(tx, name)
    return tx.once(
        (EnvironmentRecord, name), lambda: _authenticated(tx, row, pending(tx, name)) if row is not None else None
    )


def _environment_row(tx: Tx, name: str) -> Row | None:
    if not tx.sees(name):
        return None
    return tx.once((environments, name), lambda: _ENVIRONMENT.first(tx, {"called": name}))


_STAMPS = Prepared(
    select(*(environments.c[name] for name in ("name", "policy_digest", "updated_at", MAC))).order_by(
        environments.c.name
    )
)


def environment_stamps(tx: Tx) -> tuple[Row, ...]:
    """Return the name of each environment, with values that change whenever its file in force does."""
    return tuple(_STAMPS.rows(tx, {}))


def _authenticated(tx: Tx, row: Row, waiting: tuple[Pending, ...]) -> EnvironmentRecord:
    record = EnvironmentRecord(pending=waiting, **_without(row, MAC))
    return record if is_authentic(tx, environments, row) else replace(record, declaration=b"")


def keep_replaced_file(tx: Tx, item: EnvironmentRecord) -> None:
    """Keep a file that another one replaces, for the decisions that name it."""
    insert_ignoring_duplicates(
        tx,
        environment_files,
        environment=item.name,
        policy_digest=item.policy_digest,
        declaration=item.declaration,
        replaced_at=tx.at,
    )


def list_replaced_files(tx: Tx, name: str, policy_digests: Collection[str]) -> Mapping[str, bytes]:
    """Return files that were in force in an environment before the present one, by policy digest."""
    files: dict[str, bytes] = {}
    for some in _batches(policy_digests):
        where = environment_files.c.environment == name, environment_files.c.policy_digest.in_(some or ())
        rows = tx.connection.execute(select(environment_files).where(*where))
        files |= {row.policy_digest: row.declaration for row in rows}
    return files


def declaration(tx: Tx, name: str) -> bytes | None:
    """Return the file in force of an environment; ``None`` where none was ever declared.

    Raises:
        Untrusted, Invalid: a process with the service key did not store it; see ``kneo.store.authenticated``.
    """

    def read() -> bytes | None:
        row = _environment_row(tx, name)
        return bytes(check(tx, environments, row).declaration) if row else None

    return tx.once((environments.c.declaration, name), read)


def _pending_rows(tx: Tx, query: Select[Any]) -> Iterator[Row]:
    """Yield the authentic rows; the next reconciliation replaces the others."""
    rows = (row for row in tx.connection.execute(query) if tx.sees(row.environment))
    return (row for row in rows if is_authentic(tx, pending_releases, row))


def pending(tx: Tx, environment_name: str) -> tuple[Pending, ...]:
    query = (
        select(pending_releases)
        .where(pending_releases.c.environment == environment_name)
        .order_by(pending_releases.c.bundle)
    )
    return tx.once((Pending, environment_name), lambda: tuple(_pending(row) for row in _pending_rows(tx, query)))


def list_pending(tx: Tx) -> tuple[tuple[str, Pending], ...]:
    """List the pending changes of all environments, each with its environment."""
    query = select(pending_releases).order_by(pending_releases.c.environment, pending_releases.c.bundle)
    return tx.once(Pending, lambda: tuple((row.environment, _pending(row)) for row in _pending_rows(tx, query)))


def find_pending(tx: Tx, pending_id: str) -> tuple[str, Pending] | None:
    """Find a pending change and its environment."""
    row = next(_pending_rows(tx, select(pending_releases).where(pending_releases.c.id == pending_id)), None)
    return (row.environment, _pending(row)) if row else None


def put_pending(tx: Tx, environment_name: str, items: Iterable[Pending]) -> None:
    """Replace the pending changes of an environment."""
    tx.connection.execute(delete(pending_releases).where(pending_releases.c.environment == environment_name))
    rows = [
        with_mac(
            tx,
            pending_releases,
            {
                "environment": environment_name,
                **vars(item),
                "who": list(item.who),
                "also": [vars(one) for one in item.also],
                "outdated_approvals": [vars(one) for one in item.outdated_approvals],
            },
        )
        for item in items
    ]
    if rows:
        tx.connection.execute(insert(pending_releases), rows)


def put_plan(tx: Tx, plan: PendingPlan) -> None:
    row = with_mac(tx, pending_plans, vars(plan) | {"content": dict(plan.content), "at": tx.at})
    upsert(tx, pending_plans, {"id": row.pop("id")}, **row)


def pending_plan(tx: Tx, pending_id: str) -> PendingPlan | None:
    """Read the plan of a pending change; ``None`` also for one that is not authentic."""
    row = tx.connection.execute(select(pending_plans).where(pending_plans.c.id == pending_id)).first()
    if row is None or not is_authentic(tx, pending_plans, row):
        return None
    return PendingPlan(**_without(row, MAC))


def plan_bases(tx: Tx, environment_name: str) -> Mapping[str, str | None]:
    """Return what each kept plan of an environment replaces, by the id of its pending change."""
    rows = tx.connection.execute(
        select(pending_plans.c.id, pending_plans.c.base).where(pending_plans.c.environment == environment_name)
    )
    return {row.id: row.base for row in rows}


def delete_plans(tx: Tx, pending_ids: Collection[str]) -> None:
    """Delete the plans of changes that are not pending any more."""
    if pending_ids:
        tx.connection.execute(delete(pending_plans).where(pending_plans.c.id.in_(sorted(pending_ids))))


# ---- releases and promotions ------------------------------------------------------------------------------------


def release(tx: Tx, environment_name: str, bundle_name: str) -> Release | None:
    row = tx.connection.execute(
        select(releases).where(
            releases.c.environment == environment_name,
            releases.c.bundle == bundle_name,
            releases.c.retired_at.is_(None),
        )
    ).first()
    return _release(row) if row else None


def list_releases(
    tx: Tx, environment_name: str | None = None, names: Collection[str] | None = None
) -> tuple[Release, ...]:
    """List releases: of all environments or one, of all bundles or these."""
    here: list[ColumnElement[bool]] = [releases.c.retired_at.is_(None)]
    if environment_name is not None:
        here.append(releases.c.environment == environment_name)
    records: list[Release] = []
    for some in _batches(names):
        conditions = here if some is None else [*here, releases.c.bundle.in_(some)]
        rows = tx.connection.execute(
            select(releases).where(*conditions).order_by(releases.c.environment, releases.c.bundle)
        )
        records += (_release(row) for row in rows if tx.sees(row.environment))
    return tuple(records)


@dataclass(frozen=True, kw_only=True)
class StoredRelease:
    """A release with what proves it, as one statement reads it.

    Attributes:
        release: The release.
        bundle: Its bundle.
        promotion: The latest promotion of its bundle in its environment; ``None`` where that is not authentic.
        event: The audit event of the promotion.
        is_rebuilding: Whether the registry is being rebuilt from the commits, so that the release may be outdated.
        canary: The id and the MAC of the canary of its bundle that has not ended, authentic or not.
        policies: The row of the policies that were set through the service; see ``project_metadata.policies_in``.
    """

    release: Release
    bundle: BundleRecord | None
    promotion: Promotion | None
    event: SealedEvent | None
    is_rebuilding: bool
    canary: tuple[str, bytes | None] | None
    policies: Row | None


_PARTS = (releases, bundles, promotions, audit_events, project_metadata)
_SERVED = Prepared(
    select(
        *(column.label(f"{table.name}_{column.name}") for table in _PARTS for column in table.c),
        audit_chain.c.seq,
        audit_chain.c.leaf,
        exists(select(sources.c.name).where(sources.c.rebuilding_since.is_not(None))).label("is_rebuilding"),
        canaries.c.id.label("canary_id"),
        canaries.c.mac.label("canary_mac"),
    )
    .select_from(
        releases.outerjoin(bundles, bundles.c.digest == releases.c.digest)
        .outerjoin(
            promotions,
            promotions.c.id
            == select(func.max(_newer.c.id))
            .where(_newer.c.environment == releases.c.environment, _newer.c.bundle == releases.c.bundle)
            .scalar_subquery(),
        )
        .outerjoin(audit_events, audit_events.c.id == promotions.c.audit_event_id)
        .outerjoin(audit_chain, audit_chain.c.event_id == audit_events.c.id)
        .outerjoin(project_metadata, project_metadata.c.key == POLICIES)
        .outerjoin(
            canaries,
            (canaries.c.environment == releases.c.environment)
            & (canaries.c.bundle == releases.c.bundle)
            & canaries.c.ended_at.is_(None),
        )
    )
    .where(
        releases.c.environment == bindparam("in_environment"),
        releases.c.retired_at.is_(None),
        or_(
            releases.c.bundle == bindparam("reference"),
            releases.c.digest == bindparam("reference"),
            (releases.c.bundle == bindparam("name")) & (releases.c.version == bindparam("version")),
        ),
    )
    .order_by(releases.c.bundle)
    .limit(1)
)


def find_stored(tx: Tx, environment_name: str, reference: str) -> StoredRelease | None:
    """Read the release that a reference (``name``, ``name@version`` or a digest) names, with what proves it."""
    name, _, version = reference.partition("@")
    parameters = {"in_environment": environment_name, "reference": reference, "name": name, "version": version}
    row = _SERVED.first(tx, parameters)
    if row is None:
        return None
    release, record, promoted, recorded, policies = (_part(row, table) for table in _PARTS)
    is_promoted = promoted.id is not None and is_authentic(tx, promotions, promoted)
    return StoredRelease(
        release=_release(release),
        bundle=_bundle(record) if record.digest is not None else None,
        promotion=read_promotion(promoted) if is_promoted else None,
        event=audit.sealed(recorded, row.seq, row.leaf) if recorded.id is not None else None,
        is_rebuilding=bool(row.is_rebuilding),
        canary=(row.canary_id, row.canary_mac) if row.canary_id is not None else None,
        policies=policies if policies.key is not None else None,
    )


def _part(row: Row, table: Table) -> Row:
    """Return the columns of one table from a row of several."""
    part: Row = _shape(table)._make(getattr(row, f"{table.name}_{column.name}") for column in table.c)
    return part


@cache
def _shape(table: Table) -> Any:  # noqa: ANN401 - a named tuple of its columns
    return namedtuple("Row", [column.name for column in table.c])  # noqa: PYI024 - known only here


def put_releases(tx: Tx, items: Sequence[Release]) -> None:
    rows = [{**vars(item), "retired_at": None} for item in items]
    upsert_many(tx, releases, ("environment", "bundle"), rows)


def retire_release(tx: Tx, environment_name: str, bundle_name: str) -> None:
    """Retire a release; the row stays as a tombstone."""
    tx.connection.execute(
        update(releases)
        .where(releases.c.environment == environment_name, releases.c.bundle == bundle_name)
        .values(retired_at=tx.at)
    )


def insert_promotions(tx: Tx, items: Sequence[Promotion]) -> None:
    rows = [with_mac(tx, promotions, {**vars(item), "at": tx.at, "approvals": list(item.approvals)}) for item in items]
    if rows:
        tx.connection.execute(insert(promotions), rows)


def newest_promotion(tx: Tx) -> str | None:
    """Return the highest id of a promotion. Every change of the releases adds one."""
    return tx.connection.execute(select(func.max(promotions.c.id))).scalar()


def promotion(tx: Tx, promotion_id: str) -> Promotion | None:
    """Read a promotion; ``None`` also for one that is not authentic."""
    row = tx.connection.execute(select(promotions).where(promotions.c.id == promotion_id)).first()
    is_seen = row is not None and tx.sees(row.environment)
    return read_promotion(row) if row is not None and is_seen and is_authentic(tx, promotions, row) else None


_LATEST = Prepared(
    select(promotions)
    .where(promotions.c.environment == bindparam("in_environment"), promotions.c.bundle == bindparam("of_bundle"))
    .order_by(promotions.c.id.desc())
    .limit(bindparam("most"))
)


def latest_promotion(tx: Tx, environment_name: str, bundle_name: str) -> Promotion | None:
    """Read the latest authentic promotion of a bundle in an environment."""
    of_bundle = {"in_environment": environment_name, "of_bundle": bundle_name}
    for most in (1, _KEYS_PER_STATEMENT):
        for row in _LATEST.rows(tx, {**of_bundle, "most": most}):
            if is_authentic(tx, promotions, row):
                return read_promotion(row)
    return None


def latest_promotions(
    tx: Tx, environment_name: str | None = None, names: Collection[str] | None = None
) -> Mapping[tuple[str, str], Promotion]:
    """Read the latest authentic promotion of each bundle in each environment, of one environment and of some bundles alone."""
    where = [] if environment_name is None else [promotions.c.environment == environment_name]
    found: dict[tuple[str, str], Promotion] = {}
    for some in _batches(names):
        here = where if some is None else [*where, promotions.c.bundle.in_(some)]
        newest = select(func.max(promotions.c.id)).where(*here).group_by(promotions.c.environment, promotions.c.bundle)
        for row in tx.connection.execute(select(promotions).where(promotions.c.id.in_(newest))):
            item = read_promotion(row) if is_authentic(tx, promotions, row) else None
            item = item or latest_promotion(tx, row.environment, row.bundle)
            if item is not None:
                found[item.environment, item.bundle] = item
    return found


def count_promotions(tx: Tx, environment_name: str) -> int:
    statement = select(func.count()).select_from(promotions).where(promotions.c.environment == environment_name)
    return tx.connection.execute(statement).scalar_one()


def list_promotions(
    tx: Tx,
    environment_name: str | None = None,
    bundle_name: str | None = None,
    limit: int = 1_000,
    *,
    to_digest: str | None = None,
) -> tuple[Promotion, ...]:
    """List authentic promotions, newest first: of all environments, bundles and digests, or of one."""
    wanted = (
        (promotions.c.environment, environment_name),
        (promotions.c.bundle, bundle_name),
        (promotions.c.to_digest, to_digest),
    )
    conditions = [column == value for column, value in wanted if value is not None]
    if tx.reach is not None:
        conditions.append(promotions.c.environment.in_(sorted(tx.reach)))
    rows = tx.connection.execute(select(promotions).where(*conditions).order_by(promotions.c.id.desc()).limit(limit))
    return tuple(read_promotion(row) for row in rows if is_authentic(tx, promotions, row))


def served_before(tx: Tx, environment_name: str, digests: Collection[str]) -> frozenset[str]:
    """Return the digests among these that an environment has served at any time."""
    served: set[str] = set()
    for some in _batches(digests):
        rows = tx.connection.execute(
            select(promotions).where(
                promotions.c.environment == environment_name, promotions.c.to_digest.in_(some or ())
            )
        )
        served.update(row.to_digest for row in rows if is_authentic(tx, promotions, row))
    return frozenset(served)


def qualify(tx: Tx, environment_name: str, digests: Iterable[str], revision: str) -> None:
    """Record bundles that qualified for an environment by the commits of a lost registry."""
    for digest in digests:
        row = {"environment": environment_name, "digest": digest, "revision": revision}
        insert_ignoring_duplicates(tx, qualified_bundles, **with_mac(tx, qualified_bundles, row))


def qualified(tx: Tx, environment_name: str) -> frozenset[str]:
    """Return the digests that ``qualify`` recorded."""
    rows = tx.connection.execute(select(qualified_bundles).where(qualified_bundles.c.environment == environment_name))
    return frozenset(row.digest for row in rows if is_authentic(tx, qualified_bundles, row))


def last_failure(tx: Tx, environment_name: str, digest: str) -> str | None:
    """Return when a run of a bundle last failed in an environment, for the soak gate."""
    return tx.connection.execute(
        select(func.max(runs.c.completed_at)).where(
            runs.c.bundle_digest == digest,
            runs.c.environment == environment_name,
            runs.c.status.in_([RunStatus.FAILED, RunStatus.TIMED_OUT]),
        )
    ).scalar()


# ---- conditions -------------------------------------------------------------------------------------------------


def list_conditions(tx: Tx, subject: str) -> tuple[Condition, ...]:
    rows = tx.connection.execute(select(conditions).where(conditions.c.object == subject).order_by(conditions.c.type))
    return tuple(Condition(**_without(row, "object") | {"type": ConditionType(row.type)}) for row in rows)


def put_conditions(tx: Tx, subject: str, items: Sequence[Condition]) -> None:
    rows = [{"object": subject, **vars(item), "type": item.type.value} for item in items]
    upsert_many(tx, conditions, ("object", "type"), rows)


def move_conditions(tx: Tx, subjects: Collection[str], revision: str) -> None:
    """Let the conditions of some subjects stand as of another commit."""
    for some in _batches(subjects):
        stale = conditions.c.object.in_(some or ()), conditions.c.revision != revision
        tx.connection.execute(update(conditions).where(*stale).values(revision=revision))


def delete_condition(tx: Tx, subject: str, kind: ConditionType) -> None:
    tx.connection.execute(delete(conditions).where(conditions.c.object == subject, conditions.c.type == kind))


# ---- rows to records --------------------------------------------------------------------------------------------


def _bundle(row: Row) -> BundleRecord:
    return BundleRecord(**row._asdict() | {"signers": tuple(row.signers)})


def _without(row: Row, *names: str) -> dict[str, Any]:
    return {column: value for column, value in row._asdict().items() if column not in names}


def _release(row: Row) -> Release:
    return Release(**_without(row, "retired_at"))


def read_promotion(row: Row) -> Promotion:
    """Return the promotion of a row, whether it is authentic or not."""
    return Promotion(**_without(row, MAC) | {"kind": PromotionKind(row.kind), "approvals": tuple(row.approvals or ())})


def _pending(row: Row) -> Pending:
    also = tuple(PendingGate(**item | {"who": tuple(item["who"])}) for item in row.also or ())
    outdated = tuple(OutdatedApproval(**item) for item in row.outdated_approvals or ())
    lists = {"who": tuple(row.who), "also": also, "outdated_approvals": outdated}
    return Pending(**_without(row, "environment", MAC) | lists)


# ---- approvals --------------------------------------------------------------------------------------------------


def insert_approval(tx: Tx, item: ApprovalRecord) -> bool:
    """Store an approval or rejection; return whether it is new."""
    row = with_mac(tx, approvals, vars(item) | {"first_seen_at": tx.at})
    return insert_ignoring_duplicates(tx, approvals, **row)


def note_origin(tx: Tx, identity: str, origin: str) -> bool:
    """Record the origin of a decision that had another one; return whether it changed."""
    other = (approvals.c.id == identity) & (approvals.c.origin != origin)
    return tx.connection.execute(update(approvals).where(other).values(origin=origin)).rowcount > 0


def list_approvals(
    tx: Tx, environment: str | None = None, subject: str | None = None, *, unexpired_at: str | None = None
) -> tuple[ApprovalRecord, ...]:
    """List approvals and rejections in the order in which they were first seen.

    Args:
        tx: An open transaction.
        environment: Only those about this environment.
        subject: Only those about this subject.
        unexpired_at: Leave out approvals that expired by this time; a rejection does not expire.
    """
    where = []
    if environment is not None:
        where.append(approvals.c.environment == environment)
    if subject is not None:
        where.append(approvals.c.subject == subject)
    if unexpired_at is not None:
        where.append(or_(approvals.c.expires_at > unexpired_at, approvals.c.decision == "reject"))
    query = select(approvals).where(*where).order_by(approvals.c.first_seen_at, approvals.c.id)
    return tuple(_approvals(tx, query))


def newest_approvals(tx: Tx, environment: str, limit: int, subject: str | None = None) -> tuple[ApprovalRecord, ...]:
    """List the newest approvals and rejections about an environment, or about one subject in it, newest first."""
    where = [approvals.c.environment == environment]
    if subject is not None:
        where.append(approvals.c.subject == subject)
    newest = approvals.c.first_seen_at.desc(), approvals.c.id.desc()
    return tuple(_approvals(tx, select(approvals).where(*where).order_by(*newest).limit(limit)))


def overrule(tx: Tx, ids: Sequence[str], policy_digest: str) -> None:
    """Record that an approved change of the rules ended rejections."""
    for some in _batches(ids):
        for row in tx.connection.execute(select(approvals).where(approvals.c.id.in_(some or ()))).all():
            if is_authentic(tx, approvals, row):
                ended = with_mac(tx, approvals, {**row._asdict(), "overruled_by": policy_digest})
                tx.connection.execute(update(approvals).where(approvals.c.id == row.id).values(**ended))


MAX_IDS = 10_000
"""Ids in one statement; both databases accept more parameters."""


def approvals_by_id(tx: Tx, ids: Sequence[str]) -> tuple[ApprovalRecord, ...]:
    """Read approvals by their ids, in the order in which they were first seen."""
    found: list[ApprovalRecord] = []
    for start in range(0, len(ids), MAX_IDS):
        query = select(approvals).where(approvals.c.id.in_(ids[start : start + MAX_IDS]))
        found += _approvals(tx, query)
    return tuple(sorted(found, key=lambda item: (item.first_seen_at, item.id)))


def _approvals(tx: Tx, query: Select[Any]) -> Iterator[ApprovalRecord]:
    """Yield the authentic decisions: the time of their first sight decides which keys count."""
    rows = tx.connection.execute(query)
    return (
        ApprovalRecord(**_without(row, MAC))
        for row in rows
        if tx.sees(row.environment) and is_authentic(tx, approvals, row)
    )


# ---- holds ------------------------------------------------------------------------------------------------------


def put_hold(tx: Tx, item: Hold) -> None:
    values = {name: value for name, value in vars(item).items() if name not in {"environment", "bundle"}}
    upsert(tx, holds, {"environment": item.environment, "bundle": item.bundle}, **values | {"since": tx.at})


def delete_hold(tx: Tx, environment: str, bundle: str) -> bool:
    """Lift a hold; return whether there was one."""
    done = tx.connection.execute(delete(holds).where(holds.c.environment == environment, holds.c.bundle == bundle))
    return done.rowcount > 0


def list_holds(tx: Tx, environment: str | None = None) -> tuple[Hold, ...]:
    """List the holds that are in force."""
    where: list[ColumnElement[bool]] = [(holds.c.until.is_(None)) | (holds.c.until > tx.at)]
    if environment is not None:
        where.append(holds.c.environment == environment)
    rows = tx.connection.execute(select(holds).where(*where).order_by(holds.c.environment, holds.c.bundle))
    return tuple(Hold(**row._asdict()) for row in rows)


def list_decided(tx: Tx, event_types: Collection[str]) -> Mapping[str, frozenset[tuple[object, ...]]]:
    """Return what people have decided about each environment: values that change with each decision, hold and suspension.

    Rows count as they are stored, whether they are authentic or not, and whether they have expired or not.

    Args:
        tx: An open transaction.
        event_types: The audit events of such decisions, which count too.
    """
    found: dict[str, set[tuple[object, ...]]] = {}
    decisions = func.count(), func.max(approvals.c.first_seen_at), func.max(approvals.c.id)
    events = select(audit_events.c.environment, func.count(), func.max(audit_events.c.id)).where(
        audit_events.c.event_type.in_(sorted(event_types)), audit_events.c.environment.is_not(None)
    )
    for statement in (
        select(approvals.c.environment, *decisions).group_by(approvals.c.environment),
        events.group_by(audit_events.c.environment),
        select(holds),
        select(suspensions),
    ):
        for row in tx.connection.execute(statement):
            found.setdefault(row.environment, set()).add(tuple(row))
    return {name: frozenset(rows) for name, rows in found.items()}


# ---- suspensions ------------------------------------------------------------------------------------------------


def put_suspension(tx: Tx, item: Suspension) -> None:
    values = {name: value for name, value in vars(item).items() if name != "environment"}
    upsert(tx, suspensions, {"environment": item.environment}, **values | {"since": tx.at})


def delete_suspension(tx: Tx, environment: str) -> bool:
    """Lift a suspension; return whether there was one."""
    return tx.connection.execute(delete(suspensions).where(suspensions.c.environment == environment)).rowcount > 0


def suspension(tx: Tx, environment: str) -> Suspension | None:
    """Read the suspension of an environment that is in force."""
    row = tx.connection.execute(
        select(suspensions).where(
            suspensions.c.environment == environment,
            (suspensions.c.until.is_(None)) | (suspensions.c.until > tx.at),
        )
    ).first()
    return Suspension(**row._asdict()) if row else None
