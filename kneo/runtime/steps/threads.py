"""Blocking work beside the event loop, one thread each, so that slow functions never queue behind each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Do something in a thread of its own and wait for it.

    The thread is a daemon: work that nobody waits for any more (a cancelled function that does not look at its token)
    must not keep a process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def put(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T where there is no error

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:  # noqa: BLE001 - handed to whoever waits
            error = caught if not isinstance(caught, StopIteration) else RuntimeError(str(caught))
        # The loop may have closed meanwhile; then nobody waits.
        if not loop.is_closed():
            loop.call_soon_threadsafe(put, result, error)

    threading.Thread(target=run, name="step", daemon=True).start()
    return await future
