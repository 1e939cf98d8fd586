"""A workflow on its way to a spec: what its steps do, and what is known of each place."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from kneo.records.run import Run
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.node import below
from kneo.runtime.steps.code import INPROCESS
from kneo.runtime.steps.context import StepContext
from kneo.sdk.code import Work
from kneo.sdk.host import Host, Standing
from kneo.sdk.participants import identifier
from kneo.sdk.workflow.types import HumanReview, StepInput, StepOutput

Json: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class Place:
    """A primitive where it stands."""

    name: str
    kind: str
    index: int
    review: HumanReview | None = None


@dataclass
class Plan:
    """Everything a workflow consists of.

    Attributes:
        components: The spec's.
        work: What steps do, by the implementation that the spec names.
        places: Primitives by path.
        host: Where runs are.
    """

    components: dict[str, Json] = field(default_factory=lambda: {"agents": {}, "functions": {}})
    work: dict[str, Work] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    host: Host | None = None

    def function(self, path: str, work: Work) -> str:
        """Note what a step does; return the name of its component."""
        # By its place and not by number: a run that waits must find its own steps when others were added meanwhile.
        implementation = INPROCESS + identifier(path)
        self.components["functions"][path] = {"implementation": implementation}
        self.work[implementation] = work
        return path

    def all_of(self, members: Sequence[Primitive], path: str) -> list[Json]:
        """Write primitives in a row down; raises what ``branches`` does."""
        written = []
        for member, step in zip(members, self.branches(members, path), strict=True):
            written += [step, *member.tail(self, below(path, member.name))]
        return written

    def branches(self, members: Sequence[Primitive], path: str) -> list[Json]:
        """Write primitives down that do not follow each other: one step each.

        Raises:
            ValueError: two of them have the same name.
        """
        names = [member.name for member in members]
        for name in names:
            if names.count(name) > 1:
                msg = f"Two primitives beside each other are called {name}."
                raise ValueError(msg)
        written = []
        for index, member in enumerate(members):
            here = below(path, member.name)
            self.places[here] = Place(member.name, type(member).__name__, index, member.human_review)
            written.append(member.written(self, here))
        return written

    async def given(self, text: str, context: StepContext) -> StepInput:
        """Put together what a step is given."""
        assert self.host is not None
        standing = await asyncio.to_thread(self.host.look, context.run_id)
        outputs = self.outputs(standing)
        data = dict(_told(standing.run))
        if context.values:
            data["user_input"] = dict(context.values)
        if context.previous_output is not None:
            data |= {"rejection_feedback": context.feedback, "previous_output": context.previous_output}
        return StepInput(
            input=standing.run.input_text,
            previous_step_content=text,
            previous_step_outputs={output.step_name or "": output for output in outputs},
            additional_data=data,
            run_id=context.run_id,
            idempotency_key=context.idempotency_key,
        )

    def outputs(self, standing: Standing) -> list[StepOutput]:
        """List what each step of a run said, in order; what a reviewer wrote instead counts."""
        edited = {
            task.step_path: task.decision.content
            for task in standing.tasks
            if task.position == "after" and task.decision is not None and task.decision.kind is DecisionKind.EDITED
        }
        found = []
        for step in standing.steps:
            place = self.places.get(step.step_id)
            if place is None:
                continue
            said = edited.get(step.step_id) or step.output_text
            error = step.error.message if step.error else None
            found.append(StepOutput(said, place.name, step.status == "completed", error))
        return found


class Primitive(ABC):
    """Something a workflow consists of."""

    name: str
    human_review: HumanReview | None

    @abstractmethod
    def written(self, plan: Plan, path: str) -> Json:
        """Return it as a step of the spec."""

    def tail(self, _plan: Plan, _path: str) -> list[Json]:
        """Return the steps that have to follow it in a row."""
        return []


def _told(run: Run) -> Mapping[str, object]:
    kept = run.metadata.get("caller_metadata")
    data = kept.get("additional_data") if isinstance(kept, Mapping) else None
    return data if isinstance(data, Mapping) else {}
