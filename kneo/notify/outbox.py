"""The outbox: what is to be told, once for each environment, bundle digest and phase, however often it is found out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta

from kneo.clock import isoformat, new_id
from kneo.digest import digest_of_json
from kneo.store import outbox
from kneo.store.engine import Store, Tx
from kneo.store.outbox import Message

ATTEMPTS = 10
FIRST_PAUSE = timedelta(seconds=15)
LAST_PAUSE = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something people want to hear of.

    Args:
        environment: Where.
        bundle: What.
        version: Which version of it.
        digest: The bundle's digest, where there is one.
        phase: ``promoted``, ``rolled_back``, ``retired``, ``waiting`` or ``refused``.
        reason: Why it waits or was refused, as a word; empty otherwise.
        message: The same for people.
        revision: The commit.
        who: Who could do something about it.
    """

    environment: str
    bundle: str
    version: str
    digest: str | None
    phase: str
    reason: str
    message: str
    revision: str
    who: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Equal for what need not be told twice."""
        about = [self.environment, self.digest or [self.bundle, self.version], self.phase, self.reason]
        return digest_of_json(about)


def post(tx: Tx, channels: Iterable[str], notices: Iterable[Notice]) -> int:
    """Put notices into the outbox of each channel; say how many were new."""
    told = tuple(notices)
    return sum(
        outbox.insert(tx, new_id("msg", tx.now), f"{channel}:{notice.key}", channel, asdict(notice))
        for channel in channels
        for notice in told
    )


def settle(store: Store, message: Message, problem: str | None) -> None:
    """Record how a delivery went: done, to be tried later and later, or given up."""
    with store.write() as tx:
        if problem is None:
            outbox.finish(tx, message.id, "sent", None)
        elif message.attempts + 1 >= ATTEMPTS:
            outbox.finish(tx, message.id, "failed", problem)
        else:
            pause = min(LAST_PAUSE, FIRST_PAUSE * 2**message.attempts)
            outbox.retry(tx, message.id, isoformat(tx.now + pause), problem)
