"""Tests wait for conditions and gates; where a sleep stands, it is a poll, a function that has to hang, or a load."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]

SLEEP = re.compile(r"\bsleep\((?!0\))")
"""A call with another argument than 0, also in the text of a program that a test starts."""

KNOWN = {
    # Polls until a condition holds, each within a limit.
    "support/databases.py": 1,
    "e2e/crash/crashing.py": 1,
    "e2e/crash/crashing_agents.py": 1,
    "e2e/crash/test_kill_idempotent.py": 1,
    "integration/service/test_oidc.py": 1,
    "support/kneo_process.py": 1,
    "support/temporal_server.py": 1,
    "conformance/clients/served.py": 1,
    "conformance/weaknesses/test_weaknesses.py": 1,
    "support/foreign_agent.py": 1,
    "integration/agents/test_remote_agents.py": 1,
    # Gates of functions, and polls of the test that opens them.
    "e2e/crash/test_kill.py": 2,
    "e2e/crash/test_kill_agents.py": 2,
    "e2e/crash/test_kill_calls.py": 1,
    "e2e/crash/test_kill_grants.py": 1,
    "e2e/crash/test_worker_lost.py": 1,
    "e2e/temporal/test_temporal.py": 2,
    "integration/runtime/test_lock_lost.py": 2,
    "integration/runtime/test_queue.py": 2,
    "integration/runtime/test_session.py": 2,
    "integration/runtime/test_running_quota.py": 2,
    # Functions, tools, servers and models that are slow or hang, because that is what is tested.
    "support/agent_runs.py": 1,
    "conformance/clients/scene.py": 1,
    "e2e/test_tools.py": 1,
    "integration/agents/test_python_tools.py": 1,
    "integration/runtime/test_driver.py": 4,
    "integration/runtime/test_fair_queue.py": 2,
    "integration/runtime/test_heartbeats.py": 1,
    "support/mcp_server.py": 2,
    "support/model_server.py": 1,
    "support/service_bench.py": 1,
    # Makes a file of the repository, by hand.
    "fixtures/published/make.py": 1,
    # Load over hours.
    "soak/program.py": 1,
    "soak/load.py": 4,
    "soak/run.py": 3,
}
"""Sleeps per file. A number may only become smaller: a new test uses ``eventually`` or a gate."""


def test_tests_wait_for_conditions_and_gates() -> None:
    counts = {
        str(path.relative_to(TESTS)): len(SLEEP.findall(path.read_text(encoding="utf-8")))
        for path in sorted(TESTS.rglob("*.py"))
    }
    assert {path: count for path, count in counts.items() if count} == KNOWN
