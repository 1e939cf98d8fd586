from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
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
