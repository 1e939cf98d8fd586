"""Coverage of privileged calls of tools: asked, unattended by a rule of an environment, or without any gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from kneo.spec.coverage.environment_gates import gates_at_call
from kneo.spec.coverage.exposure import declared_tools, privileged_capabilities, reached_parts, tool_gate
from kneo.spec.coverage.privileged_calls import reached_ungated
from kneo.spec.expression import ExpressionInvalid, call_facts, find_type_errors, parse
from kneo.spec.index import ROOT, ROOT_WORKFLOW, SpecIndex
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.policy import CallRule, ToolRules


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
        *([ROOT] if "agent" in index.spec.targets else []),
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


def denied_calls(index: SpecIndex, call: CallCoverage, rules: ToolRules) -> list[str]:
    """Return the expressions for which the environment denies calls of a tool."""
    tool = index.spec.tools[call.tool]
    return [rule.when for rule in rules.deny if isinstance(rule, CallRule) and rule.matches(tool.names(call.tool))]


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
