"""The scopes of callers, and the roles that combine them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

EVERYTHING = "*"
"""The scope that includes all others."""

SCOPES: Mapping[str, str] = {
    "*": "everything",
    "runs:read": "read runs, their traces and what they left behind",
    "runs:content": "read what the agents of runs and their models wrote",
    "runs:write": "start, continue, fork and cancel runs",
    "calls:make": "call the tools that environments serve to the key; read, begin, report and cancel these calls",
    "specs:read": "read bundles; check specs",
    "human:read": "read human tasks",
    "human:write": "answer human tasks; claim, assign, delegate and discuss them",
    "human:link": "make one-time links for other people",
    "receipts:read": "read and verify receipts of decisions",
    "audit:read": "read and prove the audit log",
    "audit:write": "nothing any more; existing keys may name it",
    "releases:read": "read environments, releases, promotions and their history",
    "releases:decide": "approve and reject promotions, where the environment's file names the person as an approver",
    "releases:operate": "reconcile, suspend, hold and roll back environments",
    "policies:read": "read the policies that were set over HTTP",
    "policies:write": "set policies over HTTP",
    "credentials:read": "list which credentials are set, never their values",
}
"""The scopes, and what a key with each may do."""

INCLUDED: Mapping[str, frozenset[str]] = {
    "policies:read": frozenset({"releases:read"}),
    "policies:write": frozenset({"releases:operate"}),
    "human:read": frozenset({"receipts:read"}),
    "audit:read": frozenset({"receipts:read"}),
}
"""Scopes that another scope includes. No scope includes ``releases:decide``: operators do not approve."""

_VIEWER = frozenset({"runs:read", "specs:read", "human:read", "audit:read", "releases:read"})

ROLES: Mapping[str, frozenset[str]] = {
    "admin": frozenset({"*"}),
    "operator": _VIEWER
    | {"runs:write", "runs:content", "credentials:read", "policies:read", "policies:write", "releases:operate"},
    "approver": frozenset(
        {
            "runs:read",
            "specs:read",
            "human:read",
            "human:write",
            "audit:read",
            "releases:read",
            "releases:decide",
        }
    ),
    "reviewer": frozenset({"runs:read", "human:read", "human:write", "audit:read"}),
    "auditor": _VIEWER | {"receipts:read", "runs:content"},
    "service": _VIEWER
    | {"runs:write", "human:write", "human:link", "audit:write", "credentials:read", "policies:read"},
    "viewer": _VIEWER,
    "caller": frozenset({"calls:make"}),
}
"""The scopes of each role."""


def with_included(scopes: frozenset[str]) -> frozenset[str]:
    """Add the scopes that others include."""
    return scopes.union(*(INCLUDED.get(scope, frozenset()) for scope in scopes))


def scopes_of(words: Iterable[str]) -> frozenset[str]:
    """Return the scopes of roles and scopes, with those that they include."""
    return with_included(frozenset().union(*(ROLES.get(word, frozenset({word})) for word in words)))


def may(scopes: frozenset[str], scope: str) -> bool:
    """Return whether a set of scopes has a scope."""
    return EVERYTHING in scopes or scope in scopes


def reads(scopes: frozenset[str]) -> bool:
    """Return whether a set of scopes has one to read anything; ``calls:make`` reads the caller's own calls."""
    return bool(scopes & {EVERYTHING, "calls:make"}) or any(scope.endswith(":read") for scope in scopes)


def common(some: frozenset[str], others: frozenset[str]) -> frozenset[str]:
    """Return the scopes that two sets have in common."""
    if EVERYTHING in some:
        return others
    return some if EVERYTHING in others else some & others
