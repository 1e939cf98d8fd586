from datetime import UTC, datetime, timedelta

import pytest

from kneo.errors import Invalid
from kneo.spec.policy import next_opening, parse_window, windows_open

MONDAY = datetime(2026, 11, 16, tzinfo=UTC)


def at(day, hour, minute=0):
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


def test_one_stretch_of_every_week():
    weekend = parse_window("deny", "Fri 16:00 - Mon 08:00")
    assert not weekend.contains(at(4, 15, 59))
    assert weekend.contains(at(4, 16))
    assert weekend.contains(at(6, 23, 59))
    assert weekend.contains(at(7, 7, 59))
    assert weekend.contains(at(0, 3)), "Monday morning belongs to the weekend before"
    assert not weekend.contains(at(7, 8))
    assert not weekend.is_open(at(5, 12))
    assert weekend.is_open(at(2, 12))


def test_named_days_and_past_midnight():
    office = parse_window("allow", "Mon-Wed,Fri 09:00 - 17:00")
    assert [office.contains(at(day, 12)) for day in range(7)] == [True, True, True, False, True, False, False]
    night = parse_window("allow", "Sun 22:00 - 02:00")
    assert night.contains(at(6, 23))
    assert night.contains(at(0, 1))
    assert not night.contains(at(0, 2))
    always = parse_window("allow", "* 00:00 - 24:00")
    assert all(always.contains(at(day, hour)) for day in range(7) for hour in range(24))


def test_the_wall_clock_of_the_zone_counts():
    window = parse_window("allow", "* 09:00 - 10:00", "Europe/Berlin")
    assert window.contains(datetime(2026, 7, 1, 7, 30, tzinfo=UTC)), "summer: two hours ahead"
    assert window.contains(datetime(2026, 12, 1, 8, 30, tzinfo=UTC)), "winter: one hour ahead"
    assert not window.contains(datetime(2026, 12, 1, 7, 30, tzinfo=UTC))


def test_denied_wins_and_allowed_must_match_once_named():
    weekend, day = parse_window("deny", "Fri 16:00 - Mon 08:00"), parse_window("allow", "* 06:00 - 20:00")
    assert windows_open([], at(5, 3))
    assert windows_open([weekend], at(2, 3))
    assert not windows_open([weekend, day], at(2, 3))
    assert windows_open([weekend, day], at(2, 12))
    assert not windows_open([weekend, day], at(5, 12))


def test_the_next_opening():
    weekend = parse_window("deny", "Fri 16:00 - Mon 08:00")
    day = parse_window("allow", "* 06:00 - 20:00")
    assert next_opening([weekend, day], at(4, 17)) == at(7, 8)
    assert next_opening([weekend, day], at(1, 21)) == at(2, 6)
    assert next_opening([weekend, day], at(1, 12)) == at(1, 12)
    assert next_opening([parse_window("deny", "* 00:00 - 24:00")], at(1, 12)) is None


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        ("", "UTC"), ("Fri", "UTC"), ("Fri 16:00", "UTC"), ("Fri 16:00-Mon 08:00", "UTC"), ("Fry 16:00 - 17:00", "UTC"),
        ("* 25:00 - 26:00", "UTC"), ("* 10:60 - 11:00", "UTC"), ("* 10:00 - Mon 11:00", "UTC"),
        ("Mon-Tue 10:00 - Wed 11:00", "UTC"), ("* 10:00 - 11:00", "Mars/Olympus"), ("* 10:00 - 11:00", "/etc/passwd"),
        ("* 10:00 - 11:00", ""), ("* 10:00 - 11:00", "a\0b"), ("٠ 10:00 - 11:00", "UTC"), ("* ١٠:00 - 11:00", "UTC"),
    ],
)  # fmt: skip
def test_what_is_not_a_window(expression, zone):
    with pytest.raises(Invalid):
        parse_window("allow", expression, zone)


@pytest.mark.parametrize("expression", ["Sun 24:00 - Mon 00:00", "Mon 24:00 - Tue 00:00", "* 24:00 - 00:00"])
def test_a_window_that_is_never_is_refused(expression: str) -> None:
    with pytest.raises(Invalid):
        parse_window("deny", expression)
    assert parse_window("deny", expression, accepted=True).spans
    assert parse_window("deny", "Sun 00:00 - 24:00").contains(datetime(2026, 11, 22, 23, 59, tzinfo=UTC))
    assert parse_window("deny", "Mon 00:00 - Mon 00:00").contains(datetime(2026, 11, 22, 23, 59, tzinfo=UTC))


@pytest.mark.parametrize("expression", ["Mon 00:00 - Mon 00:00", "Tue 00:00 - Mon 24:00", "Mon 24:00 - Mon 24:00"])
def test_a_window_that_is_the_whole_week_is_read(expression: str) -> None:
    window = parse_window("deny", expression)
    assert all(window.contains(at(day, hour)) for day in range(7) for hour in range(24))


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "Factory", "posix/Europe/Berlin", "right/Europe/Berlin"])
def test_a_zone_that_each_machine_has_its_own_of_is_refused(zone: str) -> None:
    with pytest.raises(Invalid):
        parse_window("deny", "Sun 00:00 - 24:00", zone)
