"""An OpenID Connect issuer in this process, over real HTTP: discovery, keys, and what a test makes of tokens."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from kneo.clock import Clock, SystemClock

AUDIENCE = "kneo-api"
Json = dict[str, object]
Response = tuple[int, bytes]


@cache
def rsa_key(name: str = "one", bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def jwk_of(key: object, **members: object) -> Json:
    """The public half of a key, as an issuer publishes it."""
    if isinstance(key, rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return {**made, **members}


class OidcIssuer:
    """The issuer; tests change its keys, its documents and whether it responds."""

    def __init__(self) -> None:
        self.url = ""
        self.keys = [jwk_of(rsa_key(), kid="one", alg="RS256", use="sig")]
        self.discovery: Json = {}
        self.status = 200
        self.requests: list[str] = []
        self.codes: dict[str, dict[str, str]] = {}
        self.person: Json = {}
        """Claims of the person who signs in, and changes to those of the ID token."""
        self.answer: Json = {}
        """Changes to the parameters with which a browser is sent back."""
        self.clock: Clock = SystemClock()
        self.repeats_codes = False
        """Whether a code can be exchanged again."""
        self.wait: Callable[[], object] = lambda: None
        """Called by every request before it is answered."""

    def document(self) -> Json:
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            **self.discovery,
        }

    def respond(self, path: str, form: Mapping[str, str], authorization: str) -> Response:
        if path == "/.well-known/openid-configuration":
            return self.status, json.dumps(self.document()).encode()
        if path == "/keys":
            return self.status, json.dumps({"keys": self.keys}).encode()
        if path.startswith("/authorize?"):
            return self.authorize(dict(parse_qsl(path.partition("?")[2])))
        if path == "/token":
            return self.exchange(form, authorization)
        return 404, b"{}"

    def authorize(self, query: Mapping[str, str]) -> Response:
        """Sign in the person at once, and send the browser back with a code."""
        code = f"code-{len(self.codes)}"
        self.codes[code] = dict(query)
        answer = {"code": code, "state": query["state"], "iss": self.url, **self.answer}
        return 302, f"{query['redirect_uri']}?{urlencode(answer)}".encode()

    def exchange(self, form: Mapping[str, str], authorization: str) -> Response:
        """Exchange a code once, with the verifier of PKCE and the secret of the client."""
        asked = self.codes.get(form.get("code", ""))
        if not self.repeats_codes:
            self.codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        basic = "Basic " + base64.b64encode(b"console:s%2Bcret").decode()
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form.get("redirect_uri"):
            return 400, b'{"error": "invalid_grant"}'
        if authorization != basic:
            return 401, b'{"error": "invalid_client"}'
        claims = {"aud": asked["client_id"], "nonce": asked["nonce"], **self.person}
        return 200, json.dumps({"id_token": self.token(**claims), "access_token": "x", "token_type": "Bearer"}).encode()

    def claims(self, **changes: object) -> Json:
        """Good claims of ann, changed; a claim that is changed to ``None`` is left out."""
        now = int(self.clock.now().timestamp())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ann",
            "iat": now,
            "exp": now + 600,
            "groups": ["operators"],
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        *,
        key: object = None,
        algorithm: str = "RS256",
        kid: str | None = "one",
        header: Json | None = None,
        **changes: object,
    ) -> str:
        headers = {**({"kid": kid} if kid is not None else {}), **(header or {})}
        signing = rsa_key() if key is None else key
        return jwt.encode(self.claims(**changes), signing, algorithm=algorithm, headers=headers)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(issuer: OidcIssuer) -> Iterator[OidcIssuer]:
    """Serve an issuer until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond()

        def do_POST(self) -> None:
            self._respond()

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            issuer.requests.append(self.path.partition("?")[0])
            issuer.wait()
            status, content = issuer.respond(self.path, dict(parse_qsl(body)), self.headers.get("authorization", ""))
            self.send_response(status)
            if status == 302:
                self.send_header("location", content.decode())
                content = b""
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
