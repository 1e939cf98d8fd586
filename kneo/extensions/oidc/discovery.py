"""The issuer: its discovery document and signing keys, over HTTP and bounded; kept in the process while the issuer is away."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jwt

from kneo.clock import Clock, monotonic
from kneo.errors import Invalid, Transient
from kneo.json_text import parse_json
from kneo.names import visible
from kneo.settings import OidcSettings

ALGORITHMS: Mapping[tuple[str, str], str] = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""The accepted algorithms by type and curve of a key. A key has one algorithm, whatever a token says."""

SECONDS = 10.0
"""Time for one response of the issuer."""

MAX_BYTES = 262_144
"""Size of a response of the issuer."""

MAX_KEYS = 100

_MAX_MODULUS_CHARS = 1_366
"""Base64 characters of the modulus of an RSA key of 8192 bits; checking a signature takes longer with each bit."""


class IssuerUnavailable(Transient):
    """The issuer did not respond, or its response is not usable."""

    default_code = "issuer_unavailable"


@dataclass(frozen=True)
class IssuerKey:
    """A public key of the issuer, with its id and the one algorithm that it is used with."""

    id: str | None
    algorithm: str
    key: jwt.PyJWK


@dataclass(frozen=True, kw_only=True)
class IssuerMetadata:
    """What the issuer publishes about itself.

    Attributes:
        keys: The keys that sign tokens.
        authorization_endpoint: Where people sign in; empty where the issuer names none.
        token_endpoint: Where codes are exchanged for tokens; empty where the issuer names none.
        secret_in_body: Whether the client's secret is sent in the body, because the issuer takes no ``Authorization`` header.
        names_itself: Whether responses to sign-ins have the parameter ``iss`` (RFC 9207).
    """

    keys: tuple[IssuerKey, ...]
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    secret_in_body: bool = False
    names_itself: bool = False

    def find_key(self, key_id: str | None, algorithm: str) -> IssuerKey | None:
        """Return the key of a token; without an id only where one key alone has the algorithm."""
        fitting = [key for key in self.keys if key.algorithm == algorithm and key_id in {None, key.id}]
        return fitting[0] if len(fitting) == 1 or (fitting and key_id is not None) else None


class IssuerClient:
    """Requests to the issuer.

    Args:
        settings: The issuer, and the certificate authorities to trust for it.
    """

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings

    def discover(self) -> IssuerMetadata:
        """Fetch the discovery document and the keys.

        Raises:
            IssuerUnavailable: one of them cannot be fetched, or is not usable.
        """
        issuer = self.settings.issuer
        with self._client() as client:
            document = self._request(client, "GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if document.get("issuer") != issuer:
                msg = f"The discovery document of {issuer} names another issuer: {str(document.get('issuer'))[:200]!r}."
                raise IssuerUnavailable(msg, hint="Set KNEO_SERV_OIDC_ISSUER to exactly what the document names.")
            keys = signing_keys(self._request(client, "GET", self.endpoint(document, "jwks_uri")))
        if not keys:
            msg = f"{issuer} publishes no usable key: RSA from 2048 bits (RS256), P-256 (ES256) or Ed25519 (EdDSA)."
            raise IssuerUnavailable(msg)
        methods = document.get("token_endpoint_auth_methods_supported")
        return IssuerMetadata(
            keys=keys,
            authorization_endpoint=self.endpoint(document, "authorization_endpoint", required=False),
            token_endpoint=self.endpoint(document, "token_endpoint", required=False),
            secret_in_body=isinstance(methods, list) and "client_secret_basic" not in methods,
            names_itself=document.get("authorization_response_iss_parameter_supported") is True,
        )

    def post(self, url: str, form: Mapping[str, str], *, user: tuple[str, str] | None = None) -> Mapping[str, object]:
        """Send a form to an endpoint, with a name and password in the ``Authorization`` header.

        Raises:
            IssuerUnavailable: the issuer did not respond, refused, or its response is not a JSON object.
        """
        with self._client() as client:
            return self._request(client, "POST", url, form=form, user=user)

    def _client(self) -> httpx.Client:
        return httpx.Client(verify=_tls(self.settings.ca_file), timeout=SECONDS / 2, follow_redirects=False)

    def _request(
        self,
        client: httpx.Client,
        method: str,
        url: str,
        *,
        form: Mapping[str, str] | None = None,
        user: tuple[str, str] | None = None,
    ) -> Mapping[str, object]:
        auth = httpx.BasicAuth(*user) if user is not None else None
        headers = {"Accept": "application/json"}
        where = _shown(url)
        try:
            with client.stream(method, url, headers=headers, data=form, auth=auth) as response:
                body = _bounded(response, where)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            msg = f"The issuer did not respond at {where}: {str(error)[:200] or type(error).__name__}."
            hint = "Check that the service reaches it; set KNEO_SERV_OIDC_CA_FILE for a private certificate authority."
            raise IssuerUnavailable(msg, hint=hint) from error
        if response.status_code != httpx.codes.OK:
            msg = f"The issuer responded with HTTP {response.status_code} at {where}."
            raise IssuerUnavailable(msg, status=response.status_code, error=_error_code(body))
        document = _parse(body)
        if document is None:
            msg = f"The response of the issuer at {where} is not a JSON object."
            raise IssuerUnavailable(msg)
        return document

    def endpoint(self, document: Mapping[str, object], name: str, *, required: bool = True) -> str:
        """Return an address of the discovery document; http only where the issuer has it itself.

        Raises:
            IssuerUnavailable: the document has none, or one without TLS.
        """
        url = document.get(name)
        if url is None and not required:
            return ""
        schemes = {"https", urlsplit(self.settings.issuer).scheme}
        if isinstance(url, str) and len(url) <= 2_000 and visible(url) == url and " " not in url:
            try:
                parts = urlsplit(url)
            except ValueError:
                parts = urlsplit("")
            if parts.scheme in schemes and parts.hostname and not parts.fragment:
                return url
        msg = f"The discovery document of {self.settings.issuer} has no usable {name}; it must begin with https://."
        raise IssuerUnavailable(msg)


def _bounded(response: httpx.Response, where: str) -> bytes:
    body, until = b"", monotonic() + SECONDS
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_BYTES or monotonic() > until:
            msg = f"The response of the issuer at {where} is larger than {MAX_BYTES} bytes, or takes too long."
            raise IssuerUnavailable(msg)
    return body


def _parse(body: bytes) -> Mapping[str, object] | None:
    try:
        document = parse_json(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _error_code(body: bytes) -> str:
    """Return the error code of a refusal of the issuer, as OAuth 2.0 defines them."""
    code = str((_parse(body) or {}).get("error", ""))
    return code if code.isascii() and code.replace("_", "").isalpha() and len(code) <= 60 else ""


def signing_keys(document: Mapping[str, object]) -> tuple[IssuerKey, ...]:
    """Read the keys with an accepted algorithm; others are left out, as the issuer may have some for other purposes."""
    listed = document.get("keys")
    keys = (_signing_key(entry) for entry in (listed if isinstance(listed, list) else [])[:MAX_KEYS])
    return tuple(key for key in keys if key is not None)


def _signing_key(entry: object) -> IssuerKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kind, key_id = str(entry.get("kty", "")), entry.get("kid")
    algorithm = ALGORITHMS.get((kind, "" if kind == "RSA" else str(entry.get("crv", ""))))
    is_sound = algorithm is not None and entry.get("alg", algorithm) in {algorithm, "Ed25519"}
    if not is_sound or not isinstance(key_id, str | None) or len(str(entry.get("n", ""))) > _MAX_MODULUS_CHARS:
        return None
    try:
        # Without private parts: a key that the issuer publishes by mistake still only verifies.
        public = {name: entry[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in entry}
        key = jwt.PyJWK(public, algorithm)
        return IssuerKey(key_id, str(algorithm), key) if key.Algorithm.check_key_length(key.key) is None else None
    except (jwt.PyJWTError, ValueError, TypeError):
        return None


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=str(ca_file.expanduser()))
    except OSError as error:  # ssl.SSLError is one
        msg = f"KNEO_SERV_OIDC_CA_FILE names {ca_file}, which does not hold certificates in PEM form."
        raise Invalid(msg, code="invalid_setting") from error


def _shown(url: str) -> str:
    """Return an address for a message, without its query."""
    return url.partition("?")[0][:200]


log = logging.getLogger("kneo.service")

REFRESH = timedelta(minutes=10)
"""Age at which keys are fetched again, so that a key that the issuer has withdrawn is soon refused."""

AGAIN = timedelta(minutes=1)
"""Time between two fetches because of tokens with an unknown key: strangers decide how many of them come."""

RETRY = timedelta(seconds=5)
"""Time between two fetches as long as none has succeeded."""

WAIT_SECONDS = 15.0
"""The longest time that a request waits for a fetch."""


class IssuerCache:
    """The metadata of the issuer. Requests wait for a fetch only where they need what it brings.

    Args:
        fetch: Fetches the metadata; called in a thread of its own, once at a time.
        clock: The source of the time.
    """

    def __init__(self, fetch: Callable[[], IssuerMetadata], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._known: IssuerMetadata | None = None
        self._problem = "The issuer of tokens has not responded yet."
        self._fetched: datetime | None = None
        self._running: Future[None] | None = None

    async def metadata(self) -> IssuerMetadata:
        """Return the metadata.

        Raises:
            IssuerUnavailable: none was fetched yet, and the issuer is away.
        """
        known = self._known
        running = self._begin(REFRESH if known is not None else RETRY)
        if known is None:
            await _finished(running)
            known = self._known
        if known is None:
            raise IssuerUnavailable(self._problem, hint="Tokens are refused until it responds; API keys work.")
        return known

    async def find_key(self, key_id: str | None, algorithm: str) -> IssuerKey | None:
        """Return the key that signs a token; ``None`` where the issuer publishes no such key.

        Raises:
            IssuerUnavailable: no key was fetched yet, and the issuer is away.
        """
        key = (await self.metadata()).find_key(key_id, algorithm)
        if key is None and (running := self._begin(AGAIN)) is not None:
            await _finished(running)
            key = (await self.metadata()).find_key(key_id, algorithm)
        return key

    def _begin(self, age: timedelta) -> Future[None] | None:
        """Begin to fetch, unless the last fetch is younger; return the running fetch."""
        with self._lock:
            if self._running is None and (self._fetched is None or self._clock.now() - self._fetched >= age):
                self._fetched = self._clock.now()
                self._running = Future()
                threading.Thread(target=self._run, args=(self._running,), name="oidc-issuer", daemon=True).start()
            return self._running

    def _run(self, done: Future[None]) -> None:
        known, problem = self._known, self._problem
        try:
            known = self._fetch()
        except Exception as error:  # noqa: BLE001 - whatever it is, requests that wait must go on
            problem = str(error)[:500]
            log.warning("the issuer of tokens could not be read: %s", problem)
        with self._lock:
            self._known, self._problem, self._running = known, problem, None
        done.set_result(None)


async def _finished(running: Future[None] | None) -> None:
    """Wait for a fetch, for a bounded time and without ending it."""
    if running is not None:
        await asyncio.wait([asyncio.wrap_future(running)], timeout=WAIT_SECONDS)
