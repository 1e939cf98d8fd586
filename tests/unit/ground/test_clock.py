from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo.clock import ManualClock, SystemClock, isoformat, monotonic, new_id, parse_duration, parse_time
from kneo.errors import Invalid

moments = st.datetimes(
    min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - the strategy adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.timezones() | st.just(UTC),
)


def test_the_system_clock_is_aware_and_utc() -> None:
    assert SystemClock().now().tzinfo is UTC


def test_a_manual_clock_moves_when_told() -> None:
    clock = ManualClock(datetime(2026, 1, 31, tzinfo=UTC))
    assert clock.now() == clock.now()
    clock.advance(timedelta(hours=1))
    assert clock.now() == datetime(2026, 1, 31, 1, tzinfo=UTC)


def test_monotonic_never_goes_back() -> None:
    assert monotonic() <= monotonic()


def test_a_time_is_spelled_one_way() -> None:
    assert isoformat(datetime(2026, 1, 31, 12, tzinfo=UTC)) == "2026-01-31T12:00:00.000000+00:00"
    berlin = timezone(timedelta(hours=1))
    assert isoformat(datetime(2026, 1, 31, 13, tzinfo=berlin)) == "2026-01-31T12:00:00.000000+00:00"


@given(moments)
def test_a_time_is_read_back(moment: datetime) -> None:
    # Compared as UTC: a wall-clock time that occurs twice, or never, equals nothing in another zone.
    assert parse_time(isoformat(moment)) == moment.astimezone(UTC)


@given(moments, moments)
def test_text_order_is_time_order(one: datetime, other: datetime) -> None:
    # Compared as UTC: the wall-clock order of two times in one zone is not their order when the clocks go back.
    assert (isoformat(one) < isoformat(other)) == (one.astimezone(UTC) < other.astimezone(UTC))


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00Z", "2026-01-31T13:00:00+01:00", "2026-01-31 12:00:00+00:00"])
def test_usual_spellings_are_read(text: str) -> None:
    assert parse_time(text) == datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "2026-01-31", "2026-01-31T12:00:00", "2026-02-30T12:00:00Z", "x" * 10_000]
)
def test_what_is_not_a_time_with_a_zone_is_refused_briefly(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_time(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_falls_off_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("0s", timedelta(0)),
    ],
)
def test_durations_are_read(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", "s", "5", "-5s", "1.5h", "5 m", "5M", "5w", "1h30m", "5s\n", "٥s", "9999999999s", "1" * 10_000 + "s"]
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="not a duration"):
        parse_duration(text)


def test_a_duration_longer_than_time_is_refused() -> None:
    assert parse_duration("999999999d") == timedelta(days=999_999_999)


def test_ids_are_opaque_distinct_and_fixed_in_length() -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    ids = {new_id("run", now) for _ in range(1_000)}
    assert len(ids) == 1_000
    assert {len(one) for one in ids} == {30}
    assert all(one.startswith("run_") for one in ids)


@given(moments, moments)
def test_the_order_of_ids_is_that_of_their_milliseconds(one: datetime, other: datetime) -> None:
    first, second = sorted((one.astimezone(UTC), other.astimezone(UTC)))
    if int(first.timestamp() * 1000) < int(second.timestamp() * 1000):
        assert new_id("run", first) < new_id("run", second)


def test_ids_of_one_moment_stay_in_the_order_they_were_made() -> None:
    now = SystemClock().now()
    made = [new_id("evt", now) for _ in range(1_000)]
    assert made == sorted(made)


def test_a_forked_process_makes_other_ids_than_its_parent() -> None:
    now = SystemClock().now()
    new_id("run", now)
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sending, new_id("run", now).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(receiving, 100).decode() != new_id("run", now)
    os.close(receiving)
    os.close(sending)
