"""The proxies of deploy/proxy and deploy/compose: their programs accept the files, and a service behind them works."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from deploy_files import DEPLOY, nginx, program
from kneo_process import eventually
from processes import free_port
from service_bench import Bench, serving

CADDY = {"proxy": DEPLOY / "proxy" / "Caddyfile", "compose": DEPLOY / "compose" / "Caddyfile"}
NGINX = DEPLOY / "proxy" / "nginx.conf"


@contextmanager
def process(arguments: list[str], port: int, folder: Path) -> Iterator[str]:
    """Run a proxy until the block ends; yield its address once it accepts connections."""
    log = folder / "proxy.log"
    with log.open("w") as output:
        started = subprocess.Popen(
            arguments, cwd=folder, env={"HOME": str(folder), "XDG_DATA_HOME": str(folder)}, stdout=output, stderr=output
        )

    def accepts() -> bool:
        assert started.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            return False
        return True

    try:
        eventually(accepts)
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait(240)


@contextmanager
def by_nginx(upstream: int, folder: Path) -> Iterator[str]:
    """Run nginx with the file, without TLS, in front of a port of this machine."""
    port, text = free_port(), NGINX.read_text()
    text = text.replace("server 127.0.0.1:8001", f"server 127.0.0.1:{upstream}")
    text = re.sub(
        r"^ *(server 127\.0\.0\.1:8002|listen \[::\]|listen 80;|return 308|ssl_).*\n", "", text, flags=re.MULTILINE
    )
    # The server that redirects to TLS has nothing left to listen on.
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port}").replace(
        "server {\n    server_name kneo.example.org;\n}", ""
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )
    with process([nginx(), "-p", str(folder), "-e", "stderr", "-c", str(file)], port, folder) as url:
        yield url


@contextmanager
def by_caddy(upstream: int, folder: Path, text: str | None = None) -> Iterator[str]:
    """Run Caddy with the file, without TLS, in front of a port of this machine."""
    port, text = free_port(), text or CADDY["proxy"].read_text()
    text = text.replace("127.0.0.1:8001 127.0.0.1:8002", f"127.0.0.1:{upstream}")
    text = re.sub(r"dynamic a service 8000 \{.*?\}", f"to 127.0.0.1:{upstream}", text, flags=re.DOTALL)
    text = text.replace("kneo.example.org {", f"http://127.0.0.1:{port} {{").replace(
        "{$KNEO_HOST:localhost} {", f"http://127.0.0.1:{port} {{"
    )
    file = folder / "Caddyfile"
    file.write_text("{\n\tadmin off\n}\n" + text)
    arguments = [program("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    with process(arguments, port, folder) as url:
        yield url


@contextmanager
def by_compose_caddy(upstream: int, folder: Path) -> Iterator[str]:
    with by_caddy(upstream, folder, CADDY["compose"].read_text()) as url:
        yield url


PROXIES = {"nginx": by_nginx, "caddy": by_caddy, "compose": by_compose_caddy}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("behind")
    database = f"sqlite:///{folder / 'kneo.sqlite'}"
    with serving(folder, database, KNEO_SERV_TRUSTED_PROXIES="127.0.0.1") as made:
        yield made


def status_after_sending(url: str, body: bytes) -> int:
    """Send a whole request before reading, as many clients do; return the status of the response."""
    host, _, port = url.removeprefix("http://").partition(":")
    head = f"POST /v1/runs HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(head.encode() + body)
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)
def test_a_service_behind_a_proxy(
    proxy: Callable, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = bench.paused()
    key = {"Authorization": "Bearer admin-key"}
    with (
        proxy(int(bench.url.rpartition(":")[2]), tmp_path) as url,
        httpx.Client(base_url=url, headers=key, timeout=240) as client,
        caplog.at_level("INFO", logger="kneo_serv.service"),
    ):
        eventually(lambda: client.get("/readyz").status_code == 200)
        # What a client writes into the header is not believed.
        assert client.get("/v1/me", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 200
        (line,) = eventually(lambda: [one for one in caplog.records if getattr(one, "path", "") == "/v1/me"])
        assert line.client_ip == "127.0.0.1"
        # Events arrive while the stream is open.
        with client.stream(
            "GET", f"/v1/runs/{run['run_id']}/events", headers={"Accept": "text/event-stream"}
        ) as answer:
            assert answer.status_code == 200
            assert any(each.startswith(("event:", "data:", ":")) for each in answer.iter_lines())
        # A body above the limit of the service is refused; one below it reaches the service, which knows a smaller limit here.
        assert client.post("/v1/runs", content=b"x" * 2_000_000).status_code == 413
        # It holds more than the buffers between: the client reads the answer although it sends the whole body first.
        assert status_after_sending(url, b"x" * 12_000_000) == 413
        assert "error" in client.post("/v1/runs", content=b"x" * 500_000).json()


@pytest.mark.parametrize("file", CADDY.values(), ids=CADDY)
def test_caddy_accepts_the_file_as_it_is(file: Path, tmp_path: Path) -> None:
    caddy, env = program("caddy"), {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    for arguments in (["validate", "--config"], ["fmt", "--diff"]):
        adapter = ["--adapter", "caddyfile"] if arguments[0] == "validate" else []
        done = subprocess.run([caddy, *arguments, file, *adapter], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_nginx_accepts_the_file_as_it_is(tmp_path: Path) -> None:
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    make += ["-subj", "/CN=kneo.example.org", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([program("openssl"), *make[1:]], check=True, capture_output=True)
    file = tmp_path / "nginx.conf"
    text = NGINX.read_text().replace("/etc/ssl/kneo", str(tmp_path))
    file.write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{text}\n}}\n")
    check = [nginx(), "-t", "-p", tmp_path, "-e", "stderr", "-c", file]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_proxy_waits_longer_than_the_longest_request_and_has_the_limits_of_the_service() -> None:
    from kneo.service.limits import DISCARDED_BYTES
    from kneo.settings import HttpSettings, Limits

    longest = 600
    assert Limits.body_bytes == 1_048_576
    assert HttpSettings.header_bytes == 32_768
    assert int(re.search(r"proxy_read_timeout (\d+)s", NGINX.read_text())[1]) > longest
    assert "client_max_body_size 1m;" in NGINX.read_text()
    for file in CADDY.values():
        assert int(re.search(r"response_header_timeout (\d+)s", file.read_text())[1]) > longest
        assert "max_size 16MiB" in file.read_text()
        assert DISCARDED_BYTES == 16 * 2**20
