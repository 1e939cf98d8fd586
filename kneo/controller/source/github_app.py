"""Access tokens of a GitHub App's installation: for one repository, for an hour, never on disk."""

from __future__ import annotations

import re
import ssl
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import jwt

from kneo.clock import Clock, SystemClock, parse_time
from kneo.controller.source.address import RepositoryAddress, existing_file, redact
from kneo.errors import Invalid, Transient
from kneo.json_text import parse_json
from kneo.settings import GitCredentials

RENEW_BEFORE = timedelta(minutes=5)
"""Time before its expiry at which a token is replaced, so that none expires during a fetch."""

_BACKDATED = timedelta(seconds=60)
"""Age of an assertion by our clock, as GitHub recommends against clocks that differ."""

_ASSERTED = timedelta(minutes=9)
"""Lifetime of an assertion from now; GitHub accepts ten minutes at most, the minute before now included."""

_TIMEOUT_SECONDS = 15.0
_TOKEN = re.compile(r"[!-~]{1,1000}")
_ANSWER_BYTES = 65_536
_KEY_BYTES = 16_384


@dataclass(frozen=True)
class _Token:
    text: str
    expires: datetime


class InstallationTokens:
    """Tokens of one installation for one repository, each used until shortly before its expiry. Thread-safe.

    Args:
        credentials: The App, its installation and the file of its key, which is read for each token.
        address: The repository; a token reads this one and no other.
        write: Whether tokens may push.
        clock: The source of the time.
    """

    def __init__(
        self,
        credentials: GitCredentials,
        address: RepositoryAddress,
        *,
        write: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._credentials = credentials
        self._api = credentials.github_api_url or api_of(address)
        self._repository = address.url.rstrip("/").rpartition("/")[2].removesuffix(".git")
        self._contents = "write" if write else "read"
        self._clock = clock or SystemClock()
        self._known: _Token | None = None
        self._turn = threading.Lock()

    def token(self) -> str:
        """Return a token that lasts at least ``RENEW_BEFORE``.

        Raises:
            Transient: ``FetchFailed``: GitHub did not answer, or refused the App.
            Invalid: ``invalid_setting``: the key file is missing or holds no RSA key.
        """
        with self._turn:
            known = self._known
            if known is None or known.expires - self._clock.now() <= RENEW_BEFORE:
                known = self._known = self._request()
            return known.text

    def forget(self) -> None:
        """Request a new token next time."""
        with self._turn:
            self._known = None

    def _request(self) -> _Token:
        url = f"{self._api}/app/installations/{self._credentials.github_installation_id}/access_tokens"
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {self._assertion()}",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        scope = {"repositories": [self._repository], "permissions": {"contents": self._contents}}
        try:
            with (
                httpx.Client(verify=_tls(self._credentials), timeout=_TIMEOUT_SECONDS, trust_env=False) as client,
                client.stream("POST", url, headers=headers, json=scope) as answer,
            ):
                body = _bounded(answer)
        except (httpx.HTTPError, OSError) as error:
            msg = f"GitHub's API at {redact(self._api)} did not answer: {redact(str(error))[:200] or type(error).__name__}."
            hint = "Check that it is reachable; set KNEO_SERV_GIT_CA_FILE for a private certificate authority."
            raise Transient(msg, code="FetchFailed", hint=hint) from error
        if answer.status_code != httpx.codes.CREATED:
            msg = f"GitHub's API at {redact(self._api)} gave the App no token (HTTP {answer.status_code})."
            raise Transient(msg, code="FetchFailed", hint=_HINTS.get(answer.status_code, _HINTS[0]))
        return _read(body, self._api)

    def _assertion(self) -> str:
        now = self._clock.now()
        claims = {
            "iss": self._credentials.github_app_id,
            "iat": int((now - _BACKDATED).timestamp()),
            "exp": int((now + _ASSERTED).timestamp()),
        }
        file = self._credentials.github_app_key_file
        assert file is not None, "settings name a key with every App"
        with Path(existing_file(file)).open("rb") as opened:
            key = opened.read(_KEY_BYTES)
        try:
            return jwt.encode(claims, key, algorithm="RS256")
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            msg = f"The file {file} does not hold the RSA private key of a GitHub App in PEM form."
            hint = "Create one on the App's settings page, under Private keys."
            raise Invalid(msg, code="invalid_setting", hint=hint) from error


_HINTS = {
    0: "Check the App's id, its installation and its permission to read contents.",
    401: "Check KNEO_SERV_GIT_GITHUB_APP_ID, the key in KNEO_SERV_GIT_GITHUB_APP_KEY_FILE, and this machine's clock.",
    403: "Is the installation suspended, or the API limited?",
    404: "Check KNEO_SERV_GIT_GITHUB_INSTALLATION_ID: this App has no such installation.",
    422: "Is the App installed for this repository, with the permission to read (and, to push, to write) its contents?",
}


def api_of(address: RepositoryAddress) -> str:
    """Derive the base address of GitHub's API from a repository's: github.com, GHE.com or an Enterprise Server."""
    host = address.host.lower()
    if host in {"github.com", "www.github.com"}:
        return "https://api.github.com"
    if host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"https://{host}/api/v3"


def _tls(credentials: GitCredentials) -> ssl.SSLContext:
    """Return a TLS context with the certificate authorities and the client certificate of git's settings."""
    authorities = existing_file(credentials.ca_file) if credentials.ca_file is not None else None
    try:
        context = ssl.create_default_context(cafile=authorities)
        if credentials.client_cert_file is not None:
            key = credentials.client_key_file
            context.load_cert_chain(
                existing_file(credentials.client_cert_file), existing_file(key) if key is not None else None
            )
    except ssl.SSLError as error:
        msg = "KNEO_SERV_GIT_CA_FILE or KNEO_SERV_GIT_CLIENT_CERT_FILE does not hold certificates in PEM form."
        raise Invalid(msg, code="invalid_setting") from error
    return context


def _bounded(answer: httpx.Response) -> bytes:
    body = b""
    for chunk in answer.iter_bytes():
        body += chunk
        if len(body) > _ANSWER_BYTES:
            return b""
    return body


def _read(body: bytes, api: str) -> _Token:
    try:
        response = parse_json(body)
        token = _Token(_TOKEN.fullmatch(response["token"])[0], parse_time(response["expires_at"]))  # type: ignore[index]
    except (ValueError, KeyError, TypeError, Invalid) as error:
        msg = f"GitHub's API at {redact(api)} returned a response without a token."
        raise Transient(
            msg, code="FetchFailed", hint="Check that KNEO_SERV_GIT_GITHUB_API_URL is the address of GitHub's API."
        ) from error
    return token
