"""Random workflows of every family, with questions everywhere and steps that stand in for each other."""

from __future__ import annotations

from itertools import count

from hypothesis import strategies as st

EFFECTS = ["stop", "cancel", "fail", "skip", "continue"]
SILENCES = ["approve", "continue", "skip", "cancel", "reject"]
CONDITION = st.sampled_from(
    [
        {"type": "always"},
        {"type": "never"},
        {"type": "output_contains", "value": "x"},
        {"type": "status_is", "value": "failed"},
    ]
)


@st.composite
def questions(draw: st.DrawFn, effects: list[str]) -> dict:
    gate: dict = {"on_reject": draw(st.sampled_from(effects))}
    if draw(st.integers(0, 3)) == 0:
        gate |= {"timeout_seconds": 5, "on_timeout": draw(st.sampled_from(SILENCES))}
    return gate


@st.composite
def gates(draw: st.DrawFn, effects: list[str]) -> dict:
    gate = draw(questions(effects))
    if draw(st.integers(0, 3)) == 0:
        gate["when"] = draw(CONDITION)
    return gate


@st.composite
def reviews(draw: st.DrawFn, kind: str) -> dict:
    places = {"condition": ["before"], "loop": ["before", "each"], "router": ["before", "after", "route"]}
    review = {}
    for place in [*places.get(kind, ["before", "after"]), "error"]:
        if draw(st.integers(0, 2)):
            continue
        if place == "error":
            review[place] = {"options": draw(st.sampled_from([["retry", "stop"], ["retry", "skip", "stop"]]))}
        elif place == "route":
            review[place] = {"timeout_seconds": 5, "on_timeout": draw(st.sampled_from(["skip", "cancel", "reject"]))}
        else:
            before = EFFECTS + (["else"] if kind == "condition" else [])
            review[place] = draw(gates(before if place == "before" else [*EFFECTS, "retry"]))
    return review


@st.composite
def steps(draw: st.DrawFn, depth: int) -> list[dict]:
    found = [draw(a_step(depth)) for _ in range(draw(st.integers(1, 3)))]
    for number, step in enumerate(found):
        step["id"] = f"{number}"
        if step.get("on_error") == "fallback":
            step["fallback_ref"] = f"{draw(st.integers(0, len(found) - 1))}"
    return found


@st.composite
def a_step(draw: st.DrawFn, depth: int) -> dict:
    kinds = ["function"] * 3 + ["human"] * 2 + ["workflow"]
    kind = draw(st.sampled_from(kinds + ["steps", "parallel", "condition", "loop", "router"] * bool(depth)))
    step: dict = {"kind": kind, "enabled": draw(st.integers(0, 9)) > 0}
    if draw(st.integers(0, 3)) == 0:
        step["on_error"] = draw(st.sampled_from(["continue", "retry", "fallback"]))
    match kind:
        case "function":
            step["ref"] = draw(st.sampled_from(["fire", "calm"]))
        case "human":
            step["ref"] = draw(st.sampled_from(["stops", "stops", "h0", "h1"]))
        case "workflow":
            step["ref"] = "inner"
        case "condition":
            step |= {"when": draw(CONDITION), "steps": draw(steps(depth - 1)), "else": draw(steps(depth - 1))}
        case "router":
            ways = {name: {"steps": draw(steps(depth - 1))} for name in "xy"}
            step |= {
                "choices": ways,
                "selector": {"conditions": [{"when": draw(CONDITION), "choice": "x"}], "default": "y"},
            }
        case _:
            step["steps"] = draw(steps(depth - 1))
    review = draw(reviews(kind)) if kind != "human" else {}
    return {**step, "review": review} if review else step


@st.composite
def workflows(draw: st.DrawFn) -> dict:
    members = draw(steps(2))
    match draw(st.sampled_from(["sequential", "sequential", "graph", "concurrent", "handoff", "group-chat"])):
        case "sequential":
            return {"type": "sequential", "steps": members}
        case "graph":
            names = st.sampled_from([step["id"] for step in members])
            ways = st.fixed_dictionaries({"from": names, "to": names}, optional={"condition": CONDITION})
            nodes = {step["id"]: step for step in members}
            edges = draw(st.lists(ways, max_size=5))
            return {"type": "graph", "start": "0", "nodes": nodes, "edges": edges, "max_steps": 6}
        case family:
            return {"type": family, "participants": members}


def named(step: object, numbers: count) -> object:
    """Give every privileged function a name of its own, so that a run tells which step called it."""
    if isinstance(step, list):
        return [named(inner, numbers) for inner in step]
    if not isinstance(step, dict):
        return step
    found = {key: named(inner, numbers) for key, inner in step.items()}
    return {**found, "ref": f"fire{next(numbers)}"} if found.get("ref") == "fire" else found
