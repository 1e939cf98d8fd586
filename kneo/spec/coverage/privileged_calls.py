"""Gate coverage: every path of a run to a privileged call passes a gate.

The walk follows a run from its start, through every family of workflow, every container and every nested workflow and
agent, until a gate stops it. A privileged call that the walk reaches is a finding, with the path to it.

Each workflow is judged once for whether it can be passed without a gate, inner ones first, and then entered at most
once to look for calls: the cost is proportional to the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kneo.spec.coverage.environment_gates import gates_around, gates_around_agent, gates_at_call
from kneo.spec.coverage.exposure import AddedGates, Call, Exposure, components, dependencies, exposure, function_call
from kneo.spec.coverage.gates import (
    GateStrength,
    gate_strength,
    lets_skip,
    step_gates,
    step_human,
    step_rejection,
    step_strength,
)
from kneo.spec.documents import Diagnostic, Path, error, warning
from kneo.spec.gates import Position, default_rejection
from kneo.spec.index import ROOT, ROOT_WORKFLOW, LocatedStep, LocatedWorkflow, Part, SpecIndex, children
from kneo.spec.models.environment import EnvironmentGate
from kneo.spec.models.human import Gate, Human
from kneo.spec.models.workflow import (
    ConcurrentWorkflow,
    ConditionStep,
    GraphWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    LeafStep,
    ParallelStep,
    RouterStep,
    Step,
)

MAX_SHOWN = 8  # steps of a path that a message names
MAX_NOTES = 3  # gates without effect that a message names
MAX_CHAIN = 20  # fallbacks of fallbacks; a longer chain counts as one that continues
MAX_LINKS = 40  # links of a path that a message looks back over


@dataclass(frozen=True, slots=True)
class CallPath:
    """The path to a step: the link before it, and the weakness of a gate on the path."""

    before: CallPath | None
    label: str
    weakness: str | None = None

    def __str__(self) -> str:
        labels = [link.label for link in self._links() if link.label]
        return " → ".join(labels if len(labels) <= MAX_SHOWN else ["…", *labels[-MAX_SHOWN:]])

    def weak_gates(self) -> str:
        """Describe the gates on the path that do not count."""
        notes = dict.fromkeys(link.weakness for link in self._links() if link.weakness)
        return "".join(f" {note}" for note in list(notes)[-MAX_NOTES:])

    def _links(self) -> list[CallPath]:
        """Return the last links: a message shows a part of a long path, and must not cost a walk over all of it."""
        links: list[CallPath] = []
        link: CallPath | None = self
        while link is not None and len(links) < MAX_LINKS:
            links.append(link)
            link = link.before
        return links[::-1]


START = CallPath(None, "")


def coverage(index: SpecIndex) -> Iterator[Diagnostic]:
    """Every path to a privileged call passes a gate."""
    search = _search(index)
    yield from search.findings.values()
    call = search.exposures[ROOT].call
    if call is not None and ROOT not in search.entered and not search.agent_guarded:
        message = f"A run with target agent reaches {call} past the gates of the workflow."
        hint = "Write review.before at the tool itself, so that it guards every run of the agent."
        yield warning("W_PRIVILEGED_DIRECT", message, ("agent", "tools"), suggestion=hint)


def _search(index: SpecIndex) -> _Search:
    """Follow every run of a released bundle."""
    search = _Search(index)
    root = ROOT_WORKFLOW if index.spec.workflow is not None else ROOT
    search.follow(root)
    if root != ROOT and index.spec.runs_root_agent:
        search.follow(ROOT)
    return search


def reached_ungated(index: SpecIndex) -> tuple[frozenset[Path], frozenset[Part]]:
    """Return the paths of the steps, and the agents and workflows, that a run reaches without an approval."""
    search = _search(index)
    return frozenset(search.reached), frozenset(search.entered)


def privileged_calls(index: SpecIndex) -> dict[Part, str]:
    """Return the privileged call of each function and agent, where no gate guards the call itself."""
    calls: dict[Part, Call | None] = {
        ("function", name): function_call(index, name) for name in index.spec.components.functions
    }
    calls |= {part: known.call for part, known in _Search(index).exposures.items()}
    return {part: str(call) for part, call in calls.items() if call is not None}


class _Search:
    """One search for ungated calls.

    Attributes:
        exposures: The exposure of each agent.
        entered: The workflows and agents that a run reaches without a gate.
        reached: The paths of the steps that a run reaches without a gate.
        findings: The findings by the path of the step that makes the call.
        agent_guarded: Whether the environment guards a run of the root agent alone.
    """

    def __init__(self, index: SpecIndex) -> None:
        self._index = index
        self._workflows = {at.part: at for at in index.workflows}
        self._agents = {at.part: at.agent for at in index.agents}
        self._passable: dict[Part, bool] = {}
        self._around = gates_around(index)
        self._pending: list[tuple[Part, CallPath]] = []
        self.exposures: dict[Part, Exposure] = {}
        self.entered: set[Part] = set()
        self.reached: set[Path] = set()
        self.findings: dict[Path, Diagnostic] = {}
        self.agent_guarded = any(
            _added_strength("before", gate.before).guards
            for gate in gates_around_agent(index)
            if gate.before is not None
        )
        self._judge_parts()

    def _judge_parts(self) -> None:
        """Judge each workflow and agent by itself, after those that it runs."""
        needs = dependencies(self._index)
        walk = GateWalk(self._index, self._passable, self.exposures, self._around)
        for members in components(needs, needs.__getitem__):
            for part in members:
                if part in self._workflows:
                    self._passable[part] = walk.workflow(self._workflows[part], START)
                else:
                    agent = self._agents[part]
                    self.exposures[part] = exposure(self._index, agent, self.exposures, self._gates_at_calls(part))
                    self._passable[part] = not agent.as_agent or self._passable.get(("workflow", agent.as_agent), True)

    def _gates_at_calls(self, part: Part) -> AddedGates:
        """Return the environment's gates before the tool calls of an agent."""
        agent = part[1] or self._index.spec.agent.name
        return lambda tool: [gate.before for gate in gates_at_call(self._index, agent, tool) if gate.before is not None]

    def follow(self, root: Part) -> None:
        """Follow a run that starts with a workflow or an agent."""
        if root == ROOT and self.agent_guarded:
            return
        if root == ROOT:
            name = self._index.spec.agent.name
            self._report(("agent",), name, self.exposures[ROOT].call, CallPath(START, name))
        self._enter(root, START)
        walk = GateWalk(self._index, self._passable, self.exposures, self._around, self._report, self._enter)
        while self._pending:
            part, path = self._pending.pop()
            if part in self._workflows:
                walk.workflow(self._workflows[part], path)
            elif part in self._agents:
                workflow = self._agents[part].as_agent
                for other in (*self.exposures[part].agents, *([("workflow", workflow)] if workflow else ())):
                    self._enter(other, path)

    def _enter(self, part: Part, path: CallPath) -> None:
        if part not in self.entered:
            self.entered.add(part)
            self._pending.append((part, path))

    def _report(self, path: Path, name: str, call: Call | None, reached: CallPath) -> None:
        self.reached.add(path)
        if call is None or path in self.findings:
            return
        own = f" The gate at {call.name} does not count: it {call.weakness}." if call.weakness else ""
        message = f"{name} calls {call} without an approval. Path: {reached}.{reached.weak_gates()}{own}"
        hint = "Put a step of kind human before it on every path, or write review.before at the step or tool."
        self.findings[path] = error("E_PRIVILEGED_UNGATED", message, path, suggestion=hint)


@dataclass(slots=True)
class GateWalk:
    """One walk over the steps that a run reaches without an approval.

    Each method that follows steps returns whether a run can pass them without a gate. Parallel steps are passed only
    when all of them are, so one gate among them is enough for the steps after them, and none for its siblings.

    Attributes:
        passable: Whether each workflow and agent can be passed without a gate; one that is missing can.
        exposures: The exposure of each agent.
        around: The environment's gates around steps, by the steps' identity.
        report: Called with every step that is reached and the privileged call it makes, where it makes one; None only
            finds out which steps can be passed.
        enter: Called with every nested workflow and agent that is reached.
    """

    index: SpecIndex
    passable: Mapping[Part, bool]
    exposures: Mapping[Part, Exposure]
    around: Mapping[int, tuple[EnvironmentGate, ...]]
    report: Callable[[Path, str, Call | None, CallPath], None] | None = None
    enter: Callable[[Part, CallPath], None] | None = None
    _fallbacks: dict[Path, bool] = field(default_factory=dict)
    _chained: int = 0
    _later: list[tuple[LocatedStep, CallPath]] = field(default_factory=list)

    def workflow(self, at: LocatedWorkflow, path: CallPath) -> bool:
        """Follow a workflow from its start to its end."""
        workflow = at.workflow
        if isinstance(workflow, GraphWorkflow):
            passed = self._graph(workflow, at.path, path)
        elif isinstance(workflow, ConcurrentWorkflow):
            passed = self._parallel(self._members((*at.path, "participants")), path)
        elif isinstance(workflow, HandoffWorkflow | GroupChatWorkflow):
            passed = self._row(_turns(workflow, self._members((*at.path, "participants"))), path)
        else:
            passed = self._row(self._members((*at.path, "steps")), path)
        while self._later:
            late, reached = self._later.pop()
            self._step(late, CallPath(reached, late.name))
        return passed

    def _members(self, path: Path) -> tuple[LocatedStep, ...]:
        return self.index.blocks[path].members

    def _row(self, members: Iterable[LocatedStep], path: CallPath) -> bool:
        for at in members:
            path = CallPath(path, at.step.id)
            passed, weakness = self._step(at, path)
            if not passed:
                return False
            if weakness:
                path = CallPath(path, "", weakness)
        return True

    def _parallel(self, members: Iterable[LocatedStep], path: CallPath) -> bool:
        passed = [self._step(at, CallPath(path, at.step.id))[0] for at in members]  # each is followed
        return all(passed)

    def _graph(self, graph: GraphWorkflow, path: Path, reached: CallPath) -> bool:
        nodes = {at.name: at for at in self._members((*path, "nodes")) if at.step.enabled}
        edges: dict[str, list[tuple[str, bool]]] = {key: [] for key in nodes}
        for edge in graph.edges:
            if edge.source in nodes and edge.target in nodes:
                always = edge.condition is None or edge.condition.type == "always"
                edges[edge.source].append((edge.target, always))
        if graph.start not in nodes:
            return True
        paths = {graph.start: CallPath(reached, graph.start)}
        pending = [graph.start]
        ends = False
        while pending:
            key = pending.pop()
            passed, weakness = self._step(nodes[key], paths[key])
            if not passed:
                continue
            ends = ends or not any(always for _, always in edges[key])
            after = CallPath(paths[key], "", weakness) if weakness else paths[key]
            for target, _ in edges[key]:
                if target not in paths:
                    paths[target] = CallPath(after, target)
                    pending.append(target)
        return ends

    def _step(self, at: LocatedStep, path: CallPath) -> tuple[bool, str | None]:
        """Follow a step; return whether it can be passed, and the weakness of a gate in it."""
        if not at.step.enabled:
            return True, None
        return self._guarded(at, path, self.around.get(id(at.step), ()))

    def _guarded(self, at: LocatedStep, path: CallPath, gates: Sequence[EnvironmentGate]) -> tuple[bool, str | None]:
        """Follow a step with the environment's gates around it, the outermost first."""
        if not gates:
            return self._own(at, path)
        strengths = {position: _added_strength(position, gate) for position, gate in gates[0].gates().items()}
        before, after = strengths.get("before"), strengths.get("after")
        if before is not None and before.guards:
            return before.continues, None
        passed, weakness = self._guarded(at, path, gates[1:])
        if after is not None and after.ends_run:
            passed, weakness = False, None
        return passed or (before is not None and before.continues), weakness

    def _own(self, at: LocatedStep, path: CallPath) -> tuple[bool, str | None]:
        """Follow a step with the gates that its spec declares."""
        step = at.step
        before = self._strength(step, "before")
        if before is not None and before.guards:
            return self._rejected(at, before, path), None
        weakness = _note(step, "before", before)
        passed = self._body(at, CallPath(path, "", weakness) if weakness else path)
        if isinstance(step, LeafStep) and step.kind == "human":
            weak = step_strength(self._human(step)).weakness
            return passed, f"The question {step.id} does not count: it {weak}." if weak else None
        if passed:
            passed, later = self._reviewed(step)
            weakness = weakness or later
        if before is not None and _skips(step, before):
            passed = True
        failed = self._failed(at, path)  # followed in any case: a fallback may make a call of its own
        return passed or failed, weakness

    def _reviewed(self, step: Step) -> tuple[bool, str | None]:
        """Judge the gates at the result of a step."""
        weakness = None
        positions: tuple[Position, ...] = ("after", "each")
        for position in positions:
            strength = self._strength(step, position)
            if strength is not None and strength.ends_run:
                return False, None
            weakness = weakness or _note(step, position, strength)
        return True, weakness

    def _rejected(self, at: LocatedStep, gate: GateStrength, path: CallPath) -> bool:
        """Follow the steps that run when the gate before a step is not passed."""
        if isinstance(at.step, ConditionStep) and "else" in gate.outcomes:
            return self._row(self._members((*at.path, "else")), path) or _skips(at.step, gate)
        return gate.continues

    def _failed(self, at: LocatedStep, path: CallPath) -> bool:
        """Follow the steps that run when a step fails before the gates in it and after it."""
        step = at.step
        gate = step_gates(step).get("error")
        skipped = gate is not None and lets_skip(gate, self.index.spec.components.humans)
        if step.on_error == "fallback" and step.fallback_ref is not None:
            fallback = self.index.blocks[at.path[:-1]].by_name.get(step.fallback_ref)
            if fallback is not None and (fallback.step.enabled or fallback.role != "node"):
                return self._fallback(fallback, path) or skipped
        return skipped or step.on_error == "continue"

    def _fallback(self, at: LocatedStep, path: CallPath) -> bool:
        """Follow a fallback, once for all the steps that name it."""
        if at.path not in self._fallbacks:
            self._fallbacks[at.path] = True  # until it is known: two fallbacks of each other continue
            if self._chained >= MAX_CHAIN:
                self._later.append((at, path))
                return True
            self._chained += 1
            self._fallbacks[at.path] = self._step(at, CallPath(path, at.step.id))[0]
            self._chained -= 1
        return self._fallbacks[at.path]

    def _body(self, at: LocatedStep, path: CallPath) -> bool:
        step = at.step
        if isinstance(step, LeafStep):
            return self._leaf(step, at.path, path)
        if isinstance(step, RouterStep):
            return self._router(step, at.path, path)
        blocks = [self._members((*at.path, *below)) for below, _ in children(step)]
        follow = self._parallel if isinstance(step, ParallelStep) else self._row
        passed = [follow(block, path) for block in blocks]  # each branch is followed
        return any(passed)

    def _router(self, step: RouterStep, at: Path, path: CallPath) -> bool:
        if step.selector and step.selector.function:
            call = function_call(self.index, step.selector.function)
            self._report((*at, "selector", "function"), step.id, call, path)
        if step.selector and step.selector.agent:
            self._agent(step.selector.agent, (*at, "selector", "agent"), step.id, path)
        route = self._strength(step, "route")
        guarded = route is not None and route.guards
        walk = GateWalk(self.index, self.passable, self.exposures, self.around) if guarded else self
        if not step.choices:
            return True
        blocks = [(name, self._members((*at, "choices", name, "steps"))) for name in step.choices]
        passed = [walk._row(block, CallPath(path, name)) for name, block in blocks]  # noqa: SLF001 - of its own class
        return any(passed) or (route is not None and route.continues)

    def _leaf(self, step: LeafStep, at: Path, path: CallPath) -> bool:
        match step.kind:
            case "human":
                return not step_strength(self._human(step)).ends_run
            case "function":
                self._report(at, step.id, function_call(self.index, step.ref), path)
                return True
            case "workflow":
                part: Part = ("workflow", step.ref)
            case _:
                return self._agent(step.ref, at, step.id, path)
        return self._part(part, path)

    def _agent(self, name: str, at: Path, step: str, path: CallPath) -> bool:
        part = self.index.agent_part(name)
        reached = self.exposures.get(part)
        self._report(at, step, reached.call if reached else None, path)
        return self._part(part, path)

    def _part(self, part: Part, path: CallPath) -> bool:
        if self.enter is not None:
            self.enter(part, path)
        return self.passable.get(part, True)

    def _report(self, at: Path, name: str, call: Call | None, path: CallPath) -> None:
        if self.report is not None:
            self.report(at, name, call, path)

    def _human(self, step: LeafStep) -> Human:
        return step_human(step, self.index.spec.components.humans) or Human()

    def _strength(self, step: Step, position: Position) -> GateStrength | None:
        gate = step_gates(step).get(position)
        humans = self.index.spec.components.humans
        return None if gate is None else gate_strength(gate, position, humans, step_rejection(position, step))


def _added_strength(position: Position, gate: Gate) -> GateStrength:
    return gate_strength(gate, position, {}, default_rejection(position))


def _turns(workflow: HandoffWorkflow | GroupChatWorkflow, members: Iterable[LocatedStep]) -> Sequence[LocatedStep]:
    present = [at for at in members if at.step.enabled]
    if isinstance(workflow, HandoffWorkflow) and workflow.selector.sequence:
        by_id = {at.step.id: at for at in present}
        present = [by_id[name] for name in workflow.selector.sequence if name in by_id]
    return present if workflow.max_iterations is None else present[: workflow.max_iterations]


def _skips(step: Step, gate: GateStrength) -> bool:
    """Tell whether a rejection continues past the step, with every gate in it."""
    if isinstance(step, ConditionStep):
        gate = replace(gate, outcomes=gate.outcomes - {"else"})
    return gate.continues


def _note(step: Step, position: Position, strength: GateStrength | None) -> str | None:
    if strength is None:
        return None
    reason = strength.weakness or "lets the run go on when it is rejected"
    return f"review.{position} of {step.id} does not count: it {reason}."
