"""Following a run through ungated ground: for as long as nobody has had to agree to anything.

Gates on different ways may be different ones; together they dominate what lies behind them. A group of parallel steps
is passed only when all of them are, so one gate among them is enough for what comes after them, and none for its
siblings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kneo.spec.coverage.dependencies import Part, agent_part
from kneo.spec.coverage.exposure import Call, Exposure, function_call
from kneo.spec.coverage.gate_strength import GateStrength, judge_gate, judge_step, lets_skip
from kneo.spec.coverage.gates import default_rejection_at
from kneo.spec.documents import Path
from kneo.spec.gates import default_rejection
from kneo.spec.index import LocatedWorkflow, SpecIndex
from kneo.spec.models import (
    ConcurrentWorkflow,
    ConditionStep,
    Gate,
    GraphWorkflow,
    GroupChatWorkflow,
    HandoffWorkflow,
    Human,
    LeafStep,
    LoopStep,
    ParallelStep,
    RouterStep,
    SequentialWorkflow,
    Step,
    StepsStep,
)
from kneo.spec.models.environment_gates import EnvironmentGate
from kneo.spec.models.human import Position

_AFTERWARDS: tuple[Position, ...] = ("after", "each")

MAX_SHOWN = 8  # steps of a way that a message names
MAX_NOTES = 3  # questions that do not count, of those a message names
MAX_CHAIN = 20  # steps that stand in for each other one after the other; a longer chain counts as one that goes on
MAX_LINKS = 40  # of a way that a message looks back over


@dataclass(frozen=True, slots=True)
class CallPath:
    """How a step was reached: the one before, and why questions on the way did not count."""

    before: CallPath | None
    label: str
    weakness: str | None = None

    def __str__(self) -> str:
        labels = [way.label for way in self._links() if way.label]
        return " → ".join(labels if len(labels) <= MAX_SHOWN else ["…", *labels[-MAX_SHOWN:]])

    def weak(self) -> str:
        """Say which questions on the way do not count."""
        notes = dict.fromkeys(way.weakness for way in self._links() if way.weakness)
        return "".join(f" {note}" for note in list(notes)[-MAX_NOTES:])

    def _links(self) -> list[CallPath]:
        """Return the last links; a message does not name all of a long way, and must not cost walking it."""
        links: list[CallPath] = []
        way: CallPath | None = self
        while way is not None and len(links) < MAX_LINKS:
            links.append(way)
            way = way.before
        return links[::-1]


@dataclass(frozen=True, slots=True)
class _At:
    step: Step
    path: Path
    beside: dict[str, _At]


@dataclass(slots=True)
class GateWalk:
    """One walk through ungated ground.

    Attributes:
        passes: Whether a workflow or an agent can be passed without a gate; one that is missing can.
        exposures: What each agent can call.
        around: The questions of the environment around steps, by the steps' identity.
        found: Called with every step that is reached and the privileged call it makes, where it makes one; None to
            only find out what can be passed.
        entered: Called with what nested workflows and agents are reached.
    """

    view: SpecIndex
    passes: dict[Part, bool]
    exposures: dict[Part, Exposure]
    around: Mapping[int, tuple[EnvironmentGate, ...]] = field(default_factory=dict)
    found: Callable[[Path, str, Call | None, CallPath], None] | None = None
    entered: Callable[[Part, CallPath], None] | None = None
    _stand_ins: dict[Path, bool] = field(default_factory=dict)
    _chained: int = 0
    _later: list[tuple[_At, CallPath]] = field(default_factory=list)

    def workflow(self, at: LocatedWorkflow, way: CallPath) -> bool:
        """Follow a workflow from its start; tell whether its end can be reached without a gate."""
        passed = self._family(at, way)
        while self._later:
            late, reached = self._later.pop()
            self._step(late, CallPath(reached, late.step.id))
        return passed

    def _family(self, at: LocatedWorkflow, way: CallPath) -> bool:
        workflow = at.workflow
        match workflow:
            case SequentialWorkflow():
                return self.row(_block(workflow.steps, (*at.path, "steps")), way)
            case GraphWorkflow():
                return self._graph(workflow, at.path, way)
            case ConcurrentWorkflow():
                return self._beside(_block(workflow.participants, (*at.path, "participants")), way)
            case HandoffWorkflow() | GroupChatWorkflow():
                return self.row(_turns(workflow, _block(workflow.participants, (*at.path, "participants"))), way)

    def row(self, members: Iterable[_At], way: CallPath) -> bool:
        """Follow steps in a row; tell whether the last can be passed without a gate."""
        for at in members:
            way = CallPath(way, at.step.id)
            open_, weakness = self._step(at, way)
            if not open_:
                return False
            if weakness:
                way = CallPath(way, "", weakness)
        return True

    def _beside(self, members: Iterable[_At], way: CallPath) -> bool:
        passed = [
            self._step(at, CallPath(way, at.step.id))[0] for at in members
        ]  # all of them run, whatever the first says
        return all(passed)

    def _graph(self, graph: GraphWorkflow, path: Path, way: CallPath) -> bool:
        nodes: dict[str, _At] = {}
        for key, node in graph.nodes.items():
            if node.enabled:
                nodes[key] = _At(node, (*path, "nodes", key), nodes)
        edges: dict[str, list[tuple[str, bool]]] = {key: [] for key in nodes}
        for edge in graph.edges:
            if edge.source in nodes and edge.target in nodes:
                sure = edge.condition is None or edge.condition.type == "always"
                edges[edge.source].append((edge.target, sure))
        if graph.start not in nodes:
            return True
        ways = {graph.start: CallPath(way, graph.start)}
        ahead = [graph.start]
        ends = False
        while ahead:
            key = ahead.pop()
            open_, weakness = self._step(nodes[key], ways[key])
            if not open_:
                continue
            ends = ends or not any(sure for _, sure in edges[key])
            after = CallPath(ways[key], "", weakness) if weakness else ways[key]
            for target, _ in edges[key]:
                if target not in ways:
                    ways[target] = CallPath(after, target)
                    ahead.append(target)
        return ends

    def _step(self, at: _At, way: CallPath) -> tuple[bool, str | None]:
        """Follow a step; tell whether it can be passed without a gate, and which question in it does not count."""
        if not at.step.enabled:
            return True, None
        return self._surrounded(at, way, self.around.get(id(at.step), ()))

    def _surrounded(self, at: _At, way: CallPath, gates: Sequence[EnvironmentGate]) -> tuple[bool, str | None]:
        """Follow a step with the questions of the environment around it, the outermost first."""
        if not gates:
            return self._itself(at, way)
        asked = {place: _judge_added(place, gate) for place, gate in gates[0].gates().items()}
        before, after = asked.get("before"), asked.get("after")
        if before is not None and before.guards:
            return before.goes_on, None
        passed, weak = self._surrounded(at, way, gates[1:])
        if after is not None and after.ends_run:
            passed, weak = False, None
        return passed or (before is not None and before.goes_on), weak

    def _itself(self, at: _At, way: CallPath) -> tuple[bool, str | None]:
        step = at.step
        before = self._verdict(step, "before")
        if before is not None and before.guards:
            return self._refused(at, before, way), None
        weak = _note(step, "before", before)
        passed = self._body(at, CallPath(way, "", weak) if weak else way)
        if isinstance(step, LeafStep) and step.kind == "human":
            return passed, _human_note(step, self._human(step))
        if passed:
            passed, later = self._reviewed(step)
            weak = weak or later
        if before is not None and _leaves_out(step, before):
            passed = True
        failed = self._failed(at, way)  # followed in any case: what stands in may make a call of its own
        return passed or failed, weak

    def _reviewed(self, step: Step) -> tuple[bool, str | None]:
        """Tell whether a step can be passed once it has run, and which question about its result does not count."""
        weak = None
        for position in _AFTERWARDS:
            verdict = self._verdict(step, position)
            if verdict is not None and verdict.ends_run:
                return False, None
            weak = weak or _note(step, position, verdict)
        return True, weak

    def _failed(self, at: _At, way: CallPath) -> bool:
        """Follow what runs when a step fails before the questions in it and after it are asked."""
        step = at.step
        gate = step.review.error if step.review else None
        skipped = gate is not None and lets_skip(gate, self.view.spec.components.humans)
        if step.on_error == "fallback" and step.fallback_ref in at.beside:
            return self._stand_in(at.beside[step.fallback_ref], way) or skipped
        return skipped or step.on_error == "continue"

    def _refused(self, at: _At, gate: GateStrength, way: CallPath) -> bool:
        """Follow what runs when the gate before a step is not passed."""
        if isinstance(at.step, ConditionStep) and "else" in gate.outcomes:
            return self.row(_block(at.step.otherwise, (*at.path, "else")), way) or _leaves_out(at.step, gate)
        return gate.goes_on

    def _stand_in(self, at: _At, way: CallPath) -> bool:
        """Follow a step that runs in another's place, once however many name it."""
        if at.path not in self._stand_ins:
            self._stand_ins[at.path] = True  # until it is known; two that stand in for each other go on
            if self._chained >= MAX_CHAIN:
                self._later.append((at, way))
                return True
            self._chained += 1
            self._stand_ins[at.path] = self._step(at, CallPath(way, at.step.id))[0]
            self._chained -= 1
        return self._stand_ins[at.path]

    def _body(self, at: _At, way: CallPath) -> bool:
        step = at.step
        match step:
            case LeafStep():
                return self._leaf(step, at.path, way)
            case StepsStep() | LoopStep():
                return self.row(_block(step.steps, (*at.path, "steps")), way)
            case ParallelStep():
                return self._beside(_block(step.steps, (*at.path, "steps")), way)
            case ConditionStep():
                taken = self.row(_block(step.steps, (*at.path, "steps")), way)
                return self.row(_block(step.otherwise, (*at.path, "else")), way) or taken
            case RouterStep():
                return self._router(step, at.path, way)

    def _router(self, step: RouterStep, path: Path, way: CallPath) -> bool:
        if step.selector and step.selector.function:
            self._report(
                (*path, "selector", "function"), step.id, function_call(self.view, step.selector.function), way
            )
        chosen = self._verdict(step, "route")
        person = chosen is not None and chosen.guards
        walk = GateWalk(self.view, self.passes, self.exposures, self.around) if person else self
        if not step.choices:
            return True
        blocks = [
            (name, _block(choice.steps, (*path, "choices", name, "steps"))) for name, choice in step.choices.items()
        ]
        passed = [walk.row(block, CallPath(way, name)) for name, block in blocks]  # any of them may run
        return any(passed) or (chosen is not None and chosen.goes_on)

    def _leaf(self, step: LeafStep, path: Path, way: CallPath) -> bool:
        match step.kind:
            case "human":
                return not judge_step(self._human(step)).ends_run
            case "function":
                self._report(path, step.id, function_call(self.view, step.ref), way)
                return True
            case "workflow":
                part: Part = ("workflow", step.ref)
            case _:
                part = agent_part(self.view, step.ref)
                reached = self.exposures.get(part)
                self._report(path, step.id, reached.call if reached else None, way)
        if self.entered is not None:
            self.entered(part, way)
        return self.passes.get(part, True)

    def _report(self, path: Path, name: str, call: Call | None, way: CallPath) -> None:
        if self.found is not None:
            self.found(path, name, call, way)

    def _human(self, step: LeafStep) -> Human:
        return self.view.spec.components.humans.get(step.ref) or Human()

    def _verdict(self, step: Step, position: Position) -> GateStrength | None:
        gate = step.review.gates().get(position) if step.review else None
        if gate is None:
            return None
        return judge_gate(
            gate, position, self.view.spec.components.humans, default_reject=default_rejection_at(position, step)
        )


def surrounds(gates: Sequence[EnvironmentGate]) -> bool:
    """Tell whether nothing that these stand around runs unless a person agreed."""
    return any(_judge_added("before", one.before).guards for one in gates if one.before is not None)


def _judge_added(position: Position, gate: Gate) -> GateStrength:
    return judge_gate(gate, position, {}, default_reject=default_rejection(position))


def _block(steps: Sequence[Step], path: Path) -> list[_At]:
    beside: dict[str, _At] = {}
    members = [_At(step, (*path, index), beside) for index, step in enumerate(steps)]
    beside.update((at.step.id, at) for at in members)
    return members


def _turns(workflow: HandoffWorkflow | GroupChatWorkflow, members: list[_At]) -> list[_At]:
    present = [at for at in members if at.step.enabled]
    if isinstance(workflow, HandoffWorkflow) and workflow.selector.sequence:
        by_id = {at.step.id: at for at in present}
        present = [by_id[name] for name in workflow.selector.sequence if name in by_id]
    return present if workflow.max_iterations is None else present[: workflow.max_iterations]


def _leaves_out(step: Step, gate: GateStrength) -> bool:
    """Tell whether a rejection goes on past what a gate stands before, with all the questions in there."""
    if isinstance(step, ConditionStep):
        return replace(gate, outcomes=gate.outcomes - {"else"}).goes_on
    return gate.goes_on


def _note(step: Step, position: Position, verdict: GateStrength | None) -> str | None:
    if verdict is None:
        return None
    why = verdict.weakness or "lets the run go on when it is rejected"
    return f"review.{position} of {step.id} does not count: it {why}."


def _human_note(step: Step, human: Human) -> str | None:
    weakness = judge_step(human).weakness
    return f"The question {step.id} does not count: it {weakness}." if weakness else None
