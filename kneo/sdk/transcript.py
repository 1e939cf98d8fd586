"""What was said in a run, read from what the run recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kneo.records.run import Run
from kneo.records.task import DecisionKind
from kneo.sdk.messages import Message, RunConfig

if TYPE_CHECKING:
    from kneo.runtime.steps.context import StepContext
    from kneo.sdk.host import Host, Standing
    from kneo.sdk.participants import Draft


class Transcript:
    """The conversation of a workflow's runs. Nothing of it is kept in memory but the configs of this process.

    Attributes:
        draft: The workflow, once it is written down.
        host: Where its runs are, once that is known.
    """

    draft: Draft
    host: Host

    def __init__(self, configs: Mapping[str, RunConfig]) -> None:
        self._configs = configs

    def config(self, run_id: str) -> RunConfig:
        return self._configs.get(run_id) or RunConfig()

    async def heard(self, text: str, context: StepContext) -> Sequence[Message]:
        """Return what a step may hear; the last of it is what it is given."""
        standing = await asyncio.to_thread(self.host.look, context.run_id)
        messages = self.told(standing, context.step_id, text)
        if context.previous_output is None:
            return messages
        feedback = context.feedback or "It was rejected without a reason."
        return (*messages, Message("assistant", context.previous_output), Message("user", feedback))

    async def given(self, step_path: str, context: StepContext) -> str:
        """Return what a step was given the last time it was done."""
        standing = await asyncio.to_thread(self.host.look, context.run_id)
        return next(step.input_text for step in reversed(standing.steps) if step.step_id == step_path)

    def told(self, standing: Standing, path: str, text: str) -> Sequence[Message]:
        """Return the messages that a place may hear, the last of which says ``text``."""
        edited = {
            task.step_path: task.decision.content
            for task in standing.tasks
            if task.decision is not None and task.decision.kind is DecisionKind.EDITED and task.position == "after"
        }
        messages = list(_given(standing.run))
        for step in standing.steps:
            if step.status != "completed" or step.step_id in self.draft.hidden or not self._hears(path, step.step_id):
                continue
            human = self.draft.humans.get(step.step_id)
            role = human.response_role if human is not None else "assistant"
            said = edited.get(step.step_id) or step.output_text
            if said is None:
                said = step.input_text
            messages.append(Message(role, said, step.step_id.rpartition("/")[2]))
        last = messages[-1]
        return (*messages[:-1], Message(last.role, text, last.name))

    def visible(self, standing: Standing) -> list[str]:
        """List the steps that were done, without those that say nothing of their own."""
        return [step.step_id for step in standing.steps if step.step_id not in self.draft.hidden]

    def _hears(self, path: str, other: str) -> bool:
        """Say whether a place hears a step: not from beside itself in a concurrent workflow."""
        mine, theirs = path.split("/"), other.split("/")
        shared = 0
        while shared < min(len(mine), len(theirs)) and mine[shared] == theirs[shared]:
            shared += 1
        apart = path != "" and "/".join(theirs[:shared]) in self.draft.aside and shared < len(mine)
        return not apart


def _given(run: Run) -> Sequence[Message]:
    kept = run.metadata.get("caller_metadata")
    told = kept if isinstance(kept, Mapping) else {}
    listed = told.get("messages")
    earlier = [Message(*each) for each in listed] if isinstance(listed, list) else []
    name = told.get("name")
    own = Message(str(told.get("role") or "user"), run.input_text, name if isinstance(name, str) else None)
    return (*earlier, own)
