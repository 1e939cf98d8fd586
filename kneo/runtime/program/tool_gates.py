"""Gates at tool calls: those of the spec's tools, and those that an environment adds. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kneo.agents.turn import ToolGate, ToolGates
from kneo.digest import canonical_json, digest_of
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.program.gates import environment_gate, tool_gate
from kneo.spec.coverage.environment_gates import matches_call
from kneo.spec.gates import Facts, asks
from kneo.spec.models.environment import EnvironmentGate, GatedSpec, Match
from kneo.spec.models.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ToolGateIndex:
    """The gates at tool calls of one program.

    Attributes:
        spec: The spec, whose tools have capabilities.
        compiled: Every gate by its id.
        matches: The calls of the gates that an environment adds, by the ids of the gates.
    """

    spec: Spec
    compiled: Mapping[str, CompiledGate]
    matches: Mapping[str, Match]

    def of_step(self, added: Sequence[str], sampling_seed: str) -> ToolGates:
        """Return the gates of the calls that a step makes.

        Args:
            added: The ids of the gates that an environment adds at this step.
            sampling_seed: Equal for steps of runs that share the random draws of ``sample``.
        """

        def of_call(agent: str, tool: str, arguments: Mapping[str, object]) -> tuple[ToolGate, ...]:
            return tuple(self._asking(self.ids_of(added, agent, tool), tool, arguments, sampling_seed))

        return of_call

    def ids_of(self, added: Sequence[str], agent: str, tool: str) -> tuple[str, ...]:
        """Return the ids of the gates of a tool, those that ask under a condition among them, in the order in which they ask.

        Args:
            added: The ids of the gates that an environment adds at the step.
            agent: The name of the agent that makes the call.
            tool: The name of the tool.
        """
        declared = self.spec.tools.get(tool)
        matching = [key for key in added if matches_call(self.matches[key], agent, tool, declared)]
        return (*self._own(tool), *matching)

    def _asking(self, keys: Sequence[str], tool: str, arguments: Mapping[str, object], seed: str) -> Iterator[ToolGate]:
        text = canonical_json(dict(arguments)).decode()
        facts = Facts(text=text, metadata=arguments)
        for key in keys:
            gate = self.compiled[key]
            if asks(gate.when, gate.sample, facts, seed=f"{seed}:{digest_of(text.encode())}.{tool}.{key}"):
                yield ToolGate(
                    id=key, position="external" if gate.position == "external" else "before", on_reject=gate.on_reject
                )

    def _own(self, tool: str) -> Iterator[str]:
        yield from (key for key in (f"tools.{tool}.before", f"tools.{tool}.external") if key in self.compiled)


def gate_id(gate: EnvironmentGate) -> str:
    """Return the id of a gate at tool calls that an environment adds."""
    return f"environment.{gate.name}.before"


def compile_tool_gates(spec: Spec) -> ToolGateIndex:
    """Compile the gates at tool calls of a validated spec.

    Raises:
        Invalid: ``unsupported_spec`` or ``spec_invalid``: as for gates around steps.
    """
    compiled: dict[str, CompiledGate] = {}
    for name, tool in spec.tools.items():
        for position, declared in (tool.review.gates() if tool.review is not None else {}).items():
            compiled[f"tools.{name}.{position}"] = tool_gate(position, name, declared, spec.components.humans)
    matches: dict[str, Match] = {}
    for gate in spec.environment_gates if isinstance(spec, GatedSpec) else ():
        if "tool" in gate.match.kinds and gate.before is not None:
            compiled[gate_id(gate)] = environment_gate("tool", gate.name, gate.before, "tools")
            matches[gate_id(gate)] = gate.match
    return ToolGateIndex(spec=spec, compiled=compiled, matches=matches)
