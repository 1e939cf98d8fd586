"""What each decision about a question leads to: found by trying it on the state of its run. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kneo.records.task import Decision, DecisionKind
from kneo.runtime.decide import Answered, Ask, Asked, Ended, Execute, Frame, Moment, actions, settle, waiting
from kneo.runtime.program import Program

TRIED = "tried"
"""Prefix of the tasks of questions that are only tried."""

MAX_OPTIONS = 50
"""Options whose consequences are told; a longer list would cost more than anybody reads."""


def consequences(program: Program, state: Frame, ask: Ask, moment: Moment) -> dict[str, object]:
    """Say for each decision which steps come next, which questions, or how the run ends.

    Args:
        program: What runs.
        state: Where it stands.
        ask: The question, open or about to be asked.
        moment: Now.

    Returns:
        By decision: ``next`` (paths of steps), ``asks`` (keys of questions), ``ends`` (the run's status); where nothing
        follows yet, ``waits`` (keys of the other open questions) and ``running`` (paths of the steps under way). A
        rejection also has its ``effect`` and what it ``skips``. For ``selected`` all of it stands under ``options``.
    """
    asked = all_asked(program, state, moment)
    before = {action.ticket for action in actions(program, asked)}
    found: dict[str, object] = {}

    def after(kind: DecisionKind, option: str | None = None) -> dict[str, object]:
        return _after(program, asked, ask, kind, moment, before, option)

    for kind in ask.gate.decisions:
        if kind is DecisionKind.SELECTED:
            options = [option for option in ask.options or () if option][:MAX_OPTIONS]
            if options:
                found[kind.value] = {"options": {option: after(kind, option) for option in options}}
            continue
        found[kind.value] = after(kind)
    if DecisionKind.REJECTED in ask.gate.decisions:
        rejected = found[DecisionKind.REJECTED.value]
        assert isinstance(rejected, dict)
        rejected["effect"] = ask.gate.on_reject
        if rejected.get("next") != found.get(DecisionKind.APPROVED.value, {}).get("next"):  # type: ignore[attr-defined]
            skipped = _guarded(ask)
            if skipped is not None:
                rejected["skips"] = [skipped]
    return found


def all_asked(program: Program, state: Frame, moment: Moment) -> Frame:
    """Return the state with every question open that is about to be asked."""
    while (ask := next((one for one in actions(program, state) if isinstance(one, Ask)), None)) is not None:
        after = settle(program, state, ask.ticket, Asked(task_id=f"{TRIED}:{ask.ticket}"), moment)
        assert not isinstance(after, Ended), "asking ends nothing"
        state = after
    return state


def _guarded(ask: Ask) -> str | None:
    return ask.path if ask.gate.position == "before" else None


def _after(
    program: Program,
    state: Frame,
    ask: Ask,
    kind: DecisionKind,
    moment: Moment,
    before: Collection[str],
    option: str | None,
) -> dict[str, object]:
    decision = Decision(
        kind=kind,
        content="" if kind in {DecisionKind.EDITED, DecisionKind.PROVIDED} else None,
        selected_option=option,
        selected_options=(option,) if option else (),
        comment=None,
        actor="",
        by="person",
        at="",
    )
    after = settle(program, state, ask.ticket, Answered(decision=decision), moment)
    if isinstance(after, Ended):
        return {"ends": after.status.value, **({"error": after.error.type} if after.error else {})}
    new = [action for action in actions(program, after) if action.ticket not in before]
    leads_to: Mapping[str, list[str]] = {
        "next": [action.leaf.path for action in new if isinstance(action, Execute)],
        "asks": [action.key for action in new if isinstance(action, Ask)],
        "waits": [other.key for other in waiting(program, after).values()] if not new else [],
        "running": [a.leaf.path for a in actions(program, after) if isinstance(a, Execute)] if not new else [],
    }
    return {name: values for name, values in leads_to.items() if values or name == "next"}
