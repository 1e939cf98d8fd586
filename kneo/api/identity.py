"""The operation that returns the caller: name, scopes, and the groups and roles in each environment."""

from __future__ import annotations

from dataclasses import dataclass

from kneo import registry
from kneo.api.context import ANY_KEY, Context
from kneo.api.operation import operation
from kneo.errors import KneoError
from kneo.names import person_key
from kneo.store import releases


@dataclass(frozen=True, kw_only=True)
class EnvironmentMembership:
    """The groups and roles of the caller in an environment, and whether the caller is an approver of its releases."""

    environment: str
    groups: list[str]
    roles: list[str]
    approver: bool


@dataclass(frozen=True, kw_only=True)
class CallerView:
    """The caller."""

    name: str
    scopes: list[str]
    environments: list[EnvironmentMembership]


@operation("GET", "/me", scope=ANY_KEY)
def get_me(context: Context) -> CallerView:
    """Return who the caller is: the name and scopes of the key, and the groups and roles in each environment."""
    found: list[EnvironmentMembership] = []
    with context.store.read() as tx:
        for record in releases.list_environments(tx):
            try:
                spec = registry.declared(tx, record.name).spec
            except KneoError:
                continue  # a file of an older version that this one cannot read names no people
            people = {person_key(name): person for name, person in spec.people.items()}
            person = people.get(person_key(context.actor))
            roles = list(person.roles) if person is not None else []
            needed = spec.approvals.roles if spec.approvals is not None else ()
            found.append(
                EnvironmentMembership(
                    environment=record.name,
                    groups=list(person.groups) if person is not None else [],
                    roles=roles,
                    approver=bool(set(roles) & set(needed)),
                )
            )
    return CallerView(name=context.actor, scopes=sorted(context.principal.scopes), environments=found)
