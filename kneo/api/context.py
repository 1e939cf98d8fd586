"""The context of operations: the components of the process, and the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar

from kneo.errors import Forbidden

if TYPE_CHECKING:  # A command that only names operations needs no database.
    from kneo.runtime.engine.start import Starter
    from kneo.runtime.engine.wait import RunSettled, SettledRun
    from kneo.settings import Settings
    from kneo.spec.project import ProjectConfig
    from kneo.store.engine import Store

V_co = TypeVar("V_co", covariant=True)

EVERYTHING = "*"
"""The scope that includes all others."""

ANY_KEY = "any"
"""The scope of operations that every authenticated caller may call."""


@dataclass(frozen=True)
class Principal:
    """A caller: the name of a person, the scopes of the person's key or token, and when the token expires."""

    name: str
    scopes: frozenset[str]
    expires_at: datetime | None = None

    def may(self, scope: str) -> bool:
        """Return whether the caller has a scope."""
        return scope == ANY_KEY or EVERYTHING in self.scopes or scope in self.scopes

    def require(self, scope: str) -> None:
        """Check that the caller has a scope.

        Raises:
            Forbidden: the caller has not; the scope is in the details.
        """
        if not self.may(scope):
            msg = f"{self.name} may not do this; it needs the scope {scope}."
            raise Forbidden(msg, required_scope=scope)


@dataclass(frozen=True)
class Waiting(Generic[V_co]):
    """Work in progress on a run, and the view of its result. The caller waits; the operation does not.

    Attributes:
        settling: The condition to wait for: the run is paused or has ended.
        view: Builds the view of the run at that time.
        seconds: The longest time to wait; with zero the view is built from ``settled``.
        settled: The present run, where the time to wait may be zero.
        notified: Whether the run's change notifies waiters. A vote below the quorum does not.
    """

    settling: RunSettled
    view: Callable[[SettledRun], V_co]
    seconds: float
    settled: SettledRun | None = None
    notified: bool = True


@dataclass(frozen=True, kw_only=True)
class Context:
    """The context of an operation.

    Attributes:
        store: The database.
        settings: The settings of this process.
        principal: The caller, who has the operation's scope.
        project: The config of the project that this process works in.
        make_starter: Creates the starter of runs; called by operations that start one.
        settle: Waits for a run in the command line, where the caller does not.
        drive: Executes a run's next steps in the command line, where no worker does.
        tools: The tools of this process, which specs may name.
        over_http: Whether the caller was authenticated by a service. In the command line the caller is the owner of the
            process.
    """

    store: Store
    settings: Settings
    principal: Principal
    project: ProjectConfig | None
    make_starter: Callable[[], Starter]
    settle: Callable[[Waiting[object]], SettledRun]
    drive: Callable[[str], object]
    tools: frozenset[str] = frozenset()
    over_http: bool = False

    @property
    def actor(self) -> str:
        """The name of the caller."""
        return self.principal.name
