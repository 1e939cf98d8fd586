"""Tests for the time axis of a run: times keep their order, work keeps its proportions, waiting is squeezed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo.service.console.graph_svg import bar_svg
from kneo.service.console.time_axis import LENGTH, TimeAxis

DAY = 86_400.0
INTERVALS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**5)).map(lambda pair: (float(pair[0]), float(sum(pair)))),
    max_size=30,
)


def test_a_day_of_waiting_leaves_room_for_a_second_of_work() -> None:
    axis = TimeAxis.of([(0, 1), (1 + DAY, 2 + DAY)], [(1, 1 + DAY)])
    assert axis.at(1) - axis.at(0) == pytest.approx(400)
    assert axis.at(2 + DAY) - axis.at(1 + DAY) == pytest.approx(400)
    [waiting] = axis.squeezed
    assert waiting.offset == pytest.approx(400)
    assert waiting.length == pytest.approx(200)


def test_short_waiting_is_not_squeezed() -> None:
    axis = TimeAxis.of([(0, 10), (11, 20)], [(10, 11)])
    assert axis.squeezed == ()
    assert axis.at(10) == pytest.approx(500)


def test_work_that_happens_during_a_wait_is_not_squeezed() -> None:
    axis = TimeAxis.of([(0, 100)], [(10, 90)])
    assert axis.squeezed == ()
    assert axis.at(50) == pytest.approx(500)


@pytest.mark.parametrize("intervals", [[], [(5.0, 5.0)]])
def test_a_run_without_a_past_has_an_axis(intervals: list[tuple[float, float]]) -> None:
    assert TimeAxis.of(intervals).at(intervals[0][0] if intervals else 0.0) == 0


@given(INTERVALS, INTERVALS, st.lists(st.integers(-10, 2 * 10**6), min_size=2))
def test_times_keep_their_order(
    work: list[tuple[float, float]], waits: list[tuple[float, float]], times: list[int]
) -> None:
    axis = TimeAxis.of(work, waits)
    places = [axis.at(time) for time in sorted(times)]
    assert all(-1e-6 <= place <= LENGTH + 1e-6 for place in places)
    assert all(a <= b + 1e-6 for a, b in pairwise(places))


@given(INTERVALS, INTERVALS)
def test_waiting_is_never_longer_than_drawn_work(
    work: list[tuple[float, float]], waits: list[tuple[float, float]]
) -> None:
    axis = TimeAxis.of(work, waits)
    for cut in axis.squeezed:
        assert not any(start < cut.end and end > cut.start for start, end in work)
        assert cut.length <= LENGTH


def test_a_bar_is_at_least_visible_and_inside_the_axis() -> None:
    axis = TimeAxis.of([(0, 1000)])
    bar = ET.fromstring(bar_svg(axis, 1000, 1000, "succeeded"))[-1]
    assert float(bar.attrib["width"]) >= 3
    assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= LENGTH
