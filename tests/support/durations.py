"""How long cases take: the recorded table, and a stopwatch that keeps the table and the tiers honest.

A duration is the smaller of two: the time that passed, and the processor time of the process and of the children that it waited for. The
first is longer on a busy machine; the second also has children of earlier cases.
"""

from __future__ import annotations

import json
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest
from databases import DIALECTS
from warm import used_seconds

TABLE = Path(__file__).parents[1] / "durations.json"
"""The recorded seconds of each file, and of each of its cases that takes ``NOTED`` or longer."""

NOTED = 0.25

PROPERTY = "duration"

Table = dict[str, dict[str, float]]
"""Seconds of cases by file and name; the sum of a file has the name ``""``."""


def read_table(path: Path = TABLE) -> Table:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def recorded_seconds(table: Table, nodeid: str) -> float:
    """Return what a case took when it was recorded, on either kind of database; 0 for a quick one, or one that was never recorded."""
    file, _, name = nodeid.partition("::")
    names = {name, *(name.replace(*dialects) for dialects in permutations(DIALECTS, 2))}
    return max(table.get(file, {}).get(each, 0.0) for each in names)


def renewed(table: Table, taken: Mapping[str, float]) -> Table:
    """Return the table with the files of these cases as they are now, without files that do not exist any more."""
    files: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for nodeid, seconds in taken.items():
        file, _, name = nodeid.partition("::")
        files[file][name] = seconds
    new = {
        file: {"": round(sum(cases.values()), 1)}
        | {name: round(seconds, 2) for name, seconds in sorted(cases.items()) if seconds >= NOTED}
        for file, cases in files.items()
    }
    root = TABLE.parents[1]
    return {file: row for file, row in sorted({**table, **new}.items()) if (root / file).exists()}


@dataclass(frozen=True)
class Moment:
    """A reading of both clocks, in seconds."""

    passed: float
    used: float

    @classmethod
    def now(cls) -> Moment:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime + used_seconds())

    def until_now(self) -> float:
        """Return the duration since this moment."""
        now = Moment.now()
        return min(now.passed - self.passed, now.used - self.used)


class Stopwatch:
    """Measures each case with the fixtures of its own, without those that it shares with other cases."""

    def __init__(self, limit_of: Callable[[pytest.Item], float]) -> None:
        self._limit_of = limit_of
        self._shared = 0.0
        self._sharing = False
        self._taken = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        if fixturedef.scope == "function" or self._sharing:
            return (yield)
        self._sharing, begun = True, Moment.now()
        try:
            return (yield)
        finally:
            self._sharing = False
            self._shared += begun.until_now()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, None, None]:
        self._taken = 0.0
        return (yield from self._measured())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        try:
            return (yield from self._measured())
        finally:
            item.user_properties.append((PROPERTY, self._taken))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        yield
        limit = self._limit_of(item)
        if self._taken > limit:
            pytest.fail(
                f"took {self._taken:.1f} s; a case of `make test` may take {limit:.0f} s. "
                f"Make it quicker, or record it for `make test-all`: make durations FILES={item.nodeid.partition('::')[0]}",
                pytrace=False,
            )

    def _measured(self) -> Generator[None, None, None]:
        self._shared, begun = 0.0, Moment.now()
        try:
            yield
        finally:
            self._taken += max(begun.until_now() - self._shared, 0.0)


class Recorder:
    """Writes what each case of a run took into the table."""

    def __init__(self) -> None:
        self._taken: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._taken[report.nodeid] = float(str(dict(report.user_properties).get(PROPERTY, 0.0)))

    def pytest_sessionfinish(self) -> None:
        table = renewed(read_table(), self._taken)
        TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
