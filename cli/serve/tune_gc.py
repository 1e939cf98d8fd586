"""How often Python looks for garbage in a process that stays."""

from __future__ import annotations

import gc

YOUNG = 10_000
"""New objects after which Python looks for garbage among them. The usual 700 is less than one spec is made of."""


def settle() -> None:
    """Let Python look for garbage less often, and never among what was imported, which is there until the end.

    Objects in circles, which is all that this finds, are rare here; looking for them took a tenth of a first pass.
    """
    gc.freeze()
    gc.set_threshold(YOUNG)
