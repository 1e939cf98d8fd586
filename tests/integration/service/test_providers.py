"""Agents that no provider here can answer for: refused when a run starts, and never answered in another's name."""

from __future__ import annotations

import pytest
from service_bench import AGENT, DRAFT, PUBLISH, Bench, spec_of

Json = dict[str, object]


def with_writer(*steps: Json, **model: object) -> Json:
    return spec_of(*steps, agents={"writer": {"name": "writer", **model}})


@pytest.mark.parametrize(
    "model",
    [
        {"model": {"provider": "openai", "name": "gpt-4o"}},
        {"model": {"provider": "opnai", "name": "gpt-4o"}},
        {"model": {"provider": "Dummy", "name": "echo"}},
        {"model": "gpt-4o"},
        {},
    ],
)
def test_a_run_that_needs_a_provider_that_is_not_there_is_refused_at_its_start(bench: Bench, model: Json) -> None:
    spec = with_writer(PUBLISH, {"id": "g", "kind": "steps", "steps": [DRAFT]}, **model)
    refused = bench.start(spec, expect=400)
    assert refused["error"] == "provider_not_configured"
    assert "writer" in refused["message"]
    assert bench.get("/runs")["count"] == 0


def test_an_agent_that_no_step_runs_needs_no_provider(bench: Bench) -> None:
    spec = with_writer(PUBLISH, {**DRAFT, "enabled": False}, model={"provider": "openai", "name": "gpt-4o"})
    spec["agent"] = {**AGENT, "model": {"provider": "openai", "name": "gpt-4o"}}
    assert bench.start(spec)["status"] == "succeeded"
    assert bench.start({"version": "v1", "agent": AGENT})["status"] == "succeeded"
    refused = bench.start({"version": "v1", "agent": spec["agent"]}, expect=400)
    assert refused["error"] == "provider_not_configured"


def test_an_agent_that_is_a_workflow_needs_the_providers_of_its_steps(bench: Bench) -> None:
    def spec(provider: str) -> Json:
        agents = {
            "writer": {"name": "writer", "as_agent": "inner"},
            "inner": {"name": "inner", "model": {"provider": provider, "name": "x"}},
        }
        inner = [{"id": "i", "kind": "agent", "ref": "inner"}]
        return spec_of(DRAFT, agents=agents, workflows={"inner": inner})

    assert bench.start(spec("dummy"))["status"] == "succeeded"
    assert bench.start(spec("openai"), expect=400)["error"] == "provider_not_configured"
