"""The changes of a commit to rules and to releases, as JSON for reviewers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel

from kneo.clock import isoformat
from kneo.controller.stages.attestations import EvidenceCase, stated_facts
from kneo.controller.stages.plan import Action, Retire, name_of
from kneo.errors import KneoError
from kneo.registry import PlannedChange, code_in, spec_in
from kneo.spec.diff import bounded_changes, compare_specs, whole_command
from kneo.spec.diff.rules import describe_rule
from kneo.spec.diff.weakening import weakenings
from kneo.spec.models.environment import Environment, EnvironmentSpec
from kneo.spec.policy import next_opening, windows_open
from kneo.store import releases
from kneo.store.engine import Tx

Json = dict[str, object]
Model = TypeVar("Model", bound=BaseModel)

NOT_RULES = frozenset({"releases"})
"""Fields of an environment that declare its releases, not its rules."""


# ---- an environment's rules ---------------------------------------------------------------------------------------


def policy_difference(before: Environment, after: Environment) -> list[Json]:
    """Compare an environment's rules field by field, with the direction of each change.

    A change that alone would weaken the rules in force is ``loosened``; any other tightens or replaces them.
    """
    return list(_fields(before, after, before.spec, after.spec, ()))


def _fields(
    before: Environment, after: Environment, old: BaseModel, new: BaseModel, path: tuple[str, ...]
) -> Iterator[Json]:
    for name, info in type(old).model_fields.items():
        if not path and name in NOT_RULES:
            continue
        was, becomes = getattr(old, name), getattr(new, name)
        if was == becomes:
            continue
        here = (*path, name)
        if isinstance(was, BaseModel) and type(was) is type(becomes):
            yield from _fields(before, after, was, becomes, here)
            continue
        path_text = ".".join((*(_alias(before.spec, path)), info.alias or name))
        loosens = bool(weakenings(before, _with(before, after, here, becomes)))
        if here == ("suspend",):
            loosens = not becomes
        values = _plain(old, name), _plain(new, name)
        words = describe_rule(path_text, *values, after.spec.humans)
        yield {
            "field": path_text,
            "from": values[0],
            "to": values[1],
            "direction": "loosened" if loosens else "tightened",
            "message": words.message,
            "lines": list(words.lines),
        }


def _alias(spec: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    for name in path:
        yield type(spec).model_fields[name].alias or name
        spec = getattr(spec, name)


def _with(before: Environment, after: Environment, path: tuple[str, ...], value: object) -> Environment:
    """Return the rules in force with one field of the new rules."""
    spec: EnvironmentSpec = _replaced(before.spec, path, value)
    windows = after.windows if path[0] == "windows" else before.windows
    gates = after.gates if path[0] in {"gates", "humans"} else before.gates
    return replace(before, spec=spec, windows=windows, gates=gates)


def _replaced(model: Model, path: tuple[str, ...], value: object) -> Model:
    name, *rest = path
    return model.model_copy(update={name: _replaced(getattr(model, name), tuple(rest), value) if rest else value})


def _plain(model: BaseModel, name: str) -> object:
    """Return a field as plain values, of the parts in it only what the file says."""
    value = getattr(model, name)
    unset = isinstance(value, dict | tuple | BaseModel)
    dumped: Mapping[str, object] = model.model_dump(mode="json", by_alias=True, include={name}, exclude_unset=unset)
    return next(iter(dumped.values()), None) if dumped else ({} if isinstance(value, dict) else [])


def window_state(environment: Environment, now: datetime) -> Json:
    """Return whether changes are allowed now, and the next opening."""
    opening = None if windows_open(environment.windows, now) else next_opening(environment.windows, now)
    rules = [rule.model_dump(mode="json", by_alias=True, exclude_none=True) for rule in environment.spec.windows]
    return {
        "open": windows_open(environment.windows, now),
        "next_opening": isoformat(opening) if opening is not None else None,
        "rules": rules,
    }


# ---- pending changes ----------------------------------------------------------------------------------------------


def plan_of_action(tx: Tx, action: Action, environment: Environment, case: EvidenceCase | None) -> PlannedChange:
    """Return the plan of a change of a release, with all lines of what changes, and the facts about it.

    Args:
        tx: The transaction.
        action: The change.
        environment: The rules in force.
        case: What the evidence of its bundle is judged by; None where it needs none.
    """
    current = action.current
    facts = [stated_facts(rule, case) for rule in environment.spec.evidence] if case is not None else []

    def content() -> Json:
        if isinstance(action, Retire):
            return _content(from_version=action.current.version, summary="The release is removed.")
        old = releases.bundle(tx, current.digest) if current is not None else None
        try:
            before = spec_in(old) if old is not None else None
        except KneoError:
            before = None  # a damaged release is compared with nothing; drift reports it
        command = whole_command(
            name_of(action), current.version if current is not None else None, action.bundle.version
        )
        found = compare_specs(
            before,
            spec_in(action.bundle.record),
            environment=environment,
            command=command,
            code=(code_in(old), code_in(action.bundle.record)),
        )
        shown, more = bounded_changes(found)
        return _content(
            from_version=current.version if current is not None else None,
            signers=list(action.bundle.record.signers),
            summary=found.summary,
            changes=[change.as_json() for change in shown],
            more=more,
            facts=facts,
        )

    return PlannedChange(name_of(action), current.digest if current is not None else None, content, facts)


def plan_of_rules(before: Environment | None, after: Environment, weakened: Sequence[str]) -> PlannedChange:
    """Return the plan of a change of an environment's rules.

    Args:
        before: The file in force.
        after: The file in the commit.
        weakened: What the change weakens, in sentences.
    """

    def content() -> Json:
        rules = policy_difference(before, after) if before is not None else []
        summary = f"{len(rules)} changed rules" if before is not None else "The first file of this environment"
        return _content(summary=summary, rules=rules, weakened=list(weakened))

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
        "facts": [],
    }
    return empty | values
