"""The operation that states what a person may do in an environment, and which line of its file or which role says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo import registry
from kneo.api.operation import Context, Principal, operation
from kneo.api.page import Word
from kneo.api.subjects import ENVIRONMENT
from kneo.errors import InvalidValue
from kneo.registry import AccessRules
from kneo.roles import EVERYTHING, ROLES, SCOPES, may, scopes_of
from kneo.spec.documents import Document
from kneo.spec.environment import ENVIRONMENT_LIMITS
from kneo.spec.reading.reader import read
from kneo.store import releases
from kneo.store.engine import Tx

ME = "me"


@dataclass(frozen=True, kw_only=True)
class ScopeAccessView:
    """Whether a person has a scope in an environment, and why."""

    scope: str
    allowed: bool
    because: Annotated[
        str, Field(description="The line of the environment file, or the role of the key, that decides.")
    ]


@dataclass(frozen=True, kw_only=True)
class AccessView:
    """The scopes of a person in an environment."""

    who: str
    environment: str
    scopes: list[ScopeAccessView]


@operation("GET", "/environments/{name}/access", scope="releases:read", about=ENVIRONMENT)
def check_access(
    context: Context,
    name: str,
    who: Annotated[
        Word, Field(description="A person: the owner of an API key, or one of the issuer. `me` is the caller.")
    ],
    scope: Annotated[Word | None, Field(description="Only this scope.")] = None,
) -> AccessView:
    """State what a person may do in an environment, and why."""
    if scope is not None and scope not in SCOPES:
        msg = f"There is no scope {scope!r}."
        raise InvalidValue(msg, hint=f"Known: {', '.join(SCOPES)}.", field="scope")
    person = context.actor if who == ME else who
    with context.store.read() as tx:
        registry.check_declared(tx, name)
        caller = context.principal if who == ME else context.find_caller(tx, person)
        explained = _Explained.of(tx, name, caller)
    asked = [scope] if scope is not None else [each for each in SCOPES if each != EVERYTHING]
    return AccessView(who=person, environment=name, scopes=[explained.scope(each, person) for each in asked])


@dataclass(frozen=True)
class _Explained:
    """The access of a caller in an environment, with the lines of its file."""

    file: str
    rules: AccessRules
    caller: Principal | None
    issued: frozenset[str]
    document: Document | None

    @classmethod
    def of(cls, tx: Tx, environment: str, caller: Principal | None) -> _Explained:
        rules, file = registry.read_rules(tx, environment), f"environments/{environment}.yaml"
        text = releases.declaration(tx, environment) if rules.rules else None
        issued = registry.issued_groups(tx, caller.name) if caller is not None else frozenset()
        document = read(text, file=file, limits=ENVIRONMENT_LIMITS) if text is not None else None
        return cls(file, rules, caller, issued, document)

    def scope(self, scope: str, person: str) -> ScopeAccessView:
        """Return whether the caller has a scope, and why."""
        if self.caller is None:
            because = f"No API key and no person of the issuer with a role has the name {person}."
            return ScopeAccessView(scope=scope, allowed=False, because=because)
        key = self._key(scope)
        if not may(self.caller.scopes, scope):
            return ScopeAccessView(scope=scope, allowed=False, because=f"{key} does not have {scope}.")
        if self.rules.rules is None:
            return ScopeAccessView(scope=scope, allowed=True, because=f"{key}; {self.file} has no access.")
        if self.rules.allows_all(self.caller):
            return ScopeAccessView(scope=scope, allowed=True, because=f"{key}, which has access to every environment.")
        for index, rule in self.rules.matching(self.caller, self.issued):
            words = [word for word in rule.may if may(scopes_of([word]), scope)]
            if words:
                because = f"{self._line(index)} gives {words[0]}, and {key} has {scope}."
                return ScopeAccessView(scope=scope, allowed=True, because=because)
        because = f"No rule of access in {self.file} gives {scope} to {person}."
        return ScopeAccessView(scope=scope, allowed=False, because=because)

    def _key(self, scope: str) -> str:
        assert self.caller is not None
        giving: Sequence[str] = sorted(role for role in self.caller.roles if may(scopes_of([role]), scope))
        roles = giving or sorted(self.caller.roles & ROLES.keys())
        return f"the role {roles[0]}" if roles else "the key"

    def _line(self, index: int) -> str:
        assert self.document is not None
        line, _ = self.document.locate(("spec", "access", index))
        return f"{self.file}:{line}"
