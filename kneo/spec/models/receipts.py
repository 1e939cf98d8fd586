"""How much proof of a decision is asked for, from nothing to the reviewer's own signature."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypeVar

Receipt: TypeAlias = Literal["none", "signed", "signed_by_reviewer"]

BY_REVIEWER: Receipt = "signed_by_reviewer"

_STRENGTH = ("none", None, "signed", BY_REVIEWER)
"""From weak to strong; where nothing is said, decisions are signed wherever there is a key."""

R = TypeVar("R", bound=str)


def strongest(one: R | None, other: R | None) -> R | None:
    """Return which of two asks for more proof."""
    return max(one, other, key=_STRENGTH.index)
