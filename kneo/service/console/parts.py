"""Console parts: pages, files and a section of the person's page that extensions add to the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from kneo.extension_points import Point, import_target

if TYPE_CHECKING:
    from starlette.routing import Route

    from kneo.service.auth import Keyring
    from kneo.service.console.page import PageRequest, Pages
    from kneo.settings import Settings
    from kneo.store.engine import Tx


class ConsolePart(Protocol):
    """What an extension adds to the console.

    Attributes:
        pages: Its pages.
        files: Its static files by name, served below ``/console/static``. Browsers keep a file for ever
            whose query is its ``render.version_of``.
    """

    pages: Pages
    files: Mapping[str, bytes]

    def routes(self, settings: Settings) -> Sequence[Route]:
        """Return routes below ``/console`` that need no session."""
        ...

    def section(self, request: PageRequest) -> str:
        """Return a section of the page of the person who is signed in, made by ``render.compile_template``; empty for none.

        Another text is escaped.
        """
        ...

    def check(self, settings: Settings) -> None:
        """Check the settings at the start of a service; raises ``Invalid``."""
        ...

    def keep(self, tx: Tx, settings: Settings, keyring: Keyring) -> None:
        """End what removed API keys began: called at the start of a service, and when its keys were reloaded."""
        ...


@dataclass(frozen=True)
class ConsoleExtension:
    """A part of the console that an extension adds.

    Attributes:
        part: ``module:attribute`` of a ``ConsolePart``.
    """

    part: str


CONSOLE_PARTS = Point("console_parts", ConsoleExtension)


def load_parts() -> Sequence[ConsolePart]:
    """Import the parts of all extensions, in the order of their names.

    Raises:
        ExtensionFailed: an extension cannot be loaded, or its name is refused.
    """
    return [cast("ConsolePart", import_target(each.part)) for each in CONSOLE_PARTS.load_all().values()]
