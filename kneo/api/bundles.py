"""Operations on bundles: accepted versions, their signers, and the environments that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field

from kneo import registry
from kneo.api.operation import Context, Json, operation
from kneo.api.page import view_of
from kneo.api.release_views import SpecChangeView
from kneo.api.subjects import BUNDLE, environments_of_bundle
from kneo.errors import NotFound
from kneo.records.release import BundleRecord, Release
from kneo.spec.diff import bounded_changes, compare_specs, whole_command
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_bundle


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
        served_in = [release.environment for release in released if release.digest == item.digest]
        return view_of(cls, item, served_in=served_in)


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


@operation("GET", "/bundles", scope="specs:read", about=BUNDLE)
def list_bundles(context: Context) -> BundleListView:
    """List bundles by name, with their newest version."""
    with context.store.read() as tx:
        newest = {item.name: item for item in releases.known_bundles(tx) if _is_visible(tx, item.name)}
        released = registry.list_served(tx)
    items = [BundleView.of(item, released) for item in newest.values()]
    return BundleListView(bundles=items, count=len(items))


@operation("GET", "/bundles/{name}", scope="specs:read", about=BUNDLE)
def get_bundle(context: Context, name: str) -> BundleVersionsView:
    """List the accepted versions of a bundle, newest first."""
    with context.store.read() as tx:
        versions = _versions(tx, name)
        released = registry.list_served(tx)
    return BundleVersionsView(name=name, versions=[BundleView.of(item, released) for item in reversed(versions)])


@dataclass(frozen=True, kw_only=True)
class BundleDiffView:
    """The changes from one version of a bundle to another, the most dangerous first."""

    name: str
    from_version: str | None
    from_digest: str | None
    to_version: str
    to_digest: str
    summary: str
    changes: list[SpecChangeView]
    more: Annotated[int, Field(description="Further changes, which the view leaves out.")]


@operation("GET", "/bundles/{name}/diff", scope="specs:read", about=BUNDLE)
def diff_bundle_versions(
    context: Context,
    name: str,
    from_: Annotated[
        str | None, Field(max_length=200, description="A version or digest; by default the previous one.")
    ] = None,
    to: Annotated[str | None, Field(max_length=200, description="A version or digest; by default the newest.")] = None,
    whole: Annotated[bool, Field(description="Leave out no line of a long text.")] = False,
) -> BundleDiffView:
    """Compare two accepted versions of a bundle: the changes in sentences, the most dangerous first."""
    with context.store.read() as tx:
        versions = _versions(tx, name)
        after = _chosen(versions, name, to) if to is not None else versions[-1]
        older = [item for item in versions if item.seq < after.seq]
        before = _chosen(versions, name, from_) if from_ is not None else (older[-1] if older else None)
        old, new = releases.bundle(tx, before.digest) if before else None, releases.bundle(tx, after.digest)
    assert new is not None, "bundles are never deleted"
    command = whole_command(name, before.version if before else None, after.version)
    code = registry.code_in(old), registry.code_in(new)
    found = compare_specs(registry.spec_in(old) if old else None, registry.spec_in(new), command=command, code=code)
    shown, more = bounded_changes(found)
    return BundleDiffView(
        name=name,
        from_version=before.version if before else None,
        from_digest=before.digest if before else None,
        to_version=after.version,
        to_digest=after.digest,
        summary=found.summary,
        changes=[SpecChangeView(**item) for item in found.items(shown, whole=whole)],  # type: ignore[arg-type]  # the same fields
        more=more,
    )


@operation("GET", "/bundles/{name}/{version}", scope="specs:read", about=BUNDLE)
def get_bundle_version(context: Context, name: str, version: str) -> BundleVersionView:
    """Read one version, with its spec."""
    with context.store.read() as tx:
        found = _chosen(_versions(tx, name), name, version)
        record = releases.bundle(tx, found.digest)
        released = registry.list_served(tx)
    assert record is not None, "bundles are never deleted"
    values = vars(BundleView.of(record, released))
    if record.seq == 0:
        return BundleVersionView(**values, spec=dict(registry.spec_in(record)), environments=[], depends_on=[])
    predicate = parse_bundle(parse_envelope(record.envelope).payload).predicate
    visible = [name for name in predicate.environments if tx.sees(name)]
    return BundleVersionView(
        **values,
        spec=dict(predicate.spec),
        environments=visible,
        depends_on=[DependencyView(name=need.name, digest=need.digest) for need in predicate.depends_on],
        approved_by=predicate.approved_by,
        issued_at=predicate.issued_at.isoformat(),
    )


def _is_visible(tx: Tx, name: str) -> bool:
    """Return whether a transaction reads an environment that names a bundle."""
    return tx.reach is None or bool(environments_of_bundle(tx, name))


def _chosen(versions: Sequence[BundleRecord], name: str, version: str) -> BundleRecord:
    found = next((item for item in reversed(versions) if version in {item.version, item.digest}), None)
    if found is None:
        msg = f"{version[:100]} of {name[:100]} was never accepted."
        raise NotFound(msg, code="bundle_not_found")
    return found


def _versions(tx: Tx, name: str) -> Sequence[BundleRecord]:
    versions = releases.known_bundles(tx, name=name) if _is_visible(tx, name) else ()
    if not versions:
        msg = f"No bundle {name[:100]!r} was ever accepted."
        raise NotFound(msg, code="bundle_not_found")
    return versions
