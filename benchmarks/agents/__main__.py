"""What a turn of an agent costs beside others, in one run on one machine: ``make bench-agents``.

A turn is one request to the model and one tool call. The model is a scripted server on loopback in a process of its own; each
system talks to it through the library of OpenAI. What is left without the wire, whose requests grow with the conversation, is
measured with a model inside the process, for Kneo and pydantic-ai. Systems take turns, round by round, and the middle of each one's rounds counts;
only ratios of one run mean anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.agents import conversation
from benchmarks.agents.calls import measure_calls
from benchmarks.agents.gates import gate_costs
from benchmarks.agents.grants import grant_costs
from benchmarks.agents.sandbox import sandbox_costs
from benchmarks.agents.start import measure_start
from benchmarks.engine import peers

HERE = conversation.ROOT / "benchmarks" / "agents"
LENGTHS = [5, 20, 60]
SYSTEMS = ("kneo", "pydantic-ai", "langgraph", "openai-agents")

Costs = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--count", type=int, default=5, help="conversations of 20 turns in each round, and as many turns of others"
    )
    parser.add_argument("--runs", type=int, default=1000, help="agents that wait at once")
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    answer: dict[str, object] = {}
    for name, measure in SECTIONS.items():
        if options.only in {None, name}:
            answer |= measure(options)
    if options.json:
        print(json.dumps(answer, indent=2))
        return
    for title, found in answer.items():
        print(f"\n{title}")
        assert isinstance(found, Mapping)
        for name, value in found.items():
            print(f"  {name:16} {value}")


def _turns(options: argparse.Namespace) -> dict[str, object]:
    alone = turns(options.rounds, options.count, ("kneo", "pydantic-ai"), wire=False)
    return {
        "a turn, model on loopback": turns(options.rounds, options.count, SYSTEMS),
        "a turn, model in the process": alone,
    }


def turns(rounds: int, count: int, names: Sequence[str], *, wire: bool = True) -> dict[str, object]:
    """Return what a turn costs each system, and the two ratios that Kneo is held to."""
    systems: dict[str, Callable[[], list[str]]] = {
        "kneo": lambda: [sys.executable, "-m", "benchmarks.agents.kneo_turns"],
        "pydantic-ai": lambda: [sys.executable, "-m", "benchmarks.agents.pydantic_ai_turns"],
        "langgraph": lambda: [str(peers.langgraph_agents()), str(HERE / "peer_langgraph.py")],
        "openai-agents": lambda: [str(peers.openai_agents()), str(HERE / "peer_openai_agents.py")],
    }
    measured: dict[str, list[Costs]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            with conversation.served(LENGTHS) if wire else contextlib.nullcontext("") as url:
                order = json.dumps({"url": url, "lengths": LENGTHS, "count": count})
                measured[name].append(_printed([*systems[name](), order]))
    middle = {name: _middle(each) for name, each in measured.items()}
    kneo, alone = middle["kneo"], middle["pydantic-ai"]
    first, last = (f"{length} turns" for length in (LENGTHS[0], LENGTHS[-1]))
    ratios = {length: round(kneo[length]["cpu_ms"] / alone[length]["cpu_ms"], 2) for length in kneo}
    growth = {name: round(costs[last]["cpu_ms"] / costs[first]["cpu_ms"], 2) for name, costs in middle.items()}
    return {**middle, "kneo : pydantic-ai": ratios, "60 : 5": growth}


def waiting(rounds: int, runs: int) -> dict[str, object]:
    """A thousand agents at once that each wait two seconds for their model, and the same requests without an engine."""
    systems = {"kneo": "benchmarks.agents.waiting", "pydantic-ai": "benchmarks.agents.waiting_alone"}
    measured: dict[str, list[Costs]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, module in systems.items():
            with conversation.served([0, 1], delay=2.0, together=runs) as url:
                order = json.dumps({"url": url, "runs": runs})
                measured[name].append({"": _printed([sys.executable, "-m", module, order])})
    middle = {name: _middle(each)[""] for name, each in measured.items()}
    ratio = round(middle["kneo"]["seconds"] / middle["pydantic-ai"]["seconds"], 2)
    return {**middle, "kneo : pydantic-ai, seconds": ratio}


def _middle(rounds: list[Costs]) -> Costs:
    return {
        length: {unit: round(statistics.median(each[length][unit] for each in rounds), 2) for unit in units}
        for length, units in rounds[0].items()
    }


def _printed(command: list[str]) -> Any:
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=conversation.ROOT)
    return json.loads(done.stdout)


SECTIONS: dict[str, Callable[[argparse.Namespace], Mapping[str, object]]] = {
    "turns": _turns,
    "waiting": lambda options: {f"{options.runs} agents that wait 2 s": waiting(options.rounds, options.runs)},
    "gates": lambda options: {"the gates of a call, ms": gate_costs(options.rounds)},
    "calls": lambda options: measure_calls(options.count * 40, options.runs),
    "start": lambda options: {"the start of a local run, s of processor time": measure_start(options.rounds)},
    "grants": lambda options: grant_costs(options.rounds),
    "sandbox": lambda options: {"a function in a sandbox, ms": sandbox_costs(options.rounds)},
}

if __name__ == "__main__":
    main()
