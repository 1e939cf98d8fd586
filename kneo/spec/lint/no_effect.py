"""Rules for fields without effect: a spec may have them, and no run reads them.

Such fields are accepted, because specs of other versions have them, and reported, because a guardrail that does not run
guards nothing. A value that states the behaviour of every run (``strategy: simple``) is not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kneo.spec.base import SpecModel
from kneo.spec.coverage.gates import DEFAULT_HUMAN, LocatedGate, all_gates, effective_human
from kneo.spec.diagnostics import Diagnostic, warning
from kneo.spec.documents import Path
from kneo.spec.index import SpecIndex
from kneo.spec.models.agent import Agent, Model, RuntimePreferences, Strategy
from kneo.spec.models.human import TOOL_REJECTIONS
from kneo.spec.models.spec import Spec
from kneo.spec.models.workflow import ConcurrentWorkflow, ConditionStep, LeafStep

CODE = "W_FIELD_NO_EFFECT"

NO_TOOLS = "agents do not call tools in this version; gates, permissions and policies count them all the same"

NO_EFFECT: Mapping[type[SpecModel], Mapping[str, str]] = {
    Spec: {
        "tools": NO_TOOLS,
        "skills": "agents are not stated skills in this version",
        "mcp_servers": "no server is connected to in this version",
        "policies": "nothing here is applied; an environment's policy is in its own file",
    },
    Agent: {
        "strategy": "an agent answers once, as with strategy: simple",
        "runtime_preferences": "every agent runs in this process, as with preferred_mode: bridge",
        "history": "an agent sees the text that its step is stated",
        "memory": "an agent sees the text that its step is stated",
        "guardrails": "no guardrail runs in this version; put a person in front of what has to be guarded",
        "tools": NO_TOOLS,
        "ask_question": NO_TOOLS,
        "output_schema": "an agent's answer is text in this version",
        "skills": "agents are not stated skills in this version",
        "middleware": "no middleware runs",
        "defaults": "an agent's answer is its step's output",
    },
    Model: {
        "temperature": "no provider that is available here takes it",
        "max_tokens": "no provider that is available here takes it",
        "timeout_seconds": "a step's timeout_seconds limits its time",
        "extra": "no provider that is available here takes it",
        "fallbacks": "no provider that is available here needs them",
        "token_budget": "tokens are not counted in this version",
    },
    ConcurrentWorkflow: {"max_iterations": "every participant runs once"},
    LeafStep: {"timeout_seconds": "a question waits as long as the timeout_seconds of its human says"},
}
"""The actual behaviour, by model and field. A test compares this with all fields of the models."""


def _runs_elsewhere(value: object) -> bool:
    assert isinstance(value, RuntimePreferences)
    preferred = value.preferred_mode not in {None, "bridge"}
    return preferred or bool(value.bridge_provider) or "bridge" not in (value.allowed_modes or ("bridge",))


def _works_in_rounds(value: object) -> bool:
    return value != Strategy(type="simple")


_MEANT: Mapping[tuple[type[SpecModel], str], Callable[[object], bool]] = {
    (Spec, "policies"): lambda value: isinstance(value, dict) and value.keys() != {"project_defaults"},
    (Agent, "strategy"): _works_in_rounds,
    (Agent, "runtime_preferences"): _runs_elsewhere,
    (Agent, "guardrails"): lambda value: any(getattr(value, "stages", dict)().values()),
    (Agent, "tools"): lambda value: bool(getattr(value, "include", ())),
    (Agent, "defaults"): lambda value: value != {"append_mode": "auto"},
}
"""Whether a value differs from the behaviour of every run, for fields that can state it."""


def no_effect(index: SpecIndex) -> Iterator[Diagnostic]:
    """Every field of a spec has an effect."""
    yield from _unread(index.spec, ())
    for agent in index.agents:
        yield from _unread(agent.agent, agent.path)
        if agent.agent.model is not None:
            yield from _unread(agent.agent.model, (*agent.path, "model"))
    for workflow in index.workflows:
        yield from _unread(workflow.workflow, workflow.path)
    for at in index.steps:
        if isinstance(at.step, LeafStep) and at.step.kind == "human":
            yield from _unread(at.step, at.path)
    yield from _rejections(index)


def _rejections(index: SpecIndex) -> Iterator[Diagnostic]:
    """The effect of a rejection that a human states is possible at each gate; that of a gate is checked with the schema."""
    humans = index.spec.components.humans
    for at in index.steps:
        if at.step.kind == "human":
            human = humans.get(getattr(at.step, "ref", None) or DEFAULT_HUMAN)
            if human is not None and human.on_reject in {"else", "tell_agent"}:
                yield _rejection(human.on_reject, f"the step {at.id_path}", at.path)
    for gate in all_gates(index):
        effect = effective_human(gate.gate, humans).on_reject
        if gate.gate.on_reject is None and effect is not None and not _has_effect(effect, gate):
            yield _rejection(effect, f"review.{gate.position}", gate.path)


def _has_effect(effect: str, at: LocatedGate) -> bool:
    if at.tool is not None:
        return effect in TOOL_REJECTIONS
    if effect == "tell_agent":
        return False
    if effect == "else":
        return at.position == "before" and at.step is not None and isinstance(at.step.step, ConditionStep)
    # A person who chooses cannot reject.
    return effect != "retry" or at.position != "before"


def _rejection(effect: str, where: str, path: Path) -> Diagnostic:
    message = f"on_reject: {effect} has no effect at {where}: a rejection stops the run."
    hint = "Name a human with on_reject: stop, or without on_reject."
    return warning(CODE, message, path, suggestion=hint)


def _unread(part: SpecModel, path: Path) -> Iterator[Diagnostic]:
    for name, instead in NO_EFFECT.get(type(part), NO_EFFECT[Spec] if isinstance(part, Spec) else {}).items():
        value = getattr(part, name)
        is_meant = _MEANT.get((Spec if isinstance(part, Spec) else type(part), name), _is_set)
        if _is_set(value) and is_meant(value):
            hint = "Leave it out, or do not rely on it."
            yield warning(CODE, f"{name} has no effect: {instead}.", (*path, name), suggestion=hint)


def _is_set(value: object) -> bool:
    return value is not None and value not in ((), {})
