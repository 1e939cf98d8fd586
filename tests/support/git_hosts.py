"""Hosts of Git repositories as controllers meet them: https with tokens, GitHub's tokens for Apps, ssh with keys."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import ipaddress
import json
import os
import shlex
import shutil
import ssl
import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncssh
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from kneo.clock import Clock

TOKEN = "t0ken-that-must-not-show"


def _backend() -> Path | None:
    git = shutil.which("git")
    if git is None:
        return None
    path = Path(subprocess.run([git, "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())
    return path / "git-http-backend" if (path / "git-http-backend").exists() else None


BACKEND = _backend()


class GitHub:
    """What GitHub's API says to one App with one installation, and what it was asked.

    https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
    """

    def __init__(self, folder: Path, clock: Clock, *, app: str = "Iv23liApp", installation: str = "4711") -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key_file = folder / "app.pem"
        self.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
        )
        self.public = key.public_key()
        self.clock, self.app, self.installation = clock, app, installation
        self.asked: list[dict[str, object]] = []
        self.lasts = dt.timedelta(hours=1)

    def answer(self, path: str, headers: Mapping[str, str], body: dict[str, object]) -> tuple[int, dict[str, object]]:
        scheme, _, assertion = headers.get("Authorization", "").partition(" ")
        now = self.clock.now()
        try:
            assert scheme == "Bearer"
            options = {"require": ["iss", "iat", "exp"], "verify_exp": False, "verify_iat": False}
            claims = jwt.decode(assertion, self.public, algorithms=["RS256"], options=options)
            assert claims["iss"] == self.app
            assert claims["iat"] <= now.timestamp() <= claims["exp"]
            assert claims["exp"] - claims["iat"] <= 600
        except (AssertionError, jwt.PyJWTError):
            return 401, {"message": "A JSON web token could not be decoded"}
        if path != f"/api/v3/app/installations/{self.installation}/access_tokens":
            return 404, {"message": "Not Found"}
        self.asked.append(body)
        expires = (now + self.lasts).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 201, {
            "token": f"ghs_{len(self.asked)}_{TOKEN}",
            "expires_at": expires,
            "permissions": body["permissions"],
        }


class GitHTTPServer(ThreadingHTTPServer):
    """Git repositories below a folder, for these logins."""

    # A server that has stopped has no connection left, which would be closed at some time during another test.
    daemon_threads = False

    root: Path
    github: GitHub | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[str] = []
        self.logins = {f"git:{TOKEN}"}


class GitHandler(BaseHTTPRequestHandler):
    """Serves repositories through git's own CGI, to whoever shows the token."""

    protocol_version = "HTTP/1.0"
    server: GitHTTPServer

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.send_error(501)
            return
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        self.server.seen.append(self.path)
        if path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved", "/origin"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.endswith("/access_tokens"):
            self._github(path, body)
            return
        offered = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        if offered not in self.server.logins:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        env = {
            "PATH": os.defpath,
            "GIT_PROJECT_ROOT": str(self.server.root),
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

    def _github(self, path: str, body: bytes) -> None:
        """Answer as GitHub's endpoint for installation access tokens does."""
        github = self.server.github
        assert github is not None, "nobody said that this is GitHub"
        status, answer = github.answer(path, self.headers, json.loads(body))
        if status == 201:
            self.server.logins.add(f"x-access-token:{answer['token']}")
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
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
    """An https server with a certificate of its own authority."""

    def __init__(self, folder: Path, *, ask_client: bool) -> None:
        self.cert, self.key = certificate(folder)
        self.root = folder / "served"
        self.http = GitHTTPServer(("127.0.0.1", 0), GitHandler)
        self.http.root = self.root
        self.seen, self.logins = self.http.seen, self.http.logins
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


class Connections(asyncssh.SSHServer):
    """Adds the connection of each client to a list."""

    def __init__(self, made: list[asyncssh.SSHServerConnection]) -> None:
        self._made = made

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._made.append(conn)


class SSHHost:
    """An ssh server that serves Git repositories to one key, as a Git host does. OpenSSH's client talks to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []
        self.key_file, self.known_hosts_file = folder / "deploy_key", folder / "known_hosts"
        host_key, key = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(self.key_file)
        self.key_file.chmod(0o600)
        authorized = folder / "authorized_keys"
        key.write_public_key(authorized)
        self._connections: list[asyncssh.SSHServerConnection] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncssh.listen(
                "127.0.0.1",
                0,
                server_host_keys=[host_key],
                authorized_client_keys=str(authorized),
                server_factory=lambda: Connections(self._connections),
                process_factory=self._serve,
                encoding=None,
            )
        )
        self.port = self._server.get_port()
        public = host_key.export_public_key().decode().strip()
        self.known_hosts_file.write_text(f"[127.0.0.1]:{self.port} {public}\n")
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def url(self, name: str = "origin") -> str:
        return f"ssh://git@127.0.0.1:{self.port}/{name}"

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self.seen.append(process.command or "")
        command, path = shlex.split(process.command or "")
        if command not in {"git-upload-pack", "git-receive-pack"}:
            process.exit(128)
            return
        program = await asyncio.create_subprocess_exec(
            *command.split("-", 1),
            str(self.folder / "served" / path.lstrip("/")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"},
        )
        try:
            await process.redirect(stdin=program.stdin, stdout=program.stdout, stderr=program.stderr)
            process.exit(await program.wait())
            await process.wait_closed()
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()

    def stop(self) -> None:
        async def stop() -> None:
            self._server.close()
            await self._server.wait_closed()
            # Closing a server leaves its connections open.
            for connection in self._connections:
                connection.abort()
                await connection.wait_closed()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(240)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
