"""The pace of a soak, the people who decide, and processor time by kind of process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from soak.costs import ProcessorTime
from soak.fleet import PEOPLE
from soak.load import decides
from soak.pace import BACKLOG_SECONDS, WINDOW_SECONDS, Overload, Pace, PaceCheck
from soak.run import per_run

RATE = 10.0


def pace(at: float, *, started: float = RATE, decided: float = RATE, waiting: int = 0) -> Pace:
    """Return counts of a soak after some seconds, with starts and decisions per second."""
    return Pace(at, int(at * RATE), int(at * started), int(at * decided), waiting)


def check(*paces: Pace) -> None:
    check = PaceCheck(RATE)
    for one in paces:
        check.check(one)


def test_a_fleet_that_keeps_up_is_no_overload() -> None:
    check(*(pace(float(at), waiting=int(RATE * BACKLOG_SECONDS)) for at in range(0, 600, 5)))


def test_a_backlog_is_no_overload_before_a_window_has_passed() -> None:
    check(pace(0.0), pace(WINDOW_SECONDS - 1, waiting=100_000))


def test_a_growing_backlog_is_reported_with_the_rate_that_the_fleet_carries() -> None:
    limit = int(RATE * BACKLOG_SECONDS)
    with pytest.raises(
        Overload, match=rf"carries 4\.0 runs per second and the rate is 10\.0.* {limit + 1} runs wait.*RATE=2,"
    ):
        check(pace(0.0), pace(WINDOW_SECONDS, decided=4, waiting=limit + 1))


def test_runs_that_are_not_started_are_reported() -> None:
    with pytest.raises(Overload, match=r"180 of 600 ordered runs were started"):
        check(pace(0.0), pace(WINDOW_SECONDS, started=3, decided=3))


def test_rates_are_those_of_the_last_window() -> None:
    calm = [pace(float(at)) for at in range(0, 300, 5)]
    slow = Pace(300 + WINDOW_SECONDS, 3600, 3000, 3000 + 60, 601)
    with pytest.raises(Overload, match=r"carries 1\.\d runs per second"):
        check(*calm, pace(300.0), slow)


def test_each_task_has_a_person_and_some_are_decided_by_all() -> None:
    deciders = [sum(decides(person, f"cont_{number}") for person in PEOPLE) for number in range(1000)]
    assert set(deciders) == {1, len(PEOPLE)}
    assert 50 < deciders.count(len(PEOPLE)) < 200


def test_processor_time_is_counted_with_that_of_children() -> None:
    costs = ProcessorTime()
    costs.sample({os.getpid(): "tests"})
    before = costs.seconds["tests"]
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=240)
    costs.sample({os.getpid(): "tests", 2**22 + 1: "a process that has ended"})
    assert costs.seconds["tests"] >= before + 0.45
    assert set(costs.seconds) == {"load", "tests"}


def test_the_cost_of_a_run_is_what_the_processes_used_for_the_runs_that_were_decided_meanwhile() -> None:
    before, after = ({"worker": 3.0}, 100), ({"worker": 5.0, "postgres": 1.0}, 200)
    assert per_run(before, after) == {"postgres": 10.0, "worker": 20.0}
    assert per_run(after, after) == {"postgres": 0.0, "worker": 0.0}
