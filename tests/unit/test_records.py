"""A copied record is the record that its constructor would make, and nothing that has a say in how it is made is copied."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import pytest
from builders import build_run

from kneo.record_copy import replace
from kneo.records.run import RunStatus


def test_a_copy_differs_in_what_was_changed_alone() -> None:
    run = build_run()
    before = dataclasses.asdict(run)
    after = replace(run, status=RunStatus.PAUSED, owner="me")
    assert after == dataclasses.replace(run, status=RunStatus.PAUSED, owner="me")
    assert dataclasses.asdict(run) == before
    assert hash(after.id) == hash(run.id)
    assert replace(run) == run
    assert replace(run) is not run


def test_there_is_no_field_that_the_record_has_not() -> None:
    with pytest.raises(TypeError, match="color"):
        replace(build_run(), color="red")


@dataclass(frozen=True)
class Checked:
    number: int

    def __post_init__(self) -> None:
        assert self.number > 0


@dataclass(frozen=True, slots=True)
class Slotted:
    number: int


@dataclass(frozen=True)
class Computed:
    number: int

    @cached_property
    def twice(self) -> int:
        return 2 * self.number


def test_what_checks_or_computes_something_is_not_copied() -> None:
    with pytest.raises(TypeError):
        replace(Checked(1), number=-1)
    with pytest.raises((TypeError, AttributeError)):
        replace(Slotted(1), number=2)
    known = Computed(1)
    assert known.twice == 2
    with pytest.raises(TypeError, match="twice"):
        replace(known, number=2)
