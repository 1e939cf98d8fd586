"""Runs of agents with the real loop and the real libraries, on a store and a loopback server of models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
from engine import Engine
from model_server import ModelRequest, ModelServer, Reply

from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run
from kneo.records.task import DecisionKind, HumanTask, TaskStatus
from kneo.runtime.engine.assemble import open_sandboxes, services_of
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import StartRequest
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.executor import Executor
from kneo.settings import from_env
from kneo.store import agent_journal, history, tasks
from kneo.store.engine import Store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide

MakeRuns: TypeAlias = Callable[[Callable[[ModelRequest], Reply]], "AgentRuns"]
"""From the replies of a server of models to runs that ask it."""

MODEL = {"provider": "openai", "name": "m", "extra": {"api": "chat"}}

SOURCE = """
def pay(arguments, key):
    note("pay {amount}".format(**arguments))
    return {"paid": arguments["amount"]}
def look(arguments, key):
    note("look {id}".format(**arguments))
    return {"found": arguments["id"]}
def was_paid(key, arguments):
    note("verified {amount} ".format(**arguments) + key)
    return {"done": Path(__file__).with_suffix(".paid").exists(), "result": {"paid": 5}}
def slow(arguments, key):
    note("slow")
    time.sleep(1.5)
    note("slow ended")
    return "done"
"""


def object_of(name: str, kind: str) -> dict[str, object]:
    return {"type": "object", "properties": {name: {"type": kind}}, "required": [name], "additionalProperties": False}


class AgentRuns(Engine):
    """Each ``drive`` has a driver of its own, with connections of its own, like a process of its own."""

    def __init__(self, store: Store, folder: Path, server: ModelServer, patch: pytest.MonkeyPatch) -> None:
        super().__init__(store, folder, SOURCE)
        self.server = server
        patch.setenv("OPENAI_API_KEY", "key")
        patch.setenv("OPENAI_BASE_URL", server.openai_url)
        self.settings = from_env(cwd=folder)

    def driver(self) -> Driver:
        settings = replace(self.settings, agents=replace(self.settings.agents, sandbox=self.level))
        sandboxes = open_sandboxes(settings, self.store, self.code)
        executor = Executor(self.code, sandboxes, services_of(settings, self.store, self.code, sandboxes))
        return Driver(self.store, ProgramLoader(self.store), executor)

    def agent_tree(self, **changes: object) -> dict[str, object]:
        """Return a spec with the tools pay (privileged, gated), look and slow; ``pay`` and ``teller`` change those parts."""
        pay = {"review": {"before": {"human": "ops"}}, **changes.pop("pay", {})}  # type: ignore[dict-item]
        teller = {"tools": ["pay", "look", "slow", "ask_question"], **changes.pop("teller", {})}  # type: ignore[dict-item]
        step = changes.pop("step", {})
        return {
            "agent": {"name": "teller", "model": MODEL, "strategy": "react", "ask_question": "ops", **teller},
            "workflow": {"type": "sequential", "steps": [{"id": "work", "kind": "agent", "ref": "teller", **step}]},  # type: ignore[dict-item]
            "tools": {
                "pay": self.tool("pay", object_of("amount", "integer"), capabilities=["privileged"], **pay),
                "look": self.tool("look", object_of("id", "string")),
                "slow": self.tool("slow", {"type": "object"}),
                **changes.pop("tools", {}),  # type: ignore[dict-item]
            },
            "components": {
                "humans": {"ops": {"description": "Fine?"}},
                "agents": changes.pop("agents", {}),
            },
            **changes,
        }

    def tool(self, name: str, parameters: object, **more: object) -> dict[str, object]:
        implementation = f"{self.module}.{name}"
        return {"description": f"{name}.", "implementation": implementation, "parameters": parameters, **more}

    def begin(self, tree: Mapping[str, object] | None = None, **more: object) -> Run:
        order = StartRequest(input="Go.", requester="bob", spec=tree or self.agent_tree(), **more)  # type: ignore[arg-type]
        return self.starter.start(order)

    def drive(self, run: Run) -> Run:
        asyncio.run(self.driver().drive_alone(run.id))
        return self.look(run)

    def asked(self, run: Run) -> dict[str, HumanTask]:
        return {task.key: task for task in self.open(run)}

    def decide(self, task: HumanTask, kind: str, **more: object) -> None:
        decide(self.store, task.id, DecisionRequest(decision=DecisionKind(kind), **more), actor="ann")  # type: ignore[arg-type]

    def all_tasks(self, run: Run) -> list[HumanTask]:
        with self.store.read() as tx:
            return list(tasks.of_run(tx, run.id, TaskStatus))

    def journal(self, run: Run) -> list[ConversationEntry]:
        with self.store.read() as tx:
            return list(agent_journal.list_entries(tx, run.id))

    def trace(self, run: Run) -> list[str]:
        with self.store.read() as tx:
            return [event.type for event in history.list_trace(tx, run.id)]


def begun(call_id: str, arguments: Mapping[str, object]) -> ConversationEntry:
    """Return the entry of a call of the first reply whose process ended in the middle of it."""
    return ConversationEntry(
        conversation="work~0",
        name=f"tool:1.{call_id}",
        number=1,
        kind=EntryKind.TOOL,
        status=EntryStatus.BEGUN,
        body={"arguments": dict(arguments)},
        facts={"tool": "pay"},
        started_at="2026-01-31T00:00:00.000000+00:00",
    )
