"""The backend of commands: a service over HTTP, or the local database. Results are the same."""

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
    def over_http(self) -> bool:
        """Whether a service answers; otherwise the database of this machine does."""
        ...

    def call(self, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        """Call an operation with its own parameters, in this process or over HTTP, and return its view."""
        ...

    def follow(self, run_id: str, *, until_pause: bool) -> Iterator[Json]:
        """Yield the trace events of a run until it ends, and ``status`` and ``end`` of the run itself.

        Args:
            run_id: The run.
            until_pause: Whether to stop when the run pauses.
        """
        ...

    def tasks(self, query: Query) -> Json: ...

    def task(self, continuation_id: str) -> Json: ...

    def resume(self, continuation_id: str, answer: Mapping[str, object]) -> Json: ...

    def answer_to_sign(self, continuation_id: str, answer: Mapping[str, object], keyid: str | None) -> Json:
        """Return the bytes that sign an answer, as ``POST …/statement`` does; ``keyid`` says with which key."""
        ...

    def make_link(self, continuation_id: str, order: Mapping[str, object]) -> Json:
        """Make a link that answers once; takes and gives what ``POST …/links`` does."""
        ...

    def links(self, continuation_id: str) -> Json: ...

    def revoke_link(self, continuation_id: str, link_id: str) -> Json: ...

    def act(self, continuation_id: str, verb: str, body: Mapping[str, object]) -> Json:
        """Claim, unclaim, assign, delegate, snooze or comment; takes what ``POST …/{verb}`` does."""
        ...

    def task_history(self, continuation_id: str) -> Json: ...

    def task_summary(self) -> Json: ...

    def task_stats(self, query: Query) -> Json: ...

    def follow_tasks(self, after: str | None) -> Iterator[Json]:
        """Tell what happens in the inbox, from now on or from after an event, for ever."""
        ...

    def resume_many(self, items: Sequence[Mapping[str, object]]) -> Json: ...

    def close(self) -> None: ...
