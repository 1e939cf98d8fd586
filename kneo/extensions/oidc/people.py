"""People of the issuer as callers: the checks of their tokens, their names, their scopes by their groups, and the record of them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from threading import Lock

import jwt
from starlette.concurrency import run_in_threadpool

from kneo.api.operation import Principal
from kneo.clock import isoformat
from kneo.errors import Forbidden, Invalid, Unauthorized
from kneo.extensions.oidc.discovery import ALGORITHMS, IssuerCache, IssuerClient, IssuerKey
from kneo.names import MAX_PERSON_CHARS, name_problem, person_key, person_name
from kneo.records.sign_in import OidcPerson
from kneo.service.auth import Keyring, group_roles, group_scopes
from kneo.service.sign_in_providers import Identity
from kneo.settings import OidcSettings
from kneo.store import audit, browser_sessions, oidc_people
from kneo.store.engine import Store, Tx

LEEWAY = timedelta(seconds=60)
"""Difference between the clocks of the issuer and of the service."""

MAX_TOKEN_CHARS = 16_384

MAX_SUBJECT_CHARS = 255
"""As OpenID Connect bounds it."""

_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_LAST_TIME = 2**37
"""Seconds of a time in the year 6325; later ones cannot all be represented. NaN is not below it."""

_REQUIRED = ("iss", "aud", "sub", "exp", "iat")


class InvalidToken(Unauthorized):
    """A token is not accepted; the message states why."""

    default_code = "invalid_token"


def signing_key_of(token: str) -> tuple[str | None, str]:
    """Return the id and the algorithm of the key that a token claims to be signed with.

    Raises:
        InvalidToken: the token has no readable header, or an algorithm that is not accepted.
    """
    if len(token) > MAX_TOKEN_CHARS:
        msg = f"The token is longer than {MAX_TOKEN_CHARS} characters."
        raise InvalidToken(msg, hint="Let the issuer send fewer claims, for example only the groups that have a role.")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError) as error:
        msg = "The token cannot be read."
        raise InvalidToken(msg) from error
    algorithm, kind, key_id = header.get("alg"), header.get("typ", "JWT"), header.get("kid")
    if algorithm not in ALGORITHMS.values():
        msg = f"The algorithm of the token is not accepted; accepted are {', '.join(ALGORITHMS.values())}."
        raise InvalidToken(msg)
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        msg = "The token is neither an access token nor an ID token."
        raise InvalidToken(msg)
    if not isinstance(key_id, str | None):
        msg = "The token has a key id that is not a text."
        raise InvalidToken(msg)
    return key_id, str(algorithm)


def verified_claims(token: str, key: IssuerKey, *, issuer: str, audience: str, now: datetime) -> Mapping[str, object]:
    """Return the claims of a token after a check of its signature, issuer, audience and times.

    Args:
        token: The token.
        key: The key of the issuer. Keys and algorithms that the token itself names or carries are not used.
        issuer: The issuer that the token has to name.
        audience: The audience that the token has to name.
        now: The time.

    Raises:
        InvalidToken: a check fails.
    """
    # The library's own checks of times read the clock of the machine; this service has one clock, which tests move.
    options = {"require": list(_REQUIRED), "verify_exp": False, "verify_nbf": False, "verify_iat": False}
    try:
        claims: dict[str, object] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            issuer=issuer,
            audience=audience,
            options=options,  # type: ignore[arg-type]  # a dict for its typed one
        )
    except jwt.InvalidIssuerError as error:
        raise InvalidToken("The token is of another issuer.") from error
    except jwt.InvalidAudienceError as error:
        raise InvalidToken("The token is for another audience.") from error
    except jwt.MissingRequiredClaimError as error:
        msg = f"The token has no claim {error.claim}."
        raise InvalidToken(msg) from error
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise InvalidToken("The token is not signed by a key of the issuer.") from error
    _check_times(claims, now)
    if "cnf" in claims:
        msg = "The token is bound to a key of its owner, which this service does not check."
        raise InvalidToken(msg, hint="Request a bearer token.")
    return claims


def _check_times(claims: Mapping[str, object], now: datetime) -> None:
    moment, leeway = now.timestamp(), LEEWAY.total_seconds()
    if _number(claims, "exp") + leeway <= moment:
        raise InvalidToken("The token has expired.", hint="Request a new one.")
    if max(_number(claims, "nbf", 0.0), _number(claims, "iat")) - leeway > moment:
        raise InvalidToken("The token is not valid yet.", hint="Compare the clocks of the issuer and of the service.")


def _number(claims: Mapping[str, object], name: str, default: float | None = None) -> float:
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST_TIME:
        msg = f"The claim {name} of the token is not a time."
        raise InvalidToken(msg)
    return float(value)


def identity_of(claims: Mapping[str, object], settings: OidcSettings) -> Identity:
    """Return the person whom verified claims name.

    Raises:
        InvalidToken: the claim with the name or the groups is missing or malformed, or the e-mail address is not verified.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str) or name_problem(subject) is not None or len(subject) > MAX_SUBJECT_CHARS:
        raise InvalidToken("The claim sub of the token is not an id.")
    return Identity(
        issuer=settings.issuer,
        subject=subject,
        name=_name(claims, settings.name_claim),
        groups=_groups(claims, settings.groups_claim),
        issued_at=datetime.fromtimestamp(_number(claims, "iat"), UTC),
        expires_at=datetime.fromtimestamp(_number(claims, "exp"), UTC) + LEEWAY,
    )


def _name(claims: Mapping[str, object], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str):
        msg = f"The token has no claim {claim} with a name."
        raise InvalidToken(msg, hint="KNEO_SERV_OIDC_NAME_CLAIM names the claim.")
    if claim == "email" and claims.get("email_verified") is not True:
        raise InvalidToken("The issuer has not verified the e-mail address of the token.")
    try:
        name = person_name(value, f"The claim {claim} of the token")
    except Invalid as error:
        raise InvalidToken(error.message) from error
    # One character may become eighteen in its normal form, and three in the key.
    if max(len(name), len(person_key(name))) > MAX_PERSON_CHARS:
        msg = f"The claim {claim} of the token has more than {MAX_PERSON_CHARS} characters in its normal form."
        raise InvalidToken(msg)
    return name


def _groups(claims: Mapping[str, object], claim: str) -> frozenset[str]:
    value = claims.get(claim, [])
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(
        isinstance(group, str) and name_problem(group) is None for group in listed
    ):
        msg = f"The claim {claim} of the token is neither a list of groups nor one group."
        raise InvalidToken(msg)
    # No task and no role names a longer group.
    return frozenset(group for group in listed if len(group) <= MAX_PERSON_CHARS)


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
        self._roles: Mapping[str, frozenset[str]] = group_roles(settings.roles)
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

    def roles_of(self, groups: Collection[str]) -> frozenset[str]:
        """Return the roles of a person in these groups."""
        return frozenset().union(*(self._roles.get(group, frozenset()) for group in groups))

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
        return Principal(name, scopes, identity.expires_at, self.roles_of(identity.groups))

    def _forget(self, identity: Identity) -> None:
        with self.store.read() as tx:
            is_due = oidc_people.must_remove(tx, identity.name, isoformat(identity.issued_at))
        if is_due:
            self.store.transact(lambda tx: _remove(tx, identity))


def make_people(settings: OidcSettings, store: Store, keyring: Keyring) -> OidcPeople:
    """Return the people of the issuer of the settings.

    Raises:
        Invalid: a role or scope of a group is unknown.
    """
    return OidcPeople(settings, IssuerCache(IssuerClient(settings).discover, store.clock), store, keyring)


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
