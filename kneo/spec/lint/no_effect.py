"""Rules for fields that have no effect where they stand: other fields of the spec leave nothing for them to do.

Every field has an effect somewhere. Such a combination is accepted, because replacing a model by the dummy must not break a spec,
and reported, because a guardrail that does not run guards nothing. A value that states the behaviour of every run
(``strategy: simple``) is not reported. Policies of a spec that no run follows are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kneo.spec.base import SpecModel
from kneo.spec.coverage.gates import DEFAULT_HUMAN, LocatedGate, all_gates, effective_human
from kneo.spec.coverage.policy import calls_tools
from kneo.spec.documents import Diagnostic, Path, error, warning
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.models.agent import MATCHED_BY, Agent, Guardrail, Memory, Model, Strategy
from kneo.spec.models.providers import DUMMY
from kneo.spec.models.spec import PROJECT_DEFAULTS, Tool
from kneo.spec.models.workflow import ConditionStep
from kneo.spec.tool_kinds import CALL_TARGET

CODE = "W_FIELD_NO_EFFECT"

NO_CALL = "the call is a turn of the agent, which has limits of its own"

NO_EFFECT_AT_AGENT: Mapping[type[SpecModel], Mapping[str, str]] = {
    Tool: dict.fromkeys(("timeout_seconds", "retries", "effects", "on_interrupted"), NO_CALL)
}
"""The actual behaviour of tools that are agents, by field."""

OF_MEMORY: Mapping[str, tuple[frozenset[str], str]] = {
    "max_messages": (frozenset({"sliding_window", "summary", "retrieval"}), "the policy full has at most 200 messages"),
    "summarizer": (frozenset({"summary"}), "only the policy summary has one"),
    "retriever": (frozenset({"retrieval"}), "only the policy retrieval has one"),
    "top_k": (frozenset({"retrieval"}), "only the policy retrieval has one"),
}
"""The policies in which a field of a memory has an effect, and the actual behaviour in the others."""

NO_EFFECT_AT_TRANSFER: Mapping[type[SpecModel], Mapping[str, str]] = {
    Tool: dict.fromkeys(
        ("max_result_chars", "keep", "output"), "the caller is not shown the answer of an agent that takes over"
    )
}
"""The actual behaviour of tools that hand a task over, by field."""

ANSWERS_ONCE = "the provider dummy answers once, with its input"

NO_EFFECT_WITH_DUMMY: Mapping[type[SpecModel], Mapping[str, str]] = {
    Agent: dict.fromkeys(
        ("strategy", "tools", "skills", "middleware", "ask_question", "output_schema", "memory"), ANSWERS_ONCE
    ),
    Model: dict.fromkeys(
        ("temperature", "max_tokens", "timeout_seconds", "extra", "fallbacks", "token_budget"), ANSWERS_ONCE
    ),
}
"""The actual behaviour of agents whose provider is the dummy, by model and field."""


def _works_in_rounds(value: object) -> bool:
    return value != Strategy(type="simple")


_MEANT: Mapping[tuple[type[SpecModel], str], Callable[[object], bool]] = {
    (Agent, "strategy"): _works_in_rounds,
    (Agent, "tools"): lambda value: bool(getattr(value, "include", ())),
    (Tool, "retries"): lambda value: value != 0,
    (Tool, "output"): lambda value: value != "trusted",
    (Tool, "keep"): lambda value: value != "shown",
}
"""Whether a value differs from the behaviour of every run, for fields that can state it."""


def no_effect(index: SpecIndex) -> Iterator[Diagnostic]:
    """Every field of a spec has an effect where it stands."""
    yield from _agents(index)
    yield from _of_tools(index)
    yield from _rejections(index)


def _agents(index: SpecIndex) -> Iterator[Diagnostic]:
    for at in index.agents:
        model, strategy = at.agent.model, at.agent.strategy
        is_called = at.agent is index.spec.agent and CALL_TARGET in index.spec.targets
        if model is not None and model.provider == DUMMY:
            yield from _unread(at.agent, at.path, NO_EFFECT_WITH_DUMMY)
            yield from _unread(model, (*at.path, "model"), NO_EFFECT_WITH_DUMMY)
        elif strategy is None or strategy.type == "simple":
            yield from _of_simple(at, strategy, is_called=is_called)
        yield from _guardrails(at, is_called=is_called)
        if at.agent.memory is not None:
            yield from _memory(index, at, at.agent.memory)
        elif at.agent.defaults.get("append_mode", "auto") != "auto":
            message = "append_mode has no effect: an agent without a memory adds nothing to a session."
            path = (*at.path, "defaults", "append_mode")
            yield warning(CODE, message, path, suggestion="Leave it out, or give the agent a memory.")


def _of_simple(at: LocatedAgent, strategy: Strategy | None, *, is_called: bool) -> Iterator[Diagnostic]:
    """An agent that is asked once calls no tools, and has no rounds, but for an output that it may have to write again."""
    hint = "Choose strategy: react or plan-act, or leave it out."
    if at.agent.tools is not None and at.agent.tools.include and not is_called:
        message = "tools has no effect: an agent with strategy: simple is not offered tools."
        yield warning(CODE, message, (*at.path, "tools"), suggestion="Choose strategy: react or plan-act.")
    if strategy is None:
        return
    path = (*at.path, "strategy")
    if strategy.max_iterations not in {None, 1} and at.agent.output_schema is None:
        message = (
            "max_iterations has no effect: an agent with strategy: simple and without output_schema makes one request."
        )
        yield warning(CODE, message, (*path, "max_iterations"), suggestion=hint)
    for name, reads in (("stop_on_tool_error", True), ("parallel_tool_calls", False)):
        if getattr(strategy, name) is reads:
            message = f"{name} has no effect: an agent with strategy: simple calls no tools."
            yield warning(CODE, message, (*path, name), suggestion=hint)


def _memory(index: SpecIndex, at: LocatedAgent, memory: Memory) -> Iterator[Diagnostic]:
    """The fields of a memory have an effect in its policy, and the agent is one that has sessions."""
    path = (*at.path, "memory")
    for name, (policies, instead) in OF_MEMORY.items():
        value = getattr(memory, name)
        if value is not None and memory.policy not in policies:
            message = f"{name} has no effect: {instead}."
            yield warning(CODE, message, (*path, name), suggestion="Leave it out, or choose another policy.")
    own = {at.agent.name, at.part[1]}
    as_step = {getattr(step.step, "ref", None) for step in index.steps}
    if (
        at.agent is not index.spec.agent
        and not own & as_step
        and any(tool.agent in own for tool in index.spec.tools.values())
    ):
        message = "memory has no effect: the agent is a tool of others, and each call is a conversation of its own."
        yield warning(CODE, message, path, suggestion="Give the memory to the agent that calls it.")


def _of_tools(index: SpecIndex) -> Iterator[Diagnostic]:
    for name, tool in index.spec.tools.items():
        if tool.agent is not None:
            yield from _unread(tool, ("tools", name), NO_EFFECT_AT_AGENT)
        if tool.transfer:
            yield from _unread(tool, ("tools", name), NO_EFFECT_AT_TRANSFER)


_REVIEWS = frozenset({"human_review", "escalate"})


def _guardrails(at: LocatedAgent, *, is_called: bool) -> Iterator[Diagnostic]:
    """Every guardrail runs, and every field of it is read."""
    stages = at.agent.guardrails.stages() if at.agent.guardrails is not None else {}
    for stage, items in stages.items():
        if items and stage == "tool" and not (is_called or calls_tools(at.agent)):
            message = "guardrails.tool has no effect: the agent calls no tools."
            yield warning(
                CODE, message, (*at.path, "guardrails", stage), suggestion="Leave it out, or do not rely on it."
            )
        for number, item in enumerate(items):
            for field, instead in _unread_of(item, stage):
                message = f"{field[-1]} has no effect: {instead}."
                path = (*at.path, "guardrails", stage, number, *field)
                yield warning(CODE, message, path, suggestion="Leave it out, or do not rely on it.")


def _unread_of(item: Guardrail, stage: str) -> Iterator[tuple[tuple[str, ...], str]]:
    matches = item.type in MATCHED_BY
    if item.target is not None and stage != "tool":
        yield ("target",), "only guardrails at tool are for one tool"
    if item.ref is not None and matches:
        yield ("ref",), f"a guardrail of type {item.type} calls nothing"
    if item.action == "retry" and stage == "input":
        yield ("action",), "nothing wrote the input that could write it again; it blocks"
    if item.action == "revise" and matches:
        yield ("action",), f"a guardrail of type {item.type} has no text of its own; it blocks"
    read = {MATCHED_BY.get(item.type), "human" if item.action in _REVIEWS else None}
    for key in item.config:
        if key not in read:
            yield ("config", key), f"a guardrail of type {item.type} with the action {item.action} does not read it"


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
    if at.tool is None and not at.row.can_reject:
        return True
    if effect == "else":
        return at.position == "before" and at.step is not None and isinstance(at.step.step, ConditionStep)
    return effect in at.row.rejections


def _rejection(effect: str, where: str, path: Path) -> Diagnostic:
    message = f"on_reject: {effect} has no effect at {where}: a rejection stops the run."
    hint = "Name a human with on_reject: stop, or without on_reject."
    return warning(CODE, message, path, suggestion=hint)


def _unread(part: SpecModel, path: Path, table: Mapping[type[SpecModel], Mapping[str, str]]) -> Iterator[Diagnostic]:
    kind = type(part)
    for name, instead in table.get(kind, {}).items():
        value = getattr(part, name)
        is_meant = _MEANT.get((kind, name), _is_set)
        if _is_set(value) and is_meant(value):
            hint = "Leave it out, or do not rely on it."
            yield warning(CODE, f"{name} has no effect: {instead}.", (*path, name), suggestion=hint)


def _is_set(value: object) -> bool:
    return value is not None and value not in ((), {})


UNSUPPORTED = "E_FIELD_UNSUPPORTED"


@dataclass(frozen=True)
class _Policy:
    """The values of a policy, and the field or setting that does what other values ask for."""

    values: tuple[object, ...]
    instead: str = ""


_ELSEWHERE = "Environment files have the policy of an environment, and agents have tools.permissions and guardrails."

_POLICIES: Mapping[str, Mapping[str, _Policy]] = {
    "checkpointing": {
        "enabled": _Policy((True,), "Every step is recorded. retention.runs_days of the project deletes ended runs."),
        "mode": _Policy(
            ("step", "node"), "Every step is recorded. retention.runs_days of the project deletes ended runs."
        ),
    },
    "logging": {"level": _Policy(("info",), "Set KNEO_SERV_LOG_LEVEL for the process.")},
    "tracing": {
        "enabled": _Policy((True,), "Every run has a trace. include_messages: false keeps content out of spans."),
        "include_messages": _Policy((True, False)),
        "include_tool_results": _Policy((True, False)),
    },
    "guardrails": {
        "enable_default_input_filter": _Policy((False,), "Write the checks under guardrails.input of the agent."),
        "enable_default_output_review": _Policy(
            (False,), "Write a check with action: human_review under guardrails.output of the agent."
        ),
    },
}


def policies(index: SpecIndex) -> Iterator[Diagnostic]:
    """Policies have an effect, or state what every run does."""
    stated = index.spec.policies
    yield from _policies({name: each for name, each in stated.items() if name != PROJECT_DEFAULTS}, ("policies",))
    if PROJECT_DEFAULTS in stated:
        yield from _policies(stated[PROJECT_DEFAULTS], ("policies", PROJECT_DEFAULTS))


def _policies(stated: object, path: Path) -> Iterator[Diagnostic]:
    if not isinstance(stated, Mapping):
        yield error(UNSUPPORTED, f"{path[-1]} is no map of policies.", path, suggestion=_known(_POLICIES))
        return
    for name, fields in stated.items():
        known = _POLICIES.get(name)
        if known is None:
            yield error(UNSUPPORTED, f"{name[:80]} is no policy of a spec.", (*path, name), suggestion=_ELSEWHERE)
        elif not isinstance(fields, Mapping):
            yield error(UNSUPPORTED, f"{name} is no map of fields.", (*path, name), suggestion=_known(known))
        else:
            yield from _fields(known, fields, (*path, name))


def _fields(known: Mapping[str, _Policy], fields: Mapping[str, object], path: Path) -> Iterator[Diagnostic]:
    for name, value in fields.items():
        policy = known.get(name)
        if policy is None:
            yield error(UNSUPPORTED, f"{name[:80]} is no field of {path[-1]}.", (*path, name), suggestion=_known(known))
        elif not any(value is each or (isinstance(each, str) and value == each) for each in policy.values):
            # 1 equals true, and is no value of a switch.
            message = f"{path[-1]}.{name}: {str(value)[:80]} is not supported."
            hint = policy.instead or "Write true or false."
            yield error(UNSUPPORTED, message, (*path, name), suggestion=hint)


def _known(names: Mapping[str, object]) -> str:
    return f"Known here: {', '.join(names)}."
