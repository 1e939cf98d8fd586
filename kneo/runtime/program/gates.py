"""Gates of a program, compiled from a spec's declarations. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from kneo.errors import Invalid
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.gate import DEFAULT_HUMAN, DEFAULT_RETRIES, CompiledGate
from kneo.spec.gates import rejection_effect
from kneo.spec.models.human import NOT_HONOURED, Gate, Human
from kneo.tasks.forms import check_fields, check_schema

DECISIONS: Mapping[str, tuple[DecisionKind, ...]] = {
    "step": tuple(DecisionKind),
    "before": (DecisionKind.APPROVED, DecisionKind.REJECTED),
    "after": (DecisionKind.APPROVED, DecisionKind.REJECTED, DecisionKind.EDITED),
    "each": (DecisionKind.APPROVED, DecisionKind.REJECTED, DecisionKind.EDITED),
    "route": (DecisionKind.SELECTED,),
    "error": (DecisionKind.SELECTED,),
    "tool": (DecisionKind.APPROVED, DecisionKind.REJECTED, DecisionKind.EDITED),
    "external": (DecisionKind.PROVIDED, DecisionKind.REJECTED),
    "wait": (DecisionKind.PROVIDED, DecisionKind.SELECTED, DecisionKind.REJECTED),
}
"""The answers that have an effect at each position; ``tool`` is before a call, where a tool's ``review.before`` stands."""


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
    compiled = review_gate("tool" if position == "before" else position, declared, humans, f"tools.{name}")
    return replace(compiled, on_reject=rejection_effect("tool", compiled.human.on_reject))


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
    legal = tuple(
        kind for kind in DECISIONS[position] if kind is not DecisionKind.SELECTED or _can_select(position, human)
    )
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


def _can_select(position: str, human: Human) -> bool:
    """Say whether there is anything to choose from; a route has the router's choices, an error its own."""
    return bool(human.options) or position in {"route", "error", "wait"}


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
