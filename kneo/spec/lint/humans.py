"""How people are asked: components.humans, and what gates say themselves."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.gate_strength import UNSIGNED_HINT, unsigned_silence
from kneo.spec.coverage.gates import LocatedGate, all_gates, effective_human, named_human, rejection_at
from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.documents import Path
from kneo.spec.index import SpecIndex
from kneo.spec.lint.schemas import form_findings
from kneo.spec.models import Gate, Human
from kneo.spec.models.human import NOT_HONOURED


def humans(view: SpecIndex) -> Iterator[Diagnostic]:
    """What somebody is asked can be answered."""
    for name, human in view.spec.components.humans.items():
        path: Path = ("components", "humans", name)
        yield from _human(human, path)
        yield from _unsigned(human, "stop", path)
    for at in all_gates(view):
        yield from _unsigned_at(view, at)
        yield from _human(at.gate, at.path, at)
        if isinstance(at.gate.human, Human):
            yield from _human(at.gate.human, (*at.path, "human"), at)


def _human(human: Human, path: Path, gate: LocatedGate | None = None) -> Iterator[Diagnostic]:
    yield from _options(human, path, gate)
    if human.response_role == "system":
        message = "The answer would speak to the model with the authority of its instructions."
        hint = "Write response_role: user."
        yield warning("W_HUMAN_RESPONSE_ROLE_SYSTEM", message, (*path, "response_role"), suggestion=hint)
    if human.on_reject == "continue":
        message = "A rejection does not stop the run: it goes on with the next step."
        hint = "Leave on_reject out, or write stop."
        yield warning("W_HUMAN_REJECT_CONTINUES", message, (*path, "on_reject"), suggestion=hint)
    for name in NOT_HONOURED:
        if getattr(human, name):
            message = f"{name} is not honoured yet, and a run that relied on it would be refused."
            yield error("E_HUMAN_NOT_HONOURED", message, (*path, name), suggestion=f"Leave {name} out.")
    for index, field in enumerate(human.fields):
        if field.secret:
            message = f"{field.name} is secret, and what people fill in is kept: a run that waits has to find it again."
            hint = "Ask for the name of a secret, and keep its value in the environment of the process that runs steps."
            yield error("E_HUMAN_FIELD_SECRET", message, (*path, "fields", index, "secret"), suggestion=hint)
    yield from form_findings(human, path)


def _unsigned(human: Human, default_reject: str, path: Path) -> Iterator[Diagnostic]:
    message = unsigned_silence(human, default_reject)
    if message is not None:
        yield error("E_HUMAN_TIMEOUT_UNSIGNED", message, (*path, "on_timeout"), suggestion=UNSIGNED_HINT)


def _unsigned_at(view: SpecIndex, at: LocatedGate) -> Iterator[Diagnostic]:
    """Look at what holds at a gate, where its human has not been complained about already."""
    humans = view.spec.components.humans
    named = None if isinstance(at.gate.human, Human) else named_human(at.gate, humans)
    if named is None or unsigned_silence(named, "stop") is None:
        yield from _unsigned(effective_human(at.gate, humans), rejection_at(at), at.path)


def _options(human: Human, path: Path, gate: LocatedGate | None) -> Iterator[Diagnostic]:
    options = human.options or ()
    # A gate takes from the human it names what it does not say itself, and a route has the router's choices.
    may_lack = isinstance(human, Gate) or (gate is not None and gate.position == "route")
    if human.default_option is not None and human.default_option not in options and not (may_lack and not options):
        message = f"default_option is {human.default_option}, which is none of the options."
        hint = f"Write one of {', '.join(options)}." if options else "Write options."
        yield error("E_HUMAN_DEFAULT_OPTION_NOT_IN_OPTIONS", message, (*path, "default_option"), suggestion=hint)
    if human.request_type == "selection" and not options and not may_lack:
        message = "There is nothing to select from."
        yield error("E_HUMAN_SELECTION_REQUIRES_OPTIONS", message, (*path, "options"), suggestion="Write options.")
    chosen = human.on_timeout.removeprefix("select:")
    if chosen != human.on_timeout and options and chosen not in options:
        message = f"on_timeout selects {chosen}, which is none of the options."
        hint = f"Write one of {', '.join(options)}."
        yield error("E_HUMAN_TIMEOUT_OPTION", message, (*path, "on_timeout"), suggestion=hint)
