"""Steps that hold other steps: a condition to decide by, a router that can choose."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.documents import Path
from kneo.spec.index import LocatedStep, SpecIndex
from kneo.spec.models import ConditionStep, LeafStep, RouterStep


def containers(view: SpecIndex) -> Iterator[Diagnostic]:
    """Conditions and routers know how to decide, and where each way leads."""
    for at in view.steps:
        match at.step:
            case ConditionStep() if at.step.when is None and (at.step.review is None or at.step.review.before is None):
                message = f"Nothing decides the condition {at.step.id}."
                hint = "Write when, or review.before to let a person decide."
                yield error("E_CONDITION_WHEN", message, (*at.path, "when"), suggestion=hint)
            case RouterStep():
                yield from _router(view, at, at.step)
            case _:
                pass


def timeouts(view: SpecIndex) -> Iterator[Diagnostic]:
    """A step with a time limit does something that can be stopped: it calls a function, an agent or a person."""
    for at in view.steps:
        if at.step.timeout_seconds is None or not at.step.enabled:
            continue
        kind: str | None = at.step.kind
        if isinstance(at.step, LeafStep) and kind != "workflow":
            agent = view.agent_named(at.step.ref) if kind in {"agent", "guardrail"} else None
            if agent is None or agent.as_agent is None:
                continue
            kind = f"{kind}, whose agent is the workflow {agent.as_agent}"
        message = f"The step {at.step.id} is of kind {kind}: a run does not limit its time, and is refused."
        hint = "Give the steps in it a timeout, or the whole run."
        yield error("E_STEP_TIMEOUT", message, (*at.path, "timeout_seconds"), suggestion=hint)


def _router(view: SpecIndex, at: LocatedStep, step: RouterStep) -> Iterator[Diagnostic]:
    if not step.choices:
        yield error("E_ROUTER_CHOICES", f"The router {step.id} has no choices.", (*at.path, "choices"))
    for index, name in enumerate(step.order):
        if name not in step.choices:
            yield _no_choice(view, step, name, (*at.path, "order", index))
    selector = step.selector
    asked = step.review is not None and step.review.route is not None
    if selector is None or (selector.function is None and not selector.conditions and selector.default is None):
        if not asked:
            message = f"Nothing chooses at the router {step.id}."
            hint = "Write selector, or review.route to let a person choose."
            yield error("E_ROUTER_SELECTOR", message, (*at.path, "selector"), suggestion=hint)
        return
    named: list[tuple[Path, str]] = [
        (("conditions", index, "choice"), way.choice) for index, way in enumerate(selector.conditions)
    ]
    if selector.default is not None:
        named.append((("default",), selector.default))
    for below, choice in named:
        if choice not in step.choices:
            yield _no_choice(view, step, choice, (*at.path, "selector", *below))


def _no_choice(view: SpecIndex, step: RouterStep, name: str, path: Path) -> Diagnostic:
    message = f"{name} is no choice of the router {step.id}."
    return error("E_ROUTER_CHOICE", message, path, suggestion=view.hints.near(name, step.choices))
