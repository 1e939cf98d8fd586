"""One way to write each thing: short forms are expanded and aliases replaced, so that rules, digests and diffs see
the same spec however it was typed.

A part of an unexpected kind is left as it is; the schema, which comes next, says what is wrong with it. Normalising
twice is normalising once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from kneo.spec.models import shorthand
from kneo.spec.models.workflow import DEFAULT_GRAPH_STEPS

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
            permissions |= {name: _stricter(permissions.get(name), policy[word]) for name in names}
    if policy.get("allow") is not None:
        permissions["allowed_tools"] = _both(permissions.get("allowed_tools"), policy["allow"])
    if policy.get("deny"):
        permissions["denied_tools"] = _either(permissions.get("denied_tools"), policy["deny"])
    kept = {key: value for key, value in agent.items() if key not in {"policies", "tools"}}
    return {**kept, "tools": {**(tools or {}), "permissions": permissions}}


_POLICY_KEYS = {"allow", "deny", "network", "filesystem", "shell"}


def _stricter(stated: object, wanted: object) -> object:
    return False if stated is False else wanted


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
    if expanded.get("kind") in {"steps", "parallel", "condition", "loop"}:
        changes |= {"steps": partial(_each_item, _step), "else": partial(_each_item, _step)}
        changes |= {"when": _condition, "until": _condition}
    elif expanded.get("kind") == "router":
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
