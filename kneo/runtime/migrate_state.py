"""Bringing the state of older runs to this version, so that a deploy never strands a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kneo.errors import Invalid
from kneo.records.run import STATE_VERSION

State = Mapping[str, object]


def migrate_state(state: State, version: int) -> State:
    """Return a state in today's format.

    Raises:
        Invalid: ``state_too_new``: a newer version of Kneo wrote it.
    """
    if version > STATE_VERSION:
        msg = f"The run's state has version {version}; this version of Kneo knows {STATE_VERSION}."
        raise Invalid(msg, code="state_too_new", hint="Run it with the newer version.")
    for number in range(version, STATE_VERSION):
        state = _STEPS[number](state)
    return state


def _from_1(frame: State) -> State:
    """Texts became values; a leaf and a gate became a step in a phase; a child moved under its slot."""
    if "child" in frame:
        child = frame["child"]
        assert isinstance(child, Mapping)
        inner = _from_1(child)
        index = frame["index"]
        # A nested sequence is what a step does now, not what stands in its place.
        wrapped = inner if "phase" in inner else _as_body(inner)
        return {"node": frame["node"], "index": index, "children": {str(index): wrapped}}
    kept = {"node": frame["node"], "input": {"text": frame["input"]}, "attempt": frame.get("attempt", 0)}
    if "task" not in frame:
        return {**kept, "phase": "body", "failures": frame["attempt"]}
    asked = {"task": frame["task"]} if frame["task"] else {}
    return {**kept, "phase": "step", **asked}


def _as_body(inner: State) -> State:
    return {
        "node": inner["node"],
        # What a nested workflow was given was not kept; it is needed only by retries, which did not exist for it.
        "input": {"text": ""},
        "attempt": 0,
        "phase": "body",
        "children": {"body": inner},
    }


def _as_it_is(frame: State) -> State:
    """Take a state to which a version only added what older programs would not understand."""
    return frame


def _with_chosen_branches(frame: State) -> State:
    """Keep the branch that each condition is in, where a repetition would evaluate its condition again.

    Whether a person decided on it was not kept; a repetition on the same input comes to the same branch either way.
    """
    moved = {}
    for name in ("children", "stuck"):
        inner = frame.get(name)
        if isinstance(inner, Mapping):
            moved[name] = {slot: _with_chosen_branches(child) for slot, child in inner.items()}
    body = moved.get("children", {}).get("body")
    slots = set(body.get("children", {})) if body is not None else set()  # type: ignore[call-overload]
    chosen = {"chosen": slots.pop()} if len(slots) == 1 and slots < {"then", "else"} else {}
    return {**frame, **moved, **chosen}


_STEPS: Mapping[int, Callable[[State], State]] = {1: _from_1, 2: _as_it_is, 3: _with_chosen_branches, 4: _as_it_is}
