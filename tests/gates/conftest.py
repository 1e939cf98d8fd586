"""Houses for questions: one running service on each kind of database, for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Server
from gate_house import House


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-gate", action="store_true", help="Try every place of a question, not a sample of them.")


@pytest.fixture(scope="session")
def _sqlite_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("sqlite-house")
    house = House(folder, f"sqlite:///{folder / 'kneo.sqlite'}")
    yield house
    house.close()


@pytest.fixture(scope="session")
def _postgres_house(tmp_path_factory: pytest.TempPathFactory, postgres_server: Server) -> Iterator[House]:
    name = postgres_server.create()
    house = House(tmp_path_factory.mktemp("postgres-house"), postgres_server.url(name))
    yield house
    house.close()
    postgres_server.drop(name)


@pytest.fixture
def house(dialect: str, request: pytest.FixtureRequest) -> House:
    """A service that other tests use too: look only at runs of your own, and do not kill it."""
    return request.getfixturevalue("_postgres_house" if dialect == "postgresql" else "_sqlite_house")


@pytest.fixture
def own_house(database_url: str, tmp_path: Path) -> Iterator[House]:
    """A service of a test's own, to be killed and started again."""
    house = House(tmp_path / "house", database_url)
    yield house
    house.close()
