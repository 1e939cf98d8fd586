"""What silence means at a question's deadline. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kneo.records.task import Decision, DecisionKind

POLICY = "policy:timeout"


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Everything about a question that says what happens when nobody answers it in time."""

    on_timeout: str
    decisions: Collection[DecisionKind]
    options: Collection[str] = ()
    default_option: str | None = None

    def decision(self, at: str) -> Decision | None:
        """Return what the deadline decides at a time; ``None`` where it ends the run, or only turns to others."""
        word, _, option = self.on_timeout.partition(":")
        kind, effect = _AT_DEADLINE.get(word, (None, None))
        chosen = None
        if word == "select" or (word in {"continue", "approve"} and self.options and self.default_option):
            kind, chosen = DecisionKind.SELECTED, option or self.default_option
        fits = kind in self.decisions or kind is DecisionKind.REJECTED
        if kind is None or not fits or (kind is DecisionKind.SELECTED and chosen not in self.options):
            return None
        return Decision(
            kind=kind,
            content=None,
            selected_option=chosen,
            comment="decided at its deadline",
            actor=POLICY,
            by=POLICY,
            at=at,
            effect=effect,
        )


_AT_DEADLINE: Mapping[str, tuple[DecisionKind, str | None]] = {
    "continue": (DecisionKind.APPROVED, None),
    "approve": (DecisionKind.APPROVED, None),
    "reject": (DecisionKind.REJECTED, None),
    "skip": (DecisionKind.REJECTED, "skip"),
    "cancel": (DecisionKind.REJECTED, "cancel"),
}
"""``on_timeout`` as a decision and its effect; ``fail`` ends the run and ``escalate`` leaves the task open."""
