"""Environments, rules and changes in the words of pages. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kneo.api.release_views import EnvironmentView, PromotionPlanView, ReleaseView, SpecChangeView
from kneo.records.release import RECONCILE_FAILED, Condition, ConditionType, Hold, Pending
from kneo.service.console.render import count, span
from kneo.spec.diff.summary import TEXTS

ADVERSE = frozenset({"Stalled", "Reconciling", "Held", "DriftDetected"})
"""Conditions that need attention while they are true; the others do while they are false."""

FINE: Mapping[str, str] = {
    "SourceVerified": "commit verified",
    "PolicyValid": "file valid",
    "Verified": "bundles verified",
    "Promoted": "as Git declares",
    "Held": "nothing held",
    "DriftDetected": "no drift",
    "Ready": "ready",
}
"""What is true while a condition needs no attention."""

OPEN: Mapping[str, str] = {
    "SourceVerified": "commit not verified",
    "PolicyValid": "file not in force",
    "Verified": "a bundle was refused",
    "Promoted": "a change is pending",
    "Held": "a change is held",
    "DriftDetected": "a release has drifted",
    "Ready": "not ready",
    "Reconciling": "a gate is closed",
    "Stalled": "needs a person",
}

DANGER: Mapping[str, str] = {"high": "bad", "medium": "wait", "low": "off"}


@dataclass(frozen=True)
class OpenCondition:
    """Conditions that report the same."""

    names: str
    kind: str
    message: str
    since: str


def conditions_of(items: Sequence[Condition]) -> tuple[list[OpenCondition], list[str]]:
    """Return the conditions that need attention, those that report the same in one, and the others in words."""
    grouped: dict[tuple[str, str], list[Condition]] = {}
    fine: list[str] = []
    for item in items:
        if item.status is (item.type.value in ADVERSE):
            grouped.setdefault((item.reason, item.message), []).append(item)
        elif item.type.value in FINE:
            fine.append(FINE[item.type.value])
    found = [
        OpenCondition(
            names=", ".join(OPEN[item.type.value] for item in same),
            kind="bad" if any(item.type.value in {"Stalled", "DriftDetected", "Verified"} for item in same) else "wait",
            message=message,
            since=min(item.since for item in same),
        )
        for (_, message), same in grouped.items()
    ]
    return found, fine


def state_of(environment: EnvironmentView) -> tuple[str, str]:
    """Return the state of an environment: the kind of a chip, and its text."""
    states = {item.type.value: item.status for item in environment.conditions}
    stalled = next((item for item in environment.conditions if item.type is ConditionType.STALLED), None)
    if stalled is not None and stalled.status:
        return "bad", "reconciliation failed" if stalled.reason == RECONCILE_FAILED else "refused a change"
    if environment.suspension is not None:
        return "hold", "suspended"
    if environment.pending:
        return "wait", "a change waits"
    if environment.holds:
        return "hold", "holds a release"
    if environment.retired:
        return "off", "retired"
    return ("ok", "as Git declares") if states.get("Ready") else ("wait", "not reconciled yet")


def rule_of(environment: EnvironmentView) -> str:
    """Return how changes come to an environment, in a few words."""
    parts = [f"from {environment.promote_from}" if environment.promote_from else "follows Git"]
    if environment.approvals is not None and environment.approvals.required:
        parts.append(count(environment.approvals.required, "approval"))
    if environment.soak_seconds:
        parts.append(f"after {span(environment.soak_seconds)}")
    if not environment.windows_open:
        parts.append("window closed")
    return " · ".join(parts)


def rules_of(environment: EnvironmentView) -> Iterator[tuple[str, str]]:
    """Yield the rules of an environment as names and sentences."""
    yield "Releases come", f"from {environment.promote_from}" if environment.promote_from else "from Git directly"
    rule = environment.approvals
    if rule is not None:
        excluded = f"; not by the {', '.join(name.replace('_', ' ') for name in rule.exclude)}" if rule.exclude else ""
        signed = ", each signed with the person's own key" if rule.signed else ""
        roles = " or ".join(rule.roles)
        yield (
            "Approvals",
            f"{rule.required} by the role {roles}{signed}{excluded}; each counts for {span(rule.expires_seconds)}",
        )
        yield "Approvers", ", ".join(environment.approvers) or "none in the file; keys of the trust root may sign"
    else:
        yield "Approvals", "none needed"
    if environment.soak_seconds:
        yield "Soak", f"{span(environment.soak_seconds)} without a failed run in {environment.promote_from}"
    for window in environment.windows:
        yield ("Allowed" if window.effect == "allow" else "Denied"), f"{window.expression} ({window.timezone})"
    yield "Signatures", "; ".join(environment.signatures)
    if environment.atomic:
        yield "Atomic", "all changes of a commit happen here, or none"
    if environment.inline_specs:
        yield "Inline specs", "a run may bring its own spec"


def people(names: Sequence[str]) -> str:
    """Return names as alternatives: ``ann or carl``."""
    return " or ".join(([", ".join(names[:-1])] if len(names) > 1 else []) + list(names[-1:]))


@dataclass(frozen=True)
class PendingNote:
    """A change that waits at a cell, or was refused there."""

    kind: str
    version: str
    text: str
    href: str

    @classmethod
    def of(cls, item: Pending) -> PendingNote:
        """Build the note of a pending change."""
        refused = item.gate == "verify"
        who = f"waits for {people(item.who)}" if item.who else f"waits: {item.reason}"
        href = f"/console/promotions/{item.id}"
        return cls("bad" if refused else "wait", item.version, "refused" if refused else who, href)


@dataclass(frozen=True)
class Cell:
    """A bundle in an environment."""

    environment: str
    release: ReleaseView | None
    behind: str
    next: PendingNote | None
    hold: Hold | None
    direct: bool
    """Whether releases come from Git, and not from another environment."""

    @property
    def kind(self) -> str:
        """The classes of the cell."""
        state = "hold" if self.hold is not None else ""
        if self.next is not None:
            state = self.next.kind
        return f"{state} direct" if self.direct else state


@dataclass(frozen=True)
class MatrixRow:
    """A bundle in all environments."""

    bundle: str
    cells: list[Cell] = field(default_factory=list)


def matrix(environments: Sequence[EnvironmentView], newest: Mapping[str, tuple[str, str]]) -> list[MatrixRow]:
    """Return what runs where: a row for each bundle, a cell for each environment.

    Args:
        environments: The environments in the order of columns.
        newest: The newest accepted version of each bundle, with its digest.
    """
    names = {item.bundle for one in environments for item in one.releases}
    names |= {item.bundle for one in environments for item in one.pending if item.kind != "policy"}
    return [MatrixRow(name, [_cell(one, name, newest.get(name)) for one in environments]) for name in sorted(names)]


def _cell(environment: EnvironmentView, bundle: str, newest: tuple[str, str] | None) -> Cell:
    release = next((item for item in environment.releases if item.bundle == bundle), None)
    pending = next((item for item in environment.pending if item.bundle == bundle), None)
    hold = next((item for item in environment.holds if item.bundle == bundle), None)
    behind = ""
    if release is not None and newest is not None and newest[1] != release.digest:
        behind = f"newest is {newest[0]}"
    note = PendingNote.of(pending) if pending is not None else None
    return Cell(environment.name, release, behind, note, hold, direct=environment.promote_from is None)


@dataclass(frozen=True)
class ShownChange:
    """One change of a spec, with the rows of its text."""

    kind: str
    area: str
    message: str
    path: str
    rows: list[tuple[str, str]]


def shown_changes(changes: Sequence[SpecChangeView]) -> list[ShownChange]:
    """Return changes for a page, in their order."""
    return [
        ShownChange(DANGER.get(item.danger, "off"), item.area, item.message, item.path, list(_rows(item.lines)))
        for item in changes
    ]


def is_cut(plan: PromotionPlanView) -> bool:
    """Return whether a plan leaves out lines: a note says so, or its texts are one fact."""
    lines = (line for change in plan.changes for line in change.lines)
    rules = (line for rule in plan.rules for line in _lines(rule))
    return any(line.startswith("…") for line in (*lines, *rules)) or any(one.area == TEXTS for one in plan.changes)


CHANGES = 100
"""Changes of a review on a page; a longer review has several parts."""


def parts_of(number: int, shown: int) -> list[tuple[int, int, bool]]:
    """Return the parts of a review: the numbers of their first and last changes, and whether each is shown."""
    starts = range(0, number, CHANGES) if number > CHANGES else ()
    return [(start, min(start + CHANGES, number), start <= shown < start + CHANGES) for start in starts]


@dataclass(frozen=True)
class ShownRule:
    """One changed rule of an environment."""

    field: str
    message: str
    direction: str
    rows: list[tuple[str, str]]


def shown_rules(rules: Sequence[Mapping[str, object]]) -> list[ShownRule]:
    """Return changed rules for a page, those that loosen first."""
    items = [
        ShownRule(
            str(one["field"]), str(one.get("message", "changes")), str(one["direction"]), list(_rows(_lines(one)))
        )
        for one in rules
    ]
    return sorted(items, key=lambda item: item.direction != "loosened")


def _lines(rule: Mapping[str, object]) -> list[str]:
    lines = rule.get("lines", ())
    return [str(line) for line in lines] if isinstance(lines, list | tuple) else []


_PLACE = re.compile(r"@@ -(\d+),(\d+) \+(\d+),(\d+) @@")


def _rows(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield lines as rows of a page; the place of a change in its text is a row of its own, ``@``, in words."""
    for line in lines:
        sign = line[:1]
        if found := _PLACE.fullmatch(line):
            before, now = (_stretch(int(found[at]), int(found[at + 1])) for at in (1, 3))
            yield "@", now.capitalize() if before == now else f"{before.capitalize()} before, {now} now"
        else:
            yield sign if sign in {"+", "-"} else " ", line[1:] if sign in {"+", "-", " "} else line


def _stretch(first: int, lines: int) -> str:
    """Return the lines of a stretch of a text: ``line 3``, ``lines 3 to 5``."""
    if not lines:
        return "no line"
    return f"line {first}" if lines == 1 else f"lines {first:,} to {first + lines - 1:,}"
