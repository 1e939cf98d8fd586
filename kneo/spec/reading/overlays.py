"""How one plain value is laid over another.

Maps merge key by key; lists and scalars replace. An overlay's ``null`` removes the key, as does a map that contains
``__delete__: true``. Nothing is changed in place, so merged values may share parts with what they came from.

Overlays act one after the other: what they add up to is the fold from the left. Merging two overlays first gives the
same only while the later one deletes nothing and neither turns a map into something else or back, because a merged
overlay has no way to say "remove what was there and then put this".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

DELETE_KEY = "__delete__"


def deep_merge(base: object, overlay: object) -> object:
    """Lay an overlay over a value."""
    if not isinstance(overlay, dict):
        return overlay
    merged: dict[str, object] = dict(base) if isinstance(base, dict) else {}
    for key, value in overlay.items():
        if value is None or (isinstance(value, dict) and value.get(DELETE_KEY) is True):
            merged.pop(key, None)
        else:
            merged[key] = deep_merge(merged.get(key), value)
    return merged


def merge_all(base: object, overlays: Iterable[object]) -> object:
    """Lay overlays over a value, in order; an empty overlay (a file with nothing in it) changes nothing."""
    for overlay in overlays:
        if overlay is not None:
            base = deep_merge(base, overlay)
    return base


def fill_missing(value: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Add what a map does not say or says as null; what it says stays."""
    filled = dict(value)
    for key, default in defaults.items():
        if default is not None and filled.get(key) is None:
            filled[key] = default
    return filled
