"""Every place where a question can stand, generated: what holds the step, and where on it the question is written.

A place has functions behind its question, all called ``guarded…``. None may have run before a person agreed, nor
after a person said no.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Tree = dict[str, object]

LEGAL = {
    "before": ("function", "steps", "parallel", "condition", "loop", "router", "workflow"),
    "after": ("function", "steps", "parallel", "router", "workflow"),
    "each": ("loop",),
    "route": ("router",),
    "error": ("function", "steps", "parallel", "condition", "loop", "router", "workflow"),
}
"""Which positions mean something on which kind of step."""


def effect(name: str) -> Tree:
    return {"id": name, "kind": "function", "ref": "effect"}


def bodies(inner: str) -> dict[str, Tree]:
    """One step of each kind, named ``x``; what is in it is called ``inner`` with a number."""
    two = [effect(f"{inner}1"), effect(f"{inner}2")]
    return {
        "function": {**effect("x"), "id": f"{inner}0"},
        "steps": {"id": "x", "kind": "steps", "steps": two},
        "parallel": {"id": "x", "kind": "parallel", "steps": two},
        "condition": {
            "id": "x",
            "kind": "condition",
            "when": {"type": "always"},
            "steps": two,
            "else": [effect("else")],
        },
        "loop": {"id": "x", "kind": "loop", "steps": two, "max_iterations": 3},
        "router": {"id": "x", "kind": "router", "choices": {"y": {"steps": two}}, "selector": {"default": "y"}},
        "workflow": {"id": "x", "kind": "workflow", "ref": f"{inner}flow"},
    }


def broken(step: Tree) -> Tree:
    """The same step with functions that fail."""
    inner = {
        key: [broken(one) for one in value]
        for key, value in step.items()
        if isinstance(value, list) and key in {"steps", "else"}
    }
    ways = {"choices": {name: broken(way) for name, way in step["choices"].items()}} if "choices" in step else {}
    return {**step, **inner, **ways, **({"ref": "broken"} if step.get("ref") == "effect" else {})}


HOLDERS: Mapping[str, Callable[[Sequence[Tree]], object]] = {
    "sequential": lambda steps: [effect("first"), *steps, effect("last")],
    "concurrent": lambda steps: {"type": "concurrent", "participants": [group(steps), effect("beside")]},
    "group-chat": lambda steps: {"type": "group-chat", "participants": [group(steps), effect("beside")]},
    "handoff": lambda steps: {"type": "handoff", "participants": [group(steps), effect("beside")]},
    "graph": lambda steps: {
        "type": "graph",
        "start": "g",
        "nodes": {"g": group(steps), "d": effect("d")},
        "edges": [{"from": "g", "to": "d"}],
    },
    "steps": lambda steps: [{"id": "h", "kind": "steps", "steps": [group(steps)]}],
    "parallel": lambda steps: [{"id": "h", "kind": "parallel", "steps": [group(steps), effect("beside")]}],
    "condition": lambda steps: [{"id": "h", "kind": "condition", "when": {"type": "always"}, "steps": [group(steps)]}],
    "loop": lambda steps: [{"id": "h", "kind": "loop", "steps": [group(steps)], "max_iterations": 1}],
    "router": lambda steps: [
        {"id": "h", "kind": "router", "choices": {"z": {"steps": [group(steps)]}}, "selector": {"default": "z"}}
    ],
    "workflow": lambda _steps: [{"id": "h", "kind": "workflow", "ref": "outer"}],
}


def group(steps: Sequence[Tree]) -> Tree:
    return {"id": "g", "kind": "steps", "steps": list(steps)}


@dataclass(frozen=True)
class Place:
    """A workflow with one question in it, and the answers that let the guarded functions run or keep them from it."""

    holder: str
    position: str
    kind: str
    steps: tuple[Tree, ...]
    yes: Mapping[str, str]
    no: Mapping[str, str] | None
    guarded: tuple[str, ...]
    """The functions that run once each after a yes, and never otherwise."""

    def __str__(self) -> str:
        return f"{self.position}-{self.kind}-in-{self.holder}"

    @property
    def workflow(self) -> object:
        return HOLDERS[self.holder](self.steps)

    @property
    def workflows(self) -> dict[str, object]:
        two = [effect("guarded1"), effect("guarded2")]
        plain = [effect("plain1"), effect("plain2")]
        return {"guardedflow": two, "plainflow": plain, "failflow": [broken(effect("fail"))], "outer": list(self.steps)}


YES = {"decision": "approved"}
NO = {"decision": "rejected"}
BEHIND = effect("guarded")


def place(holder: str, position: str, kind: str) -> Place:
    """Write the question at one position of one kind of step within one holder."""
    if position == "step":
        steps = ({"id": "x", "kind": "human", "ref": "ann"}, BEHIND)
        return Place(holder, position, kind, steps, YES, NO, ("guarded",))
    if position == "before":
        step = {**bodies("guarded")[kind], "review": {"before": {"human": "ann"}}}
        if kind == "loop":
            step["max_iterations"] = 1
        ran = ("guarded0",) if kind == "function" else ("guarded1", "guarded2")
        return Place(holder, position, kind, (step,), YES, NO, ran)
    if position == "route":
        ways = {"y": {"steps": [BEHIND]}, "n": {"steps": [effect("refused")]}}
        step = {"id": "x", "kind": "router", "choices": ways, "review": {"route": {"human": "ann"}}}
        return Place(
            holder, position, kind, (step,), {"decision": "selected", "selected_option": "y"}, None, ("guarded",)
        )
    if position == "error":
        step = {**broken(bodies("fail")[kind]), "review": {"error": {"human": "ann"}}}
        yes, no = ({"decision": "selected", "selected_option": word} for word in ("skip", "stop"))
        return Place(holder, position, kind, (step, BEHIND), yes, no, ("guarded",))
    step = {**bodies("plain")[kind], "review": {position: {"human": "ann", "on_reject": "stop"}}}
    return Place(holder, position, kind, (step, BEHIND), YES, NO, ("guarded",))


PLACES = tuple(
    place(holder, position, kind)
    for holder, (position, kind) in product(
        HOLDERS, [("step", "human"), *((position, kind) for position, kinds in LEGAL.items() for kind in kinds)]
    )
)


def sample(count: int) -> tuple[Place, ...]:
    """Choose places so that every holder and every position on every kind is among them, the rest by a fixed seed."""
    mixed = random.Random(7).sample(PLACES, len(PLACES))
    chosen: list[Place] = []
    for one in mixed:
        if all((one.position, one.kind) != (other.position, other.kind) for other in chosen) or all(
            one.holder != other.holder for other in chosen
        ):
            chosen.append(one)
    return tuple((chosen + [one for one in mixed if one not in chosen])[:count])
