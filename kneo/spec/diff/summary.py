"""The summary of a first version: what it can do, which gate asks whom, hosts, models, guardrails, people and code.

The clauses about single parts are also the sentences about parts that are new in a later version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from kneo.spec.coverage.environment_gates import gates_around, gates_around_agent, gates_at_call, gates_of_calls
from kneo.spec.coverage.exposure import PRIVILEGED, callable_tools, permissions_of, tool_gate
from kneo.spec.coverage.gates import (
    DEFAULT_HUMAN,
    chance,
    condition_words,
    gate_strength,
    named_human,
    step_gates,
    strengthened,
)
from kneo.spec.coverage.privileged_calls import reached_ungated
from kneo.spec.diff.locations import HIGH, LOW, MEDIUM, Owner, Sentence
from kneo.spec.diff.texts import count
from kneo.spec.gates import Position, gate_position
from kneo.spec.index import LocatedStep, Part, SpecIndex
from kneo.spec.models.agent import Agent, Guardrail, ModelChoice
from kneo.spec.models.environment import Environment, EnvironmentGate, with_gates
from kneo.spec.models.human import Candidates, Gate, Human, Quorum
from kneo.spec.models.spec import FunctionComponent, McpServer, Spec, Tool
from kneo.spec.models.workflow import LeafStep, RouterStep
from kneo.spec.tool_kinds import BUILTIN_TOOLS, CALL_TARGET

SHOWN = 12
"""Names of one kind that a line lists; gates and what no gate covers are never left out."""

GRANTS = {
    "allow_network": "use the network",
    "allow_filesystem_read": "read files",
    "allow_filesystem_write": "write files",
    "allow_shell": "run shell commands",
}
"""The permissions of tools, in words."""


TEXTS = "texts"
"""The area of the fact that names the command for the whole spec."""


def summarize(spec: Spec, environment: Environment | None, command: str, lines: int) -> Iterator[Sentence]:
    """Yield the facts that a reviewer of a first version decides about, each on a line.

    Args:
        spec: The spec, in normal form.
        environment: Its environment, whose gates, people, budgets and pins belong to the facts; None where it is unknown.
        command: The command that shows the whole spec.
        lines: The lines of the whole spec.
    """
    index = SpecIndex.of(with_gates(spec, environment.gates) if environment is not None else spec)
    reached, entered = reached_ungated(index)
    open_steps = [at for at in index.steps if at.path in reached or (*at.path, "selector", "function") in reached]
    yield from _can_call(index, open_steps, command)
    yield from (Sentence(MEDIUM, "asks", line) for line in _asks(index))
    if spec.workflow is not None and "agent" in spec.targets:
        yield Sentence(HIGH, "asks", "a run may execute the root agent alone, past the gates of the workflow")
    if CALL_TARGET in spec.targets:
        yield Sentence(HIGH, "asks", "other programs may call the tools of the root agent")
    for at in index.agents:
        yield from _may(at.agent)
    guards = (guardrail_words(each, stage) for at in index.agents for stage, each in _guardrails(at.agent))
    listed = {"reaches": hosts(spec), "models": _models(index, environment), "guards": guards}
    for area, names in listed.items():
        if found := list(dict.fromkeys(names)):
            yield Sentence(MEDIUM, area, _names(found, command))
    yield from (Sentence(MEDIUM, "people", line) for line in _people(index, environment))
    if code := list(_code(spec, environment)):
        yield Sentence(MEDIUM, "code", _names(code, command))
    texts = [*_texts(index), f"the whole spec, {count(lines, 'line')}"]
    yield Sentence(LOW, TEXTS, f"{', '.join(texts)}: {command}")
    yield from _not_asked(index, open_steps, entered)


def _can_call(index: SpecIndex, open_steps: Sequence[LocatedStep], command: str) -> Iterator[Sentence]:
    calls = list(_calls(index, open_steps))
    for name, kind, privileged, gates in sorted(calls, key=lambda call: not call[2]):
        if privileged or gates:
            danger = HIGH if privileged and not gates else MEDIUM
            yield Sentence(danger, "can call", f"{name} ({'; '.join((kind, *gates))})")
    quiet = [(name, kind) for name, kind, privileged, gates in calls if not privileged and not gates]
    for kind in dict.fromkeys(kind for _, kind in quiet):
        yield Sentence(LOW, "can call", f"{_names([name for name, other in quiet if other == kind], command)} ({kind})")


def _names(names: Sequence[str], command: str) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f", … {more} more: {command}" if more > 0 else "")


# ---- calls and gates ----------------------------------------------------------------------------------------------


_Call = tuple[str, str, bool, list[str]]
"""The name of what is called, its kind in words, whether it is privileged, and its gates in words."""


def _calls(index: SpecIndex, open_steps: Sequence[LocatedStep]) -> Iterator[_Call]:
    seen: dict[str, _Call] = {}
    for at in index.agents:
        for name in callable_tools(at.agent):
            if name in BUILTIN_TOOLS:
                continue
            tool = index.spec.tools.get(name)
            added = gates_at_call(index, at.name or index.spec.agent.name, name)
            gates = [*(tool_gates(tool, index.spec.components.humans) if tool else ()), *map(_added_words, added)]
            kind = call_words(tool) if tool is not None else "registered by the program"
            known = seen.get(name)
            if known is None or len(gates) < len(known[3]):
                seen[name] = (name, kind, bool(tool and set(tool.all_capabilities) & PRIVILEGED), gates)
    for name, gates in _gated_functions(index, open_steps).items():
        capabilities = index.capabilities(name)
        kind = f"function, {', '.join(capabilities) or 'no capabilities declared'}"
        seen[f"function {name}"] = (name, kind, bool(set(capabilities) & PRIVILEGED), gates)
    yield from seen.values()


def _functions(at: LocatedStep) -> Iterator[str]:
    match at.step:
        case LeafStep(kind="function", ref=name):
            yield name
        case RouterStep(selector=selector) if selector is not None and selector.function is not None:
            yield selector.function


def _gated_functions(index: SpecIndex, open_steps: Sequence[LocatedStep]) -> dict[str, list[str]]:
    """Return the functions of all steps with the gates before them; none where a step is reached without an approval."""
    gates: dict[str, list[str]] = {}
    for at in index.steps:
        before = step_gates(at.step).get("before")
        words = [gate_words(before, "before", index.spec.components.humans)] if before is not None else []
        for name in _functions(at):
            gates[name] = list(dict.fromkeys((*gates.get(name, ()), *words)))
    ungated = {name for at in open_steps for name in _functions(at)}
    return {
        name: [] if name in ungated else words or ["after an approval of the workflow"] for name, words in gates.items()
    }


def call_words(tool: Tool) -> str:
    """Return what a call of a tool may do, in words."""
    capabilities = [each.replace("_", " ") for each in tool.all_capabilities]
    if "privileged" in capabilities:
        capabilities = ["privileged", *(each for each in capabilities if each != "privileged")]
    if tool.http is not None and not tool.has_effects:
        return "reads"
    if tool.agent is not None:
        return f"agent {tool.agent}"
    return ", ".join(capabilities) or ("effects" if tool.has_effects else "no effects declared")


def tool_gates(tool: Tool, humans: Mapping[str, Human]) -> Iterator[str]:
    """Yield the gates of a tool in words."""
    for position, gate in step_gates(tool).items():
        yield gate_words(gate, position, humans, tool=True)


def gate_words(gate: Gate, position: Position, humans: Mapping[str, Human], *, tool: bool = False) -> str:
    """Return whom a gate asks, when, and why it does not hold what it guards, where it does not."""
    strength = gate_strength(gate, position, humans, gate_position(position, at_tool=tool).rejections[0])
    verb = "is carried out by" if position == "external" else "asks"
    text = f"{verb} {_asked(gate, humans)}{_when(gate, tool=tool)}"
    weakness = strength.weakness if chance(gate) is None else None
    return f"{text}, but {weakness}" if weakness else text


def _added_words(added: EnvironmentGate) -> str:
    assert added.before is not None, "gates at calls stand before them"
    return f"{gate_words(added.before, 'before', {}, tool=True)} (gate {added.name} of the environment)"


def _asked(gate: Gate, humans: Mapping[str, Human]) -> str:
    if isinstance(gate.human, str):
        return gate.human
    if gate.human is None and DEFAULT_HUMAN in humans:
        return DEFAULT_HUMAN
    human = named_human(gate, humans)
    return ", ".join(_candidates(human or gate, None)) or "role reviewer"


def _when(gate: Gate, *, tool: bool) -> str:
    parts = [f"when {condition_words(gate.when, tool=tool)}"] if gate.when is not None else []
    if gate.sample is not None:
        parts.append(f"in {gate.sample:.0%} of the {'other ' if parts else ''}cases")
    return f" {' and '.join(parts)}" if parts else ""


def _asks(index: SpecIndex) -> Iterator[str]:
    """Yield the gates and questions of steps; those of tools stand at the tools."""
    humans, around, calls = index.spec.components.humans, gates_around(index), gates_of_calls(index)
    for at in index.steps:
        if isinstance(at.step, LeafStep) and at.step.kind == "human":
            off = "" if at.step.enabled else ", but is switched off"
            yield f"question {at.id_path}: asks {at.step.ref}{off}"
        for position, gate in step_gates(at.step).items():
            yield f"{position} {at.id_path}: {gate_words(gate, position, humans)}"
        for added in around.get(id(at.step), ()):
            yield from _added_around(added, at.id_path)
        for added in calls.get(id(at.step), ()):
            if added.match.steps or added.match.workflows:
                yield f"calls in {at.id_path}: {_added_words(added)}"
    alone = gates_around_agent(index) if index.spec.workflow is None else ()
    yield from (line for added in alone for line in _added_around(added, "a run"))
    yield from (f"ask_question: asks {at.agent.ask_question}" for at in index.agents if at.agent.ask_question)


def _added_around(added: EnvironmentGate, what: str) -> Iterator[str]:
    for position, gate in added.gates().items():
        yield f"{position} {what}: {gate_words(gate, position, {})} (gate {added.name} of the environment)"


def _not_asked(index: SpecIndex, open_steps: Sequence[LocatedStep], entered: frozenset[Part]) -> Iterator[Sentence]:
    """Yield the calls that a run makes without an approval, those with effects first."""
    found: dict[str, bool] = {}
    for at in index.agents:
        if at.part not in entered:
            continue
        agent = at.name or index.spec.agent.name
        for name in callable_tools(at.agent):
            tool = index.spec.tools.get(name)
            added = [each.before for each in gates_at_call(index, agent, name) if each.before is not None]
            if name in BUILTIN_TOOLS or (tool is not None and tool_gate(index, at.agent, tool, added)[0]):
                continue
            found[name] = found.get(name, False) or tool is None or tool.has_effects
    for at_step in open_steps:
        for name in _functions(at_step):
            found[name] = found.get(name, False) or bool(index.capabilities(name))
    for danger, words in ((HIGH, "with effects"), (LOW, "no effects declared")):
        if names := [name for name, has_effects in found.items() if has_effects is (danger is HIGH)]:
            yield Sentence(danger, "not asked", f"{', '.join(names)} ({words})")


# ---- what it reaches, asks and is made of --------------------------------------------------------------------------


def _may(agent: Agent) -> Iterator[Sentence]:
    stated = permissions_of(agent)
    if agent.tools is not None and agent.tools.include and stated is None:
        yield Sentence(HIGH, "may", f"the permissions of the tools of {agent.name} are not stated")
    granted = [words for name, words in GRANTS.items() if stated is not None and getattr(stated, name)]
    if granted:
        everywhere = "use the network" in granted and stated is not None and not stated.allowed_domains
        hosts_ = (
            f" (hosts: {', '.join(stated.allowed_domains)})" if stated is not None and stated.allowed_domains else ""
        )
        text = f"tools of {agent.name} may {', '.join(granted)}{', any host' if everywhere else hosts_}"
        yield Sentence(HIGH if everywhere or len(granted) > 1 else MEDIUM, "may", text)


def hosts(spec: Spec) -> Iterator[str]:
    """Yield the hosts that a spec names, and the programs that it starts."""
    for tool in spec.tools.values():
        yield from map(_host, tool.addresses)
    for server in spec.mcp_servers.values():
        yield server_words(server)
    for agent in (spec.agent, *spec.components.agents.values()):
        for model in (agent.model, *(agent.model.fallbacks if agent.model else ())):
            if model is not None and isinstance(base := model.extra.get("base_url"), str):
                yield _host(base)


def server_words(server: McpServer) -> str:
    """Return the hosts of an MCP server, or the program that it is."""
    urls = [url for url in (server.url, server.sse_url, server.message_url) if url]
    return ", ".join(dict.fromkeys(map(_host, urls))) or f"program {' '.join((server.command or '', *server.args))}"


_HOST = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://(?:[^/?#\\]*@)?([^/?#\\]+)")


def _host(url: str) -> str:
    found = _HOST.match(url)
    return found[1] if found else url


def model_words(model: ModelChoice) -> str:
    """Return the provider and name of a model."""
    return f"{model.provider}/{model.name}"


def _models(index: SpecIndex, environment: Environment | None) -> Iterator[str]:
    for at in index.agents:
        if at.agent.model is not None:
            budget = at.agent.model.token_budget
            limit = f" (at most {budget:,} tokens a run)" if budget else ""
            yield "".join((model_words(at.agent.model), limit))
            yield from (f"else {model_words(each)}" for each in at.agent.model.fallbacks)
    for rule in environment.spec.models.budgets if environment is not None else ():
        tokens = [f"{rule.tokens:,} tokens"] if rule.tokens is not None else []
        cost = [f"{rule.cost:.2f} of cost"] if rule.cost is not None else []
        yield f"at most {' and '.join((*tokens, *cost))} a {rule.per}"


def _guardrails(agent: Agent) -> Iterator[tuple[str, Guardrail]]:
    for stage, items in agent.guardrails.stages().items() if agent.guardrails else ():
        yield from ((stage, each) for each in items)


def guardrail_words(guardrail: Guardrail, stage: str) -> str:
    """Return a guardrail with its stage and action."""
    target = f" {guardrail.target}" if guardrail.target else ""
    return f"{guardrail.id or guardrail.type} ({stage}{target}, {guardrail.action})"


def human_words(human: Human, environment: Environment | None = None) -> str:
    """Return the people who may answer, and the approvals that a decision needs."""
    if environment is not None:
        human = strengthened(human, environment.spec.questions, human.on_reject or "stop")
    quorum, exclude = human.quorum or Quorum(), (human.candidates or Candidates()).exclude
    rules = [
        count(quorum.approvals, "approval"),
        *(f"{each.approvals} of the role {each.role}" for each in quorum.each),
    ]
    rules += [f"excluded: {', '.join(exclude)}"] if exclude else []
    if human.timeout_seconds is not None:
        rules.append(f"{human.on_timeout} after {human.timeout_seconds:g} s")
    return f"{', '.join(_candidates(human, environment)) or 'role reviewer'} ({'; '.join(rules)})"


def _candidates(human: Human, environment: Environment | None) -> list[str]:
    candidates = human.candidates or Candidates()
    names = [*((human.assignee,) if human.assignee else ()), *candidates.users]
    for kind, wanted in (("role", candidates.roles), ("group", candidates.groups)):
        for each in wanted:
            people = environment.spec.people if environment is not None else {}
            members = [
                name for name, person in people.items() if each in (person.roles if kind == "role" else person.groups)
            ]
            names += members or [f"{kind} {each}"]
    return list(dict.fromkeys(names))


def _people(index: SpecIndex, environment: Environment | None) -> Iterator[str]:
    for name, human in index.spec.components.humans.items():
        yield f"{name}: {human_words(human, environment)}"
    for gate in environment.gates if environment is not None else ():
        for added in gate.gates().values():
            if isinstance(added.human, Human):
                yield f"gate {gate.name}: {human_words(added.human, environment)}"


def _code(spec: Spec, environment: Environment | None) -> Iterator[str]:
    pins = environment.spec.implementations if environment is not None else {}
    named = [tool.implementation for tool in spec.tools.values() if tool.implementation is not None]
    paths = [*named, *(function.implementation for function in spec.components.functions.values())]
    for module in dict.fromkeys(path.rpartition(".")[0] or path for path in paths):
        digest = pins.get(module)
        yield f"{module} {digest[:19]}…" if digest else f"{module} (not pinned)"
    yield from dict.fromkeys(script.path for script in spec.scripts())
    tools = [tool for tool in spec.tools.values() if tool.mcp is not None]
    if tools:
        yield f"pins of {len(tools) - len(spec.unpinned_tools())} of {count(len(tools), 'MCP tool')}"


def new_words(owner: Owner, value: object, humans: Mapping[str, Human]) -> str | None:
    """Return what a new part of a spec is and may do, in one sentence with its gates; None where its kind says it all."""
    parts: list[str] = []
    match owner:
        case "tool":
            tool = Tool.model_validate(value)
            gates = list(tool_gates(tool, humans)) or (["no gate asks about a call"] if tool.has_effects else [])
            runs = tool.implementation or (tool.script.path if tool.script is not None else None)
            parts = [call_words(tool), *([runs] if runs else []), *gates]
        case "function":
            function = FunctionComponent.model_validate(value)
            parts = [function.implementation, *function.capabilities]
        case "agent":
            agent = Agent.model_validate(value)
            parts = [f"model {model_words(agent.model)}"] if agent.model is not None else []
            tools = callable_tools(agent)
            parts += [f"it can call {', '.join(tools)}"] if tools else []
            parts += [f"its {fact.message.replace(f'tools of {agent.name}', 'tools')}" for fact in _may(agent)]
            guards = [guardrail_words(each, stage) for stage, each in _guardrails(agent)]
            parts += [f"guardrails {', '.join(guards)}"] if guards else []
        case "human":
            parts = [human_words(Human.model_validate(value))]
        case "gate":
            parts = ["it " + gate_words(Gate.model_validate(value), "before", humans)]
        case "server":
            parts = [server_words(McpServer.model_validate(value))]
    return "; ".join(parts) or None


def _texts(index: SpecIndex) -> Iterator[str]:
    for at in index.agents:
        if at.agent.system_prompt:
            yield f"prompt of {at.name or at.agent.name} {count(at.agent.system_prompt.count(chr(10)) + 1, 'line')}"
    if index.spec.skills:
        yield count(len(index.spec.skills), "skill")
