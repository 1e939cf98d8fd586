"""Overlays and project defaults: how one plain value is merged over another.

Maps merge key by key; lists and scalars replace. An overlay's ``null`` removes the key, as does a map that contains
``__delete__: true``. Nothing is changed in place, so merged values may share parts with their sources.

Overlays apply one after the other, from the left. Merging two overlays first gives the same result only while the later
one deletes nothing and neither replaces a map by another kind of value or back: a merged overlay cannot express "remove
the old value, then set this".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kneo.spec.models import shorthand

DELETE_KEY = "__delete__"


def deep_merge(base: object, overlay: object) -> object:
    """Merge an overlay over a value."""
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
    """Merge overlays over a value, in order; an empty overlay (an empty file) changes nothing."""
    for overlay in overlays:
        if overlay is not None:
            base = deep_merge(base, overlay)
    return base


def fill_missing(value: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Add the defaults of keys that a map lacks or has as null."""
    filled = dict(value)
    for key, default in defaults.items():
        if default is not None and filled.get(key) is None:
            filled[key] = default
    return filled


@dataclass(frozen=True, slots=True)
class SpecDefaults:
    """Values for fields that a spec leaves open.

    Attributes:
        base: The value that the spec is merged over, with the semantics of overlays.
        model: Fills ``agent.model``; its ``extra`` is filled key by key.
        runtime: Fills ``agent.runtime_preferences``.
        metadata: Fills ``metadata``.
        policies: Kept under ``policies.project_defaults`` of the spec.
    """

    base: Mapping[str, object] = field(default_factory=dict)
    model: Mapping[str, object] = field(default_factory=dict)
    runtime: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    policies: Mapping[str, object] = field(default_factory=dict)


NO_DEFAULTS = SpecDefaults()


def apply_defaults(tree: Mapping[str, object], defaults: SpecDefaults) -> dict[str, object]:
    """Fill the fields that a spec leaves open; only the root agent gets agent defaults."""
    merged = deep_merge(dict(defaults.base), dict(tree)) if defaults.base else dict(tree)
    filled = merged if isinstance(merged, dict) else dict(tree)
    if defaults.metadata:
        filled = {**filled, "metadata": _filled(filled.get("metadata"), defaults.metadata)}
    agent = filled.get("agent")
    if isinstance(agent, dict):
        filled = {**filled, "agent": _agent(agent, defaults)}
    if defaults.policies:
        filled = {**filled, "policies": _filled(filled.get("policies"), {"project_defaults": defaults.policies})}
    return filled


def _agent(agent: dict[str, object], defaults: SpecDefaults) -> dict[str, object]:
    if agent.get("as_agent") is not None:
        return agent  # a model or runtime of its own would contradict the workflow
    filled = dict(agent)
    if defaults.runtime:
        filled["runtime_preferences"] = _runtime(agent.get("runtime_preferences"), defaults.runtime)
    if defaults.model:
        filled["model"] = _model(agent.get("model"), defaults.model)
    return filled


def _runtime(stated: object, defaults: Mapping[str, object]) -> object:
    """Fill the preferences, but with no mode that the spec's own list does not allow."""
    allowed = stated.get("allowed_modes") if isinstance(stated, dict) else None
    if isinstance(allowed, list) and allowed:
        modes = ("preferred_mode", "fallback_mode")
        defaults = {key: value for key, value in defaults.items() if key not in modes or value in allowed}
    return _filled(stated, defaults)


def _model(model: object, defaults: Mapping[str, object]) -> object:
    if isinstance(model, str):
        # The short form names no provider, so the project's applies before the language's own default.
        model = {"name": model} if defaults.get("provider") else shorthand.model(model)
    filled = _filled(model, defaults)
    extra = defaults.get("extra")
    if isinstance(filled, dict) and isinstance(extra, dict) and extra:
        filled["extra"] = _filled(filled.get("extra"), extra)
    return filled


def _filled(value: object, defaults: Mapping[str, object]) -> object:
    """Fill a map or None; the schema refuses any other kind of value."""
    if value is None:
        value = {}
    return fill_missing(value, defaults) if isinstance(value, dict) else value
