"""What operations work with: what the process has, and who calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from kneo.errors import Forbidden

if TYPE_CHECKING:  # a command that only names operations does without a database
    from kneo.runtime.engine.start import Starter
    from kneo.runtime.engine.wait import RunSettled, SettledRun
    from kneo.settings import Settings
    from kneo.spec.project import ProjectConfig
    from kneo.store.engine import Store

V_co = TypeVar("V_co", covariant=True)

EVERYTHING = "*"
"""The scope that includes all others."""


@dataclass(frozen=True)
class Principal:
    """A caller: the name of a person, and the scopes that the person's key has."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Return whether the caller has a scope."""
        return EVERYTHING in self.scopes or scope in self.scopes

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
    """Work on a run that has begun, and the view of what comes of it. The caller waits; the operation does not.

    Attributes:
        settling: The moment to wait for: the run is paused or has ended.
        view: Makes the view of the run as it then is.
        seconds: The longest time to wait; with zero the view is made of ``settled``.
        settled: The run as it is now, where the time to wait may be zero.
        notified: Whether the run's change notifies those who wait. After a vote that decides nothing it does not.
    """

    settling: RunSettled
    view: Callable[[SettledRun], V_co]
    seconds: float
    settled: SettledRun | None = None
    notified: bool = True


@dataclass(frozen=True, kw_only=True)
class Context:
    """What operations work with.

    Attributes:
        store: The database.
        settings: The settings of this process.
        principal: The caller, who has the operation's scope.
        project: The config of the project that this process works in.
        make_starter: Makes what starts runs; called by operations that start one.
        settle: Waits for a run, where the caller of an operation does not: in the command line.
        drive: Executes a run's next steps, where no worker does: in the command line.
        tools: Tools of this process, which specs may name.
        over_http: Whether the caller was authenticated by a service. In the command line the caller is the owner of the process.
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
