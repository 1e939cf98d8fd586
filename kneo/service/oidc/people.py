"""People of the issuer as callers: their names, their scopes by their groups, and the record of them in the database."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from threading import Lock

from starlette.concurrency import run_in_threadpool

from kneo.api.operation import Principal
from kneo.clock import isoformat
from kneo.errors import Forbidden
from kneo.records.sign_in import OidcPerson
from kneo.service.auth import Keyring, group_scopes
from kneo.service.oidc.discovery import IssuerCache
from kneo.service.oidc.tokens import Identity, InvalidToken, identity_of, signing_key_of, verified_claims
from kneo.settings import OidcSettings
from kneo.store import audit, browser_sessions, oidc_people
from kneo.store.engine import Store, Tx

MAX_TOKENS = 10_000
"""Tokens whose people a process remembers to have recorded."""

MAX_SHOWN = 20
"""Groups in the message for a person without a role."""

MAX_AUDITED = 100
"""Groups of a person in an audit event."""


class OidcPeople:
    """The people of the issuer.

    Args:
        settings: The issuer, its audience, the claims with name and groups, and the roles of groups.
        issuer: The keys of the issuer.
        store: The database.
        keyring: The API keys, whose owners have a spelling of their names already.

    Raises:
        Invalid: a role or scope of a group is unknown.
    """

    def __init__(self, settings: OidcSettings, issuer: IssuerCache, store: Store, keyring: Keyring) -> None:
        self.settings = settings
        self.issuer = issuer
        self.store = store
        self.keyring = keyring
        self._scopes: Mapping[str, frozenset[str]] = group_scopes(settings.roles)
        self._recorded: OrderedDict[bytes, Principal] = OrderedDict()
        self._lock = Lock()

    def accepts(self, credential: str) -> bool:
        """Return whether a credential is a token rather than an API key, and tokens are accepted."""
        return bool(self.settings.audience) and credential.count(".") == 2

    async def authenticate(self, token: str) -> Principal:
        """Return the caller whom a token of the API names. Each request checks its token; the person is recorded once.

        Raises:
            InvalidToken: the token is not accepted.
            Forbidden: ``no_role``: no group of the person has a role.
            IssuerUnavailable: the keys of the issuer are not known yet.
        """
        claims = await self.verify(token, self.settings.audience)
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            known = self._recorded.get(digest)
        if known is None:
            known = await run_in_threadpool(self.admit, identity_of(claims, self.settings))
            with self._lock:
                self._recorded[digest] = known
                while len(self._recorded) > MAX_TOKENS:
                    self._recorded.popitem(last=False)
        return known

    async def verify(self, token: str, audience: str) -> Mapping[str, object]:
        """Return the claims of a token for an audience.

        Raises:
            InvalidToken: the token is not accepted.
            IssuerUnavailable: the keys of the issuer are not known yet.
        """
        key_id, algorithm = signing_key_of(token)
        key = await self.issuer.find_key(key_id, algorithm)
        if key is None:
            raise InvalidToken("The token is not signed by a key of the issuer.")
        return verified_claims(token, key, issuer=self.settings.issuer, audience=audience, now=self.store.clock.now())

    def scopes_of(self, groups: Collection[str]) -> frozenset[str]:
        """Return the scopes of a person in these groups; empty where no group has a role."""
        return frozenset().union(*(self._scopes.get(group, frozenset()) for group in groups))

    def admit(self, identity: Identity) -> Principal:
        """Return a person as a caller, and record the person and the groups.

        One name is one person: a person of the issuer and the owner of an API key with the same name are the same, and the
        spelling that was first stays. Scopes are those of the credential at hand: the key's, or the groups'.

        Raises:
            Forbidden: ``no_role``: no group of the person has a role, and the person is not known any more; or a newer token
                said so.
        """
        scopes = self.scopes_of(identity.groups)
        if not scopes:
            self._forget(identity)
            raise _no_role(identity)
        owner = self.keyring.find_person(identity.name)
        name = self.store.transact(lambda tx: _record(tx, identity, owner[1].name if owner is not None else None))
        return Principal(name, scopes, identity.expires_at)

    def _forget(self, identity: Identity) -> None:
        with self.store.read() as tx:
            is_due = oidc_people.must_remove(tx, identity.name, isoformat(identity.issued_at))
        if is_due:
            self.store.transact(lambda tx: _remove(tx, identity))


def _record(tx: Tx, identity: Identity, spelling: str | None) -> str:
    before = oidc_people.find(tx, identity.name)
    person = OidcPerson(
        name=spelling or (before.name if before is not None else identity.name),
        issuer=identity.issuer,
        subject=identity.subject,
        groups=identity.groups,
        issued_at=isoformat(identity.issued_at),
    )
    if oidc_people.put(tx, person):
        facts = {
            "issuer": person.issuer,
            "subject": person.subject,
            "groups": sorted(person.groups)[:MAX_AUDITED],
            "group_count": len(person.groups),
        }
        audit.record(tx, "oidc.person_recorded", actor=person.name, metadata=facts)
    elif oidc_people.find(tx, identity.name) is None:
        msg = f"{identity.name} has no role here: a newer token has no group with a role."
        raise Forbidden(msg, code="no_role", hint="Request a new token, or sign in again.")
    return person.name


def _remove(tx: Tx, identity: Identity) -> None:
    known = oidc_people.find(tx, identity.name)
    if oidc_people.remove(tx, identity.name, isoformat(identity.issued_at)):
        browser_sessions.end_of_issuer(tx, known.name if known is not None else identity.name)
        facts = {"issuer": identity.issuer, "subject": identity.subject}
        audit.record(tx, "oidc.person_removed", actor=identity.name, metadata=facts)


def _no_role(identity: Identity) -> Forbidden:
    groups = sorted(identity.groups)
    listed = ", ".join(groups[:MAX_SHOWN]) + (f" and {len(groups) - MAX_SHOWN} more" if len(groups) > MAX_SHOWN else "")
    msg = f"{identity.name} has no role here; groups of the token: {listed or 'none'}."
    hint = "KNEO_SERV_OIDC_ROLES gives roles to groups, and KNEO_SERV_OIDC_GROUPS_CLAIM names their claim."
    return Forbidden(msg, code="no_role", hint=hint)
