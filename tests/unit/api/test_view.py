"""Views repeat fields of records, by name and only with the same type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import Field

from kneo.api.page import view_of


@dataclass(frozen=True, kw_only=True)
class Record:
    id: str
    secret: str
    count: int
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlainView:
    id: str
    note: Annotated[str | None, Field(description="A note.")] = None
    count: int | None = None
    link: str


@dataclass(frozen=True, kw_only=True)
class NoteView:
    note: str


@dataclass(frozen=True, kw_only=True)
class WordView:
    count: str = "none"


RECORD = Record(id="one", secret="s", count=3, note="n")


def test_a_view_has_the_fields_of_its_record_and_those_that_are_passed() -> None:
    assert view_of(PlainView, RECORD, link="/one") == PlainView(id="one", note="n", count=3, link="/one")
    assert view_of(PlainView, RECORD, link="/one", note=None) == PlainView(id="one", count=3, link="/one")


def test_a_field_that_neither_the_record_nor_the_caller_has_is_an_error() -> None:
    with pytest.raises(TypeError, match="link"):
        view_of(PlainView, RECORD)


def test_a_field_that_may_be_null_is_not_copied_into_one_that_may_not() -> None:
    with pytest.raises(TypeError, match="note"):
        view_of(NoteView, RECORD)


def test_a_field_of_another_type_is_never_copied_and_never_left_at_its_default() -> None:
    with pytest.raises(TypeError, match="count"):
        view_of(WordView, RECORD)
    assert view_of(WordView, RECORD, count="three") == WordView(count="three")
