"""The tiers: what the short one leaves out, and that a case which outgrows it is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from durations import TABLE, read_table, renewed
from tiers import LONG_SUITES, SMOKE, axes, cover, is_short_suite

ROOT = TABLE.parents[1]


@pytest.mark.parametrize("path", [*LONG_SUITES, *SMOKE])
def test_each_suite_of_the_rules_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_table_has_files_that_exist() -> None:
    assert [file for file in read_table() if not (ROOT / file).is_file()] == []


def test_the_short_tier_has_a_smoke_test_of_long_suites() -> None:
    assert is_short_suite("tests/unit/test_a.py::test_b")
    assert not is_short_suite("tests/soak/test_soak.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "--tier", "short", "tests/e2e", "tests/soak"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    files = {line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith("tests/")}
    assert files == {path for path in SMOKE if path.startswith("tests/e2e/")}


PRODUCT = """
import pytest

@pytest.mark.parametrize("wire", "abcd")
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(("status", "code"), [(1, "x"), (2, "x"), (3, "y")])
def test_product(wire, streaming, status, code): pass

@pytest.mark.parametrize(("status", "code"), [(1, "x"), (2, "x"), (3, "y")])
def test_rows(status, code): pass

def test_one(): pass
"""


class Collected:
    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items += session.items


def test_of_a_product_each_value_of_each_axis_is_kept(tmp_path: Path) -> None:
    (tmp_path / "test_product.py").write_text(PRODUCT)
    collected = Collected()
    pytest.main(
        ["--collect-only", "-q", "--rootdir", str(tmp_path), "-c", "/dev/null", str(tmp_path)],
        plugins=[collected],
    )
    tests = {
        name: [item for item in collected.items if item.name.startswith(name)]
        for name in ("test_product", "test_rows", "test_one")
    }
    assert [len(cases) for cases in tests.values()] == [24, 3, 1]
    chosen = {name: cover(cases) for name, cases in tests.items()}
    assert [len(cases) for cases in chosen.values()] == [4, 3, 1]
    for name, cases in tests.items():
        every = frozenset().union(*map(axes, cases))
        assert frozenset().union(*map(axes, chosen[name])) == every


BUSY = """
import threading
import time

def test_busy():
    end = time.process_time() + 0.5
    while time.process_time() < end: pass

def test_idle():
    threading.Event().wait(0.5)
"""

WATCHED = """
from durations import Stopwatch

def pytest_configure(config):
    config.pluginmanager.register(Stopwatch(lambda item: 0.25))
"""


def test_a_case_that_outgrows_the_short_tier_fails_and_one_that_waits_does_not(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(WATCHED)
    (tmp_path / "test_work.py").write_text(BUSY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)],
        env={"PYTHONPATH": str(ROOT / "tests/support"), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
    )
    assert "2 passed, 1 error" in done.stdout
    assert "make durations FILES=test_work.py" in done.stdout
    assert "test_busy" in done.stdout


def test_renewed_files_have_their_cases_as_they_are_now_and_others_stay() -> None:
    file, other = "tests/conftest.py", "tests/guards/test_tiers.py"
    table = {file: {"": 3.0, "test_gone": 3.0}, other: {"": 2.0, "test_a": 2.0}, "tests/test_gone.py": {"": 1.0}}
    assert renewed(table, {f"{file}::test_new[1]": 1.5, f"{file}::test_quick": 0.01}) == {
        file: {"": 1.5, "test_new[1]": 1.5},
        other: {"": 2.0, "test_a": 2.0},
    }
