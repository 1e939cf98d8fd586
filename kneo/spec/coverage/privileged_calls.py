"""Proof that every way to a privileged call passes a gate.

A run is followed from its start, through every family of workflow, every container and every nested workflow and agent,
for as long as nobody has had to agree to anything. A privileged call that can be reached this way is a finding, with
the way that leads to it.

Each workflow is judged once for whether it can be passed without a gate, inner ones first, and then entered at most
once to look for calls: the cost is proportional to the spec.
"""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.components import components
from kneo.spec.coverage.dependencies import ROOT, Part, dependencies
from kneo.spec.coverage.environment_gates import gates_around, gates_around_agent
from kneo.spec.coverage.exposure import Call, Exposure, exposure, function_call
from kneo.spec.coverage.walk import CallPath, GateWalk, surrounds
from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.documents import Path
from kneo.spec.index import LocatedWorkflow, SpecIndex
from kneo.spec.models import Agent

START = CallPath(None, "")


def coverage(view: SpecIndex) -> Iterator[Diagnostic]:
    """Every way to a privileged call passes a gate."""
    proof = _Proof(view)
    root: Part = ("workflow", "") if view.spec.workflow is not None else ROOT
    proof.follow(root)
    if root != ROOT and "agent" in view.spec.targets:
        proof.follow(ROOT)
    yield from proof.findings.values()
    call = proof.exposures[ROOT].call
    if call is not None and ROOT not in proof.seen and not proof.direct:
        message = f"A run with target agent reaches {call} past the gates of the workflow."
        hint = "Write review.before at the tool itself, so that it holds however the agent is run."
        yield warning("W_PRIVILEGED_DIRECT", message, ("agent", "tools"), suggestion=hint)


def privileged_calls(view: SpecIndex) -> dict[tuple[str, str], str]:
    """Say what privileged call running a function or an agent leads to, where no gate stands at the call itself.

    Returns:
        The call in words, by the kind (``function``, ``agent``) and name of what is run.
    """
    exposures = _Proof(view).exposures
    functions = {("function", name): function_call(view, name) for name in view.spec.components.functions}
    agents = {part: known.call for part, known in exposures.items()}
    return {part: str(call) for part, call in (functions | agents).items() if call is not None}


class _Proof:
    """One search for ungated calls.

    Attributes:
        exposures: What each agent can call.
        seen: The workflows and agents that are reached without a gate.
        findings: What was found, by the path of the step that makes the call.
        direct: Whether somebody has to agree before the root agent runs by itself.
    """

    def __init__(self, view: SpecIndex) -> None:
        self._view = view
        self._workflows: dict[Part, LocatedWorkflow] = {("workflow", at.name or ""): at for at in view.workflows}
        self._agents: dict[Part, Agent] = {
            ROOT if at.name is None else ("agent", at.name): at.agent for at in view.agents
        }
        self._passes: dict[Part, bool] = {}
        self.exposures: dict[Part, Exposure] = {}
        self.seen: set[Part] = set()
        self._waiting: list[tuple[Part, CallPath]] = []
        self.findings: dict[Path, Diagnostic] = {}
        self._around = gates_around(view)
        self.direct = surrounds(gates_around_agent(view))
        self._judge_parts()

    def _judge_parts(self) -> None:
        """Judge each workflow and agent by itself, those that others need before the others."""
        needs = dependencies(self._view)
        walk = GateWalk(self._view, self._passes, self.exposures, self._around)
        for members in components(needs, lambda part: needs[part]):
            for part in members:
                if part in self._workflows:
                    self._passes[part] = walk.workflow(self._workflows[part], START)
                else:
                    agent = self._agents[part]
                    self.exposures[part] = exposure(self._view, agent, self.exposures)
                    self._passes[part] = not agent.as_agent or self._passes.get(("workflow", agent.as_agent), True)

    def follow(self, root: Part) -> None:
        """Follow a run that starts with a workflow or an agent."""
        walk = GateWalk(self._view, self._passes, self.exposures, self._around, self._found, self._entered)
        if root == ROOT and self.direct:
            return
        if root == ROOT:
            name = self._view.spec.agent.name
            self._found(("agent",), name, self.exposures[ROOT].call, CallPath(START, name))
        self._entered(root, START)
        while self._waiting:
            part, way = self._waiting.pop()
            if part in self._workflows:
                walk.workflow(self._workflows[part], way)
            elif part in self._agents:
                self._enter_agent(part, way)

    def _enter_agent(self, part: Part, way: CallPath) -> None:
        for other in self.exposures[part].agents:
            self._entered(other, way)
        workflow = self._agents[part].as_agent
        if workflow:
            self._entered(("workflow", workflow), way)

    def _entered(self, part: Part, way: CallPath) -> None:
        if part not in self.seen:
            self.seen.add(part)
            self._waiting.append((part, way))

    def _found(self, path: Path, name: str, call: Call | None, way: CallPath) -> None:
        if call is None or path in self.findings:
            return
        own = f" The gate at {call.name} does not count: it {call.weakness}." if call.weakness else ""
        message = f"Nobody has to agree before {name} calls {call}. The way there: {way}.{way.weak()}{own}"
        hint = "Put a step of kind human before it on every way, or write review.before at the step or tool."
        self.findings[path] = error("E_PRIVILEGED_UNGATED", message, path, suggestion=hint)
