"""The normal form of a spec: overlays merged, project defaults filled in, short forms expanded and aliases replaced, so that
rules, digests and diffs see the same spec however it was typed.

Maps merge key by key; lists and scalars replace. An overlay's ``null`` removes the key, as does a map that contains
``__delete__: true``. Nothing is changed in place, so merged values may share parts with their sources.

Overlays apply one after the other, from the left. Merging two overlays first gives the same result only while the later
one deletes nothing and neither replaces a map by another kind of value or back: a merged overlay cannot express "remove
the old value, then set this".

A part of an unexpected kind is left as it is; the schema, which comes next, says what is wrong with it. Normalising
twice is normalising once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from kneo.spec.models import shorthand
from kneo.spec.models.workflow import DEFAULT_GRAPH_STEPS

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
        filled = {**filled, "agent": _agent_defaults(agent, defaults)}
    if defaults.policies:
        filled = {**filled, "policies": _filled(filled.get("policies"), {"project_defaults": defaults.policies})}
    return filled


def _agent_defaults(agent: dict[str, object], defaults: SpecDefaults) -> dict[str, object]:
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


Change = Callable[[object], object]
Tree = dict[str, object]


def normalize(tree: Mapping[str, object]) -> dict[str, object]:
    """Return a spec with every short form written out."""
    return _changed(dict(tree), {"agent": _agent, "workflow": _workflow, "components": _components, "tools": _TOOLS})


def _changed(value: Tree, changes: Mapping[str, Change]) -> Tree:
    return {key: changes[key](inner) if key in changes else inner for key, inner in value.items()}


def _part(changes: Mapping[str, Change], value: object) -> object:
    return _changed(value, changes) if isinstance(value, dict) else value


def _each(change: Change, value: object) -> object:
    if isinstance(value, dict):
        return {key: change(inner) for key, inner in value.items()}
    return [change(inner) for inner in value] if isinstance(value, list) else value


def _each_item(change: Change, value: object) -> object:
    return [change(inner) for inner in value] if isinstance(value, list) else value


def _agent(value: object) -> object:
    if not isinstance(value, dict):
        return value
    expanded = _changed(
        value,
        {"model": shorthand.model, "strategy": shorthand.strategy, "tools": shorthand.tool_selection},
    )
    if expanded.get("defaults") is None:
        expanded["defaults"] = {}
    return _with_tool_policy(expanded)


_GRANTS = (
    ("network", ("allow_network",)),
    ("filesystem", ("allow_filesystem_read", "allow_filesystem_write")),
    ("shell", ("allow_shell",)),
)


def _with_tool_policy(agent: Tree) -> Tree:
    """Turn ``policies.tool`` into ``tools.permissions``; where both speak, the stricter one wins."""
    policies = agent.get("policies")
    tools = agent.get("tools", {})
    policy = policies.get("tool") if isinstance(policies, dict) and policies.keys() == {"tool"} else None
    if not isinstance(policy, dict) or not isinstance(tools, dict | None) or not policy.keys() <= _POLICY_KEYS:
        return agent
    stated = (tools or {}).get("permissions")
    if not isinstance(stated, dict | None):
        return agent
    permissions = dict(stated or {})
    for word, names in _GRANTS:
        if policy.get(word) is not None:
            permissions |= {name: (False if permissions.get(name) is False else policy[word]) for name in names}
    if policy.get("allow") is not None:
        permissions["allowed_tools"] = _both(permissions.get("allowed_tools"), policy["allow"])
    if policy.get("deny"):
        permissions["denied_tools"] = _either(permissions.get("denied_tools"), policy["deny"])
    kept = {key: value for key, value in agent.items() if key not in {"policies", "tools"}}
    return {**kept, "tools": {**(tools or {}), "permissions": permissions}}


_POLICY_KEYS = {"allow", "deny", "network", "filesystem", "shell"}


def _both(stated: object, wanted: object) -> object:
    if isinstance(stated, list) and isinstance(wanted, list):
        return [name for name in wanted if name in stated]
    return wanted


def _either(stated: object, wanted: object) -> object:
    if isinstance(stated, list) and isinstance(wanted, list):
        return [*stated, *(name for name in wanted if name not in stated)]
    return wanted


def _components(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return _changed(
        value,
        {
            "agents": partial(_each, _agent),
            "workflows": partial(_each, _workflow),
            "humans": partial(_each, _human),
        },
    )


def _workflow(value: object) -> object:
    expanded = shorthand.workflow(value)
    if not isinstance(expanded, dict):
        return expanded
    if expanded.get("type") == "graph" and expanded.get("max_steps") is None:
        expanded = {**expanded, "max_steps": DEFAULT_GRAPH_STEPS}
    return _changed(
        expanded,
        {
            "steps": partial(_each_item, _step),
            "participants": partial(_each_item, _step),
            "nodes": partial(_each, _step),
            "edges": partial(_each_item, partial(_part, {"condition": _condition})),
        },
    )


def _step(value: object) -> object:
    expanded = shorthand.step(value)
    if not isinstance(expanded, dict):
        return expanded
    changes: dict[str, Change] = {"review": _review}
    kind = expanded.get("kind")
    if kind in ("steps", "parallel", "condition", "loop"):
        changes |= {"steps": partial(_each_item, _step), "else": partial(_each_item, _step)}
        changes |= {"when": _condition, "until": _condition}
    elif kind == "router":
        changes |= {"choices": _choices, "selector": _selector}
        return _with_order(_changed(expanded, changes))
    return _changed(expanded, changes)


def _with_order(router: Tree) -> Tree:
    """Keep the order in which choices are written, which a signed map does not; an alphabetical one need not be kept."""
    choices = router.get("choices")
    names = list(choices) if isinstance(choices, dict) else []
    if "order" in router or names == sorted(names):
        return router
    return {**router, "order": names}


def _choices(value: object) -> object:
    return _each(partial(_part, {"steps": partial(_each_item, _step)}), shorthand.choices(value))


def _selector(value: object) -> object:
    routes = partial(_each_item, partial(_part, {"when": _condition}))
    return _part({"conditions": routes}, shorthand.selector(value))


def _condition(value: object) -> object:
    children: dict[str, Change] = {"conditions": partial(_each_item, _condition), "condition": _condition}
    return _part(children, shorthand.condition(value))


def _review(value: object) -> object:
    return _each(_gate, value) if isinstance(value, dict) else value


def _gate(value: object) -> object:
    return _part({"human": _human, "when": _condition, "fields": _FIELDS}, shorthand.human(shorthand.gate(value)))


def _human(value: object) -> object:
    return _part({"fields": _FIELDS}, shorthand.human(value))


_FIELDS: Change = partial(_each_item, shorthand.answer_field)
_TOOLS: Change = partial(_each, partial(_part, {"review": _review}))
