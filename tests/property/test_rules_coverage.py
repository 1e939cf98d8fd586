"""The gate coverage proof against its meaning: where nobody ever approves anything, no privileged call runs.

The reference below plays every way a workflow can go when each question is rejected or left unanswered. A call that it
can make is ungated, and only such a call is; the proof must say the same of exactly the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.spec.lint import check
from kneo.spec.models.spec import Spec

OK, ENDED = "ok", "ended"
REJECTIONS = ["stop", "cancel", "fail", "retry", "skip", "continue"]


def gate(effects: list[str]) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(
        {"on_reject": st.sampled_from(effects)},
        optional={"when": st.sampled_from([{"type": "output_contains", "value": "x"}, "output == 'x'"])},
    )


LEAVES = st.one_of(
    st.just({"kind": "function", "ref": "fire"}),
    st.just({"kind": "function", "ref": "calm"}),
    st.sampled_from(REJECTIONS).map(lambda effect: {"kind": "human", "ref": effect}),
    st.just({"kind": "workflow", "ref": "inner"}),
)
BEFORE = {"review": gate(["stop", "cancel", "fail", "skip", "continue"]).map(lambda g: {"before": g})}
AFTER = {"review": gate(REJECTIONS).map(lambda g: {"after": g})}
EACH = {"review": gate(REJECTIONS).map(lambda g: {"each": g})}
RESCUE = {"review": st.sampled_from([{}, {"options": ["retry", "stop"]}]).map(lambda g: {"error": g})}
ON_ERROR = {"on_error": st.sampled_from(["continue", "retry"])}


def step(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    many = st.lists(inner, max_size=3)
    row = st.fixed_dictionaries({"kind": st.sampled_from(["steps", "loop", "parallel"]), "steps": many})
    choice = st.fixed_dictionaries(
        {"kind": st.just("condition"), "when": st.just({"type": "never"}), "steps": many, "else": many}
    )
    containers = st.one_of(row, choice)
    plain = st.tuples(containers, st.fixed_dictionaries({}, optional=ON_ERROR)).map(merged)
    gated = st.tuples(containers, st.fixed_dictionaries(BEFORE, optional=ON_ERROR)).map(merged)
    saved = st.tuples(containers, st.fixed_dictionaries(RESCUE, optional=ON_ERROR)).map(merged)
    loop = st.fixed_dictionaries({"kind": st.just("loop"), "steps": many, **EACH}, optional=ON_ERROR)
    return st.one_of(plain, gated, saved, loop)


def merged(parts: tuple[dict, dict]) -> dict:
    return {**parts[0], **parts[1]}


def leaf() -> st.SearchStrategy[dict]:
    bare = st.tuples(LEAVES, st.fixed_dictionaries({}, optional=ON_ERROR)).map(merged)
    asked = LEAVES.filter(lambda leaf: leaf["kind"] != "human")
    either = st.one_of(
        st.fixed_dictionaries(BEFORE, optional=ON_ERROR), st.fixed_dictionaries(AFTER, optional=ON_ERROR)
    )
    return st.one_of(bare, st.tuples(asked, either).map(merged))


STEPS = st.lists(st.recursive(leaf(), step, max_leaves=8), max_size=4)


def numbered(steps: list[dict], count: Iterator[int]) -> list[dict]:
    named = []
    for one in steps:
        inner = {key: numbered(one[key], count) for key in ("steps", "else") if key in one}
        named.append({**one, **inner, "id": f"s{next(count)}"})
    return named


class Reference:
    """Every way through, with nobody approving. Outcomes: it goes on, it fails, or the run is over."""

    def __init__(self, inner: list[dict]) -> None:
        self.inner = inner
        self.fired: set[str] = set()

    def row(self, steps: list[dict]) -> set[str]:
        ways = {OK}
        for one in steps:
            if OK not in ways:
                break
            ways = (ways - {OK}) | self.step(one)
        return ways

    def step(self, one: dict) -> set[str]:
        ways = self.asked(one)
        rescue = one.get("review", {}).get("error")
        skipped = rescue is not None and "skip" in rescue.get("options", ["skip"])
        if "fail" in ways and (skipped or one.get("on_error") == "continue"):
            ways = (ways - {"fail"}) | {OK}
        return ways

    def asked(self, one: dict) -> set[str]:
        review = one.get("review", {})
        before = review.get("before")
        if before is None:
            return self.ran(one, review.get("after") or review.get("each"))
        ways = set()
        if before["on_reject"] == "continue" or "when" in before:
            ways |= self.ran(one, None)
        if before["on_reject"] in {"skip", "continue"}:
            # What was rejected is left out, at a condition with both its branches.
            ways |= {OK}
        return ways or {ENDED}

    def ran(self, one: dict, after: dict | None) -> set[str]:
        ways = self.body(one)
        if one["kind"] != "human":
            ways |= {"fail"}  # anything but a question may fail
        if after is not None and OK in ways:
            goes_on = after["on_reject"] in {"skip", "continue"} or "when" in after
            ways = (ways - {OK}) | ({OK} if goes_on else {ENDED})
        return ways

    def body(self, one: dict) -> set[str]:
        match one["kind"]:
            case "function":
                if one["ref"] == "fire":
                    self.fired.add(one["id"])
                return {OK}
            case "human":
                return {OK} if one["ref"] in {"skip", "continue"} else {ENDED}
            case "workflow":
                return self.row(self.inner)
            case "parallel":
                every = [self.step(inner) for inner in one["steps"]]
                blocked = any(OK not in ways for ways in every)
                failing = {"fail"} if any("fail" in ways for ways in every) else set()
                return failing | ({ENDED} if blocked else {OK})
            case "condition":
                return self.row(one["steps"]) | self.row(one["else"])
            case _:
                return self.row(one["steps"])


def spec_of(outer: list[dict], inner: list[dict], functions: dict[str, dict]) -> Spec:
    return Spec.model_validate(
        {
            "agent": {"name": "root"},
            "workflow": outer,
            "components": {
                "workflows": {"inner": inner},
                "functions": {name: {"implementation": f"app.{name}"} | given for name, given in functions.items()},
                "humans": {effect: {"on_reject": effect} for effect in REJECTIONS},
            },
        }
    )


def ungated(spec: Spec) -> set[str]:
    """Return the steps with a privileged call that no gate is before."""
    return {each.message.split()[0] for each in check(spec) if each.code == "E_PRIVILEGED_UNGATED"}


@settings(max_examples=400, deadline=None)
@given(STEPS, STEPS)
def test_the_proof_means_what_it_says(outer: list[dict], inner: list[dict]) -> None:
    count = iter(range(1_000))
    outer = numbered(outer, count)
    inner = numbered([one for one in inner if "workflow" not in str(one)], count)
    reference = Reference(inner)
    reference.row(outer)
    assert ungated(spec_of(outer, inner, {"fire": {"capabilities": ["shell"]}, "calm": {}})) == reference.fired


SANDBOXES = st.fixed_dictionaries(
    {},
    optional={
        "level": st.sampled_from(["none", "process", "kernel"]),
        "net": st.just(["a.example:443"]),
        "read": st.just(["/data"]),
        "write": st.just(["/out"]),
        "processes": st.integers(1, 3),
        "memory": st.sampled_from(["16Mi", "1Gi"]),
    },
)


@settings(max_examples=60, deadline=None)
@given(STEPS, SANDBOXES, SANDBOXES)
def test_a_sandbox_leaves_out_no_gate_that_is_needed_without_it(outer: list[dict], fire: dict, calm: dict) -> None:
    outer = numbered([one for one in outer if "workflow" not in str(one)], iter(range(1_000)))
    functions: dict[str, dict] = {"fire": {"capabilities": ["shell"]}, "calm": {}}
    confined = {"fire": functions["fire"] | {"sandbox": fire}, "calm": {"sandbox": calm}}
    without, with_ = ungated(spec_of(outer, [], functions)), ungated(spec_of(outer, [], confined))
    assert without <= with_
    if calm.get("processes", 1) == 1 and not calm.keys() & {"net", "read", "write"}:
        assert without == with_
