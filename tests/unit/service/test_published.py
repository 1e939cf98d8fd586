"""The words of the published service: translated at the edge, in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from pydantic import TypeAdapter, ValidationError

from kneo.api.run_views import StatusWord
from kneo.records.run import RunStatus
from kneo.service.published import expects_published_words, in_published_words, own_parameters, own_word, own_words


@dataclass(frozen=True)
class Echo:
    text: str
    status: StatusWord


def test_published_words_replace_statuses_and_nothing_else() -> None:
    view = Echo(text="paused", status=RunStatus.PAUSED)
    assert in_published_words([view]) == [Echo(text="paused", status="blocked")]  # type: ignore[arg-type]


@pytest.mark.parametrize("status", RunStatus)
def test_a_status_in_published_words_is_read_back(status: RunStatus) -> None:
    word = in_published_words(status)
    assert own_words(f"{word}, {status}") == f"{status},{status}"
    read = TypeAdapter(Echo).validate_python({"text": "blocked", "status": str(word)}, context=own_word)
    assert (read.text, read.status) == ("blocked", status)
    assert isinstance(read.status, RunStatus)


def test_a_view_without_a_translation_reads_the_own_words_alone() -> None:
    assert TypeAdapter(StatusWord).validate_python("paused") is RunStatus.PAUSED
    with pytest.raises(ValidationError):
        TypeAdapter(StatusWord).validate_python("blocked")


def test_parameters_that_are_no_statuses_of_runs_stay_as_they_are() -> None:
    assert own_parameters("list_runs", {"status": "blocked", "q": "blocked"}) == {"status": "paused", "q": "blocked"}
    assert own_parameters("list_human_tasks", {"status": "blocked"}) == {"status": "blocked"}


def test_the_setting_decides_before_the_user_agent() -> None:
    assert expects_published_words("auto", "kneo-client/1.2.0")
    assert not expects_published_words("auto", "curl/8")
    assert not expects_published_words("documented", "kneo-client/1.2.0")
    assert expects_published_words("published")
