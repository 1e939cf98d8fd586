"""Emptying the outbox: each message to its channel, later and later when that fails."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage

import httpx

from kneo.clock import new_id
from kneo.errors import KneoError, Transient
from kneo.notify.channels import (
    Channel,
    Http,
    Mail,
    find_release_channel,
    find_task_channel,
    known_channels,
    plain_name,
)
from kneo.notify.mail import send_mail, write_mail
from kneo.notify.outbox import settle, split
from kneo.records.task import UNRESOLVED
from kneo.redaction import redact
from kneo.settings import Settings
from kneo.store import outbox, requests, tasks
from kneo.store.engine import Store, Tx
from kneo.store.outbox import Message

log = logging.getLogger("kneo.notify")

SECONDS = 10.0
"""Longest one delivery may take."""

BATCH = 20
LOOK_SECONDS = 1.0
LEASE = timedelta(seconds=BATCH * SECONDS + 30)

MakeLink = Callable[[Tx, str, str], str]
"""Makes the token of a link that lets one person answer one task, once."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one delivery went: without a ``problem`` it was sent, and a ``status`` says what else ends the message."""

    problem: str | None = None
    status: str | None = None


DONE = Outcome(status="sent")
"""The message was settled in a transaction of its own."""


@dataclass(frozen=True)
class Courier:
    """Delivers what is due, to the channels that this process knows.

    Attributes:
        make_link: How links to answer with are made; without it, and without a public address, there are none.
    """

    store: Store
    settings: Settings
    http: httpx.Client
    make_link: MakeLink | None = None

    def deliver_due(self) -> int:
        """Deliver what is due; return how many messages were tried. One process at a time does this on a database."""
        channels = known_channels(self.settings)
        owner = new_id("out", self.store.clock.now())
        with self.store.read() as tx:
            if not outbox.due(tx, channels, 1):
                return 0
        with self.store.write() as tx:
            if requests.take_lease(tx, "outbox", owner, LEASE) is None:
                return 0
        try:
            with self.store.read() as tx:
                messages = outbox.due(tx, channels, BATCH)
            for message in messages:
                self._deliver(message)
        finally:
            with self.store.write() as tx:
                requests.drop_lease(tx, "outbox", owner)
        return len(messages)

    def _deliver(self, message: Message) -> None:
        """Deliver one message. Whatever goes wrong with it is its own: it is put off, and the others do not wait for it."""
        try:
            outcome = self._attempt(message)
        except KneoError as error:
            outcome = Outcome(problem=error.message)
        except Exception as error:
            log.exception("the message %s to %s cannot be delivered as it is", message.id, message.channel)
            outcome = Outcome(problem=f"it cannot be written: {type(error).__name__}")
        if outcome is not DONE:
            settle(self.store, message, outcome.problem, status=outcome.status)

    def _attempt(self, message: Message) -> Outcome:
        if self._is_moot(message):
            return Outcome(status="dropped")
        channel, variable = self._channel(message)
        match channel:
            case Http():
                return Outcome(problem=self._post(channel, message))
            case Mail():
                return self._mail(channel, message)
            case None:
                return Outcome(problem=f"{variable} is not set here")

    def _channel(self, message: Message) -> tuple[Channel | None, str]:
        """Find the channel of a message, and the variable that says where it leads."""
        ending = plain_name(message.channel).upper().replace("-", "_")
        if message.payload.get("about") == "task":
            return find_task_channel(self.settings, message.channel), f"KNEO_SERV_CHANNEL_{ending}"
        return find_release_channel(self.settings, message.channel), f"KNEO_SERV_NOTIFY_{ending}"

    def _is_moot(self, message: Message) -> bool:
        """Say whether it is about a question that nobody has to answer any more."""
        if message.payload.get("about") != "task":
            return False
        with self.store.read() as tx:
            task = tasks.get(tx, str(message.payload["continuation_id"]))
        return task is None or task.status not in UNRESOLVED

    def _post(self, channel: Http, message: Message) -> str | None:
        url, fields = channel.body(channel.url, _shown(message.payload))
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.id}
        if channel.keys:
            sent_at = int(self.store.clock.now().timestamp())
            headers |= signed_headers(channel.keys, message.id, sent_at, body)
        if channel.token:
            headers["Authorization"] = f"Bearer {channel.token}"
        try:
            # What a receiver says beside its status is not read: it may be large, or never end.
            with self.http.stream("POST", url, content=body, headers=headers) as answer:
                return None if answer.is_success else f"answered {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"no answer: {type(error).__name__}"

    def _mail(self, channel: Mail, message: Message) -> Outcome:
        """Mail to one person; a message to several becomes one for each, so that none is told twice for another's sake."""
        to = message.payload.get("to")
        if isinstance(to, str):
            return Outcome(problem=send_mail(channel, self._written(channel, to, message)))
        people = message.payload.get("people")
        asked = tuple(str(name) for name in people) if isinstance(people, list) else ()
        receivers: list[tuple[str, str | None]] = [(each, None) for each in channel.to]
        receivers += [(each, name) for name in asked if not channel.to for each in channel.addresses((name,))]
        if not receivers:
            return Outcome(problem="nobody who is asked is known here and has an address", status="failed")
        split(self.store, message, receivers)
        return DONE

    def _written(self, channel: Mail, to: str, message: Message) -> EmailMessage:
        notice = dict(_shown(message.payload))
        link = self._link(message)
        if link is not None:
            notice["link"] = link
        return write_mail(channel, to, notice, message.id)

    def _link(self, message: Message) -> str | None:
        """Make a link for this mail alone. It is kept nowhere else: whoever reads the outbox must not be able to answer."""
        person, task = message.payload.get("person"), str(message.payload.get("continuation_id"))
        make = self.make_link
        if not (message.payload.get("links") and isinstance(person, str) and make and self.settings.public_url):
            return None
        try:
            token = self.store.transact(lambda tx: make(tx, task, person))
        except Transient:
            raise  # the whole message is tried again later
        except KneoError:
            return None  # they may not answer any more, or have links enough; they are told all the same
        return f"{self.settings.public_url}/h/{token}"


def _shown(payload: Mapping[str, object]) -> Mapping[str, object]:
    """Leave secrets out of what goes to others; people stay, they are who is told."""
    shown = redact(dict(payload), personal=False)
    assert isinstance(shown, dict)
    return shown


def run_outbox(store: Store, settings: Settings, stopping: threading.Event, make_link: MakeLink | None = None) -> None:
    """Deliver until told to stop."""
    with httpx.Client(timeout=SECONDS, follow_redirects=False) as http:
        courier = Courier(store, settings, http, make_link)
        while not stopping.is_set():
            try:
                tried = courier.deliver_due()
            except Transient:
                tried = 0
            except Exception:
                log.exception("the outbox stumbled and will be tried again")
                tried = 0
            if not tried:
                stopping.wait(LOOK_SECONDS)


def signed_headers(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
    """Return the headers by which a receiver checks who sent a body and when.

    Args:
        keys: The secrets; with several, one signature each, so that a receiver can change to another.
        message_id: The id of the message, the same each time it is sent.
        timestamp: When it is sent, in seconds since 1970.
        body: The bytes that are sent.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
