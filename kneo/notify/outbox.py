"""The outbox of notifications.

Each change is announced once; each pending, refused or drifted change once for each environment, bundle digest and
reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

from kneo.clock import isoformat
from kneo.digest import digest_of_json
from kneo.records.task import HumanTask
from kneo.store import outbox
from kneo.store.engine import Store, Tx
from kneo.store.outbox import Letter, Message

log = logging.getLogger("kneo.notify")

ATTEMPTS = 10
FIRST_PAUSE = timedelta(seconds=15)
LAST_PAUSE = timedelta(hours=1)

MAX_PROMPT_CHARS = 2_000
"""Characters of a prompt that a notification contains; the task has all of it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one delivery: without a ``problem`` it was sent; a ``status`` ends the message."""

    problem: str | None = None
    status: str | None = None


DONE = Outcome(status="sent")
"""The message was settled in a transaction of its own."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A notice about a release.

    Args:
        environment: The environment.
        bundle: The name of the bundle.
        version: The version of the bundle.
        digest: The digest of the bundle, if known.
        phase: ``promoted``, ``rolled_back``, ``retired``, ``waiting``, ``refused`` or ``drifted``.
        reason: The code of the reason why the change is pending, refused or drifted; empty otherwise.
        message: The reason as a sentence.
        revision: The commit.
        at: The time of a change, which may happen again later.
        who: The people who can unblock it.
    """

    environment: str
    bundle: str
    version: str
    digest: str | None
    phase: str
    reason: str
    message: str
    revision: str
    at: str = ""
    who: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of a notice; a second notice with the same key is not sent."""
        about = [self.environment, self.digest or [self.bundle, self.version], self.phase, self.reason]
        return digest_of_json([*about, self.at] if self.at else about)


def post(tx: Tx, channels: Sequence[str], notices: Iterable[Notice]) -> None:
    """Add notices to the outbox of each channel."""
    facts = [(notice.key, asdict(notice)) for notice in notices] if channels else []
    letters = (
        Letter(key=f"{channel}:{key}", channel=channel, payload=payload)
        for channel in channels
        for key, payload in facts
    )
    outbox.insert(tx, letters)


@dataclass(frozen=True, kw_only=True)
class TaskNotice:
    """A notice about a task.

    Args:
        task: The task.
        what: ``requested``, ``reminded`` or ``escalated``.
        number: The number of the reminder or escalation.
        people: The people who may answer, where the task names any.
    """

    task: HumanTask
    what: str
    number: int
    people: tuple[str, ...] = ()

    @property
    def payload(self) -> dict[str, object]:
        """Return the payload of a task's notice: the question and the people, never the content under review."""
        task = self.task
        return {
            "about": "task",
            "what": self.what,
            "continuation_id": task.id,
            "request_id": task.request_id,
            "run_id": task.run_id,
            "environment": task.environment,
            "workflow_name": task.workflow_name,
            "step_id": task.step_id,
            "step_path": task.step_path,
            "key": task.key,
            "kind": task.kind,
            "title": task.title,
            "prompt": task.prompt[:MAX_PROMPT_CHARS],
            "subject_digest": task.subject_digest,
            "decisions": [kind.value for kind in task.decisions],
            "priority": task.priority,
            "deadline_at": task.deadline_at,
            "due_at": task.due_at,
            "assignee": task.assignee,
            "people": list(self.people),
            "links": task.plan.links,
        }


def post_task(tx: Tx, channels: Iterable[str], notice: TaskNotice) -> None:
    """Add a notice for each channel, in the transaction of the task's change."""
    about = f"{notice.task.id}:{notice.what}:{notice.number}"
    names = dict.fromkeys(channels)
    outbox.insert(tx, [Letter(key=f"{name}:{about}", channel=name, payload=notice.payload) for name in names])


def split(store: Store, message: Message, receivers: Iterable[tuple[str, str | None]]) -> None:
    """Return one message for each recipient of a message: an address, and the person where known."""
    with store.write() as tx:
        parts = [
            Letter(
                key=f"{message.id}:{address}",
                channel=message.channel,
                payload={**message.payload, "to": address, "person": person},
            )
            for address, person in receivers
        ]
        outbox.insert(tx, parts)
        outbox.finish(tx, message.id, "sent", None)


def settle(store: Store, message: Message, problem: str | None, *, status: str | None = None) -> None:
    """Record the outcome of a delivery: sent, postponed with a growing pause, given up, or the given ``status``."""
    if status is None and (problem is None or message.attempts + 1 >= ATTEMPTS):
        status = "sent" if problem is None else "failed"
    with store.write() as tx:
        if status is not None:
            outbox.finish(tx, message.id, status, problem)
        else:
            assert problem is not None
            pause = min(LAST_PAUSE, FIRST_PAUSE * 2**message.attempts)
            outbox.retry(tx, message.id, isoformat(tx.now + pause), problem)
    if status == "failed":
        facts = {"event": "notification_failed", "message_id": message.id, "channel": message.channel}
        facts |= {
            name: str(message.payload[name]) for name in ("continuation_id", "environment") if name in message.payload
        }
        log.warning("the message %s to %s was given up: %s", message.id, message.channel, problem, extra=facts)
