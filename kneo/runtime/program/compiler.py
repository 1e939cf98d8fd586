"""A frozen spec as a tree of nodes, ready to be interpreted. Pure.

A node's ``path`` is its place in the spec (``review/legal``) and names its steps and trace for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kneo.errors import Invalid
from kneo.runtime.interpreter.branch import BranchNode, RouterNode, Selector
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.interpreter.graph import GraphEdge, GraphNode
from kneo.runtime.interpreter.loop import LoopNode
from kneo.runtime.interpreter.node import Activity, ProgramNode, below
from kneo.runtime.interpreter.parallel import ParallelNode
from kneo.runtime.interpreter.program import ROOT_AGENT, Program
from kneo.runtime.interpreter.sequence import SequenceNode, TurnsNode
from kneo.runtime.interpreter.step import HumanQuestion, StepNode
from kneo.runtime.program.gates import DECISIONS, make_added, make_gate, make_question, make_waits
from kneo.spec.coverage.environment_gates import gates_around, gates_around_agent
from kneo.spec.gates import default_rejection
from kneo.spec.index import SpecIndex
from kneo.spec.models import (
    Agent,
    ConcurrentWorkflow,
    ConditionStep,
    FunctionComponent,
    GraphWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    Human,
    LeafStep,
    LoopStep,
    ParallelStep,
    RouterStep,
    SequentialWorkflow,
    Spec,
    Step,
    StepsStep,
    Workflow,
)
from kneo.spec.models.environment import EnvironmentGate
from kneo.spec.modules import NOTHING_KNOWN
from kneo.tasks.forms import check_schema

DEFAULT_NAMES = {
    "sequential": "sequential-workflow",
    "graph": "graph-workflow",
    "concurrent": "concurrent-workflow",
    "handoff": "handoff-workflow",
    "group-chat": "group-chat-workflow",
}

MAX_DEPTH = 20
"""Steps inside steps and workflows inside workflows; deeper ones are refused before anything runs."""

MAX_NODES = 100_000
"""Nodes of one program. Workflows that use others several times at every level grow without bound."""


def compile_program(spec: Spec, target: str) -> Program:
    """Turn a validated spec into a program.

    Args:
        spec: The frozen spec.
        target: ``workflow``, or ``agent`` to run the root agent alone; a spec without a workflow runs its root agent.

    Raises:
        Invalid: the spec uses something this runtime cannot execute; nothing has run.
    """
    components = spec.components
    _check_functions(components.functions)
    view = SpecIndex.of(spec, NOTHING_KNOWN)
    compiler = _Compiler(spec, gates_around(view))
    workflow = spec.workflow if target == "workflow" else None
    if workflow is None:
        name = spec.agent.name
        body: Activity | ProgramNode
        if spec.agent.as_agent is not None:
            body = compiler.answering(spec.agent, name, 0)
        else:
            body = Activity(path=name, id=name, kind="agent", ref=ROOT_AGENT)
            compiler.asked[ROOT_AGENT] = None
        step = _surrounded(StepNode(path=name, id=name, kind="agent", body=body), gates_around_agent(view))
        root: ProgramNode = SequenceNode(path="", id=name, children=(step,))
    else:
        root = compiler.workflow(workflow, "", "workflow", 0)
    return Program(
        root=root,
        agents={ROOT_AGENT: spec.agent, spec.agent.name: spec.agent, **components.agents},
        asked=tuple(compiler.asked),
        functions=components.functions,
        agent_name=spec.agent.name,
        workflow_name=(workflow.name or DEFAULT_NAMES.get(workflow.type)) if workflow else None,
        workflow_type=workflow.type if workflow else None,
    )


def _check_functions(functions: Mapping[str, FunctionComponent]) -> None:
    for name, function in functions.items():
        for key, schema in (("input_schema", function.input_schema), ("output_schema", function.output_schema)):
            if schema is not None:
                check_schema(schema, f"{key} of the function {name}")


class _Compiler:
    """Walks a spec's workflow; holds the spec so that references can be followed.

    Args:
        spec: What is compiled.
        around: The questions of the environment around its steps, by the steps' identity.
    """

    def __init__(self, spec: Spec, around: Mapping[int, tuple[EnvironmentGate, ...]]) -> None:
        self.spec = spec
        self.around = around
        self.count = 0
        self.asked: dict[str, None] = {}
        self.waits = make_waits(spec.components.humans)

    # ---- families ---------------------------------------------------------------------------------------------

    def workflow(self, workflow: Workflow, path: str, name: str, depth: int) -> ProgramNode:
        match workflow:
            case SequentialWorkflow():
                return self.row(workflow.steps, path, name, depth)
            case ConcurrentWorkflow():
                return ParallelNode(path=path, id=name, children=self.all_of(workflow.participants, path, depth))
            case GroupChatWorkflow():
                children = self.all_of(workflow.participants, path, depth)
                order = tuple(range(len(children)))
                limit = workflow.max_iterations
                turns = workflow.rounds * len(children)
                cut = limit is not None and limit < len(children)
                turns = turns if limit is None else min(turns, limit)
                return TurnsNode(path=path, id=name, children=children, order=order, turns=turns, cut_short=cut)
            case HandoffWorkflow():
                return self.handoff(workflow, path, name, depth)
            case GraphWorkflow():
                return self.graph(workflow, path, name, depth)

    def row(self, steps: Sequence[Step], path: str, name: str, depth: int) -> SequenceNode:
        return SequenceNode(path=path, id=name, children=self.all_of(steps, path, depth))

    def all_of(self, steps: Sequence[Step], path: str, depth: int) -> tuple[ProgramNode, ...]:
        enabled = [step for step in steps if step.enabled]
        ids = [step.id for step in enabled]
        if len(set(ids)) < len(ids):
            msg = f"Two steps {f'of {path} ' if path else ''}have the same id: {', '.join(ids)[:500]}."
            raise Invalid(msg, code="spec_invalid")
        beside = {step.id: step for step in (*steps, *enabled)}
        return tuple(self.step(step, path, depth, beside) for step in enabled)

    def handoff(self, workflow: HandoffWorkflow, path: str, name: str, depth: int) -> TurnsNode:
        """Sequence: everybody named, once. Round robin: round and round up to the limit, else one round."""
        children = self.all_of(workflow.participants, path, depth)
        positions = {child.id: index for index, child in enumerate(children)}
        named = tuple(positions[one] for one in workflow.selector.sequence if one in positions)
        order = named or tuple(range(len(children)))
        limit = workflow.max_iterations
        if workflow.selector.type == "round_robin":
            turns = limit if limit is not None else len(order)
            return TurnsNode(path=path, id=name, children=children, order=order, turns=turns)
        cut = limit is not None and limit < len(order)
        turns = limit if cut and limit is not None else len(order)
        return TurnsNode(path=path, id=name, children=children, order=order, turns=turns, cut_short=cut)

    def graph(self, workflow: GraphWorkflow, path: str, name: str, depth: int) -> GraphNode:
        declared = {key: node for key, node in workflow.nodes.items() if node.enabled}
        if workflow.start not in declared:
            msg = f"The graph {path or name} starts at {workflow.start}, which it does not have."
            raise Invalid(msg, code="spec_invalid")
        ways: dict[str, list[GraphEdge]] = {key: [] for key in declared}
        for edge in workflow.edges:
            if edge.source in declared and edge.target in declared:
                ways[edge.source].append(GraphEdge(target=edge.target, condition=edge.condition))
        return GraphNode(
            path=path,
            id=name,
            start=workflow.start,
            nodes={key: self.step(node, path, depth, declared, name=key) for key, node in declared.items()},
            ways={key: tuple(found) for key, found in ways.items()},
            max_steps=workflow.max_steps,
        )

    # ---- steps ------------------------------------------------------------------------------------------------

    def step(
        self,
        step: Step,
        parent: str,
        depth: int,
        beside: Mapping[str, Step],
        *,
        name: str | None = None,
        instead_of: tuple[str, ...] = (),
    ) -> StepNode:
        """Compile one step with everything around it.

        Args:
            step: The step.
            parent: Path of what it stands in.
            depth: How deep that is.
            beside: The steps of the same workflow by their ids, for ``fallback_ref``.
            name: Its name where that is not its id: the key of a graph's node.
            instead_of: The steps it is a fallback of, so that fallbacks never go round in circles.
        """
        self.count += 1
        path = below(parent, name or step.id)
        if depth > MAX_DEPTH or self.count > MAX_NODES:
            msg = f"Steps are nested deeper than {MAX_DEPTH}, or there are more than {MAX_NODES}, at {path}."
            raise Invalid(msg, code="spec_invalid")
        gates = self.gates(step, path)
        retries = max(1, step.max_retries) if step.on_error == "retry" else step.max_retries
        made = StepNode(
            path=path,
            id=name or step.id,
            kind=step.kind,
            body=self.body(step, path, depth, gates),
            before=gates.get("before"),
            after=gates.get("after"),
            error=gates.get("error"),
            on_error=step.on_error,
            fallback=self.fallback(step, parent, depth, beside, (*instead_of, name or step.id)),
            max_retries=retries,
            save_as=step.save_as,
            humans=self.waits if step.kind in {"agent", "function"} else {},
        )
        return _surrounded(made, self.around.get(id(step), ()))

    def gates(self, step: Step, path: str) -> dict[str, CompiledGate]:
        declared = step.review.gates() if step.review is not None else {}
        humans = self.spec.components.humans
        made = {position: make_gate(position, gate, humans, path) for position, gate in declared.items()}
        found: dict[str, CompiledGate] = {str(position): gate for position, gate in made.items()}
        if isinstance(step, ConditionStep) and "before" in found:
            before = found["before"]
            says = before.human.on_reject
            found["before"] = before = replace(before, on_reject=says or default_rejection("before", at_condition=True))
            if step.when is None:
                # A person who decides instead of a condition is always asked.
                found["before"] = replace(before, when=None, sample=None)
        if isinstance(step, LoopStep) and "each" in found and found["each"].human.max_retries is None:
            found["each"] = replace(found["each"], max_retries=step.max_iterations)
        return found

    def fallback(
        self,
        step: Step,
        parent: str,
        depth: int,
        beside: Mapping[str, Step],
        instead_of: tuple[str, ...],
    ) -> StepNode | None:
        if step.on_error != "fallback":
            return None
        target = beside.get(step.fallback_ref or "")
        if target is None or step.fallback_ref in instead_of:
            msg = f"The step {below(parent, step.id)} falls back on {step.fallback_ref}, which it cannot run instead."
            hint = "Name a step of the same workflow, and do not let fallbacks go round in circles."
            raise Invalid(msg, code="spec_invalid", hint=hint)
        if not target.enabled:
            # Nothing stands in for it, which the checks warn of: it fails like any other step.
            return None
        return self.step(target, parent, depth + 1, beside, name=step.fallback_ref, instead_of=instead_of)

    def body(
        self, step: Step, path: str, depth: int, gates: Mapping[str, CompiledGate]
    ) -> Activity | HumanQuestion | ProgramNode:
        match step:
            case LeafStep():
                return self.activity(step, path, depth)
            case StepsStep():
                self._timeless(step, path)
                return self.row(step.steps, path, step.id, depth + 1)
            case ParallelStep():
                self._timeless(step, path)
                return ParallelNode(path=path, id=step.id, children=self.all_of(step.steps, path, depth + 1))
            case ConditionStep():
                self._timeless(step, path)
                return BranchNode(
                    path=path,
                    id=step.id,
                    when=step.when,
                    then=self.row(step.steps, path, step.id, depth + 1),
                    otherwise=self.row(step.otherwise, path, step.id, depth + 1),
                )
            case LoopStep():
                self._timeless(step, path)
                return LoopNode(
                    path=path,
                    id=step.id,
                    body=self.row(step.steps, path, step.id, depth + 1),
                    max_iterations=step.max_iterations,
                    until=step.until,
                    each=gates.get("each"),
                )
            case RouterStep():
                self._timeless(step, path)
                return self.router(step, path, depth, gates)

    @staticmethod
    def _timeless(step: Step, path: str) -> None:
        if step.timeout_seconds is not None:
            msg = f"The step {path} is of kind {step.kind} and has timeout_seconds"
            raise _unsupported(msg, "Give the steps in it a timeout, or the whole run.")

    def activity(self, step: LeafStep, path: str, depth: int) -> Activity | HumanQuestion | ProgramNode:
        components = self.spec.components
        kinds: Mapping[str, tuple[str, Mapping[str, object]]] = {
            "agent": ("agents", {self.spec.agent.name: self.spec.agent, **components.agents}),
            "guardrail": ("agents", {self.spec.agent.name: self.spec.agent, **components.agents}),
            "function": ("functions", components.functions),
            "human": ("humans", components.humans),
            "workflow": ("workflows", components.workflows),
        }
        bucket, known = kinds[step.kind]
        if step.ref not in known:
            msg = f"The step {path} refers to {step.ref}, which is not in components.{bucket}."
            raise Invalid(msg, code="spec_invalid")
        if step.kind == "human":
            return self.question(components.humans[step.ref], path, step.ref)
        if step.kind == "workflow":
            self._timeless(step, path)
            return self.workflow(components.workflows[step.ref], path, step.ref, depth + 1)
        agent = known[step.ref]
        if isinstance(agent, Agent):
            if agent.as_agent is not None:
                self._timeless(step, path)
                return self.answering(agent, path, depth)
            self.asked[step.ref] = None
        return Activity(path=path, id=step.id, kind=step.kind, ref=step.ref, timeout_seconds=step.timeout_seconds)

    def answering(self, agent: Agent, path: str, depth: int) -> ProgramNode:
        """Compile the workflow that answers as an agent."""
        assert agent.as_agent is not None
        if agent.as_agent not in self.spec.components.workflows:
            msg = f"The agent {agent.name} is the workflow {agent.as_agent}, which is not in components.workflows."
            raise Invalid(msg, code="spec_invalid")
        return self.workflow(self.spec.components.workflows[agent.as_agent], path, agent.as_agent, depth + 1)

    @staticmethod
    def question(human: Human, path: str, name: str) -> HumanQuestion:
        return HumanQuestion(gate=make_question(human, path, f"The human {name}"))

    def router(self, step: RouterStep, path: str, depth: int, gates: Mapping[str, CompiledGate]) -> RouterNode:
        declared = step.review.route if step.review is not None else None
        route = gates.get("route")
        if route is None:
            # Asked where nothing else chooses, and where a reviewer sent the result back to go another way.
            route = make_question(self.spec.components.humans.get("default") or Human(), path, "The router's question")
            route = replace(route, position="route", decisions=DECISIONS["route"], on_reject="stop")
        chosen = step.selector
        selector = None
        if chosen is not None:
            if chosen.function is not None and chosen.function not in self.spec.components.functions:
                msg = f"The router {path} chooses by {chosen.function}, which is not in components.functions."
                raise Invalid(msg, code="spec_invalid")
            selector = Selector(
                function=Activity(path=path, id=step.id, kind="function", ref=chosen.function)
                if chosen.function
                else None,
                conditions=tuple((item.when, item.choice) for item in chosen.conditions),
                default=chosen.default,
            )
        return RouterNode(
            path=path,
            id=step.id,
            choices={name: self.row(step.choices[name].steps, path, step.id, depth + 1) for name in step.names},
            descriptions={name: step.choices[name].description for name in step.names},
            selector=selector,
            route=route,
            asks_first=declared is not None,
        )


def _surrounded(step: StepNode, gates: Sequence[EnvironmentGate]) -> StepNode:
    """Put the questions of an environment around a step; the first of them is asked first before it, and last after it."""
    for one in reversed(gates):
        asked = {place: make_added(place, one.name, gate, step.path) for place, gate in one.gates().items()}
        step = StepNode(
            path=step.path,
            id=step.id,
            kind=step.kind,
            body=step,
            before=asked.get("before"),
            after=asked.get("after"),
        )
    return step


def _unsupported(what: str, hint: str) -> Invalid:
    """Refuse before anything runs: what is not executed must not be skipped either."""
    return Invalid(f"{what}, which this runtime does not execute.", code="unsupported_spec", hint=hint)
