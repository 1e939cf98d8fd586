"""What every test may ask for: a clock that stands still, and databases of both kinds."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import certifi
import hypothesis
import pytest
from databases import DIALECTS, Server, start_server
from installation_key import find_key

from kneo import settings
from kneo.clock import ManualClock
from kneo.store.engine import Store
from kneo.store.migrate import open_store

# The suite says the same of the same code every time, however busy the machine; hunting is for `make fuzz`.
hypothesis.settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


AUTHORITIES = (certifi.where(), os.environ.get("SSL_CERT_FILE"))  # noqa: TID251 - what the libraries read
"""The files of all authorities: reading one takes 20 ms of the processor, and a test opens several clients."""

create_tls_context = ssl.create_default_context
context_of_clients = functools.cache(create_tls_context)


def shared_tls_context(*purpose: ssl.Purpose, **options: str) -> ssl.SSLContext:
    """Read the certificates of all authorities once for each process."""
    create = (
        context_of_clients if list(options) == ["cafile"] and options["cafile"] in AUTHORITIES else create_tls_context
    )
    return create(*purpose, **options)


ssl.create_default_context = shared_tls_context

pytest_plugins = ("tiers",)

START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def shown_settings() -> Iterator[None]:
    """Forget which settings a test took out of the environment."""
    with mock.patch.dict(settings._hidden):
        yield


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Take back where a command that ran in this process sent its log: to the standard error of its test, which is closed after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def no_examples() -> None:
    """Forget imported examples: commands run in this process import those of the folder that they work in."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "examples"]:
        del sys.modules[name]


@pytest.fixture
def clock() -> ManualClock:
    """A clock that says 2026-01-31 12:00 UTC until it is moved."""
    return ManualClock(START)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server of this test process, started when the first test asks for it."""
    server = start_server()
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    name = postgres_server.create()
    yield postgres_server.url(name)
    postgres_server.drop(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'kneo.sqlite'}"


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return str(request.param)


@pytest.fixture
def database_url(dialect: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, once of each kind; processes that a test starts migrate it themselves."""
    return str(request.getfixturevalue("postgres_url" if dialect == "postgresql" else "sqlite_url"))


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "kneo.sqlite"
    open_store(f"sqlite:///{path}", ManualClock(START)).close()
    return path


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: Server) -> str:
    name = postgres_server.create()
    open_store(postgres_server.url(name), ManualClock(START)).close()
    return name


@pytest.fixture
def migrated_file(_sqlite_template: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a SQLite file with tables and no rows in the test's folder, under the name that it is given."""
    return lambda name: Path(shutil.copy(_sqlite_template, tmp_path / name))


@pytest.fixture
def migrated_url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database with tables and no rows: a copy of one that was migrated once."""
    if dialect == "sqlite":
        shutil.copyfile(request.getfixturevalue("_sqlite_template"), tmp_path / "kneo.sqlite")
        yield f"sqlite:///{tmp_path / 'kneo.sqlite'}"
        return
    server: Server = request.getfixturevalue("postgres_server")
    name = server.create(request.getfixturevalue("_postgres_template"))
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def store(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    """An open store of an installation with a service key, once on each kind of database."""
    opened = open_store(migrated_url, clock, find_key)
    yield opened
    opened.close()


@pytest.fixture
def keyless_store(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    """An open store of an installation without a service key: nothing is signed and no record is authenticated."""
    opened = open_store(migrated_url, clock)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared_store(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that all tests of a module share, for tests that must not leave anything in it."""
    path = tmp_path_factory.mktemp("shared") / "kneo.sqlite"
    shutil.copyfile(_sqlite_template, path)
    opened = open_store(f"sqlite:///{path}", ManualClock(START))
    yield opened
    opened.close()
