"""Coverage of privileged calls of tools: asked, unattended by a rule of an environment, or without any gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from kneo.spec.coverage.environment_gates import gates_at_call
from kneo.spec.coverage.exposure import (
    callable_tools,
    declared_tools,
    privileged_capabilities,
    reached_parts,
    tool_gate,
)
from kneo.spec.coverage.privileged_calls import reached_ungated
from kneo.spec.expression import ExpressionInvalid, call_facts, find_type_errors, parse
from kneo.spec.index import ROOT, ROOT_WORKFLOW, SpecIndex
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.models.human import Gate
from kneo.spec.policy import CallDenial, ToolRules
from kneo.spec.tool_kinds import CALL_TARGET


@dataclass(frozen=True, slots=True)
class CallCoverage:
    """The coverage of a privileged tool that an agent can call.

    Attributes:
        coverage: ``asked``: a person is asked about every call, or before the agent runs. ``unattended``: a gate asks where its
            expression is not false or no rule of the environment accepts the call. ``ungated``: neither.
        when: The expressions of the rules that accept unattended calls.
    """

    tool: str
    agent: str
    coverage: Literal["asked", "unattended", "ungated"]
    when: str | None = None

    def as_json(self) -> dict[str, object]:
        return {"tool": self.tool, "agent": self.agent, "coverage": self.coverage, "when": self.when}


_WORDS = {"asked": "asks a person", "unattended": "asks no person when", "ungated": "asks no person"}


def call_words(call: Mapping[str, object]) -> str:
    """Return the coverage of a privileged call, as ``as_json`` returns it, in words."""
    when = f" {call['when']}" if call["when"] is not None else ""
    return f"{call['agent']} → {call['tool']} {_WORDS[str(call['coverage'])]}{when}"


def call_coverage(index: SpecIndex, rules: ToolRules) -> Iterator[CallCoverage]:
    """Yield the coverage of each privileged tool of the agents that a run can reach.

    Args:
        index: The spec, with the gates of the environment.
        rules: The environment's rules for tools; :class:`ToolRules` without any where there is no environment.
    """
    roots = [
        ROOT_WORKFLOW if index.spec.workflow is not None else ROOT,
        *([ROOT] if index.spec.runs_root_agent else []),
    ]
    reached = {part for root in roots for part in reached_parts(index, root)}
    _, entered = reached_ungated(index)
    for at in index.agents:
        if at.part not in reached:
            continue
        agent = at.name or index.spec.agent.name
        for name, tool in declared_tools(index, at.agent):
            if not privileged_capabilities(at.agent, tool):
                continue
            added = [gate.before for gate in gates_at_call(index, agent, name) if gate.before is not None]
            if tool_gate(index, at.agent, tool, added, always=True)[0]:
                yield CallCoverage(name, agent, "asked")
            elif tool_gate(index, at.agent, tool, added)[0]:
                accepting = [rule.when for rule in rules.unattended if rule.matches(tool.names(name))]
                when = accepting[0] if len(accepting) == 1 else " || ".join(f"({each})" for each in accepting)
                yield CallCoverage(name, agent, "unattended" if accepting else "asked", when or None)
            else:
                yield CallCoverage(name, agent, "ungated" if at.part in entered else "asked")


@dataclass(frozen=True, slots=True)
class ServedCall:
    """A tool that an environment serves to other programs.

    Attributes:
        callers: Who may call it, in words.
        asks: Who is asked before a call, in words; none where no person is asked.
        is_unpinned: Whether it is a tool of an MCP server without a pin.
    """

    tool: str
    callers: tuple[str, ...]
    asks: tuple[str, ...]
    is_unpinned: bool

    def as_json(self) -> dict[str, object]:
        return {
            "tool": self.tool,
            "callers": list(self.callers),
            "asks": list(self.asks),
            "is_unpinned": self.is_unpinned,
        }


def served_words(served: Mapping[str, object]) -> str:
    """Return a served tool, as ``as_json`` returns it, in words."""
    callers, asks = (", ".join(map(str, each)) for each in (served["callers"], served["asks"]))  # type: ignore[call-overload]
    pin = ", has no pin" if served["is_unpinned"] else ""
    return f"serves {served['tool']} to {callers}: asks {asks or 'no person'}{pin}"


def served_calls(index: SpecIndex, bundle: str, rules: EnvironmentSpec) -> Iterator[ServedCall]:
    """Yield each tool of a bundle that an environment serves to other programs.

    Args:
        index: The spec, with the gates of the environment.
        bundle: The name of the bundle.
        rules: The environment's file.
    """
    if not index.spec.allows(CALL_TARGET):
        return
    matching = [rule for rule in rules.protocols.calls if fnmatchcase(bundle, rule.bundle)]
    agent = index.spec.agent
    for name in callable_tools(agent):
        tool = index.spec.tools.get(name)
        serving = [rule for rule in matching if any(fnmatchcase(name, pattern) for pattern in rule.tools)]
        if tool is None or not serving:
            continue
        callers = dict.fromkeys(who for rule in serving for who in rule.who)
        before = tool.review.before if tool.review is not None else None
        gates = [f"the gate {gate.name}" for gate in gates_at_call(index, agent.name, name)]
        asks = (*gates, *([_asked(before)] if before is not None else []))
        yield ServedCall(name, tuple(callers), asks, tool.mcp is not None and tool.mcp.pin is None)


def _asked(gate: Gate) -> str:
    who = gate.human if isinstance(gate.human, str) else "people"
    return f"{who} under a condition" if gate.when is not None else who


def denied_calls(index: SpecIndex, call: CallCoverage, rules: ToolRules) -> list[str]:
    """Return the expressions for which the environment denies calls of a tool."""
    tool = index.spec.tools[call.tool]
    return [rule.when for rule in rules.deny if isinstance(rule, CallDenial) and rule.matches(tool.names(call.tool))]


def find_rule_flaws(index: SpecIndex, rules: EnvironmentSpec) -> Iterator[str]:
    """Yield the expressions of an environment that compare what a tool of a spec does not have.

    Such an expression is unknown for every call: it denies, and accepts nothing.
    """
    stated = [
        *((f"tools.deny[{at}]", each) for at, each in enumerate(rules.tools.deny) if not isinstance(each, str)),
        *((f"tools.unattended[{at}]", each) for at, each in enumerate(rules.tools.unattended)),
        *((f"grants[{at}]", each) for at, each in enumerate(rules.grants)),
    ]
    for name, tool in index.spec.tools.items():
        for path, rule in stated:
            if rule.when is None or not rule.matches(tool.names(name)):
                continue
            try:
                expression = parse(rule.when)
            except ExpressionInvalid:
                continue  # the file is refused for it
            for flaw in find_type_errors(expression, call_facts(tool.parameters), tool=name):
                yield f"{path}: {flaw.message}"
