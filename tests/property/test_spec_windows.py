"""Windows: the next opening is open, nothing before it is, and a week later it is all the same."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from kneo.spec.policy import DAYS, next_opening, parse_window, windows_open

times = st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.integers(0, 59))
days = st.sampled_from(DAYS)
expressions = (
    st.builds("{} {} - {} {}".format, days, times, days, times)
    | st.builds("{} {} - {}".format, st.just("*") | days, times, times)
    | st.builds("{}-{} {} - {}".format, days, days, times, times)
    | st.builds("{},{} {} - {}".format, days, days, times, times)
)
zones = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia", "Pacific/Kiritimati"]
)
windows = st.lists(st.builds(parse_window, st.sampled_from(["allow", "deny"]), expressions, zones), max_size=3)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive


@given(windows, moments)
def test_the_next_opening_is_the_next(listed, now):
    opening = next_opening(listed, now)
    if opening is None:
        assert not any(windows_open(listed, now + timedelta(hours=hour)) for hour in range(24 * 7))
        return
    assert opening >= now
    assert windows_open(listed, opening)
    waits = opening - now
    # A clock change moves an edge of a window by up to an hour; away from the edge the answer is exact.
    for part in range(20):
        moment = now + waits * part / 20
        if opening - moment > timedelta(hours=2):
            assert not windows_open(listed, moment)


@given(windows, st.datetimes(datetime(2026, 1, 1), datetime(2026, 2, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - bounds are naive
def test_weeks_repeat_while_no_clock_changes(listed, now):
    assert windows_open(listed, now) == windows_open(listed, now + timedelta(days=7))


@given(windows, moments)
def test_a_window_is_open_or_not_by_what_it_contains(listed, now):
    for window in listed:
        assert window.is_open(now) == windows_open([window], now)
