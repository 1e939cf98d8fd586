"""Dispatchers: how runs reach the workers of a database. Kneo's own needs only the database; extensions add others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kneo.errors import Invalid
from kneo.extension_points import Point
from kneo.runtime.engine.worker import Driver
from kneo.settings import Settings
from kneo.store.engine import Store

AUTO = "auto"
"""The dispatch of Kneo itself."""


class StepWorker(Protocol):
    """A worker that executes steps until ``stop``."""

    @property
    def concurrency(self) -> int: ...

    @property
    def busy(self) -> int: ...

    def run(self) -> None: ...

    def stop(self) -> None: ...


class MakeWorker(Protocol):
    """Makes a worker of a dispatcher."""

    def __call__(
        self, settings: Settings, store: Store, driver: Driver, *, concurrency: int, beat: Callable[[], None]
    ) -> StepWorker: ...


class CheckSettings(Protocol):
    """Checks the settings of a dispatcher."""

    def __call__(self, settings: Settings, /, *, sqlite: bool) -> None: ...


@dataclass(frozen=True)
class Dispatcher:
    """A dispatcher that an extension adds; ``KNEO_SERV_DISPATCH`` names it.

    Attributes:
        check: Raises ``Invalid`` where the settings do not suit, or a library is not installed.
        make_worker: Makes the worker of this process.
    """

    check: CheckSettings
    make_worker: MakeWorker


DISPATCHERS = Point("dispatchers", Dispatcher, own={AUTO})


def find_dispatcher(settings: Settings, *, sqlite: bool) -> Dispatcher | None:
    """Return the dispatcher that the settings name; ``None`` for Kneo's own.

    Args:
        settings: The settings of the process.
        sqlite: Whether the database is a SQLite file.

    Raises:
        Invalid: ``invalid_setting``: none with this name is installed, or the settings do not suit it.
        ExtensionFailed: it cannot be loaded.
    """
    name = settings.execution.dispatch
    if name == AUTO:
        return None
    if not DISPATCHERS.has(name):
        msg = f"KNEO_SERV_DISPATCH is {name}, and no installed package has a dispatcher of this name."
        hint = f"Install the package, or use one of: {', '.join([AUTO, *DISPATCHERS.names()])}."
        raise Invalid(msg, code="invalid_setting", hint=hint)
    dispatcher = DISPATCHERS.load(name)
    dispatcher.check(settings, sqlite=sqlite)
    return dispatcher
