"""Signing in at the issuer: the authorization code flow with PKCE, state and nonce."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool

from kneo.clock import isoformat, parse_time
from kneo.digest import hash_text
from kneo.errors import Unauthorized
from kneo.extensions.oidc.discovery import IssuerClient, IssuerMetadata, IssuerUnavailable
from kneo.extensions.oidc.people import InvalidToken, OidcPeople, identity_of
from kneo.records.sign_in import SIGN_IN_LIFETIME, OidcSignIn
from kneo.service.sign_in_providers import Identity
from kneo.store import oidc_people
from kneo.store.service_key import missing_key
from kneo.trust.sealed_text import Seal

SECRET_BYTES = 32

MAX_CODE_CHARS = 4_096

PURPOSE = "sign-ins at the issuer that wait"
"""The purpose of the key that seals them."""


class SignInRefused(Unauthorized):
    """A sign-in at the issuer that signs nobody in."""

    default_code = "sign_in_refused"


@dataclass(frozen=True, kw_only=True)
class CodeResponse:
    """The parameters with which the issuer sends a browser back."""

    state: str
    code: str
    error: str
    issuer: str


@dataclass(frozen=True, kw_only=True)
class BegunSignIn:
    """The address of the issuer to send the browser to, and the waiting sign-ins for the browser's cookie."""

    url: str
    waiting: str


@dataclass(frozen=True, kw_only=True)
class CompletedSignIn:
    """The person of a completed sign-in, the page to show, and the sign-ins of the browser that still wait."""

    identity: Identity
    target: str
    waiting: str


class CodeFlow:
    """Sign-ins at the issuer.

    Args:
        people: The people of the issuer.
        redirect_uri: The address to which the issuer sends browsers back; it comes from settings, never from a request.
    """

    def __init__(self, people: OidcPeople, redirect_uri: str) -> None:
        self.people = people
        self.settings = people.settings
        self.redirect_uri = redirect_uri
        self.client = IssuerClient(people.settings)

    async def begin(self, waiting: str, target: str) -> BegunSignIn:
        """Begin a sign-in.

        Args:
            waiting: The browser's cookie with the sign-ins that wait already.
            target: The page to show afterwards; the first page where the address is too long for a cookie.

        Raises:
            IssuerUnavailable: the issuer is away, or does not sign people in.
            Invalid: ``no_service_key``: there is no key to seal the sign-in with.
        """
        metadata = await self.people.issuer.metadata()
        if not metadata.authorization_endpoint or not metadata.token_endpoint:
            msg = f"{self.settings.issuer} has no endpoints for signing in."
            raise IssuerUnavailable(msg)
        state, nonce, verifier = (secrets.token_urlsafe(SECRET_BYTES) for _ in range(3))
        at = isoformat(self.people.store.clock.now())
        sign_in = OidcSignIn(state=state, nonce=nonce, code_verifier=verifier, target=target, created_at=at)
        seal = await run_in_threadpool(self._seal)
        cookie = add_waiting(seal, waiting, sign_in)
        if cookie is None:
            cookie = add_waiting(seal, waiting, replace(sign_in, target="")) or ""
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(self.settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
            .rstrip(b"=")
            .decode(),
            "code_challenge_method": "S256",
        }
        separator = "&" if "?" in metadata.authorization_endpoint else "?"
        return BegunSignIn(url=metadata.authorization_endpoint + separator + urlencode(query), waiting=cookie)

    def _seal(self) -> Seal:
        """Return the seal of waiting sign-ins, which is that of every process with the same service key."""
        key = self.people.store.find_key()
        if key is None:
            raise missing_key()
        return Seal(key.derive(PURPOSE), f"{self.settings.issuer} {self.settings.client_id} {self.redirect_uri}")

    async def complete(self, waiting: str, response: CodeResponse) -> CompletedSignIn:
        """Complete a sign-in, once: exchange the code, and check the ID token.

        Args:
            waiting: The browser's cookie with the sign-ins that wait.
            response: The parameters with which the issuer sends the browser back.

        Raises:
            SignInRefused: the browser has begun no such sign-in, or the issuer refuses.
            InvalidToken: the ID token is not accepted.
            IssuerUnavailable: the issuer is away.
        """
        sign_in, others = take_waiting(await run_in_threadpool(self._seal), waiting, response.state)
        if sign_in is None or parse_time(sign_in.created_at) + SIGN_IN_LIFETIME <= self.people.store.clock.now():
            raise _not_waiting()
        if await run_in_threadpool(self._is_used, sign_in):
            raise _not_waiting()
        metadata = await self.people.issuer.metadata()
        self._check(metadata, response)
        token = await run_in_threadpool(self._exchange, metadata, response.code, sign_in.code_verifier)
        claims = await self.people.verify(token, self.settings.client_id)
        nonce, audience = claims.get("nonce"), claims.get("aud")
        if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), sign_in.nonce.encode()):
            raise InvalidToken("The ID token belongs to another sign-in.")
        party = claims.get(
            "azp", self.settings.client_id if isinstance(audience, str) or len(_list(audience)) == 1 else ""
        )
        if party != self.settings.client_id:
            raise InvalidToken("The ID token was issued to another client.")
        identity = identity_of(claims, self.settings)
        # Stored last, so that only people of the issuer store anything; of two requests at once, one gets it.
        if not await run_in_threadpool(self._use, sign_in):
            raise _not_waiting()
        return CompletedSignIn(identity=identity, target=sign_in.target, waiting=others)

    def _is_used(self, sign_in: OidcSignIn) -> bool:
        with self.people.store.read() as tx:
            return oidc_people.is_used_state(tx, hash_text(sign_in.state))

    def _use(self, sign_in: OidcSignIn) -> bool:
        return self.people.store.transact(lambda tx: oidc_people.use_state(tx, hash_text(sign_in.state)))

    def _check(self, metadata: IssuerMetadata, response: CodeResponse) -> None:
        expected = {self.settings.issuer} if metadata.names_itself else {self.settings.issuer, ""}
        if response.issuer not in expected:
            raise SignInRefused("The response comes from another issuer.", hint="Sign in again.")
        if response.error:
            code = response.error if response.error.replace("_", "").isalnum() and response.error.isascii() else "error"
            msg = f"The issuer refused the sign-in: {code[:60]}."
            raise SignInRefused(msg)
        if not response.code or len(response.code) > MAX_CODE_CHARS:
            raise SignInRefused("The issuer sent no code.", hint="Sign in again.")

    def _exchange(self, metadata: IssuerMetadata, code: str, verifier: str) -> str:
        """Return the ID token for a code.

        Raises:
            SignInRefused: the issuer refuses the code, or sends no ID token.
            IssuerUnavailable: the issuer is away.
        """
        name, secret = self.settings.client_id, self.settings.client_secret
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "client_id": name,
            "code_verifier": verifier,
        }
        user = None
        if secret and metadata.secret_in_body:
            form["client_secret"] = secret
        elif secret:
            # RFC 6749 section 2.3.1 encodes both before the header does.
            user = (quote(name, safe=""), quote(secret, safe=""))
        try:
            response = self.client.post(metadata.token_endpoint, form, user=user)
        except IssuerUnavailable as error:
            if error.details.get("status") not in {400, 401, 403}:
                raise
            msg = f"The issuer refused the code of the sign-in: {error.details.get('error') or 'without a reason'}."
            raise SignInRefused(msg, hint="Check KNEO_SERV_OIDC_CLIENT_ID and KNEO_SERV_OIDC_CLIENT_SECRET.") from error
        token = response.get("id_token")
        if not isinstance(token, str):
            raise SignInRefused("The issuer sent no ID token.", hint="KNEO_SERV_OIDC_SCOPES must contain openid.")
        return token


def _not_waiting() -> SignInRefused:
    msg = "This browser has begun no such sign-in, it was completed before, or is older than ten minutes."
    return SignInRefused(msg, hint="Sign in again.")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


MAX_COOKIE_CHARS = 3_800
"""Longest value of the cookie; browsers keep 4,096 bytes with its name and attributes. One more sign-in ends the oldest."""

SEPARATOR = "."


def add_waiting(seal: Seal, cookie: str, sign_in: OidcSignIn) -> str | None:
    """Return the cookie with one more sign-in; ``None`` where this one alone is too long for a cookie."""
    sealed = seal.close(json.dumps(asdict(sign_in), ensure_ascii=False))
    if len(sealed) > MAX_COOKIE_CHARS:
        return None
    return _bounded([sealed, *cookie.split(SEPARATOR)])


def take_waiting(seal: Seal, cookie: str, state: str) -> tuple[OidcSignIn | None, str]:
    """Return the sign-in with a state, and the cookie without it."""
    found: OidcSignIn | None = None
    others: list[str] = []
    for sealed in cookie[:MAX_COOKIE_CHARS].split(SEPARATOR):
        sign_in = _open(seal, sealed)
        if sign_in is not None and hmac.compare_digest(sign_in.state.encode(), state.encode()):
            found = sign_in
        elif sign_in is not None:
            others.append(sealed)
    return found, _bounded(others)


def _open(seal: Seal, sealed: str) -> OidcSignIn | None:
    text = seal.open(sealed)
    if text is None:
        return None
    try:
        sign_in = OidcSignIn(**json.loads(text))
        parse_time(sign_in.created_at)
    except (TypeError, ValueError):
        # Another version of this service sealed it.
        return None
    return sign_in


def _bounded(sealed: Iterable[str]) -> str:
    cookie = ""
    for each in sealed:
        longer = f"{cookie}{SEPARATOR}{each}" if cookie else each
        if len(longer) > MAX_COOKIE_CHARS:
            break
        cookie = longer
    return cookie
