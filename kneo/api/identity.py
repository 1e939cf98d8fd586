"""The operation that returns the caller: name, scopes, and the groups and roles in each environment."""

from __future__ import annotations

from dataclasses import dataclass

from kneo import registry
from kneo.api.operation import ANY_KEY, Context, operation
from kneo.api.subjects import SERVICE
from kneo.errors import KneoError
from kneo.store import oidc_people, releases
from kneo.tasks.people import find_person


@dataclass(frozen=True, kw_only=True)
class EnvironmentMembership:
    """The groups and roles of the caller in an environment, and whether the caller is an approver of its releases."""

    environment: str
    groups: list[str]
    roles: list[str]
    approver: bool


@dataclass(frozen=True, kw_only=True)
class CallerView:
    """The caller. ``groups`` are those that the issuer of tokens states; they count where an environment does not name the caller."""

    name: str
    scopes: list[str]
    groups: list[str]
    environments: list[EnvironmentMembership]


@operation("GET", "/me", scope=ANY_KEY, about=SERVICE)
def get_me(context: Context) -> CallerView:
    """Return who the caller is: the name and scopes of the key, and the groups and roles in each environment."""
    found: list[EnvironmentMembership] = []
    with context.store.read() as tx:
        issued = oidc_people.find(tx, context.actor)
        for record in releases.list_environments(tx):
            try:
                spec = registry.declared(tx, record.name).spec
                person = find_person(tx, record.name, context.actor)
            except KneoError:
                continue  # a file of an older version that this one cannot read names no people
            needed = spec.approvals.roles if spec.approvals is not None else ()
            found.append(
                EnvironmentMembership(
                    environment=record.name,
                    groups=sorted(person.groups),
                    roles=sorted(person.roles),
                    approver=bool(person.roles & set(needed)),
                )
            )
    groups = sorted(issued.groups) if issued is not None else []
    return CallerView(name=context.actor, scopes=sorted(context.principal.scopes), groups=groups, environments=found)
