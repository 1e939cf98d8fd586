"""Rules of environments as agents read them: without blocking the event loop, anew for each call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from kneo.spec.policy import ToolRules

T = TypeVar("T")


def always(rules: T) -> Callable[[str | None], Awaitable[T]]:
    """Return the same rules for each environment."""

    async def now(_environment: str | None) -> T:
        return rules

    return now


def current(rules: Mapping[str, ToolRules]) -> Callable[[str | None], Awaitable[ToolRules]]:
    """Return what stands under ``now`` at each call."""

    async def now(_environment: str | None) -> ToolRules:
        return rules["now"]

    return now


def inside_prod(port: int) -> Callable[[str | None], Awaitable[ToolRules]]:
    """Return rules under which prod alone may reach a port on loopback."""

    async def now(environment: str | None) -> ToolRules:
        return ToolRules(inside=[f"127.0.0.1:{port}"] if environment == "prod" else [])

    return now
