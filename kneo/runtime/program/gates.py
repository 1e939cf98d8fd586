"""Gates of a program and of calls of tools, compiled from a spec's declarations. Pure."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from kneo.agents.turn import ToolGate, ToolGates
from kneo.digest import canonical_json, digest_of
from kneo.errors import Invalid
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.gate import DEFAULT_HUMAN, DEFAULT_RETRIES, CompiledGate
from kneo.spec.conditions import Facts, asks
from kneo.spec.coverage.environment_gates import matches_call
from kneo.spec.gates import POSITIONS, gate_position, rejection_effect
from kneo.spec.models.environment import EnvironmentGate, GatedSpec, Match
from kneo.spec.models.human import CALLER, NOT_HONOURED, Gate, Human, has_expression
from kneo.spec.models.spec import Spec, Tool
from kneo.tasks.forms import check_fields, check_schema

REPORT_SECONDS = 600
"""The time that a program which makes a call itself has to report the result, where its tool states none."""


def human_gate(human: Human, path: str, name: str) -> CompiledGate:
    """Compile the question of a step of kind human.

    Raises:
        Invalid: ``unsupported_spec``: the human uses a feature that this runtime does not support.
    """
    return _gate("step", human, path, name)


def wait_gates(humans: Mapping[str, Human]) -> Mapping[str, CompiledGate]:
    """Compile the questions of waiting functions, by human; humans who cannot be asked that way are left out."""
    gates = {}
    for name, human in {DEFAULT_HUMAN: Human(), **humans}.items():
        with contextlib.suppress(Invalid):
            unrestricted = human.model_copy(update={"decisions": None, "options": None})
            gates[name] = _gate("wait", unrestricted, name, f"The human {name}")
    return gates


def review_gate(position: str, declared: Gate, humans: Mapping[str, Human], path: str) -> CompiledGate:
    """Compile a gate that a spec declares around a step.

    Raises:
        Invalid: ``unsupported_spec`` as above; ``spec_invalid``: the gate names an undeclared human.
    """
    human = _human(declared, humans, path)
    own = {name: getattr(declared, name) for name in declared.model_fields_set if name in Human.model_fields}
    return _gate(position, human.model_copy(update=own), path, f"review.{position}", declared=declared)


def environment_gate(position: str, name: str, declared: Gate, path: str) -> CompiledGate:
    """Compile a gate that an environment adds around a step.

    Raises:
        Invalid: as above.
    """
    return replace(review_gate(position, declared, {}, path), added=name)


def tool_gate(position: str, name: str, declared: Gate, humans: Mapping[str, Human]) -> CompiledGate:
    """Compile a gate that a spec declares at a tool.

    Raises:
        Invalid: as above.
    """
    return review_gate(gate_position(position, at_tool=True).name, declared, humans, f"tools.{name}")


def caller_gate(name: str, tool: Tool, humans: Mapping[str, Human]) -> CompiledGate:
    """Compile the gate of a tool whose caller makes the call itself.

    The human of ``before``, or else the default one, takes over from a caller that reports no result in time.

    Raises:
        Invalid: as above.
    """
    before = tool.review.before if tool.review is not None else None
    asked = Gate() if before is None else Gate(human=before.human)
    gate = tool_gate("external", name, asked, humans)
    seconds = math.ceil(tool.timeout_seconds or REPORT_SECONDS)
    human = gate.human.model_copy(update={"timeout_seconds": seconds, "on_timeout": "escalate", "on_reject": None})
    return replace(gate, human=human, on_reject=rejection_effect("external", None), for_caller=True)


def _human(declared: Gate, humans: Mapping[str, Human], path: str) -> Human:
    if isinstance(declared.human, Human):
        return declared.human
    if declared.human is None:
        return humans.get("default") or Human()
    if declared.human not in humans:
        msg = f"The gate at {path} asks {declared.human}, who is not in components.humans."
        raise Invalid(msg, code="spec_invalid")
    return humans[declared.human]


def _gate(position: str, human: Human, path: str, name: str, declared: Gate | None = None) -> CompiledGate:
    used = [field for field in NOT_HONOURED if getattr(human, field)]
    if used:
        msg = f"{name} at {path} uses {', '.join(used)}, which this runtime does not honour yet."
        raise Invalid(msg, code="unsupported_spec")
    _check_form(human, path, name)
    row = POSITIONS[position]
    effective = (DecisionKind(name) for name in row.decisions)
    legal = tuple(kind for kind in effective if kind is not DecisionKind.SELECTED or human.options or row.has_options)
    chosen = tuple(kind for kind in legal if human.decisions is None or kind.value in human.decisions)
    if not chosen:
        msg = f"{name} at {path} takes none of the answers that have an effect there: {', '.join(legal)}."
        raise Invalid(msg, code="spec_invalid")
    return CompiledGate(
        position=position,
        human=human,
        decisions=chosen,
        on_reject=rejection_effect(position, human.on_reject),
        max_retries=DEFAULT_RETRIES if human.max_retries is None else human.max_retries,
        when=declared.when if declared else None,
        sample=declared.sample if declared else None,
        name=declared.key if declared else None,
    )


def _check_form(human: Human, path: str, name: str) -> None:
    if human.fields and human.answer_schema is not None:
        msg = f"{name} at {path} has fields and a schema; one of them says what is filled in."
        raise Invalid(msg, code="spec_invalid")
    secret = [field.name for field in human.fields if field.secret]
    if secret:
        msg = (
            f"{name} at {path} asks for {', '.join(secret)}, which is secret: what people fill in is kept with the run."
        )
        raise Invalid(
            msg, code="unsupported_spec", hint="Keep secrets in the environment of the process that runs steps."
        )
    check_fields(human.fields, f"{name} at {path}")
    if human.answer_schema is not None:
        check_schema(human.answer_schema, f"The schema of {name} at {path}")


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

    def of_step(
        self, added: Sequence[str], sampling_seed: str, known: Mapping[str, object] = MappingProxyType({})
    ) -> ToolGates:
        """Return the gates of the calls that a step makes.

        Args:
            added: The ids of the gates that an environment adds at this step.
            sampling_seed: Equal for steps of runs that share the random draws of ``sample``.
            known: What expressions compare besides the call: ``values`` and ``run``.
        """

        def of_call(agent: str, tool: str, arguments: Mapping[str, object]) -> tuple[ToolGate, ...]:
            keys = self.ids_of(added, agent, tool)
            names = {**known, "args": arguments, "tool": tool, "agent": agent}
            asking = tuple(self._asking(keys, names, sampling_seed))
            conditional = (key for key in keys if has_expression(self.compiled[key].when))
            if any(not self.compiled[gate.id].for_caller for gate in asking):
                return asking
            unattended = (replace(self._gate(key), unless_unattended=True) for key in itertools.islice(conditional, 1))
            return (*unattended, *asking)

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

    def _asking(self, keys: Sequence[str], names: Mapping[str, object], seed: str) -> Iterator[ToolGate]:
        arguments = names["args"]
        assert isinstance(arguments, Mapping)
        text = canonical_json(dict(arguments)).decode()
        facts = Facts(text=text, metadata=arguments, names=names)
        for key in keys:
            gate = self.compiled[key]
            if asks(gate.when, gate.sample, facts, seed=f"{seed}:{digest_of(text.encode())}.{names['tool']}.{key}"):
                yield self._gate(key)

    def _gate(self, key: str) -> ToolGate:
        gate = self.compiled[key]
        return ToolGate(id=key, position=gate.position, on_reject=gate.on_reject)

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
            humans = spec.components.humans
            is_caller = position == "external" and declared.human == CALLER
            compiled[f"tools.{name}.{position}"] = (
                caller_gate(name, tool, humans) if is_caller else tool_gate(position, name, declared, humans)
            )
    matches: dict[str, Match] = {}
    for gate in spec.environment_gates if isinstance(spec, GatedSpec) else ():
        if "tool" in gate.match.kinds and gate.before is not None:
            compiled[gate_id(gate)] = environment_gate("tool", gate.name, gate.before, "tools")
            matches[gate_id(gate)] = gate.match
    return ToolGateIndex(spec=spec, compiled=compiled, matches=matches)
