"""How long linting takes, and that it grows with the spec and not faster.

Run ``python -m benchmarks.lint``. Each line is one spec: reading it, expanding and checking its shape, and the rules,
in milliseconds of CPU, the best of several runs, and the rules' cost for each step beside that of the smallest spec.
``--json`` prints the same as data; exit status 1 says that a target was missed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from time import process_time

import yaml

from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_spec, no_rules

AGENTS = 50
SIZES = (10, 100, 1_000)
RUNS = 10  # rounds; in each the rules run more often over small specs, since the clock is coarse for them
TARGET_MS = 500  # rules and loading of the spec of 50 agents and 3,000 lines
TARGET_RATIO = 2.0  # cost of one more step at 1,000 steps, beside one more at 100; a square would make it ten


@dataclass(frozen=True, slots=True)
class Measured:
    """One spec: its size and what it costs, in milliseconds of CPU."""

    steps: int
    agents: int
    lines: int
    load_ms: float
    rules_ms: float


def make_spec(steps: int, agents: int) -> bytes:
    """Write a spec that gives every rule something to do."""
    spec = {
        "version": "v1",
        "agent": {"name": "root", "model": {"provider": "dummy", "name": "echo"}},
        "workflow": {"type": "sequential", "steps": [_step(number, agents) for number in range(steps)]},
        "tools": {f"tool{n}": _tool(n) for n in range(agents)},
        "components": {
            "agents": {f"agent{n}": _agent(n) for n in range(agents)},
            "functions": {"send": {"implementation": "app.send", "capabilities": ["network"]}},
            "humans": {"boss": {"description": "May this go out?", "timeout_seconds": 3600, "on_timeout": "reject"}},
        },
    }
    return yaml.safe_dump(spec, sort_keys=False).encode()


def _step(number: int, agents: int) -> dict[str, object]:
    match number % 4:
        case 0:
            gate = {"before": {"human": "boss", "prompt": "Send it?"}}
            return {"id": f"step{number}", "kind": "function", "ref": "send", "review": gate}
        case 1:
            inner = {"id": f"inner{number}", "kind": "agent", "ref": f"agent{number % agents}"}
            when = {"type": "output_contains", "value": "x"}
            return {"id": f"step{number}", "kind": "condition", "when": when, "steps": [inner]}
        case 2:
            again = {"on_error": "fallback", "fallback_ref": f"step{number - 1}"}
            return {"id": f"step{number}", "kind": "agent", "ref": f"agent{number % agents}", **again}
        case _:
            return {"id": f"step{number}", "kind": "human", "ref": "boss"}


def _agent(number: int) -> dict[str, object]:
    pattern = rf"\b(?:key|token){number}[-_][A-Za-z0-9]{{16,}}\b"
    return {
        "name": f"agent{number}",
        "system_prompt": "You read what you are given.\nYou answer in one sentence.\n" * 4,
        "model": {"provider": "dummy", "name": "echo", "temperature": 0.2},
        "strategy": {"type": "react", "max_iterations": 4},
        "tools": {"include": [f"tool{number}"], "permissions": {"allow_network": False, "allow_shell": False}},
        "guardrails": {"output": [{"id": "keys", "type": "regex", "config": {"patterns": [pattern]}}]},
        "memory": {"policy": "sliding_window", "max_messages": 20},
    }


def _tool(number: int) -> dict[str, object]:
    properties = {name: {"type": "string", "description": f"The {name}."} for name in ("query", "language", "since")}
    parameters = {"type": "object", "properties": properties, "required": ["query"]}
    return {"description": f"Looks things up, {number}.", "implementation": "app.look_up", "parameters": parameters}


def measure(*sizes: tuple[int, int]) -> list[Measured]:
    """Measure specs of so many steps and agents side by side: round by round, so that a busy moment meets them all."""
    made = [make_spec(steps, agents) for steps, agents in sizes]
    loads: list[list[float]] = [[] for _ in sizes]
    rules: list[list[float]] = [[] for _ in sizes]
    for _ in range(RUNS):
        for number, data in enumerate(made):
            spent, spec = _load(data)
            loads[number].append(spent)
            rules[number].extend(_rules(spec) for _ in range(max(1, SIZES[-1] // (2 * sizes[number][0]))))
    return [
        Measured(steps, agents, data.count(b"\n"), round(min(load), 2), round(min(rule), 2))
        for (steps, agents), data, load, rule in zip(sizes, made, loads, rules, strict=True)
    ]


def _load(data: bytes) -> tuple[float, Spec]:
    begun = process_time()
    loaded = load_spec(data, file="spec.yaml", rules=no_rules)
    spent = 1_000 * (process_time() - begun)
    if loaded.spec is None:
        raise ValueError(loaded.diagnostics[0].message)
    return spent, loaded.spec


def _rules(spec: Spec) -> float:
    begun = process_time()
    check(spec)
    return 1_000 * (process_time() - begun)


def ratio(measured: list[Measured]) -> float:
    """Return what one more step costs in a large spec beside one more in a small spec; 1 is exactly linear."""
    small, middle, large = measured[:3]
    first = (middle.rules_ms - small.rules_ms) / (middle.steps - small.steps)
    later = (large.rules_ms - middle.rules_ms) / (large.steps - middle.steps)
    return later / max(first, 0.01)  # differences below the clock's resolution say nothing


def main() -> int:
    """Measure, print, and tell whether the targets were met."""
    *measured, large = measure(*((steps, 5) for steps in SIZES), (120, AGENTS))
    growth = ratio(measured)
    if "--json" in sys.argv[1:]:
        shape = {"growth": [asdict(one) for one in measured], "ratio": round(growth, 2), "large": asdict(large)}
        sys.stdout.write(json.dumps(shape, indent=2) + "\n")
    else:
        for one in (*measured, large):
            sys.stdout.write(
                f"{one.steps:5} steps {one.agents:3} agents {one.lines:6} lines: "
                f"load {one.load_ms:7.2f} ms, rules {one.rules_ms:6.2f} ms\n"
            )
        sys.stdout.write(f"one more step at 1,000 costs {growth:.2f} of one at 100 (target: at most {TARGET_RATIO})\n")
    return int(growth > TARGET_RATIO or large.load_ms + large.rules_ms > TARGET_MS)


if __name__ == "__main__":
    raise SystemExit(main())
