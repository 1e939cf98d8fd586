"""The mirror against a real Git server over https: tokens, certificates, redirects."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controller.source import Credentials, Mirror
from kneo.errors import Transient

TOKEN = "t0ken-that-must-not-show"
BUNDLE = "bundles/a/1.dsse.json"


def _backend() -> Path | None:
    git = shutil.which("git")
    if git is None:
        return None
    path = Path(subprocess.run([git, "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())
    return path / "git-http-backend" if (path / "git-http-backend").exists() else None


BACKEND = _backend()
pytestmark = pytest.mark.skipif(BACKEND is None, reason="needs git-http-backend")


class GitHandler(BaseHTTPRequestHandler):
    """Serves repositories through git's own CGI, to whoever shows the token."""

    protocol_version = "HTTP/1.0"
    root: Path
    seen: list[str]

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.send_error(501)
            return
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        self.seen.append(self.path)
        if path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved", "/origin"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        expected = "Basic " + base64.b64encode(f"git:{TOKEN}".encode()).decode()
        if self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        env = {
            "PATH": os.defpath,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run([str(BACKEND)], env=env, input=body, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = dt.datetime.now(dt.UTC)  # noqa: TID251 - the TLS library looks at the real clock
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


class Server:
    def __init__(self, folder: Path, *, ask_client: bool) -> None:
        self.cert, self.key = certificate(folder)
        self.root = folder / "served"
        self.seen: list[str] = []
        handler = type("Handler", (GitHandler,), {"root": self.root, "seen": self.seen})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if ask_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.cert)
        # The handshake belongs to the connection's own thread, where its failure harms nobody else.
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def url(self, name: str = "origin") -> str:
        return f"https://127.0.0.1:{self.http.server_address[1]}/{name}"

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture(params=[False], ids=["server certificate"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    served = tmp_path / "served"
    served.mkdir()
    origin = served / "origin"
    commands = [
        ["git", "init", "-q", "-b", "main", str(origin)],
        ["git", "-C", str(origin), "add", "-A"],
        ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "x"],
        ["git", "-C", str(origin), "config", "uploadpack.allowFilter", "true"],
    ]
    subprocess.run(commands[0], check=True)
    (origin / BUNDLE).parent.mkdir(parents=True)
    (origin / BUNDLE).write_text("{}")
    for command in commands[1:]:
        subprocess.run(command, check=True)
    server = Server(tmp_path, ask_client=request.param)
    yield server
    server.stop()


@pytest.fixture
def credentials(server: Server, tmp_path: Path) -> Credentials:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    return Credentials(token_file=token, ca_file=server.cert)


def test_a_token_opens_the_door_and_shows_nowhere(server: Server, credentials: Credentials, tmp_path: Path) -> None:
    mirror = Mirror(server.url(), "main", tmp_path / "state", credentials)
    snapshot = mirror.fetch()
    mirror.accept(snapshot)
    assert snapshot.commit == mirror.poll()
    assert snapshot.read([BUNDLE]) == {BUNDLE: b"{}"}
    kept = [file.read_bytes() for file in (tmp_path / "state").rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in content for content in kept)


def refusal(mirror: Mirror) -> Transient:
    with pytest.raises(Transient) as refused:
        mirror.poll()
    assert refused.value.code == "FetchFailed"
    assert TOKEN not in str(refused.value)
    return refused.value


def test_a_wrong_or_missing_token_is_refused(server: Server, credentials: Credentials, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("x")
    assert "token" in str(refusal(Mirror(server.url(), "main", tmp_path / "s", Credentials(ca_file=server.cert))))
    bad = Credentials(token_file=wrong, ca_file=server.cert)
    assert "token" in str(refusal(Mirror(server.url(), "main", tmp_path / "s", bad)))


def test_an_unknown_certificate_is_refused(server: Server, credentials: Credentials, tmp_path: Path) -> None:
    mirror = Mirror(server.url(), "main", tmp_path / "s", Credentials(token_file=credentials.token_file))
    assert "certificate" in str(refusal(mirror))
    assert server.seen == []


def test_a_redirect_does_not_carry_the_token_along(server: Server, credentials: Credentials, tmp_path: Path) -> None:
    assert refusal(Mirror(server.url("moved"), "main", tmp_path / "s", credentials))
    assert all(path.startswith("/moved") for path in server.seen)


@pytest.mark.parametrize("server", [True], indirect=True, ids=["client certificate"])
def test_a_client_certificate_is_shown_to_who_asks(server: Server, credentials: Credentials, tmp_path: Path) -> None:
    mine = Credentials(
        token_file=credentials.token_file,
        ca_file=server.cert,
        client_cert_file=server.cert,
        client_key_file=server.key,
    )
    assert Mirror(server.url(), "main", tmp_path / "s", mine).poll()
    assert refusal(Mirror(server.url(), "main", tmp_path / "other", credentials))


def test_a_host_that_is_not_there_is_tried_again_later(tmp_path: Path) -> None:
    assert refusal(Mirror("https://127.0.0.1:9/origin", "main", tmp_path / "s"))
