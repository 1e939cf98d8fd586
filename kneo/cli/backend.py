"""What commands use of a service or of the local database: its operations and streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ParamSpec, Protocol, TypeVar

from kneo.api.operation import Operation

P = ParamSpec("P")
V = TypeVar("V")

Json = dict[str, object]
Query = Mapping[str, str | int | bool | Sequence[str] | None]


class Backend(Protocol):
    """The operations and streams that commands use."""

    @property
    def url(self) -> str | None:
        """The address of the service that answers; None where the database of this machine does."""
        ...

    def call(self, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        """Call an operation with its own parameters, in this process or over HTTP, and return its view."""
        ...

    def follow(self, run_id: str, *, until_pause: bool, deltas: bool = False) -> Iterator[Json]:
        """Yield the trace events of a run until it ends, and ``status`` and ``end`` of the run itself.

        Args:
            run_id: The run.
            until_pause: Whether to stop when the run pauses.
            deltas: Whether to yield replies of models while they arrive: ``model_delta``.
        """
        ...

    def as_signer(self, keyid: str | None) -> Backend:
        """Return the backend with the owner of a key as the caller, where no service authenticates the caller."""
        ...

    def with_key(self, key: str | None) -> Backend:
        """Return the backend with an idempotency key for the next call.

        Raises:
            Usage: the local database is used, where a command is not repeated.
        """
        ...

    def as_person(self, name: str) -> Backend:
        """Return the backend with another person as the caller, for a trial on the local database.

        Raises:
            Forbidden: ``as_person_refused``: a service answers, which authenticates its callers.
        """
        ...

    def follow_tasks(self, after: str | None) -> Iterator[Json]:
        """Yield the events of the inbox, from now on or from after an event, without end."""
        ...

    def close(self) -> None: ...
