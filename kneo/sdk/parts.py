"""Parts of a step that are done once: what they gave is kept, and found again when their step is begun again."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, overload

from kneo.digest import Digest, digest_of
from kneo.errors import Usage
from kneo.sdk.waiting import Place, current_place
from kneo.store.journal import find_entry, record_entry

P = ParamSpec("P")
R = TypeVar("R")

MAX_CHARS = 1_000_000
"""Characters of JSON that one part may be given, and may give."""


@dataclass(frozen=True)
class _Call:
    """One call of a part: which one, and what it is given."""

    place: Place
    name: str
    input_digest: Digest

    @classmethod
    def of(cls, name: str, args: object, kwargs: object) -> _Call:
        place = current_place()
        given = _spelled({"args": args, "kwargs": kwargs}, f"What {name} is given")
        return cls(place, f"{name}:{place.count(f'checkpoint {name}')}", digest_of(given.encode()))

    def known(self) -> tuple[object] | None:
        """Find what it gave; one value, or nothing where it was never done or was given something else."""
        context = self.place.context
        with self.place.store.read() as tx:
            part = find_entry(tx, context.run_id, context.step_id, self.name)
        return (json.loads(part.value),) if part is not None and part.input_digest == self.input_digest else None

    def done(self, result: object) -> object:
        """Keep what it gave; return that as it will be found."""
        value = _spelled(result, f"What {self.name} gives")
        context = self.place.context
        context.token.raise_if_cancelled()
        self.place.store.transact(
            lambda tx: record_entry(
                tx, context.run_id, context.step_id, self.name, input_digest=self.input_digest, value=value
            )
        )
        return json.loads(value)


def _spelled(value: object, what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{what} is kept as JSON, which it is not: {error}"
        raise Usage(msg, code="not_json") from error
    if len(text) > MAX_CHARS:
        msg = f"{what} is {len(text)} characters of JSON; at most {MAX_CHARS} are kept."
        raise Usage(msg, code="too_large", hint="Keep it elsewhere, and give its name.")
    return text


@overload
def checkpoint(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def checkpoint(*, name: str | None = ...) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def checkpoint(function: Callable[..., object] | None = None, *, name: str | None = None) -> object:
    """Make a function a part of flows and steps that is done once.

    What it gives is kept before it is given. When the flow is begun again, after an answer or a crash, the same call given the
    same arguments finds that and is not made; a call that was cut short is made again. Arguments and results have to be JSON,
    and a result is given as it is found again: a tuple as a list. Calls are counted: in the same order every time they find theirs.

    Args:
        function: Where it is used without parameters.
        name: What the part is called; left out: what the function is called.
    """

    def decorate(wrapped: Callable[..., object]) -> Callable[..., object]:
        called = name or str(getattr(wrapped, "__name__", "checkpoint"))
        if inspect.iscoroutinefunction(wrapped):

            @functools.wraps(wrapped)
            async def later(*args: object, **kwargs: object) -> object:
                call = _Call.of(called, args, kwargs)
                known = await asyncio.to_thread(call.known)
                return known[0] if known else await asyncio.to_thread(call.done, await wrapped(*args, **kwargs))

            return later

        @functools.wraps(wrapped)
        def now(*args: object, **kwargs: object) -> object:
            call = _Call.of(called, args, kwargs)
            known = call.known()
            return known[0] if known else call.done(wrapped(*args, **kwargs))

        return now

    return decorate(function) if function is not None else decorate
