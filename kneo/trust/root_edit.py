"""Edits of a trust root. Each function takes a document and returns a changed one; none signs.

``next_root`` begins a new version once; the other functions change it. Every edit is checked, so one that would make the
root unchangeable is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic_core import to_jsonable_python

from kneo.errors import Conflict, NotFound
from kneo.names import person_name
from kneo.trust.dsse import TrustedKey, read_record
from kneo.trust.keys import KeyId, PublicKey
from kneo.trust.root import ROOT_ROLE, Revocation, Role, RootDocument, RootKey

EVERYTHING = ("*",)
"""The path scope of a role that may sign every bundle."""


def first_root(
    roles: Mapping[str, Sequence[TrustedKey]], *, expires: datetime, paths: Mapping[str, Sequence[str]] | None = None
) -> RootDocument:
    """Create version 1, each role with a threshold of one.

    Args:
        roles: The keys of each role; ``root`` is required.
        expires: The expiry; an expired root admits nothing new.
        paths: Path scopes of the roles that sign bundles.

    Raises:
        Invalid: there is no root role, a role has no keys, or two keys contradict each other.
    """
    scopes = paths or {}
    keys = {key.public.keyid: _root_key(key.public, key.principal) for members in roles.values() for key in members}
    return _document(
        version=1,
        expires=expires,
        keys=keys,
        roles={
            name: Role(
                keys=tuple(key.public.keyid for key in members),
                threshold=1,
                paths=tuple(scopes[name]) if name in scopes else None,
            )
            for name, members in roles.items()
        },
        revoked=(),
    )


def next_root(document: RootDocument) -> RootDocument:
    """Create the next version, with the same content."""
    return _changed(document, version=document.version + 1)


def set_expiry(document: RootDocument, expires: datetime) -> RootDocument:
    """Set the expiry of a root."""
    return _changed(document, expires=expires)


def add_key(document: RootDocument, key: PublicKey, *, principal: str, roles: Iterable[str]) -> RootDocument:
    """Give a person's key to roles; a new role has a threshold of one and no paths.

    Raises:
        Conflict: the key belongs to another person, or is revoked.
        Invalid: the result contradicts itself.
    """
    known = document.keys.get(key.keyid)
    if known is not None and known.principal != principal:
        msg = f"The key {key.keyid} belongs to {known.principal} already."
        raise Conflict(msg, hint="Two people never share a key; let each make their own with kneo keys generate.")
    if any(revocation.keyid == key.keyid for revocation in document.revoked):
        msg = f"The key {key.keyid} is revoked."
        raise Conflict(msg, hint="Make a new key with kneo keys generate.")
    changed = dict(document.roles)
    for name in roles:
        role = changed.get(name, Role.model_construct(keys=(), threshold=1, paths=None))
        if key.keyid not in role.keys:
            changed[name] = Role(keys=(*role.keys, key.keyid), threshold=role.threshold, paths=role.paths)
    return _changed(document, keys={**document.keys, key.keyid: _root_key(key, principal)}, roles=changed)


def remove_key(document: RootDocument, keyid: str, *, roles: Iterable[str] | None = None) -> RootDocument:
    """Remove a key from roles, or from all of them. All its signatures become void.

    To keep earlier signatures valid, revoke the key instead.

    Raises:
        NotFound: the root does not have this key.
        Invalid: a role would have fewer people than its threshold, or the root role none.
    """
    key = _known(document, keyid)
    chosen = set(document.roles) if roles is None else set(roles)
    changed: dict[str, Role] = {}
    for name, role in document.roles.items():
        keys = tuple(k for k in role.keys if k != key or name not in chosen)
        if keys or name == ROOT_ROLE:
            changed[name] = role.model_copy(update={"keys": keys})
    used = {k for role in changed.values() for k in role.keys}
    return _changed(document, keys={k: v for k, v in document.keys.items() if k in used}, roles=changed)


def revoke_key(
    document: RootDocument, keyid: str, *, at: datetime, reason: str, compromised_since: datetime | None = None
) -> RootDocument:
    """Revoke a key as of a given time. It stays listed, so that signatures first seen before stay valid.

    Args:
        document: The draft of the root.
        keyid: The id of the key.
        at: The time from which signatures that were not seen before are refused.
        reason: The reason, as a text.
        compromised_since: The time from which signatures are refused even if seen before ``at``.

    Raises:
        NotFound: the root does not have this key.
        Conflict: it is revoked already, at another time or for another reason.
        Invalid: the root role would have too few people left; add one first.
    """
    key = _known(document, keyid)
    revocation = Revocation(keyid=key, at=at, reason=reason, compromised_since=compromised_since)
    earlier = next((r for r in document.revoked if r.keyid == key), None)
    if earlier == revocation:
        return document
    if earlier is not None and not _widens(earlier, revocation):
        msg = f"The key {keyid} is revoked already, from {earlier.at.isoformat()} on."
        raise Conflict(msg, hint="A revocation can be widened to an earlier time, never narrowed.")
    others = tuple(r for r in document.revoked if r.keyid != key)
    return _changed(document, revoked=(*others, revocation))


def set_role(
    document: RootDocument, name: str, *, threshold: int | None = None, paths: Sequence[str] | None = None
) -> RootDocument:
    """Change the threshold of a role, or the paths that it may sign.

    Raises:
        NotFound: there is no such role; it begins when a key is added to it.
        Invalid: the role has fewer people than that.
    """
    role = document.roles.get(name)
    if role is None:
        msg = f"The trust root has no role named {name!r}."
        raise NotFound(msg, hint=f"It has {', '.join(sorted(document.roles))}; kneo trust add-key begins a new one.")
    update: dict[str, object] = {}
    if threshold is not None:
        update["threshold"] = threshold
    if paths is not None:
        update["paths"] = tuple(paths)
    return _changed(document, roles={**document.roles, name: role.model_copy(update=update)})


def _widens(earlier: Revocation, later: Revocation) -> bool:
    """Return whether the later revocation voids everything that the earlier one voids."""
    start = min(earlier.at, earlier.compromised_since or earlier.at)
    return min(later.at, later.compromised_since or later.at) <= start


def _known(document: RootDocument, keyid: str) -> KeyId:
    key = KeyId(keyid)
    if key not in document.keys:
        msg = f"The trust root has no key {keyid[:100]!r}."
        raise NotFound(msg, hint="kneo trust show lists the keys it has.")
    return key


def _root_key(key: PublicKey, principal: str) -> RootKey:
    owner = person_name(principal, "The principal")
    return read_record(RootKey, {"algorithm": key.algorithm, "public": key.pem, "principal": owner}, file="trust root")


def _changed(document: RootDocument, **changes: object) -> RootDocument:
    return _document(**{**{name: getattr(document, name) for name in RootDocument.model_fields}, **changes})


def _document(**fields: object) -> RootDocument:
    """Validate through the parser, by way of plain values, so that no unchecked value passes with a copy."""
    return read_record(RootDocument, to_jsonable_python(fields, by_alias=True), file="trust root")
