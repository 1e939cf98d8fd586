"""Where a step can stand and what it can be: every container inside every holder. The step in question is called x."""

from __future__ import annotations

from collections.abc import Iterable

from run_simulator import fn

BODY = [fn("a"), fn("b")]
CONTAINERS = {
    "function": fn("x", ref="a"),
    "steps": {"id": "x", "kind": "steps", "steps": BODY},
    "parallel": {"id": "x", "kind": "parallel", "steps": BODY},
    "condition": {"id": "x", "kind": "condition", "when": {"type": "always"}, "steps": BODY, "else": [fn("c")]},
    "loop": {"id": "x", "kind": "loop", "steps": BODY, "max_iterations": 2},
    "router": {"id": "x", "kind": "router", "choices": {"y": {"steps": BODY}}, "selector": {"default": "y"}},
    "workflow": {"id": "x", "kind": "workflow", "ref": "inner"},
}
HOLDERS = {
    "sequential": lambda step: [fn("first", ref="a"), step, fn("last", ref="a")],
    "concurrent": lambda step: {"type": "concurrent", "participants": [step, fn("d")]},
    "group-chat": lambda step: {"type": "group-chat", "participants": [step, fn("d")]},
    "handoff": lambda step: {"type": "handoff", "participants": [step, fn("d")]},
    "graph": lambda step: {
        "type": "graph",
        "start": "x",
        "nodes": {"x": step, "d": fn("d")},
        "edges": [{"from": "x", "to": "d"}],
    },
    "steps": lambda step: [{"id": "g", "kind": "steps", "steps": [step]}],
    "parallel": lambda step: [{"id": "g", "kind": "parallel", "steps": [step, fn("d")]}],
    "condition": lambda step: [{"id": "g", "kind": "condition", "when": {"type": "always"}, "steps": [step]}],
    "loop": lambda step: [{"id": "g", "kind": "loop", "steps": [step], "max_iterations": 1}],
    "router": lambda step: [
        {"id": "g", "kind": "router", "choices": {"z": {"steps": [step]}}, "selector": {"default": "z"}}
    ],
    "workflow": lambda _step: [{"id": "g", "kind": "workflow", "ref": "outer"}],
}


def guarded(tickets: Iterable[str]) -> list[str]:
    """The tickets of x and of what is in it."""
    return [ticket for ticket in tickets if "x" in ticket.split(":")[0].replace("#1", "").split("/")]
