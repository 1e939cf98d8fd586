from __future__ import annotations

from datetime import timedelta

import pytest
from builders import build_run

from kneo.clock import ManualClock, isoformat
from kneo.state.run import RunError, RunStatus
from kneo.store import project_metadata, runs
from kneo.store.engine import Store
from kneo.store.run_filter import RunFilter


@pytest.fixture
def five(store: Store, clock: ManualClock) -> list[str]:
    """Five runs, a second apart."""
    differences = (
        {"input_text": "100% sure", "metadata": {"session_id": "s1"}},
        {"input_text": "100 percent", "metadata": {"session_id": "s1"}},
        {"status": RunStatus.FAILED, "error": RunError(type="boom", message="x"), "output_text": "Said LOUDLY"},
        {"target": "agent", "workflow_name": None},
        {"environment": "prod", "workflow_name": "other"},
    )
    made = []
    for changes in differences:
        run = build_run(**changes)
        with store.write() as tx:
            runs.insert_run(tx, run)
        made.append(run.id)
        clock.advance(timedelta(seconds=1))
    return made


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (RunFilter(session_id="s1"), [0, 1]),
        (RunFilter(text="100%"), [0]),
        (RunFilter(text="said loud"), [2]),
        (RunFilter(text="_"), []),
        (RunFilter(text="\\"), []),
        (RunFilter(has_error=True), [2]),
        (RunFilter(has_error=False, session_id="s1"), [0, 1]),
        (RunFilter(status=RunStatus.FAILED), [2]),
        (RunFilter(target="agent"), [3]),
        (RunFilter(workflow_name="other"), [4]),
        (RunFilter(environment="prod", target="agent"), []),
    ],
)
def test_runs_are_found_by(store: Store, five: list[str], where: RunFilter, expected: list[int]) -> None:
    with store.read() as tx:
        found = runs.list_runs(tx, where, sort_by="created_at", descending=False)
        assert [five.index(run.id) for run in found] == expected
        assert runs.count_runs(tx, where) == len(expected)


def test_runs_are_found_by_time(store: Store, five: list[str], clock: ManualClock) -> None:
    start = clock.now() - timedelta(seconds=5)
    where = RunFilter(
        created_after=isoformat(start + timedelta(seconds=1)), created_before=isoformat(start + timedelta(seconds=3))
    )
    with store.read() as tx:
        assert {run.id for run in runs.list_runs(tx, where)} == set(five[1:3])


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("column", sorted(runs.SORTABLE))
def test_pages_hold_every_run_once_whatever_the_order(
    store: Store, five: list[str], column: str, descending: bool
) -> None:
    with store.read() as tx:
        pages = [runs.list_runs(tx, sort_by=column, descending=descending, limit=2, offset=at) for at in (0, 2, 4)]
    assert sorted(run.id for page in pages for run in page) == sorted(five)


def test_rows_without_the_value_come_last(store: Store, five: list[str]) -> None:
    with store.read() as tx:
        for descending in (True, False):
            found = runs.list_runs(tx, sort_by="session_id", descending=descending)
            assert {run.id for run in found[:2]} == set(five[:2])


def test_values_are_kept_by_name(store: Store) -> None:
    with store.write() as tx:
        assert project_metadata.read(tx, "policies") == {}
        project_metadata.lock(tx, "policies")
        project_metadata.write(tx, "policies", {"prod": {"enabled": True}})
        project_metadata.write(tx, "policies", {"prod": {"enabled": False}})
    with store.read() as tx:
        assert project_metadata.read(tx, "policies") == {"prod": {"enabled": False}}
        assert project_metadata.read(tx, "other") == {}
