"""The compiler: a frozen spec becomes a tree of nodes for the interpreter. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kneo.errors import Invalid
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.branch import BranchNode, ParallelNode, RouterNode, Selector
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.interpreter.node import Activity, ProgramNode, below
from kneo.runtime.interpreter.program import ROOT_AGENT, Program
from kneo.runtime.interpreter.serial import GraphEdge, GraphWorkflowNode, LoopNode, SequenceNode, TurnsNode
from kneo.runtime.interpreter.step import StepNode
from kneo.runtime.program.gates import (
    ToolGateIndex,
    compile_tool_gates,
    environment_gate,
    gate_id,
    human_gate,
    review_gate,
    wait_gates,
)
from kneo.spec.coverage.environment_gates import (
    gates_around,
    gates_around_agent,
    gates_of_calls,
    gates_of_calls_of_agent,
)
from kneo.spec.coverage.gates import step_human
from kneo.spec.gates import default_rejection
from kneo.spec.index import SpecIndex
from kneo.spec.models.agent import Agent
from kneo.spec.models.environment import EnvironmentGate
from kneo.spec.models.human import Human
from kneo.spec.models.spec import FunctionComponent, Spec
from kneo.spec.models.workflow import (
    ConcurrentWorkflow,
    ConditionStep,
    GraphWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    LeafStep,
    LoopStep,
    ParallelStep,
    RouterStep,
    SequentialWorkflow,
    Step,
    StepsStep,
    Workflow,
)
from kneo.spec.modules import NOTHING_KNOWN
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.tasks.forms import check_schema

MAX_DEPTH = 20
"""Steps inside steps and workflows inside workflows; deeper ones are refused before anything runs."""

MAX_NODES = 100_000
"""Nodes of one program. Workflows that use others several times at every level grow without bound."""


def compile_program(spec: Spec, target: str) -> Program:
    """Compile a validated spec.

    Args:
        spec: The frozen spec.
        target: ``workflow``, or ``agent`` to run the root agent alone; a spec without a workflow runs its root agent. ``call``
            makes one call of a tool of the root agent.

    Raises:
        Invalid: the spec uses a feature that this runtime cannot execute; nothing has run.
    """
    components, agent = spec.components, spec.agent
    _check_functions(components.functions)
    index = SpecIndex.of(spec, NOTHING_KNOWN)
    tool_gates = compile_tool_gates(spec)
    compiler = _Compiler(spec, gates_around(index), gates_of_calls(index), tool_gates)
    workflow = spec.workflow if target == "workflow" else None
    if workflow is None:
        activity = Activity(
            path=agent.name,
            id=agent.name,
            kind="agent",
            ref=ROOT_AGENT,
            call_gates=tuple(map(gate_id, gates_of_calls_of_agent(index))),
        )
        is_call = target == CALL_TARGET
        if is_call:
            compiler.used_agents[ROOT_AGENT] = None
        body = activity if is_call else compiler.agent(ROOT_AGENT, agent, activity, 0)
        step = StepNode(
            path=agent.name,
            id=agent.name,
            kind="agent",
            body=body,
            humans=compiler.waits,
            tool_gates=tool_gates.compiled,
        )
        children = (_with_environment_gates(step, gates_around_agent(index)),)
        root: ProgramNode = SequenceNode(path="", id=agent.name, children=children)
    else:
        root = compiler.workflow(workflow, "", "workflow", 0)
    return Program(
        root=root,
        agents={ROOT_AGENT: agent, **compiler.agents},
        used_agents=tuple(compiler.used_agents),
        functions=components.functions,
        agent_name=agent.name,
        workflow_name=(workflow.name or f"{workflow.type}-workflow") if workflow else None,
        workflow_type=workflow.type if workflow else None,
        spec=spec,
        tool_gates=tool_gates,
        is_call=target == CALL_TARGET,
    )


def _check_functions(functions: Mapping[str, FunctionComponent]) -> None:
    for name, function in functions.items():
        for key, schema in (("input_schema", function.input_schema), ("output_schema", function.output_schema)):
            if schema is not None:
                check_schema(schema, f"{key} of the function {name}")


@dataclass(frozen=True)
class _Scope:
    """The steps around a step: their path, their depth and, for fallbacks, the steps by id."""

    path: str
    depth: int
    siblings: Mapping[str, Step] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()
    """The steps that the step is a fallback of: fallbacks never form a circle."""


class _Compiler:
    """Compiles one spec.

    Args:
        spec: The spec, for references to its components.
        around: The environment's gates around its steps, by the steps' identity.
        at_calls: The environment's gates at the tool calls of its steps, likewise.
        tool_gates: The gates at tool calls.
    """

    def __init__(
        self,
        spec: Spec,
        around: Mapping[int, tuple[EnvironmentGate, ...]],
        at_calls: Mapping[int, tuple[EnvironmentGate, ...]],
        tool_gates: ToolGateIndex,
    ) -> None:
        self.spec = spec
        self.around = around
        self.at_calls = at_calls
        self.tool_gates = tool_gates
        self.count = 0
        self.used_agents: dict[str, None] = {}
        self.waits = wait_gates(spec.components.humans)
        self.agents: Mapping[str, Agent] = {spec.agent.name: spec.agent, **spec.components.agents}

    # ---- workflows --------------------------------------------------------------------------------------------

    def workflow(self, workflow: Workflow, path: str, name: str, depth: int) -> ProgramNode:
        match workflow:
            case SequentialWorkflow():
                return self.sequence(workflow.steps, path, name, depth)
            case ConcurrentWorkflow():
                if workflow.lacks_turns():
                    msg = f"The workflow {path or name} has max_iterations {workflow.max_iterations} and more participants."
                    hint = "Each participant takes one turn: raise max_iterations, or leave it out."
                    raise Invalid(msg, code="spec_invalid", hint=hint)
                return ParallelNode(path=path, id=name, children=self.steps(workflow.participants, path, depth))
            case GroupChatWorkflow():
                children = self.steps(workflow.participants, path, depth)
                limit, turns = workflow.max_iterations, workflow.rounds * len(children)
                return TurnsNode(
                    path=path,
                    id=name,
                    children=children,
                    order=tuple(range(len(children))),
                    turns=turns if limit is None else min(turns, limit),
                    cut_short=limit is not None and limit < len(children),
                    shares=True,
                )
            case HandoffWorkflow():
                return self.handoff(workflow, path, name, depth)
            case GraphWorkflow():
                return self.graph(workflow, path, name, depth)

    def sequence(self, steps: Sequence[Step], path: str, name: str, depth: int) -> SequenceNode:
        return SequenceNode(path=path, id=name, children=self.steps(steps, path, depth))

    def steps(self, steps: Sequence[Step], path: str, depth: int) -> tuple[ProgramNode, ...]:
        enabled = [step for step in steps if step.enabled]
        ids = [step.id for step in enabled]
        if len(set(ids)) < len(ids):
            msg = f"Two steps {f'of {path} ' if path else ''}have the same id: {', '.join(ids)[:500]}."
            raise Invalid(msg, code="spec_invalid")
        scope = _Scope(path, depth, {step.id: step for step in (*steps, *enabled)})
        return tuple(self.step(step, step.id, scope) for step in enabled)

    def handoff(self, workflow: HandoffWorkflow, path: str, name: str, depth: int) -> TurnsNode:
        """Compile a handoff: a sequence takes every named participant once, a round robin goes on up to the limit."""
        children = self.steps(workflow.participants, path, depth)
        positions = {child.id: index for index, child in enumerate(children)}
        named = tuple(positions[each] for each in workflow.selector.sequence if each in positions)
        order = named or tuple(range(len(children)))
        turns = workflow.max_iterations if workflow.max_iterations is not None else len(order)
        cut_short = workflow.selector.type != "round_robin" and turns < len(order)
        if workflow.selector.type != "round_robin":
            turns = min(turns, len(order))
        return TurnsNode(path=path, id=name, children=children, order=order, turns=turns, cut_short=cut_short)

    def graph(self, workflow: GraphWorkflow, path: str, name: str, depth: int) -> GraphWorkflowNode:
        nodes = {key: node for key, node in workflow.nodes.items() if node.enabled}
        if workflow.start not in nodes:
            msg = f"The graph {path or name} starts at {workflow.start}, which it does not have."
            raise Invalid(msg, code="spec_invalid")
        edges = [edge for edge in workflow.edges if edge.source in nodes and edge.target in nodes]
        scope = _Scope(path, depth, nodes)
        return GraphWorkflowNode(
            path=path,
            id=name,
            start=workflow.start,
            nodes={key: self.step(node, key, scope) for key, node in nodes.items()},
            edges={
                key: tuple(GraphEdge(edge.target, edge.condition) for edge in edges if edge.source == key)
                for key in nodes
            },
            max_steps=workflow.max_steps,
        )

    # ---- steps ------------------------------------------------------------------------------------------------

    def step(self, step: Step, name: str, scope: _Scope) -> StepNode:
        """Compile one step with everything around it; the name of a graph's node is its key."""
        self.count += 1
        path = below(scope.path, name)
        if scope.depth > MAX_DEPTH or self.count > MAX_NODES:
            msg = f"Steps are nested deeper than {MAX_DEPTH}, or there are more than {MAX_NODES}, at {path}."
            raise Invalid(msg, code="spec_invalid")
        gates = self.gates(step, path)
        node = StepNode(
            path=path,
            id=name,
            kind=step.kind,
            body=self.body(step, path, scope.depth, gates),
            before=gates.get("before"),
            after=gates.get("after"),
            error=gates.get("error"),
            on_error=step.on_error,
            fallback=self.fallback(step, name, scope),
            max_retries=max(1, step.max_retries) if step.on_error == "retry" else step.max_retries,
            save_as=step.save_as,
            humans=self.waits if step.kind in {"agent", "guardrail", "function"} else {},
            tool_gates=self.tool_gates.compiled if step.kind in {"agent", "guardrail"} else {},
        )
        return _with_environment_gates(node, self.around.get(id(step), ()))

    def gates(self, step: Step, path: str) -> Mapping[str, CompiledGate]:
        declared = step.review.gates() if step.review is not None else {}
        humans = self.spec.components.humans
        gates: dict[str, CompiledGate] = {
            str(position): review_gate(position, gate, humans, path) for position, gate in declared.items()
        }
        if isinstance(step, ConditionStep) and (before := gates.get("before")) is not None:
            if before.human.on_reject is None:
                gates["before"] = replace(before, on_reject=default_rejection("before", at_condition=True))
            if step.when is None:
                # A person who decides instead of a condition is always asked.
                gates["before"] = replace(gates["before"], when=None, sample=None)
        if isinstance(step, LoopStep) and (each := gates.get("each")) is not None and each.human.max_retries is None:
            gates["each"] = replace(each, max_retries=step.max_iterations)
        return gates

    def fallback(self, step: Step, name: str, scope: _Scope) -> StepNode | None:
        if step.on_error != "fallback":
            return None
        reference, replaced = step.fallback_ref or "", (*scope.replaced, name)
        target = scope.siblings.get(reference)
        if target is None or reference in replaced:
            msg = (
                f"The step {below(scope.path, step.id)} falls back on {step.fallback_ref}, which it cannot run instead."
            )
            hint = "Name a step of the same workflow, and do not let fallbacks go round in circles."
            raise Invalid(msg, code="spec_invalid", hint=hint)
        if not target.enabled:
            # A disabled fallback is a lint warning; the step then fails like any other step.
            return None
        return self.step(target, reference, replace(scope, depth=scope.depth + 1, replaced=replaced))

    def body(
        self, step: Step, path: str, depth: int, gates: Mapping[str, CompiledGate]
    ) -> Activity | CompiledGate | ProgramNode:
        if isinstance(step, LeafStep):
            return self.reference(step, path, depth)
        _check_no_timeout(step, path)
        match step:
            case StepsStep():
                return self.sequence(step.steps, path, step.id, depth + 1)
            case ParallelStep():
                return ParallelNode(path=path, id=step.id, children=self.steps(step.steps, path, depth + 1))
            case ConditionStep():
                return BranchNode(
                    path=path,
                    id=step.id,
                    when=step.when,
                    then=self.sequence(step.steps, path, step.id, depth + 1),
                    otherwise=self.sequence(step.otherwise, path, step.id, depth + 1),
                )
            case LoopStep():
                return LoopNode(
                    path=path,
                    id=step.id,
                    body=self.sequence(step.steps, path, step.id, depth + 1),
                    max_iterations=step.max_iterations,
                    until=step.until,
                    each=gates.get("each"),
                )
            case RouterStep():
                return self.router(step, path, depth, gates.get("route"))

    def reference(self, step: LeafStep, path: str, depth: int) -> Activity | CompiledGate | ProgramNode:
        """Compile a step that names a component."""
        components = self.spec.components
        kinds: Mapping[str, tuple[str, Mapping[str, object]]] = {
            "agent": ("agents", self.agents),
            "guardrail": ("agents", self.agents),
            "function": ("functions", components.functions),
            "human": ("humans", components.humans),
            "workflow": ("workflows", components.workflows),
        }
        section, declared = kinds[step.kind]
        if step.ref not in declared:
            msg = f"The step {path} refers to {step.ref}, which is not in components.{section}."
            raise Invalid(msg, code="spec_invalid")
        if step.kind == "human":
            human = step_human(step, components.humans)
            assert human is not None
            return human_gate(human, path, f"The human {step.ref}")
        if step.kind == "workflow":
            _check_no_timeout(step, path)
            return self.workflow(components.workflows[step.ref], path, step.ref, depth + 1)
        activity = Activity(
            path=path,
            id=step.id,
            kind=step.kind,
            ref=step.ref,
            timeout_seconds=step.timeout_seconds,
            call_gates=tuple(map(gate_id, self.at_calls.get(id(step), ()))),
        )
        if step.kind == "function":
            return activity
        agent = self.agents[step.ref]
        if agent.as_agent is not None:
            _check_no_timeout(step, path)
        return self.agent(step.ref, agent, activity, depth)

    def agent(self, ref: str, agent: Agent, activity: Activity, depth: int) -> Activity | ProgramNode:
        """Compile an agent: its activity, or the workflow that answers as the agent."""
        name = agent.as_agent
        if name is None:
            self.used_agents[ref] = None
            return activity
        if name not in self.spec.components.workflows:
            msg = f"The agent {agent.name} is the workflow {name}, which is not in components.workflows."
            raise Invalid(msg, code="spec_invalid")
        return self.workflow(self.spec.components.workflows[name], activity.path, name, depth + 1)

    def router(self, step: RouterStep, path: str, depth: int, route: CompiledGate | None) -> RouterNode:
        components, declared = self.spec.components, step.selector
        if route is None:
            # Used where no selector chooses, and where a reviewer sent the result back to go another way.
            route = human_gate(components.humans.get("default") or Human(), path, "The router's question")
            route = replace(route, position="route", decisions=(DecisionKind.SELECTED,), on_reject="stop")
        selector = None
        if declared is not None:
            function = declared.function
            if function is not None and function not in components.functions:
                msg = f"The router {path} chooses by {function}, which is not in components.functions."
                raise Invalid(msg, code="spec_invalid")
            choices = {name: step.choices[name].description for name in step.names}
            selector = Selector(
                function=Activity(path=path, id=step.id, kind="function", ref=function, choices=choices)
                if function
                else None,
                agent=self.selecting_agent(declared.agent, path, step.id, choices) if declared.agent else None,
                conditions=tuple((item.when, item.choice) for item in declared.conditions),
                default=declared.default,
            )
        return RouterNode(
            path=path,
            id=step.id,
            choices={name: self.sequence(step.choices[name].steps, path, step.id, depth + 1) for name in step.names},
            descriptions={name: step.choices[name].description for name in step.names},
            selector=selector,
            route=route,
            asks_first=step.review is not None and step.review.route is not None,
        )

    def selecting_agent(self, ref: str, path: str, name: str, choices: Mapping[str, str | None]) -> StepNode:
        """Compile the agent that chooses for a router."""
        agent = self.agents.get(ref)
        if agent is None or agent.as_agent is not None:
            what = "is not in components.agents" if agent is None else "is a workflow (as_agent)"
            msg = f"The router {path} chooses by the agent {ref}, which {what}."
            raise Invalid(msg, code="spec_invalid", hint="Name an agent that has a model.")
        self.used_agents[ref] = None
        return StepNode(
            path=path,
            id=name,
            kind="agent",
            body=Activity(path=path, id=name, kind="agent", ref=ref, choices=choices),
            humans=self.waits,
            tool_gates=self.tool_gates.compiled,
        )


def _with_environment_gates(step: StepNode, gates: Sequence[EnvironmentGate]) -> StepNode:
    """Return a step inside the environment's gates; the first of them is asked first before it, and last after it."""
    for gate in reversed(gates):
        added = {
            position: environment_gate(position, gate.name, declared, step.path)
            for position, declared in gate.gates().items()
        }
        step = StepNode(
            path=step.path,
            id=step.id,
            kind=step.kind,
            body=step,
            before=added.get("before"),
            after=added.get("after"),
        )
    return step


def _check_no_timeout(step: Step, path: str) -> None:
    """Refuse a time limit of a group before anything runs: a feature that is not executed must not be ignored either."""
    if step.timeout_seconds is not None:
        msg = f"The step {path} is of kind {step.kind} and has timeout_seconds, which this runtime does not execute."
        raise Invalid(msg, code="unsupported_spec", hint="Give the steps in it a timeout, or the whole run.")
