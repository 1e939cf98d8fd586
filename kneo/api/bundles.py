"""Operations on bundles: accepted versions, their signers, and the environments that serve them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from kneo import registry
from kneo.api.context import Context
from kneo.api.operation import operation
from kneo.errors import NotFound
from kneo.records.release import BundleRecord, Release
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_bundle

Json = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class BundleView:
    """One version of a bundle."""

    name: str
    version: str
    digest: str
    seq: int
    prev: str | None
    spec_digest: str
    signers: tuple[str, ...]
    first_seen_at: str
    revision: str
    served_in: list[str]

    @classmethod
    def of(cls, item: BundleRecord, released: tuple[Release, ...]) -> Self:
        values = {one.name: getattr(item, one.name) for one in fields(BundleView) if one.name != "served_in"}
        return cls(**values, served_in=[release.environment for release in released if release.digest == item.digest])


@dataclass(frozen=True, kw_only=True)
class BundleListView:
    """Bundles by name, each with its newest version."""

    bundles: list[BundleView]
    count: int


@dataclass(frozen=True, kw_only=True)
class BundleVersionsView:
    """The accepted versions of a bundle, newest first."""

    name: str
    versions: list[BundleView]


@dataclass(frozen=True, kw_only=True)
class DependencyView:
    """A bundle that another one depends on."""

    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class BundleVersionView(BundleView):
    """One version of a bundle with its spec. A bundle that was signed with a shared secret names no issue time."""

    spec: Json
    environments: list[str]
    depends_on: list[DependencyView]
    approved_by: str | None = None
    issued_at: str | None = None


@operation("GET", "/bundles", scope="specs:read")
def list_bundles(context: Context) -> BundleListView:
    """List bundles by name, with their newest version."""
    with context.store.read() as tx:
        newest = {item.name: item for item in releases.known_bundles(tx)}
        released = releases.list_releases(tx)
    items = [BundleView.of(item, released) for item in newest.values()]
    return BundleListView(bundles=items, count=len(items))


@operation("GET", "/bundles/{name}", scope="specs:read")
def get_bundle(context: Context, name: str) -> BundleVersionsView:
    """List the accepted versions of a bundle, newest first."""
    with context.store.read() as tx:
        versions = _versions(tx, name)
        released = releases.list_releases(tx)
    return BundleVersionsView(name=name, versions=[BundleView.of(item, released) for item in reversed(versions)])


@operation("GET", "/bundles/{name}/{version}", scope="specs:read")
def get_bundle_version(context: Context, name: str, version: str) -> BundleVersionView:
    """Read one version, with its spec."""
    with context.store.read() as tx:
        found = next((item for item in reversed(_versions(tx, name)) if version in {item.version, item.digest}), None)
        record = releases.bundle(tx, found.digest) if found else None
        released = releases.list_releases(tx)
    if record is None:
        msg = f"{version[:100]} of {name[:100]} was never accepted."
        raise NotFound(msg, code="bundle_not_found")
    values = vars(BundleView.of(record, released))
    if record.seq == 0:
        return BundleVersionView(**values, spec=dict(registry.spec_in(record)), environments=[], depends_on=[])
    predicate = parse_bundle(parse_envelope(record.envelope).payload).predicate
    return BundleVersionView(
        **values,
        spec=dict(predicate.spec),
        environments=list(predicate.environments),
        depends_on=[DependencyView(name=need.name, digest=need.digest) for need in predicate.depends_on],
        approved_by=predicate.approved_by,
        issued_at=predicate.issued_at.isoformat(),
    )


def _versions(tx: Tx, name: str) -> list[BundleRecord]:
    versions = [item for item in releases.known_bundles(tx) if item.name == name]
    if not versions:
        msg = f"No bundle {name[:100]!r} was ever accepted."
        raise NotFound(msg, code="bundle_not_found")
    return versions
