from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from databases import Server
from service_bench import Bench, serving


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One service for all tests of a module, on SQLite."""
    folder = tmp_path_factory.mktemp("service")
    paths = [*sys.path]
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}") as made:
        yield made
    # Functions of specs are found below the project's folder, which was put onto the path.
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_of_module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a new database for all tests of a module, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'kneo.sqlite'}"
        return
    server: Server = request.getfixturevalue("postgres_server")
    name = server.create()
    yield server.url(name)
    server.drop(name)
