"""Random specs from a seed: every family and container, questions everywhere, retries, and steps that stand in for others.

Ids of steps are unique in a spec, so that a place names its branch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

Tree = dict[str, object]

REJECTIONS = ("stop", "cancel", "fail", "skip", "continue")
WORDS = ("x", "y")


@dataclass
class Flows:
    """A source of random specs.

    Attributes:
        chance: What everything is drawn from.
        parallel: Whether steps may stand beside each other.
    """

    chance: random.Random
    parallel: bool = True
    _ids: int = field(default=0)

    def spec(self) -> Tree:
        inner = self.workflow(depth=1, nested=False)
        return {
            "agent": {"name": "root", "model": {"provider": "dummy", "name": "dummy"}},
            "workflow": self.workflow(depth=2, nested=True),
            "components": {
                "workflows": {"inner": inner},
                "functions": {"work": {"implementation": "app.work"}, "choose": {"implementation": "app.choose"}},
                "humans": {"plain": {}, "other": self._human()},
            },
        }

    # ---- families ---------------------------------------------------------------------------------------------

    def workflow(self, depth: int, *, nested: bool) -> Tree:
        families = ["sequential"] * 4 + ["graph", "handoff", "group-chat"] + ["concurrent"] * self.parallel
        family = self.chance.choice(families)
        steps = self.steps(depth, nested=nested)
        match family:
            case "sequential":
                return {"type": family, "steps": steps}
            case "graph":
                names = [step["id"] for step in steps]
                steps[0]["enabled"] = True
                edges = [self._edge(names) for _ in range(self.chance.randint(0, 5))]
                nodes = {step["id"]: step for step in steps}
                limit = self.chance.randint(2, 6)
                return {"type": family, "start": names[0], "nodes": nodes, "edges": edges, "max_steps": limit}
            case "concurrent":
                return {"type": family, "participants": steps}
            case "group-chat":
                return {"type": family, "participants": steps, **self._bounds(rounds=True)}
            case _:
                return {"type": family, "participants": steps, "selector": self._selector(steps), **self._bounds()}

    def _edge(self, names: list[object]) -> Tree:
        edge: Tree = {"from": self.chance.choice(names), "to": self.chance.choice(names)}
        return {**edge, "condition": self.condition()} if self.chance.random() < 0.6 else edge

    def _bounds(self, *, rounds: bool = False) -> Tree:
        found: Tree = {"rounds": self.chance.randint(1, 2)} if rounds else {}
        return {**found, "max_iterations": self.chance.randint(1, 5)} if self.chance.random() < 0.4 else found

    def _selector(self, steps: list[Tree]) -> Tree:
        names = [step["id"] for step in steps]
        chosen = [self.chance.choice(names) for _ in range(self.chance.randint(0, 3))]
        kind = self.chance.choice(["sequence", "round_robin"])
        return {"type": kind, "sequence": chosen} if chosen else {"type": kind}

    # ---- steps ------------------------------------------------------------------------------------------------

    def steps(self, depth: int, *, nested: bool) -> list[Tree]:
        found = [self.step(depth, nested=nested) for _ in range(self.chance.randint(1, 3))]
        for step in found:
            if step.get("on_error") == "fallback":
                step["fallback_ref"] = self.chance.choice(found)["id"]
        return found

    def step(self, depth: int, *, nested: bool) -> Tree:
        self._ids += 1
        kinds = ["function"] * 5 + ["human"] * 2 + ["workflow"] * nested
        kinds += (["steps", "condition", "condition", "loop", "router"] + ["parallel"] * self.parallel) * (depth > 0)
        kind = self.chance.choice(kinds)
        step: Tree = {"id": f"s{self._ids}", "kind": kind}
        if self.chance.random() < 0.08:
            step["enabled"] = False
        if kind != "human":
            if self.chance.random() < 0.35:
                step["on_error"] = self.chance.choice(["continue", "retry", "retry", "fallback"])
            if self.chance.random() < 0.15:
                step["max_retries"] = self.chance.randint(1, 2)
        if self.chance.random() < 0.2:
            step["save_as"] = self.chance.choice(["p", "q"])
        step |= self._body(kind, depth, nested=nested)
        review = self._review(kind)
        return {**step, "review": review} if review else step

    def _body(self, kind: str, depth: int, *, nested: bool) -> Tree:
        match kind:
            case "function":
                return {"ref": "work"}
            case "human":
                return {"ref": self.chance.choice(["plain", "other"])}
            case "workflow":
                return {"ref": "inner"}
            case "condition":
                ways = {"steps": self.steps(depth - 1, nested=nested), "else": self.steps(depth - 1, nested=nested)}
                return {"when": self.condition(), **ways}
            case "router":
                return self._router(depth, nested=nested)
            case "loop":
                body: Tree = {
                    "steps": self.steps(depth - 1, nested=nested),
                    "max_iterations": self.chance.randint(1, 3),
                }
                return {**body, "until": self.condition()} if self.chance.random() < 0.5 else body
            case _:
                return {"steps": self.steps(depth - 1, nested=nested)}

    def _router(self, depth: int, *, nested: bool) -> Tree:
        step: Tree = {"choices": {name: {"steps": self.steps(depth - 1, nested=nested)} for name in WORDS}}
        match self.chance.randint(0, 3):
            case 0:
                return step
            case 1:
                return {**step, "selector": {"function": "choose"}}
            case _:
                chosen = {"conditions": [{"when": self.condition(), "choice": "x"}]}
                return {**step, "selector": {**chosen, "default": "y"} if self.chance.random() < 0.8 else chosen}

    def condition(self) -> Tree:
        match self.chance.randint(0, 6):
            case 0:
                return {"type": "always"}
            case 1:
                return {"type": "never"}
            case 2:
                return {"type": "status_is", "value": self.chance.choice(["completed", "failed", "skipped"])}
            case 3:
                return {"type": "variable_equals", "key": self.chance.choice(["p", "q"]), "value": "x"}
            case 4:
                return {"type": "not", "condition": {"type": "output_equals", "value": "x"}}
            case _:
                return {"type": "output_contains", "value": self.chance.choice(WORDS)}

    # ---- questions --------------------------------------------------------------------------------------------

    def _human(self) -> Tree:
        human: Tree = {"max_retries": self.chance.randint(0, 2)}
        if self.chance.random() < 0.8:
            human["on_reject"] = self.chance.choice([*REJECTIONS, "retry", "retry"])
        if self.chance.random() < 0.4:
            human["decisions"] = self.chance.sample(["approved", "rejected", "edited"], self.chance.randint(1, 3))
        if self.chance.random() < 0.2:
            human["options"] = list(WORDS)
            human.pop("decisions", None)
        return human

    def _review(self, kind: str) -> Tree:
        places = {
            "condition": ["before"],
            "loop": ["before", "each"],
            "router": ["before", "after", "route"],
            "human": [],
        }
        named = places.get(kind, ["before", "after"]) + ["error"] * (kind != "human")
        return {place: self._gate(kind, place) for place in named if self.chance.random() < 0.25}

    def _gate(self, kind: str, place: str) -> Tree:
        gate: Tree = {"human": "plain"}
        if self.chance.random() < 0.2:
            gate["when"] = self.condition()
        if self.chance.random() < 0.1:
            gate["sample"] = 0.5
        if place == "error":
            if self.chance.random() < 0.5:
                gate["options"] = self.chance.choice([["retry", "stop"], ["retry", "skip"], ["skip", "stop"]])
            return {**gate, "max_retries": self.chance.randint(0, 2)}
        if place == "route":
            return gate
        effects = {"before": ["else"] * 2 if kind == "condition" else []}.get(place, ["retry"] * 2)
        if self.chance.random() < 0.8:
            gate["on_reject"] = self.chance.choice([*REJECTIONS, *effects])
        if self.chance.random() < 0.3:
            gate["max_retries"] = self.chance.randint(0, 2)
        return gate
