"""The backends of one process, by the names of their kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kneo.agents.tools import http, mcp
from kneo.agents.tools.kinds import BACKEND_KINDS, BackendContext, BackendKind
from kneo.agents.turn import ToolBackend

OWN: Mapping[str, BackendKind] = {"http": http.KIND, "mcp": mcp.KIND}


class Backends(Mapping[str, ToolBackend]):
    """Backends that are opened before their first call.

    Args:
        context: What they are opened with.
        opened: Backends that are open.
        around: Returns a backend with what holds for all of them.
    """

    def __init__(
        self, context: BackendContext, opened: Mapping[str, ToolBackend], around: Callable[[ToolBackend], ToolBackend]
    ) -> None:
        self._context, self._around = context, around
        self._opened = {name: around(backend) for name, backend in opened.items()}

    def __getitem__(self, name: str) -> ToolBackend:
        """Return the backend of a kind.

        Raises:
            KeyError: no such kind is installed.
            ExtensionFailed: its extension cannot be loaded.
        """
        if name not in self._opened:
            kind = OWN[name] if name in OWN else BACKEND_KINDS.load(name)
            self._opened[name] = self._around(kind.open(self._context))
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened.keys() | OWN.keys() | {*BACKEND_KINDS.names()})

    def __len__(self) -> int:
        return sum(1 for _ in self)
