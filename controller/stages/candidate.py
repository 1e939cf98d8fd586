"""What a pass carries of a bundle from its verification to the registry, without the spec. Pure.

A first commit brings thousands of bundles and all are planned and judged together; their specs, once judged, would only
take memory, and time whenever Python looks for garbage among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kneo.digest import Digest, digest_of_json
from kneo.records.release import BundleRecord
from kneo.trust.statement import Dependency
from kneo.trust.verified import VerifiedBundle


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A bundle that was verified and judged, and may be served where every gate agrees.

    Args:
        record: What the registry would keep of it.
        author: Who the bundle says approved its spec; None where its format has no word for that.
        depends_on: What has to be served beside it.
    """

    record: BundleRecord
    author: str | None
    depends_on: tuple[Dependency, ...]
    issued_at: datetime | None = None
    """When its signers say that it was signed; None where its format has no word for that."""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def version(self) -> str:
        return self.record.version

    @property
    def digest(self) -> Digest:
        return Digest(self.record.digest)


@dataclass(frozen=True)
class UnchangedBundle:
    """A bundle that Git names, that is served, and that was judged before under the very trust and rules of today."""

    name: str
    version: str
    digest: Digest
    needs: tuple[Digest, ...]
    """The bundles it depends on."""


def candidate_of(bundle: VerifiedBundle, revision: str) -> Candidate:
    """Keep of a verified bundle what is needed from here on.

    Args:
        bundle: It.
        revision: The commit that names it.
    """
    predicate = bundle.statement.predicate if bundle.statement else None
    record = BundleRecord(
        digest=bundle.digest,
        name=bundle.name,
        version=bundle.version,
        seq=bundle.seq,
        prev=bundle.prev,
        payload=bundle.payload,
        envelope=bundle.envelope,
        # A statement's own digest of its spec was checked when it was verified.
        spec_digest=predicate.spec_digest if predicate else digest_of_json(bundle.spec),
        signers=tuple(sorted({signer.principal for signer in bundle.signers})),
        first_seen_at="",
        revision=revision,
    )
    return Candidate(
        record=record,
        author=predicate.approved_by if predicate else None,
        depends_on=tuple(predicate.depends_on) if predicate else (),
        issued_at=predicate.issued_at if predicate else None,
    )


def unchanged_bundle(bundle: Candidate) -> UnchangedBundle:
    """Keep of a bundle what planning needs of one that does not change."""
    return UnchangedBundle(bundle.name, bundle.version, bundle.digest, tuple(need.digest for need in bundle.depends_on))
