"""Which cases a run has: `make test-all` has every one, `make test` those of the short tier.

A case is in the short tier unless one of these holds:

* Its folder or file is one of ``LONG_SUITES``, and it is not in ``SMOKE``.
* It took longer than ``LIMIT`` when the table of durations was recorded, and it is not in ``SMOKE``.
* It runs on the other database, and its subject is not the store.
* Other cases of the same test have each of its parameters: of a product, the short tier has each value of each axis.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
from databases import DIALECTS
from durations import Recorder, Stopwatch, Table, read_table, recorded_seconds

LIMIT = 0.25
"""Seconds that a case of the short tier takes at most, as recorded."""

OUTGROWN = 5.0
"""Seconds after which a case of the short tier fails: far more than a busy machine, or a library that it is the first to import, takes."""

EXAMPLES = 30
"""Examples of a property in the short tier, at most."""

LONG_SUITES = (
    "tests/browser/",
    "tests/conformance/hitl/",
    "tests/conformance/seeds/",
    "tests/deploy/",
    "tests/e2e/",
    "tests/gates/test_killed.py",
    "tests/guards/test_reference_fresh.py",
    "tests/integration/controller/test_canary_killed.py",
    "tests/integration/controller/test_killed.py",
    "tests/integration/sandbox/test_places.py",
    "tests/soak/",
)
"""Folders and files of which the short tier has nothing but ``SMOKE``."""

SMOKE = ("tests/browser/test_first_use.py", "tests/e2e/test_readme.py", "tests/e2e/test_tour.py")

PROPERTY_SETTINGS = "_hypothesis_internal_use_settings"
"""The attribute in which Hypothesis keeps the settings of a property."""

SHORT = pytest.StashKey[frozenset[str]]()
"""The cases of the short tier among those of a run."""

EITHER = (
    "tests/conformance/",
    "tests/e2e/",
    "tests/gates/",
    *(f"tests/integration/{name}/" for name in ("agents", "controller", "notify", "service")),
)
"""Folders of tests whose subject is not the store: each case runs on one kind of database, every second one on PostgreSQL."""

SHORT_EITHER = (*EITHER, "tests/integration/")
"""The same in the short tier, of whose cases every eighth runs on PostgreSQL, where a case takes a third more, and none on both."""

WHOLE = ("--every-database", "--every-write", "--every-gate")
"""Options with which every case runs on both kinds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=["short", "all"], help="Run the short tier or all, and fail slow cases of it.")
    parser.addoption("--record-durations", action="store_true", help="Record what each case takes in the table.")
    parser.addoption("--every-database", action="store_true", help="Run every case on both kinds of databases.")


def pytest_configure(config: pytest.Config) -> None:
    recording = config.getoption("record_durations")
    if recording or config.getoption("tier"):
        config.pluginmanager.register(Stopwatch(limit_of))
    if recording and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


def limit_of(item: pytest.Item) -> float:
    """Return the seconds after which a case fails."""
    is_bounded = item.nodeid in item.config.stash.get(SHORT, frozenset()) and is_short_suite(item.nodeid)
    return OUTGROWN if is_bounded else float("inf")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files of which the short tier has nothing, before they are imported."""
    if config.getoption("tier") != "short" or not collection_path.name.startswith("test_"):
        return None
    path = collection_path.relative_to(config.rootpath).as_posix()
    return None if path.startswith(SMOKE) or is_short_suite(path) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the tier of a run does not have, unless a test is named on the command line."""
    is_named = any("::" in word for word in config.args)
    tier = config.getoption("tier")
    if not is_named and not any(config.getoption(name, default=False) for name in WHOLE):
        either, every = (SHORT_EITHER, 8) if tier == "short" else (EITHER, 2)
        keep(config, items, [item for item in items if not is_on_the_other(item, either, every)])
    if tier is None:
        return
    short = short_tier(items)
    config.stash[SHORT] = frozenset(item.nodeid for item in short)
    if tier == "short" and not is_named:
        keep(config, items, short)
        for item in items:
            limit_examples(item)


def keep(config: pytest.Config, items: list[pytest.Item], kept: Sequence[pytest.Item]) -> None:
    chosen = set(kept)
    left_out = [item for item in items if item not in chosen]
    items[:] = [item for item in items if item in chosen]
    config.hook.pytest_deselected(items=left_out)


def short_tier(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the items of the short tier."""
    table = read_table()
    tests: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        is_quick = is_short_suite(item.nodeid) and expected_seconds(table, item) <= LIMIT
        if is_quick or item.nodeid.startswith(SMOKE):
            tests[item.nodeid.partition("[")[0]].append(item)
    return [item for cases in tests.values() for item in cover(cases)]


def is_short_suite(nodeid: str) -> bool:
    """Return whether a test is in a folder and file whose tests are in the short tier unless they take long."""
    return not nodeid.startswith(LONG_SUITES)


def cover(cases: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return cases of a test that have each value of each of its axes, those with the most values first."""
    values = {item: axes(item) for item in cases}
    missing = set().union(*values.values())
    chosen = []
    left = list(cases)
    while missing or not chosen:
        best = max(left, key=lambda item: len(values[item] & missing))
        chosen.append(best)
        left.remove(best)
        missing -= values[best]
    return chosen


def axes(item: pytest.Item) -> frozenset[tuple[int, str]]:
    """Return a case's place on each axis of its test; one list of parameters is one axis."""
    spec = getattr(item, "callspec", None)
    # One id for each list of parameters, in the order of the lists. Indices are no help: pytest counts cases with them, not values.
    return frozenset(enumerate(spec._idlist)) if spec else frozenset()


def is_on_the_other(item: pytest.Item, either: tuple[str, ...], every: int) -> bool:
    """Return whether a case runs on one kind of database, one of so many on PostgreSQL, and not on that of this item."""
    spec = getattr(item, "callspec", None)
    if spec is None or "dialect" not in spec.params or not item.nodeid.startswith(either):
        return False
    if either is EITHER and item.get_closest_marker("both_databases") is not None:
        return False
    case = re.sub("|".join(DIALECTS), "", item.nodeid)
    return bool(spec.params["dialect"] != DIALECTS[zlib.crc32(case.encode()) % every == 0])


def examples_of(item: pytest.Item) -> int:
    """Return how many examples a property tries; 0 for another test."""
    settings = getattr(getattr(item, "obj", None), PROPERTY_SETTINGS, None)
    return settings.max_examples if settings else 0


def expected_seconds(table: Table, item: pytest.Item) -> float:
    """Return what a case takes in the short tier."""
    return recorded_seconds(table, item.nodeid) * min(1.0, EXAMPLES / max(examples_of(item), 1))


def limit_examples(item: pytest.Item) -> None:
    """Let a property try no more examples than one of the short tier."""
    if examples_of(item) > EXAMPLES:
        function = item.obj  # type: ignore[attr-defined]
        limited = hypothesis.settings(getattr(function, PROPERTY_SETTINGS), max_examples=EXAMPLES)
        setattr(function, PROPERTY_SETTINGS, limited)
