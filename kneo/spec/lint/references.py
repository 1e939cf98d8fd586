"""What steps refer to: components, and each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kneo.spec.coverage.components import components
from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.index import Block, LocatedStep, SpecIndex
from kneo.spec.models import LeafStep, RouterStep

_KIND_CODES = {
    "agent": "E_STEP_AGENT_REF",
    "function": "E_STEP_FUNCTION_REF",
    "human": "E_STEP_HUMAN_REF",
    "workflow": "E_STEP_WORKFLOW_REF",
    "guardrail": "E_STEP_GUARDRAIL_REF",
}
_KIND_PLACES = {
    "agent": "components.agents",
    "function": "components.functions",
    "human": "components.humans",
    "workflow": "components.workflows",
    "guardrail": "components.agents",
}


def step_references(view: SpecIndex) -> Iterator[Diagnostic]:
    """Steps name what exists, and are named once among their neighbours."""
    known: dict[str, Collection[str]] = {
        "agent": view.agent_names,
        "function": view.function_names,
        "human": view.spec.components.humans,
        "workflow": view.spec.components.workflows,
        "guardrail": view.agent_names,
    }
    known = {kind: frozenset(names) for kind, names in known.items()}
    for block in view.blocks:
        by_id = {member.step.id: member for member in reversed(block.members)}
        for member in block.members:
            if isinstance(member.step, LeafStep):
                yield from _reference(view, member, member.step, known)
            elif isinstance(member.step, RouterStep):
                yield from _selector(view, member, member.step)
            yield from _own_name(member, by_id)
            yield from _fallback(view, member, block, by_id)
        yield from _circles(block)


def _reference(
    view: SpecIndex, at: LocatedStep, step: LeafStep, known: dict[str, Collection[str]]
) -> Iterator[Diagnostic]:
    path = (*at.path, "ref")
    if step.kind == "workflow" and step.ref == at.workflow.name:
        yield error("E_STEP_WORKFLOW_SELF_REF", f"The workflow {step.ref} runs itself in step {step.id}.", path)
    elif step.ref not in known[step.kind]:
        place = _KIND_PLACES[step.kind]
        message = f"The step {step.id} runs {step.ref}, which is not in {place}."
        hint = view.hints.near(step.ref, known[step.kind]) or f"Declare it in {place}."
        yield error(_KIND_CODES[step.kind], message, path, suggestion=hint)


def _selector(view: SpecIndex, at: LocatedStep, step: RouterStep) -> Iterator[Diagnostic]:
    function = step.selector.function if step.selector else None
    if function is not None and function not in view.function_names:
        message = f"The router {step.id} chooses by {function}, which is not in components.functions."
        hint = view.hints.near(function, view.function_names) or "Declare it in components.functions."
        yield error("E_STEP_FUNCTION_REF", message, (*at.path, "selector", "function"), suggestion=hint)


def _own_name(at: LocatedStep, by_id: dict[str, LocatedStep]) -> Iterator[Diagnostic]:
    if at.role == "node":
        if at.key != at.step.id:
            message = f"The node {at.key} calls itself {at.step.id}; edges mean the node by its key."
            yield warning("W_GRAPH_NODE_ID_MISMATCH", message, (*at.path, "id"), suggestion=f"Write id: {at.key}.")
    elif by_id[at.step.id] is not at:
        code = "E_PARTICIPANT_DUPLICATE_ID" if at.role == "participant" else "E_STEP_DUPLICATE_ID"
        yield error(code, f"Another {at.role} beside this one is called {at.step.id} too.", (*at.path, "id"))


def _fallback(view: SpecIndex, at: LocatedStep, block: Block, by_id: dict[str, LocatedStep]) -> Iterator[Diagnostic]:
    step = at.step
    if step.on_error != "fallback" and step.fallback_ref is None:
        return
    path = (*at.path, "fallback_ref")
    if at.role == "participant":
        message = f"The participant {step.id} names a fallback; participants cannot stand in for each other."
        hint = "Wrap the two in a workflow and let the participant run that."
        yield error("E_PARTICIPANT_FALLBACK_UNSUPPORTED", message, path, suggestion=hint)
        return
    words = _NODE if at.role == "node" else _STEP
    targets = {str(member.key): member for member in block.members} if at.role == "node" else by_id
    if step.fallback_ref is None:
        message = f"{step.id} says on_error: fallback and no fallback_ref."
        yield error(words["missing"], message, path, suggestion="Name the step that runs in its place.")
        return
    target = targets.get(step.fallback_ref)
    if target is None or target is at:
        what = "itself" if target is at else f"{step.fallback_ref}, which is no {at.role} beside it"
        near = view.hints.near(step.fallback_ref, targets)
        yield error(words["unknown"], f"The fallback of {step.id} is {what}.", path, suggestion=near)
    elif isinstance(target.step, LeafStep) and target.step.kind == "human":
        message = f"The fallback of {step.id} is a question to a person, {step.fallback_ref}."
        hint = "Ask with review.error at the step that fails."
        yield error(words["human"], message, path, suggestion=hint)
    elif not target.step.enabled:
        message = f"The fallback of {step.id} is {step.fallback_ref}, which is disabled."
        say = error if at.role == "node" else warning
        yield say(words["disabled"], message, path)


def _circles(block: Block) -> Iterator[Diagnostic]:
    """Steps that stand in for each other in a circle: where all of them fail, nothing is left to run."""
    targets = {at.key or at.step.id: at.step.fallback_ref for at in block.members if at.step.on_error == "fallback"}
    paths = {at.key or at.step.id: at.path for at in reversed(block.members)}
    for members in components(targets, lambda name: [ref for ref in (targets[name],) if ref in targets]):
        if len(members) > 1:
            inside = frozenset(members)
            first = next(name for name in targets if name in inside)
            message = f"{len(members)} {block.role}s stand in for each other in a circle, {first} among them."
            hint = "Let one of them fail, go on, or ask with review.error."
            yield error("E_STEP_FALLBACK_CYCLE", message, (*paths[first], "fallback_ref"), suggestion=hint)


_STEP = {
    "missing": "E_STEP_FALLBACK_REF",
    "unknown": "E_STEP_FALLBACK_UNKNOWN",
    "human": "E_STEP_FALLBACK_HUMAN",
    "disabled": "W_STEP_FALLBACK_DISABLED",
}
_NODE = {
    "missing": "E_GRAPH_NODE_FALLBACK_REF",
    "unknown": "E_GRAPH_NODE_FALLBACK_UNKNOWN",
    "human": "E_GRAPH_FALLBACK_HUMAN",
    "disabled": "E_GRAPH_NODE_FALLBACK_DISABLED",
}
