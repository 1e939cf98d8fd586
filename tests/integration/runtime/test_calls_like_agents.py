"""A call of a program meets the denials, guardrails and gates that the same call of an agent meets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from grant_house import FINANCE, GrantHouse, grant_house
from installation_key import find_key

from kneo.clock import ManualClock, SystemClock
from kneo.records.run import Run
from kneo.runtime.engine.start import StartRequest
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store.migrate import open_store

ARGUMENTS = {"amount": 20, "currency": "EUR"}
ONE = {**FINANCE, "quorum": {"approvals": 1}}
ACCOUNT = {"id": "currency", "type": "regex", "action": "block", "config": {"patterns": ["EUR"]}}
RENAMED = {**ACCOUNT, "action": "redact", "config": {"patterns": ["refunded"]}}
ADDED = {"name": "effects", "match": {"kinds": ["tool"], "capabilities": ["privileged"]}, "before": {"human": ONE}}

SHOWN_FACTS = {"tool", "outcome", "denied", "guardrail"}

ASKED = "'tools.refund.before'"

CASES: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "asked": ({}, {}, ASKED),
    "blocked by a guardrail": ({"guardrails": {"tool": [ACCOUNT]}}, {}, "guardrail_violation"),
    "redacted by a guardrail": ({"guardrails": {"tool": [RENAMED]}}, {}, "[redacted]"),
    "denied": ({}, {"tools": {"deny": ["refund"]}}, "denies the tool refund"),
    "denied by an expression": (
        {},
        {"tools": {"deny": [{"tools": ["refund"], "when": "args.amount > 10"}]}},
        "denies this call of the tool refund by its arguments",
    ),
    "asked by the environment as well": ({}, {"gates": [ADDED]}, "'environment.effects.before'"),
}
"""Changes of the agent and of the environment's rules, and what both calls then show."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrantHouse]:
    folder = tmp_path_factory.mktemp("both")
    store = open_store(f"sqlite:///{folder / 'kneo.sqlite'}", ManualClock(SystemClock().now()), find_key)
    with pytest.MonkeyPatch.context() as patch, grant_house(store, folder, patch) as made:
        yield made
    store.close()


def observed(house: GrantHouse, run: Run, decision: str) -> list[object]:
    """Return the questions of a run's only call, each decided so, and what its journal has about the call.

    The requester of a call approves no gate of it, which holds for agents only where the environment says so.
    """
    found: list[object] = []
    while tasks := house.open(house.drive(run)):
        [task] = tasks
        assert task.candidates.exclude == (("requester",) if run.target == CALL_TARGET else ())
        shown = (task.position, task.title, task.prompt, task.subject, task.decisions, task.consequences.keys())
        found.append((*shown, task.metadata["facts"]["gate"], replace(task.candidates, exclude=())))
        house.say(task, decision)
    for entry in house.journal(run):
        if entry.name.startswith("tool:"):
            facts = {name: value for name, value in entry.facts.items() if name in SHOWN_FACTS}
            found += [entry.status, entry.body.get("arguments"), entry.body.get("result"), facts]
    error = house.look(run).error
    return [*found, error and (error.type, error.message)]


@pytest.mark.parametrize("case", CASES)
def test_the_same_call_of_an_agent_and_of_a_program_is_decided_alike(house: GrantHouse, case: str) -> None:
    of_agent, of_environment, shown = CASES[case]
    spec = house.spec(human=ONE)
    agent = {**spec["agent"], **of_agent}
    calls = {"calls": [{"bundle": "refunds"}]}
    rules = {"grants": [], "tools": {}, "gates": [], "protocols": calls, **of_environment}
    house.release({**spec, "targets": ["agent", "call"], "agent": agent}, **rules)
    seen = []
    for target, text in (("agent", [ARGUMENTS]), ("call", {"tool": "refund", "arguments": ARGUMENTS})):
        for decision in ("approved", "rejected"):
            order = StartRequest(
                input=json.dumps(text), requester="eve", bundle="refunds", environment="prod", target=target
            )
            seen.append(observed(house, house.starter.start(order), decision))
    assert seen[:2] == seen[2:]
    assert shown in str(seen[0])
