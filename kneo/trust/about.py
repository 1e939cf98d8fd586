"""What a decision can be about beside a bundle: said in full, so that a signature under one thing is none under another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field, model_validator

from kneo.digest import Digest, digest_of_json
from kneo.trust.reading import DigestText, Line, Name, SignedRecord

Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]


class PruneSubject(SignedRecord):
    """More releases than allowed disappearing at once, by exactly one commit."""

    environment: Name
    revision: Line
    """The commit that no longer names them."""

    count: Annotated[int, Field(ge=0)]
    releases: DigestText
    """Digest of which ones; see ``digest_of_releases``."""


class RewriteSubject(SignedRecord):
    """The history of the repository replaced, from exactly one commit to exactly another."""

    old: Commit
    new: Commit


class DecisionSubject(SignedRecord):
    """One of these things."""

    prune: PruneSubject | None = None
    rewrite: RewriteSubject | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prune is None) == (self.rewrite is None):
            msg = "a decision is about one thing"
            raise ValueError(msg)
        return self

    @property
    def digest(self) -> Digest:
        """What a decision about this has as its subject."""
        return digest_of_json(self.as_json())

    @property
    def name(self) -> str:
        """What to call it where a bundle would have its name."""
        return "prune" if self.prune is not None else "rewrite"

    def as_json(self) -> dict[str, object]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def digest_of_releases(releases: Iterable[tuple[str, str]]) -> Digest:
    """Name a set of releases, by bundle name and digest."""
    return digest_of_json([list(item) for item in sorted(releases)])


def prune_subject(environment: str, revision: str, releases: Iterable[tuple[str, str]]) -> DecisionSubject:
    """Name the disappearance of exactly these releases by exactly this commit."""
    gone = sorted(releases)
    prune = PruneSubject(environment=environment, revision=revision, count=len(gone), releases=digest_of_releases(gone))
    return DecisionSubject(prune=prune)


def rewrite_subject(old: str, new: str) -> DecisionSubject:
    """Name the replacement of exactly this commit by exactly that one."""
    return DecisionSubject(rewrite=RewriteSubject(old=old, new=new))
