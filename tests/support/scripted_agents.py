"""Agent steps whose turns are functions of the test: what the runtime does with a turn, without a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from engine import level_sandboxes

from kneo.agents.turn import CallQuestion
from kneo.function_context import StepContext
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.wait import find_run
from kneo.runtime.engine.worker import Driver
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.agents import Conversation
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.runtime.steps.functions import StepOutput
from kneo.spec.models.spec import Spec
from kneo.store.engine import Store

AT = "2026-01-31T00:00:00.000000+00:00"

ScriptedTurn: TypeAlias = Callable[[Conversation, str], Awaitable[str]]

MODEL = {"provider": "dummy", "name": "dummy"}


class ScriptedExecutor(Executor):
    def __init__(self, turn: ScriptedTurn) -> None:
        code = CodeLoader((), ())
        super().__init__(code, level_sandboxes(code))
        self.turn = turn

    async def execute(
        self, program: Program, activity: Activity, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        if activity.kind != "agent":
            return await super().execute(program, activity, text, context, conversation)
        return StepOutput(text=await self.turn(conversation, activity.path))


class ScriptedAgents:
    """A store with runs whose agents take the turns of a test."""

    def __init__(self, store: Store, turn: ScriptedTurn) -> None:
        self.store = store
        self.turn = turn
        self.starter = Starter(store, lambda tree: Spec.model_validate_json(json.dumps(tree)), pin=None)

    def driver(self) -> Driver:
        return Driver(self.store, ProgramLoader(self.store), ScriptedExecutor(self.turn))

    def start(self, tree: Mapping[str, object] | None = None) -> Run:
        return self.starter.start(StartRequest(input="in", requester="bob", spec=tree or spec()))

    def drive(self, run: Run) -> Run:
        asyncio.run(self.driver().drive_alone(run.id))
        return find_run(self.store, run.id)


def spec(*steps: Mapping[str, object], **more: object) -> dict[str, object]:
    work = steps or ({"id": "work", "kind": "agent", "ref": "teller"},)
    return {
        "agent": {"name": "teller", "model": MODEL},
        "workflow": {"type": "sequential", "steps": list(work)},
        "tools": {
            "pay": {
                "description": "Pay.",
                "implementation": "bank.pay",
                "capabilities": ["privileged"],
                "parameters": {
                    "type": "object",
                    "properties": {"amount": {"type": "integer", "minimum": 1}},
                    "required": ["amount"],
                    "additionalProperties": False,
                },
                "review": {"before": {"human": "ops"}},
            }
        },
        "components": {"humans": {"ops": {"description": "Fine?"}}},
        **more,
    }


def question(name: str = "1.a", **changes: object) -> CallQuestion:
    parameters = spec()["tools"]["pay"]["parameters"]  # type: ignore[index]
    asked = CallQuestion(
        key=f"{name}:tools.pay.before",
        task_key=f"pay:{name}",
        kind="approval",
        gate="tools.pay.before",
        agent="teller",
        tool="pay",
        arguments={"amount": 5},
        answer_schema=parameters,
    )
    return replace(asked, **changes)


def reply(number: int = 1, **changes: object) -> ConversationEntry:
    entry = ConversationEntry(
        conversation="",
        name=f"model:{number}",
        number=number,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        body={"messages": [{"number": number}]},
        facts={"provider": "p", "model": "m", "agent": "teller", "input_tokens": 10, "output_tokens": number},
        started_at=AT,
        completed_at=AT,
    )
    return replace(entry, **changes)
