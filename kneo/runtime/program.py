"""A frozen spec as a tree of nodes, ready to be interpreted. Pure.

A node's ``path`` is its place in the tree (``review/legal``) and names its steps, gates and trace for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kneo.errors import Invalid
from kneo.spec.models import Agent, Human, LeafStep, SequentialWorkflow, Spec, Step, Workflow

DEFAULT_NAMES = {"sequential": "sequential-workflow"}
MAX_DEPTH = 20
"""Workflows inside workflows; deeper ones are refused before anything runs."""


@dataclass(frozen=True, kw_only=True)
class Node:
    path: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Leaf(Node):
    """One step that does something. ``kind`` is ``agent`` or ``function``."""

    kind: str
    ref: str
    on_error: str = "fail"
    max_retries: int = 0
    timeout_seconds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gate(Node):
    """One question to a person about the value that flows through here."""

    ref: str
    human: Human


@dataclass(frozen=True, kw_only=True)
class Sequence(Node):
    children: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class Program:
    """Everything the interpreter needs of one spec."""

    root: Node
    agents: Mapping[str, Agent]
    functions: Mapping[str, str]
    """Function components and the dotted name of the code behind each."""
    agent_name: str
    workflow_name: str | None
    workflow_type: str | None


ROOT_AGENT = ""
"""The name under which ``agents`` holds the root agent; no component can have it."""


def compile_program(spec: Spec, target: str) -> Program:
    """Turn a validated spec into a program.

    Args:
        spec: The frozen spec.
        target: ``workflow``, or ``agent`` to run the root agent alone; a spec without a workflow runs its root agent.

    Raises:
        Invalid: the spec uses something this runtime cannot execute; nothing has run.
    """
    components = spec.components
    workflow = spec.workflow if target == "workflow" else None
    if workflow is None:
        root: Node = Leaf(path=spec.agent.name, id=spec.agent.name, kind="agent", ref=ROOT_AGENT)
    else:
        root = _Compiler(spec).workflow(workflow, path="", name="workflow", depth=0)
    return Program(
        root=root,
        agents={ROOT_AGENT: spec.agent, spec.agent.name: spec.agent, **components.agents},
        functions={name: function.implementation for name, function in components.functions.items()},
        agent_name=spec.agent.name,
        workflow_name=(workflow.name or DEFAULT_NAMES.get(workflow.type)) if workflow else None,
        workflow_type=workflow.type if workflow else None,
    )


class _Compiler:
    """Walks a spec's workflow; holds the spec so that references can be followed."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.kinds: Mapping[str, Callable[[LeafStep, str, int], Node]] = {
            "agent": self.leaf,
            "function": self.leaf,
            "human": self.gate,
            "workflow": self.nested,
        }

    def workflow(self, workflow: Workflow, *, path: str, name: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            msg = f"Workflows are nested deeper than {MAX_DEPTH} at {path}."
            raise Invalid(msg, code="spec_invalid")
        if not isinstance(workflow, SequentialWorkflow):
            raise _unsupported(f"The workflow {name} is of type {workflow.type}")
        children = tuple(self.step(step, path, depth) for step in workflow.steps if step.enabled)
        return Sequence(path=path, id=name, children=children)

    def step(self, step: Step, parent: str, depth: int) -> Node:
        path = f"{parent}/{step.id}" if parent else step.id
        build = self.kinds.get(step.kind)
        if build is None or not isinstance(step, LeafStep):
            raise _unsupported(f"The step {path} is of kind {step.kind}")
        if step.review is not None:
            raise _unsupported(f"The step {path} has a review")
        if step.on_error == "fallback" or step.save_as is not None:
            raise _unsupported(f"The step {path} says on_error: fallback or save_as")
        return build(step, path, depth)

    def leaf(self, step: LeafStep, path: str, _depth: int) -> Node:
        return Leaf(
            path=path,
            id=step.id,
            kind=step.kind,
            ref=step.ref,
            on_error=step.on_error,
            max_retries=step.max_retries,
            timeout_seconds=step.timeout_seconds,
        )

    def gate(self, step: LeafStep, path: str, _depth: int) -> Node:
        human = self.spec.components.humans[step.ref]
        if human.quorum or human.candidates or human.fields or human.answer_schema:
            raise _unsupported(f"The human {step.ref} asks for a quorum, candidates, fields or a schema")
        return Gate(path=path, id=step.id, ref=step.ref, human=human)

    def nested(self, step: LeafStep, path: str, depth: int) -> Node:
        inner = self.spec.components.workflows[step.ref]
        return self.workflow(inner, path=path, name=step.ref, depth=depth + 1)


def _unsupported(what: str) -> Invalid:
    """Refuse before anything runs: what is not executed must not be skipped either."""
    return Invalid(f"{what}, which this runtime does not execute yet.", code="unsupported_spec")
