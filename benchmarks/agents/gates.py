"""The cost of gates at calls: none, one that always asks, and one with an expression that accepts the call by a rule."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from kneo.runtime.program.gates import compile_tool_gates
from kneo.spec.expression import evaluate, parse
from kneo.spec.policy import ToolRules
from kneo.spec.reading.load import load_tree

WHEN = "args.amount > 100 || args.currency != 'EUR'"
SMALL = "args.amount >= 0 && args.amount <= 100 && args.currency == 'EUR'"
ARGUMENTS = {"amount": 50, "currency": "EUR", "note": "late delivery"}

CALLS = 2_000


def gate_costs(rounds: int) -> dict[str, float]:
    """Return the milliseconds for each call; the median of the rounds."""
    rules = ToolRules.model_validate({"unattended": [{"tools": ["refund"], "when": SMALL}]})
    found: dict[str, float] = {}
    for name, review in (
        ("no gate", {}),
        ("always asks", {"before": True}),
        ("expression", {"before": {"when": WHEN}}),
    ):
        found[name] = _median(rounds, _check(review, rules))
    parsed = parse(WHEN)
    found["expression alone"] = _median(rounds, lambda: evaluate(parsed, {"args": ARGUMENTS}))
    return found


def _check(review: dict[str, object], rules: ToolRules) -> Callable[[], object]:
    tool = {"description": "Refunds.", "implementation": "shop.refund", "capabilities": ["privileged"]}
    spec = load_tree(
        {
            "agent": {"name": "teller", "tools": {"include": ["refund"], "permissions": {}}},
            "tools": {"refund": {**tool, **({"review": review} if review else {})}},
        }
    ).spec
    assert spec is not None
    of_call, names = compile_tool_gates(spec).of_step((), "seed"), spec.tools["refund"].names("refund")

    def check() -> object:
        gates = of_call("teller", "refund", ARGUMENTS)
        if gates and gates[0].unless_unattended:
            return rules.accepts_unattended(names, {"args": ARGUMENTS})
        return gates

    return check


def _median(rounds: int, work: Callable[[], object]) -> float:
    durations = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(CALLS):
            work()
        durations.append((time.perf_counter() - started) / CALLS * 1_000)
    return round(statistics.median(durations), 4)
