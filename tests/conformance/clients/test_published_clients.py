"""The published clients against a live service: ``make conformance``. They come from a package index, in environments
of their own, and are not touched; a deviation is ours."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance.clients.published import CLIENT_0_4, CLIENT_1_2, DASH, STUDIO, Missing, environment, find_browser
from conformance.clients.scene import Scene

HERE = Path(__file__).parent
DRIVERS = {"client_1_2.py": CLIENT_1_2, "client_0_4.py": CLIENT_0_4, "dash.py": DASH, "studio.py": STUDIO}


Drive = Callable[[str], dict[str, str | None]]


def checks_of(driver: str) -> list[str]:
    """Name the checks of a driver without running it: it needs an environment of its own."""
    tree = ast.parse((HERE / driver).read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name.removeprefix("check_") for name in names if name.startswith("check_")]


WAITING: dict[str, set[str]] = {}
"""Checks of what the service does not answer yet. One that passes nevertheless fails here: it has to leave this list."""


@pytest.fixture(scope="module")
def drive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    """Runs a driver once, however many tests ask for what it found."""
    if not request.config.getoption("--published-clients"):
        pytest.skip("the published clients come from a package index: make conformance")
    scene = Scene(tmp_path_factory.mktemp("scene"))
    found: dict[str, dict[str, str | None]] = {}

    def call(driver: str) -> dict[str, str | None]:
        if driver not in found:
            try:
                tools = (
                    dict(zip(("browser", "chromedriver"), find_browser(), strict=True)) if driver == "dash.py" else {}
                )
                python = environment(DRIVERS[driver])
            except Missing as missing:
                pytest.skip(str(missing))
            found[driver] = scene.drive(python, driver, **tools)
        return found[driver]

    yield call
    scene.stop()


@pytest.mark.parametrize(("driver", "check"), [(driver, name) for driver in DRIVERS for name in checks_of(driver)])
@pytest.mark.timeout(600)
def test_published_client(driver: str, check: str, drive: Drive, request: pytest.FixtureRequest):
    if check in WAITING.get(driver, ()):
        request.applymarker(pytest.mark.xfail(strict=True))
    problem = drive(driver)[f"check_{check}"]
    if problem is not None:
        pytest.fail(problem, pytrace=False)
