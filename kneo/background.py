"""Work in threads of the process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def background(name: str, work: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Do work in a thread during a block, and wait for the work to stop at its end."""
    # A program that ends inside the block must not hang; the work is then interrupted like by a crash.
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()
