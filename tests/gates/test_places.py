"""Wherever a question stands, what it guards has not run before the yes and does not run after the no."""

from __future__ import annotations

import pytest
from gate_house import House
from gate_places import PLACES, Place, sample

SAMPLED = 26


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--every-gate", default=False)
        count = 3 if "cancelled" in metafunc.function.__name__ else SAMPLED
        metafunc.parametrize("place", PLACES if whole else sample(count), ids=str)


def test_the_sample_leaves_no_position_and_no_holder_out() -> None:
    for of in (lambda place: (place.position, place.kind), lambda place: place.holder):
        assert set(map(of, sample(SAMPLED))) == set(map(of, PLACES))


def guarded(did: list[str]) -> list[str]:
    return sorted(name for name in did if name.startswith("guarded"))


def test_nothing_guarded_runs_without_a_yes(house: House, place: Place) -> None:
    run = house.start_at(place)
    assert run["status"] == "paused", run
    assert len(house.tasks(run)) == 1
    assert guarded(house.did(run)) == []
    approved = house.settle(run, place.yes)
    assert approved["status"] == "succeeded", approved
    assert guarded(house.did(run)) == sorted(place.guarded)
    if place.no is None:
        return
    other = house.start_at(place)
    rejected = house.settle(other, place.no)
    assert rejected["status"] in {"succeeded", "cancelled", "failed"}, rejected
    assert guarded(house.did(other)) == []


def test_a_cancelled_run_runs_nothing_that_was_guarded(house: House, place: Place) -> None:
    run = house.start_at(place)
    task = house.tasks(run)[0]
    house.at.post(f"/runs/{run['run_id']}/cancel")
    late = house.answer(task, **place.yes)
    assert (late.status_code, late.json()["error"]) == (409, "human_task_cancelled")
    assert house.tasks(run) == []
    assert guarded(house.did(run)) == []
