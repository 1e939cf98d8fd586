"""Over random workflows: no view of a run and no table has a text that a guardrail blocked or changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_runs import MODEL, AgentRuns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_server import Reply, model_server
from operation_context import operation_context
from sqlalchemy import select

from kneo.api.run_conversation import get_run_conversation
from kneo.clock import SystemClock
from kneo.runtime.engine.start import StartRequest
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import metadata

MARKER = "marker-4711"

STAGES = st.sampled_from(["output", "workflow"])
ACTIONS = st.sampled_from(["block", "redact", "retry"])
CHECKS = st.sampled_from(
    [
        {"type": "keyword", "config": {"keywords": ["MARKER-4711"]}},
        {"type": "regex", "config": {"patterns": ["marker-[0-9]+"]}},
    ]
)
AGENTS = st.fixed_dictionaries({"stage": STAGES, "action": ACTIONS, "check": CHECKS, "memory": st.booleans()})


@st.composite
def workflows(draw: st.DrawFn, depth: int = 2) -> list[dict]:
    found = []
    for number in range(draw(st.integers(1, 2))):
        kinds = ["agent", "agent"] + ["steps", "parallel", "condition", "loop"] * bool(depth)
        step: dict = {"id": f"s{number}", "kind": draw(st.sampled_from(kinds))}
        if step["kind"] == "agent":
            step["ref"] = draw(st.sampled_from(["a", "b"]))
            step["on_error"] = draw(st.sampled_from(["fail", "continue", "retry"]))
            if draw(st.booleans()):
                step["review"] = {"after": {"human": "boss"}}
        else:
            step["steps"] = draw(workflows(depth - 1))
        if step["kind"] == "condition":
            step |= {"when": {"type": "always"}, "else": []}
        if step["kind"] == "loop":
            step["max_iterations"] = 2
        found.append(step)
    return found


def agent(name: str, made: dict) -> dict:
    guardrail = {"id": "g", "action": made["action"], **made["check"]}
    memory = {"memory": {"policy": "full"}} if made["memory"] else {}
    return {"name": name, "model": MODEL, "guardrails": {made["stage"]: [guardrail]}, **memory}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path / 'kneo.sqlite'}", SystemClock())
    yield store
    store.close()


def test_a_text_that_did_not_pass_is_nowhere(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(lambda _request: Reply(f"It is {MARKER}.")) as server:
        runs = AgentRuns(store, tmp_path / "code", server, monkeypatch)

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=workflows(), a=AGENTS, b=AGENTS)
        def check(steps: list[dict], a: dict, b: dict) -> None:
            components = {
                "agents": {"a": agent("a", a), "b": agent("b", b)},
                "humans": {"boss": {"description": "Fine?"}},
            }
            spec = {
                "agent": {"name": "root", "model": MODEL},
                "workflow": {"type": "sequential", "steps": steps},
                "components": components,
            }
            run = runs.starter.start(StartRequest(input="Go.", requester="bob", spec=spec, origin={"session_id": "s"}))
            run = runs.drive(run)
            for _ in range(40):
                waiting = runs.open(run)
                if not waiting:
                    break
                for task in waiting:
                    runs.decide(task, "approved")
                run = runs.drive(run)
            assert MARKER in str(runs.journal(run))
            assert MARKER not in f"{run.output_text}{run.error}"
            assert MARKER not in str(get_run_conversation(operation_context(store), run.id, whole=True))
            with store.read() as tx:
                for table in metadata.sorted_tables:
                    if table.name != "agent_journal":
                        rows = [tuple(row) for row in tx.connection.execute(select(table))]
                        assert MARKER not in str(rows), table.name

        check()
