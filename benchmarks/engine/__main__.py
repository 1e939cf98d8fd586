"""What the engine costs beside others, in one run on one machine: ``make bench-engine``.

Systems take turns, round by round, and the middle of each one's rounds counts; only ratios of one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.engine import flows, peers, scale, takeover
from benchmarks.engine.over_http import measure

HERE = Path(__file__).parent
LENGTHS = [10, 100, 1000]
WORKERS = 8

Found = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=100, help="flows of each kind in each round")
    parser.add_argument("--only", choices=["in-process", "waiting", "http", "scale", "takeover"])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    answer: dict[str, object] = {}
    if asked.only in {None, "in-process"}:
        answer["in process"] = in_process(asked.rounds, asked.count)
    if asked.only in {None, "waiting"}:
        answer["waiting"] = waiting(asked.rounds)
    if asked.only in {None, "http"}:
        answer["over HTTP"] = over_http(asked.rounds, asked.count)
    if asked.only in {None, "scale"}:
        answer["scale"] = scale.measure()
    if asked.only in {None, "takeover"}:
        answer["takeover"] = takeover.measure()
    if asked.json:
        print(json.dumps(answer, indent=2))
        return
    for title, found in answer.items():
        print(f"\n{title}")
        for line in _lines(found):
            print(f"  {line}")


def in_process(rounds: int, count: int) -> dict[str, Found]:
    """Kneo and LangGraph, each in a process of its own, on one SQLite file with every commit on disk.

    Kneo with its functions in sandboxes at level ``process``, and with functions in the worker as LangGraph has them.
    """
    order = json.dumps({"count": count, "workers": WORKERS, "lengths": LENGTHS})
    none = json.dumps(json.loads(order) | {"settings": {"KNEO_SERV_TOOLS_SANDBOX": "none"}})
    systems = {
        "kneo": [sys.executable, "-m", "benchmarks.engine.in_process", order],
        "kneo at level none": [sys.executable, "-m", "benchmarks.engine.in_process", none],
        "langgraph": [str(peers.langgraph()), str(HERE / "peer_langgraph.py"), order],
    }
    return _in_turns(rounds, {name: lambda command=command: _printed(command) for name, command in systems.items()})


def waiting(rounds: int) -> dict[str, Found]:
    """A thousand runs at once that each wait two seconds in an async step."""
    order = json.dumps({"runs": 1000})
    systems = {
        "kneo": [sys.executable, "-m", "benchmarks.engine.waiting", order],
        "langgraph": [str(peers.langgraph()), str(HERE / "peer_langgraph.py"), order],
    }
    return _in_turns(
        rounds,
        {name: lambda command=command: {"waiting x1000": _printed(command)} for name, command in systems.items()},
    )


def over_http(rounds: int, count: int) -> dict[str, Found]:
    """The human flow, eight clients at once, on Kneo's service and the published one with their defaults; and on nothing."""
    spec = flows.asking()

    def flow(serve: peers.Serve, times: int) -> Callable[[], Found]:
        def once() -> Found:
            with serve() as url:
                return {f"asking x{WORKERS}": measure(url, {}, spec, count=times, workers=WORKERS)}

        return once

    # The published one is so much slower that a tenth as many flows take it longer.
    served = (
        ("kneo", peers.kneo, count),
        ("kneo-serv", peers.kneo_serv, max(16, count // 8)),
        ("HTTP", peers.bare, count),
    )
    return _in_turns(rounds, {name: flow(serve, times) for name, serve, times in served})


def _in_turns(rounds: int, systems: Mapping[str, Callable[[], Found]]) -> dict[str, Found]:
    found: dict[str, list[Found]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, work in systems.items():
            found[name].append(work())
    return {name: _middle(results) for name, results in found.items()}


def _middle(results: list[Found]) -> Found:
    return {
        flow: {unit: statistics.median(result[flow][unit] for result in results) for unit in units}
        for flow, units in results[0].items()
    }


def _printed(command: list[str]) -> Found:
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parents[1])
    answer: Found = json.loads(done.stdout)
    return answer


def _lines(found: object) -> list[str]:
    if not isinstance(found, dict):
        return [str(found)]
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and all(isinstance(one, float | int) for one in value.values()):
            lines.append(f"{name:32} " + "  ".join(f"{unit} {number:.2f}" for unit, number in value.items()))
        elif isinstance(value, dict):
            lines += [f"{name}", *(f"  {line}" for line in _lines(value))]
        else:
            lines.append(f"{name:32} {value:.2f}" if isinstance(value, float) else f"{name:32} {value}")
    return lines


if __name__ == "__main__":
    main()
