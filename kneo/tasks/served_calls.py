"""The tools that an environment serves to a caller, by ``protocols.calls`` of its file in force."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from kneo import registry
from kneo.errors import KneoError
from kneo.records.run import Run
from kneo.spec.models.environment import Environment
from kneo.store.engine import Store, Tx
from kneo.tasks.people import find_person


def served_tools(tx: Tx, rules: Environment, bundle: str, caller: str, names: Collection[str]) -> tuple[str, ...]:
    """Return those of some tools of a bundle that an environment serves to a caller.

    Args:
        tx: An open transaction.
        rules: The environment's file in force.
        bundle: The name of the bundle.
        caller: The name of the caller.
        names: The tools.
    """
    person = find_person(tx, rules.name, caller)
    patterns = [
        pattern
        for each in rules.spec.protocols.calls
        if fnmatchcase(bundle, each.bundle) and each.names(caller, person.groups, person.roles)
        for pattern in each.tools
    ]
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def find_refusal(store: Store, run: Run, tool: str) -> str | None:
    """Return why the call of a run is not made now: its environment is retired, or does not serve the tool any more."""
    with store.read() as tx:
        return find_refusal_in(tx, run, tool)


def find_refusal_in(tx: Tx, run: Run, tool: str) -> str | None:
    """Return what ``find_refusal`` does, in an open transaction."""
    if run.environment is None or run.release is None:
        return None
    bundle = run.release.bundle
    try:
        rules = registry.declared(tx, run.environment)
        registry.check_not_retired(tx, rules)
    except KneoError as error:
        return error.message
    if served_tools(tx, rules, bundle, run.requester, [tool]):
        return None
    return f"{run.environment} no longer serves {tool} of {bundle} to {run.requester}."
