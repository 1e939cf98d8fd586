"""What the host of a repository says is searched for signs of damage, however long it is."""

from __future__ import annotations

from time import process_time

import pytest

from kneo.controller.source import git
from kneo.controller.source.git import STDERR_BYTES


@pytest.mark.parametrize(
    "piece", ["packfile ", "index file ", "object file ", "unexpected line in ", "error: object a"]
)
def test_a_long_message_is_searched_in_linear_time(piece: str) -> None:
    said = (piece * STDERR_BYTES)[: 16 * STDERR_BYTES]
    begun = process_time()
    assert git._DAMAGE.search(said) is None
    assert git._BAD_OBJECT.search(said) is None
    assert git._NOT_DAMAGE.search(said) is None
    assert process_time() - begun < 10


@pytest.mark.parametrize(
    "said",
    [
        "error: packfile /srv/mirrors/a.git/objects/pack/pack-1.pack cannot be accessed",
        "fatal: object file objects/ab/cd is empty",
        "fatal: unexpected line in .git/packed-refs: x",
        "error: index file objects/pack/pack-1.idx is too small",
    ],
)
def test_damage_is_recognized(said: str) -> None:
    assert git._DAMAGE.search(said) is not None
