"""The plans of pending changes: what each would change, kept for the people who decide about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kneo.controller.differences import policy_difference
from kneo.controller.stages.plan import Action, Retire, name_of
from kneo.errors import KneoError
from kneo.records.release import PendingPlan
from kneo.registry import spec_in
from kneo.spec.diff import bounded_changes, compare_specs
from kneo.spec.diff.weakening import weakenings
from kneo.spec.models.environment import Environment
from kneo.store import pending_plans, releases
from kneo.store.engine import Tx

MAX_PLANS = 200
"""Plans that are kept for an environment."""

Json = dict[str, object]


@dataclass(frozen=True)
class PlannedChange:
    """A pending change: its name among those of the environment, what it replaces, and its comparison when it is needed."""

    name: str
    base: str | None
    content: Callable[[], Mapping[str, object]]


def keep_plans(tx: Tx, environment: str, changes: Iterable[PlannedChange]) -> None:
    """Store the plan of each pending change once, and delete those of changes that are not pending any more."""
    known = pending_plans.bases(tx, environment)
    wanted = list(changes)[:MAX_PLANS]
    if not wanted and not known:
        return
    ids = {item.bundle: item.id for item in releases.pending(tx, environment)}
    present = {ids[change.name]: change for change in wanted if change.name in ids}
    pending_plans.delete(tx, known.keys() - present.keys())
    for identity, change in present.items():
        if identity not in known or known[identity] != change.base:
            plan = PendingPlan(id=identity, environment=environment, base=change.base, content=change.content())
            pending_plans.put(tx, plan)


def plan_of_action(tx: Tx, action: Action) -> PlannedChange:
    """Return the plan of a change of a release."""
    current = action.current

    def content() -> Json:
        if isinstance(action, Retire):
            return _content(from_version=action.current.version, summary="The release is removed.")
        old = releases.bundle(tx, current.digest) if current is not None else None
        try:
            before = spec_in(old) if old is not None else None
        except KneoError:
            before = None  # a damaged release is compared with nothing; drift reports it
        found = compare_specs(before, spec_in(action.bundle.record))
        shown, more = bounded_changes(found)
        return _content(
            from_version=current.version if current is not None else None,
            signers=list(action.bundle.record.signers),
            summary=found.summary,
            changes=[change.as_json() for change in shown],
            more=more,
        )

    return PlannedChange(name_of(action), current.digest if current is not None else None, content)


def plan_of_rules(before: Environment | None, after: Environment) -> PlannedChange:
    """Return the plan of a change of an environment's rules."""

    def content() -> Json:
        rules = policy_difference(before, after) if before is not None else []
        weakened = list(weakenings(before, after)) if before is not None else []
        summary = f"{len(rules)} changed rules" if before is not None else "The first file of this environment"
        return _content(summary=summary, rules=rules, weakened=weakened)

    return PlannedChange(after.file, before.policy_digest if before is not None else None, content)


def _content(**values: object) -> Json:
    empty: Json = {
        "from_version": None,
        "signers": [],
        "summary": "",
        "changes": [],
        "more": 0,
        "rules": [],
        "weakened": [],
    }
    return empty | values
