"""Access: what a caller may do in each environment, of what the caller's key or issuer allows.

A file without ``access`` gives what the key gives. A file that cannot be read gives it to administrators alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from kneo.errors import Forbidden, KneoError
from kneo.names import person_key
from kneo.registry.resolve import find_declared
from kneo.roles import EVERYTHING, common, may, reads, scopes_of
from kneo.store import oidc_people, releases
from kneo.store.engine import Tx
from kneo.store.prepared import Row

if TYPE_CHECKING:
    from kneo.spec.models.environment import AccessRule, EnvironmentSpec

REMEMBERED_TABLES, REMEMBERED_CALLERS = 8, 1_000


class Caller(Protocol):
    """The person of a key or token, its scopes and its roles."""

    @property
    def name(self) -> str: ...

    @property
    def scopes(self) -> frozenset[str]: ...

    @property
    def roles(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class AccessRules:
    """The rules of one environment. ``rules`` is ``None`` where the file has none."""

    rules: Sequence[AccessRule] | None = ()
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The groups of the people whom the file names, by the key of the name."""
    admins: bool = True
    requests_per_minute: int | None = None

    @classmethod
    def of(cls, spec: EnvironmentSpec) -> AccessRules:
        people = {person_key(name): frozenset(person.groups) for name, person in spec.people.items()}
        return cls(spec.access, people, spec.admins, spec.quotas.requests_per_minute)

    def matching(self, caller: Caller, issued: frozenset[str]) -> Iterator[tuple[int, AccessRule]]:
        """Yield the rules that name a caller, each with its index.

        Args:
            caller: The caller.
            issued: The groups that the issuer of the caller's tokens states.
        """
        key = person_key(caller.name)
        groups = self.groups.get(key, issued)
        for index, rule in enumerate(self.rules or ()):
            users = {person_key(name) for name in rule.who.users}
            if key in users or groups & set(rule.who.groups) or caller.roles & set(rule.who.roles):
                yield index, rule

    def allows_all(self, caller: Caller) -> bool:
        """Return whether the caller has all scopes of the key here."""
        return self.rules is None or (self.admins and EVERYTHING in caller.scopes)

    def scopes_of(self, caller: Caller, issued: frozenset[str]) -> frozenset[str]:
        """Return the scopes of a caller here."""
        if self.allows_all(caller):
            return caller.scopes
        words = (word for _, rule in self.matching(caller, issued) for word in rule.may)
        return common(caller.scopes, scopes_of(words))


@dataclass(frozen=True)
class Access:
    """The scopes of one caller in each declared environment."""

    held: frozenset[str]
    """The scopes of the key."""
    scopes: Mapping[str, frozenset[str]]

    def is_readable(self, environment: str | None) -> bool:
        """Return whether an environment exists for the caller."""
        return reads(self.scopes.get(environment or "", frozenset()))

    def missing(self, environment: str, required: Collection[str]) -> str | None:
        """Return the first scope that the caller has elsewhere and not in an environment."""
        here = self.scopes.get(environment, frozenset())
        return next((scope for scope in required if may(self.held, scope) and not may(here, scope)), None)

    def check(self, environments: Sequence[str], required: Collection[str]) -> None:
        """Check that the caller has these scopes in one of the environments of a subject; one without an environment needs none.

        Raises:
            Forbidden: the caller has them in none.
        """
        missing = [self.missing(name, required) for name in environments]
        if missing and all(missing):
            msg = f"Missing required scope in {environments[0]}: {missing[0]}"
            raise Forbidden(msg, required_scope=missing[0], environment=environments[0])

    def reach(self, required: Collection[str]) -> frozenset[str]:
        """Return the environments in which the caller has these scopes."""
        return frozenset(
            name for name in self.scopes if self.is_readable(name) and self.missing(name, required) is None
        )


class _AccessTable:
    """The rules of all environments, as of one state of their files."""

    def __init__(self, rules: Mapping[str, AccessRules]) -> None:
        self.rules = rules
        self._found: dict[tuple[object, ...], Access | None] = {}

    @cached_property
    def is_open(self) -> bool:
        return all(rules.rules is None for rules in self.rules.values())

    @cached_property
    def request_limits(self) -> Mapping[str, int]:
        limits = {name: rules.requests_per_minute for name, rules in self.rules.items()}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def of(self, caller: Caller, issued: frozenset[str]) -> Access | None:
        key = (caller.name, caller.scopes, caller.roles, issued)
        if key not in self._found:
            if len(self._found) >= REMEMBERED_CALLERS:
                self._found.clear()
            scopes = {name: rules.scopes_of(caller, issued) for name, rules in self.rules.items()}
            is_limited = any(here != caller.scopes for here in scopes.values())
            self._found[key] = Access(caller.scopes, scopes) if is_limited else None
        return self._found[key]


_tables: dict[tuple[Row, ...], _AccessTable] = {}


def _table(tx: Tx) -> _AccessTable:
    tx = tx.unlimited
    stamps = tx.once("environment stamps", lambda: releases.environment_stamps(tx))
    found = _tables.get(stamps)
    if found is None:
        if len(_tables) >= REMEMBERED_TABLES:
            _tables.clear()
        found = _AccessTable({row.name: read_rules(tx, row.name) for row in stamps})
        _tables[stamps] = found
    return found


def read_rules(tx: Tx, environment: str) -> AccessRules:
    """Return the rules of access of an environment, as its file in force states them."""
    try:
        declared = find_declared(tx, environment)
    except KneoError:
        return AccessRules()
    return AccessRules.of(declared.spec) if declared is not None else AccessRules()


def issued_groups(tx: Tx, name: str) -> frozenset[str]:
    """Return the groups that the issuer of a person's tokens states."""
    person = oidc_people.find(tx, name)
    return person.groups if person is not None else frozenset()


def find_access(tx: Tx, caller: Caller) -> Access | None:
    """Return what a caller may do in each environment; ``None`` where no environment limits the caller."""
    table = _table(tx)
    return None if table.is_open else table.of(caller, issued_groups(tx, caller.name))


def request_limits(tx: Tx) -> Mapping[str, int]:
    """Return the quota ``requests_per_minute`` of each environment that has one."""
    return _table(tx).request_limits


def find_reach(tx: Tx, caller: Caller, required: Collection[str]) -> frozenset[str] | None:
    """Return the environments in which a caller has these scopes; ``None`` where no environment limits the caller."""
    access = find_access(tx, caller)
    return access.reach(required) if access is not None else None
