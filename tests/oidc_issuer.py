"""An OpenID Connect issuer in this process, over real HTTP: discovery, keys, and what a test makes of tokens."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from kneo.clock import SystemClock

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

    def respond(self, path: str) -> Response:
        if path == "/.well-known/openid-configuration":
            return self.status, json.dumps(self.document()).encode()
        if path == "/keys":
            return self.status, json.dumps({"keys": self.keys}).encode()
        return 404, b"{}"

    def claims(self, **changes: object) -> Json:
        """Good claims of ann, changed; a claim that is changed to ``None`` is left out."""
        now = int(SystemClock().now().timestamp())
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

        def _respond(self) -> None:
            issuer.requests.append(self.path.partition("?")[0])
            issuer.wait()
            status, content = issuer.respond(self.path)
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
