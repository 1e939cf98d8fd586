"""Workflows: five families, and the steps they are made of.

A step does one thing (``kind`` agent, function, workflow, human, guardrail) or holds other steps (``steps``,
``parallel``, ``condition``, ``loop``, ``router``). The same steps serve as nodes of a graph and as participants.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from kneo.spec.base import ListOf, MapOf, Seconds, Shorthand, SpecModel, Text, quote, refused, require_choice
from kneo.spec.gates import Position
from kneo.spec.models import shorthand
from kneo.spec.models.human import AnyCondition, Review, check_review

DEFAULT_LOOP_ITERATIONS = 10
DEFAULT_GRAPH_STEPS = 50


class _StepBase(SpecModel):
    noun: ClassVar[str] = "a step"
    """The kind of step in messages about its gates."""

    gate_positions: ClassVar[tuple[Position, ...]] = ("before", "after", "error")
    """The positions at which its gates have an effect."""

    id: str = Field(description="Its name in this workflow.")
    description: Text | None = Field(default=None, description="What it is for; shown to people who choose.")
    enabled: bool = Field(default=True, description="false leaves it out.")
    on_error: Literal["fail", "continue", "retry", "fallback"] = Field(
        default="fail",
        description="When it fails: stop; pass its input on; try again; run fallback_ref instead.",
    )
    fallback_ref: str | None = Field(default=None, description="The id of a step in the same workflow.")
    max_retries: int = Field(default=0, description="Further tries after the first.")
    timeout_seconds: Seconds | None = Field(
        default=None,
        description="Time for one try; for a step of kind human the time to answer, in place of its human's timeout_seconds.",
    )
    save_as: str | None = Field(default=None, description="Variable that keeps its output, for variable_equals.")
    review: Review | None = Field(default=None, description="Gates around it.")

    @model_validator(mode="after")
    def _gates_are_in_place(self) -> Self:
        check_review(self.review, self.noun, self.gate_positions)
        return self


class LeafStep(_StepBase):
    """A step that does one thing: an agent, a function, another workflow, a question to a person, or a check."""

    kind: Literal["agent", "function", "workflow", "human", "guardrail"]
    ref: str = Field(description="A name in the matching part of components.")

    @model_validator(mode="after")
    def _gates_are_in_place(self) -> Self:
        positions = () if self.kind == "human" else self.gate_positions
        check_review(self.review, f"a step of kind {self.kind}", positions)
        return self


class StepsStep(_StepBase):
    """Steps in a row that count as one."""

    noun = "a group of steps"

    kind: Literal["steps"]
    steps: ListOf[AnyStep]


class ParallelStep(_StepBase):
    """Steps that run at the same time on the same input."""

    noun = "parallel steps"

    kind: Literal["parallel"]
    steps: ListOf[AnyStep]


class ConditionStep(_StepBase):
    """Steps that run when a condition holds, and others when it does not."""

    noun = "a condition"
    gate_positions = ("before", "error")

    kind: Literal["condition"]
    when: AnyCondition | None = Field(default=None, description="Left out where review.before lets a person decide.")
    steps: ListOf[AnyStep]
    otherwise: ListOf[AnyStep] = Field(default=(), alias="else")


class LoopStep(_StepBase):
    """Steps that repeat until a condition holds or the rounds are used up."""

    noun = "a loop"
    gate_positions = ("before", "each", "error")

    kind: Literal["loop"]
    steps: ListOf[AnyStep]
    max_iterations: int = Field(default=DEFAULT_LOOP_ITERATIONS, ge=1, le=10_000)
    until: AnyCondition | None = Field(default=None, description="Evaluated after each round.")


class Choice(SpecModel):
    """One choice of a router."""

    steps: ListOf[AnyStep]
    description: Text | None = Field(default=None, description="The description for a person who chooses.")


class RouteCondition(SpecModel):
    """A choice and the condition for it."""

    when: AnyCondition
    choice: str


class RouterSelector(SpecModel):
    """The selection: a function that returns a choice's name, an agent that names one, or the first condition that holds."""

    function: str | None = Field(default=None, description="A name in components.functions.")
    agent: str | None = Field(
        default=None,
        description="A name in components.agents. Its model is given the choices with their descriptions, and no tools.",
    )
    conditions: ListOf[RouteCondition] = ()
    default: str | None = Field(default=None, description="The choice when no condition holds.")


def _check_choice_ids(value: object) -> object:
    seen: set[str] = set()
    for index, item in enumerate(value if isinstance(value, list) else []):
        name = item.get("id") if isinstance(item, dict) else None
        if isinstance(name, str) and name in seen:
            raise refused("E_STEP_DUPLICATE_ID", f"Two choices are called {quote(name)}.", index, "id")
        seen.add(str(name))
    return value


class RouterStep(_StepBase):
    """One of several choices, selected by a function, an agent, conditions or a person (``review.route``)."""

    noun = "a router"
    gate_positions = ("before", "after", "route", "error")

    kind: Literal["router"]
    choices: Annotated[
        MapOf[Choice],
        BeforeValidator(shorthand.choices),
        BeforeValidator(_check_choice_ids),
        Shorthand({"type": "array", "items": {"type": "object"}, "description": "Steps; each is a choice by its id."}),
    ]
    selector: (
        Annotated[
            RouterSelector,
            BeforeValidator(shorthand.selector),
            Shorthand({"anyOf": [{"type": "string"}, {"type": "array"}]}),
        ]
        | None
    ) = None
    order: ListOf[str] = Field(
        default=(), description="The choices in the order in which people see them; left out: as they are written."
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The choices in the order in which people see them; a frozen spec keeps none of a map."""
        first = tuple(dict.fromkeys(name for name in self.order if name in self.choices))
        return (*first, *(name for name in self.choices if name not in first))


LEAF_KINDS = ("agent", "function", "workflow", "human", "guardrail")
CONTAINER_KINDS = ("steps", "parallel", "condition", "loop", "router")


def _step_tag(value: object) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"kind={kind}" if kind in CONTAINER_KINDS else "kind=leaf"


def _check_kind(value: object) -> object:
    require_choice(value, "kind", LEAF_KINDS + CONTAINER_KINDS)
    return value


Step: TypeAlias = Annotated[
    Annotated[LeafStep, Tag("kind=leaf")]
    | Annotated[StepsStep, Tag("kind=steps")]
    | Annotated[ParallelStep, Tag("kind=parallel")]
    | Annotated[ConditionStep, Tag("kind=condition")]
    | Annotated[LoopStep, Tag("kind=loop")]
    | Annotated[RouterStep, Tag("kind=router")],
    Discriminator(_step_tag),
    BeforeValidator(_check_kind),
]

AnyStep: TypeAlias = Annotated[
    Step, BeforeValidator(shorthand.step), Shorthand({"type": "string", "description": "An agent's name."})
]
"""A step, or the name of the agent it runs."""


class _WorkflowBase(SpecModel):
    name: str | None = None
    description: Text | None = None


class SequentialWorkflow(_WorkflowBase):
    """Steps one after the other; each gets the output of the one before it."""

    type: Literal["sequential"]
    steps: ListOf[AnyStep]


class Edge(SpecModel):
    """An edge from one node to another."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    condition: AnyCondition | None = Field(default=None, description="Left out: always.")
    label: str | None = None


class GraphWorkflow(_WorkflowBase):
    """Nodes and edges; of a node's edges the first whose condition holds is followed."""

    type: Literal["graph"]
    start: str = Field(description="The id of the first node.")
    nodes: MapOf[Step]
    edges: ListOf[Edge]
    max_steps: int = Field(default=DEFAULT_GRAPH_STEPS, json_schema_extra={"minimum": 1})


class ConcurrentWorkflow(_WorkflowBase):
    """Participants at the same time on the same input."""

    type: Literal["concurrent"]
    participants: ListOf[AnyStep]
    max_iterations: int | None = Field(
        default=None, description="The most turns; each participant takes one, and fewer than participants is refused."
    )

    def lacks_turns(self) -> bool:
        """Tell whether max_iterations allows fewer turns than there are participants."""
        turns = sum(participant.enabled for participant in self.participants)
        return self.max_iterations is not None and self.max_iterations < turns


class HandoffSelector(SpecModel):
    """The order of the participants."""

    type: Literal["sequence", "round_robin"] = "sequence"
    sequence: ListOf[str] = Field(default=(), description="Ids of participants; left out: all, as declared.")


class HandoffWorkflow(_WorkflowBase):
    """One participant hands over to the next."""

    type: Literal["handoff"]
    participants: ListOf[AnyStep]
    selector: HandoffSelector = HandoffSelector()
    max_iterations: int | None = Field(default=None, ge=1, description="The most turns.")


class GroupChatWorkflow(_WorkflowBase):
    """Participants in turn, for a number of rounds."""

    type: Literal["group-chat"]
    participants: ListOf[AnyStep]
    rounds: int = Field(default=1, json_schema_extra={"minimum": 1})
    max_iterations: int | None = Field(
        default=None, ge=1, description="The most turns of all rounds together; fewer than participants is an error."
    )


FAMILIES = ("sequential", "graph", "concurrent", "handoff", "group-chat")


def _family_tag(value: object) -> str:
    family = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"type={family}" if family in FAMILIES else "type=sequential"


def _check_family(value: object) -> object:
    require_choice(value, "type", FAMILIES)
    return value


Workflow: TypeAlias = Annotated[
    Annotated[SequentialWorkflow, Tag("type=sequential")]
    | Annotated[GraphWorkflow, Tag("type=graph")]
    | Annotated[ConcurrentWorkflow, Tag("type=concurrent")]
    | Annotated[HandoffWorkflow, Tag("type=handoff")]
    | Annotated[GroupChatWorkflow, Tag("type=group-chat")],
    Discriminator(_family_tag),
    BeforeValidator(_check_family),
]

AnyWorkflow: TypeAlias = Annotated[
    Workflow,
    BeforeValidator(shorthand.workflow),
    Shorthand({"type": "array", "description": "The steps of a sequential workflow."}),
]
"""A workflow, or the list of steps of a sequential one."""

for _model in (StepsStep, ParallelStep, ConditionStep, LoopStep, Choice, RouterStep, SequentialWorkflow):
    _model.model_rebuild()
