from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kneo.api.page import SearchPeriod
from kneo.cli.options import Period
from kneo.clock import SystemClock, isoformat, parse_time
from kneo.errors import InvalidValue


def test_a_period_takes_times_and_durations() -> None:
    period = Period(since="7d", until="2026-01-31T12:00:00Z")
    assert period.created_before == isoformat(datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert Period(since="2026-01-31").created_after == isoformat(datetime(2026, 1, 31, tzinfo=UTC))
    after = parse_time(str(period.created_after))
    assert timedelta(0) <= SystemClock().now() - timedelta(days=7) - after < timedelta(hours=1)
    assert (Period().created_after, Period().created_before) == (None, None)


@pytest.mark.parametrize("text", ["", "7", "7w", "yesterday", "2026-13-31", "999999999d"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        _ = Period(since=text).created_after


def test_a_default_period_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    searched = SearchPeriod(created_after="2026-01-01T00:00:00.000000+00:00", created_before=None)
    Period().show(searched)
    assert "2026-01-01" in capsys.readouterr().out
    Period(since="90d").show(searched)
    Period().show(None)
    assert not capsys.readouterr().out
