"""The engine over a real store, with functions of the test's own and nothing faked."""

from __future__ import annotations

import asyncio
import json
import textwrap
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from run_simulator import AGENT

from kneo.agents.sandboxes import SandboxHost
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.wait import find_run
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.runtime.steps.sandboxes import Sandboxes
from kneo.spec.models.spec import Spec
from kneo.spec.policy import SandboxLevel, SandboxRules, ToolRules
from kneo.store import history, tasks
from kneo.store.engine import Store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide

PRELUDE = """
import asyncio, os, threading, time
from dataclasses import replace
from pathlib import Path
LOG = Path(__file__).with_suffix(".log")
def note(text):
    with LOG.open("a") as log:
        log.write(text + "\\n")
"""


def open_sandboxes(
    code: CodeLoader, rules: ToolRules, secrets: Mapping[str, str] | None = None, host: SandboxHost | None = None
) -> Sandboxes:
    """Return sandboxes with the same rules in all environments."""

    def read(_environment: str | None) -> ToolRules:
        return rules

    return Sandboxes(code, read, (secrets or {}).get, replace(host or SandboxHost(), operator=rules.sandbox))


def level_sandboxes(code: CodeLoader, level: SandboxLevel = "none") -> Sandboxes:
    """Return sandboxes of which all environments require a level."""
    return open_sandboxes(code, ToolRules(sandbox=SandboxRules(required=level)))


class Engine:
    """A driver on a store, and a module of functions that its specs name."""

    def __init__(self, store: Store, folder: Path, source: str) -> None:
        self.store = store
        folder.mkdir(exist_ok=True)
        self.module = f"steps_{uuid.uuid4().hex}"
        file = folder / f"{self.module}.py"
        file.write_text(PRELUDE + textwrap.dedent(source))
        self.log = file.with_suffix(".log")
        self.code = CodeLoader((folder,), ())
        self.level: SandboxLevel = "none"
        self.starter = Starter(store, lambda tree: Spec.model_validate_json(json.dumps(tree)), pin=None)

    def driver(self) -> Driver:
        return Driver(
            self.store, ProgramLoader(self.store), Executor(self.code, level_sandboxes(self.code, self.level))
        )

    def tree(self, workflow: object, **humans: object) -> dict[str, object]:
        names = _names(workflow)
        functions = {name: {"implementation": f"{self.module}.{name}"} for name in names}
        components = {"functions": functions, "humans": {"ann": {"description": "Fine?"}, **humans}}
        return {"agent": AGENT, "workflow": workflow, "components": components}

    def start(
        self,
        workflow: object,
        text: str = "in",
        *,
        timeout_seconds: int | None = None,
        environment: str | None = None,
        **humans: object,
    ) -> Run:
        order = StartRequest(
            input=text,
            requester="bob",
            spec=self.tree(workflow, **humans),
            environment=environment,
            timeout_seconds=timeout_seconds,
        )
        return self.starter.start(order)

    def drive(self, run: Run) -> Run:
        asyncio.run(self.driver().drive_alone(run.id))
        return self.look(run)

    def drive_unread(self, run: Run) -> None:
        """Drive a run that cannot be read afterwards."""
        asyncio.run(self.driver().drive_alone(run.id))

    def drive_with(self, driver: Driver, run: Run) -> Run:
        """Drive with a driver that goes on afterwards, and so knows the programs of runs it drove."""
        asyncio.run(driver.drive(run.id))
        return self.look(run)

    def look(self, run: Run) -> Run:
        return find_run(self.store, run.id)

    def run(self, workflow: object, text: str = "in", **humans: object) -> Run:
        return self.drive(self.start(workflow, text, **humans))

    def open(self, run: Run) -> tuple[HumanTask, ...]:
        with self.store.read() as tx:
            return tasks.of_run(tx, run.id, UNRESOLVED)

    def answer(
        self, task: HumanTask, kind: str, content: str | None = None, actor: str = "ann", **more: Any
    ) -> HumanTask:
        option = content if kind == "selected" else None
        answer = DecisionRequest(
            request_id=task.request_id,
            decision=DecisionKind(kind),
            content=None if option else content,
            selected_option=option,
            **more,
        )
        return decide(self.store, task.id, answer, actor=actor)

    def notes(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def steps(self, run: Run) -> list[tuple[str, str]]:
        with self.store.read() as tx:
            return [(step.step_id, step.status) for step in history.list_steps(tx, run.id)]


def _names(part: object) -> set[str]:
    if isinstance(part, Mapping):
        own = {str(part["ref"])} if part.get("kind") == "function" else set()
        chosen = part.get("selector")
        if part.get("kind") == "router" and isinstance(chosen, str):
            own.add(chosen)
        return own.union(*(_names(inner) for inner in part.values()))
    return set().union(*(_names(inner) for inner in part)) if isinstance(part, list | tuple) else set()


def step(name: str, ref: str | None = None, **more: object) -> dict[str, object]:
    return {"id": name, "kind": "function", "ref": ref or name, **more}
