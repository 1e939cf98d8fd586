"""Bundles that were ever accepted: who signed them, and where they are served."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from kneo import registry
from kneo.api.context import Principal
from kneo.errors import NotFound
from kneo.records.release import BundleRecord, Release
from kneo.service import responses
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.router import Router, responds
from kneo.service.wire import Json
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_bundle

router = Router(tags=["bundles"])

Reader = Annotated[Principal, Depends(require("specs:read"))]


@router.get("/bundles", operation_id="list_bundles", responses=responds(responses.BundleList))
def list_bundles(service: ServiceDep, _principal: Reader) -> Json:
    """List bundles by name, with their newest version."""
    with service.store.read() as tx:
        newest = {item.name: item for item in releases.known_bundles(tx)}
        served = releases.list_releases(tx)
        items = [_summary(item, served) for item in newest.values()]
    return {"bundles": items, "count": len(items)}


@router.get("/bundles/{name}", operation_id="get_bundle", responses=responds(responses.BundleVersions))
def get_bundle(name: str, service: ServiceDep, _principal: Reader) -> Json:
    """List the accepted versions of a bundle, newest first."""
    with service.store.read() as tx:
        found = _versions(tx, name)
        served = releases.list_releases(tx)
    return {"name": name, "versions": [_summary(item, served) for item in reversed(found)]}


@router.get("/bundles/{name}/{version}", operation_id="get_bundle_version", responses=responds(responses.BundleVersion))
def get_bundle_version(name: str, version: str, service: ServiceDep, _principal: Reader) -> Json:
    """Read one version, with the spec it carries."""
    with service.store.read() as tx:
        found = next((item for item in reversed(_versions(tx, name)) if version in {item.version, item.digest}), None)
        record = releases.bundle(tx, found.digest) if found else None
        served = releases.list_releases(tx)
    if record is None:
        msg = f"{version[:100]} of {name[:100]} was never accepted."
        raise NotFound(msg, code="bundle_not_found")
    return _summary(record, served) | _content(record)


def _content(record: BundleRecord) -> Json:
    if record.seq == 0:
        return {"spec": registry.spec_in(record), "depends_on": [], "environments": []}
    predicate = parse_bundle(parse_envelope(record.envelope).payload).predicate
    return {
        "spec": predicate.spec,
        "approved_by": predicate.approved_by,
        "environments": list(predicate.environments),
        "depends_on": [{"name": need.name, "digest": need.digest} for need in predicate.depends_on],
        "issued_at": predicate.issued_at.isoformat(),
    }


def _versions(tx: Tx, name: str) -> list[BundleRecord]:
    found = [item for item in releases.known_bundles(tx) if item.name == name]
    if not found:
        msg = f"No bundle {name[:100]!r} was ever accepted."
        raise NotFound(msg, code="bundle_not_found")
    return found


def _summary(item: BundleRecord, served: tuple[Release, ...]) -> Json:
    return {
        "name": item.name,
        "version": item.version,
        "digest": item.digest,
        "seq": item.seq,
        "prev": item.prev,
        "spec_digest": item.spec_digest,
        "signers": list(item.signers),
        "first_seen_at": item.first_seen_at,
        "revision": item.revision,
        "served_in": [release.environment for release in served if release.digest == item.digest],
    }
