"""Receiving the notifications of a channel of PostgreSQL in a thread, with a connection that is opened again where it is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event

log = logging.getLogger("kneo.store")

RETRY_SECONDS = 1.0
"""Pause before a lost connection is opened again, and the longest time until a thread notices that it should end."""


def reconnect(work: Callable[[], None], what: str, *, closed: Event, listening: Event) -> None:
    """Repeat work on a connection of its own, until ``closed`` is set.

    Args:
        work: The work; it returns once ``closed`` is set.
        what: What is interrupted meanwhile, for the log.
        closed: Ends the work.
        listening: Is cleared where the connection is lost.
    """
    from psycopg import Error  # needed on PostgreSQL only

    while not closed.is_set():
        try:
            work()
        except Error as error:
            listening.clear()
            log.info("%s are interrupted, reconnecting: %s", what, str(error).partition("\n")[0])
            closed.wait(RETRY_SECONDS)


def receive(conninfo: str, channel: str, accept: Callable[[str], None], *, closed: Event, listening: Event) -> None:
    """Pass on the payloads of a channel's notifications until ``closed`` is set; ``listening`` is set once none is missed.

    Raises:
        psycopg.Error: the connection cannot be opened, or was lost.
    """
    import psycopg

    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"LISTEN {channel}")
        listening.set()
        while not closed.is_set():
            for notification in connection.notifies(timeout=RETRY_SECONDS):
                accept(notification.payload)
