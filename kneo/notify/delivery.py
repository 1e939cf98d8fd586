"""Delivery of the messages of the outbox to their channels, with growing pauses after failures."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import smtplib
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.message import EmailMessage
from functools import cache

import httpx

from kneo.clock import new_id
from kneo.errors import Invalid, KneoError, Transient
from kneo.names import visible
from kneo.notify.channel_kinds import OpenedChannel
from kneo.notify.channels import (
    Channel,
    Http,
    Mail,
    find_release_channel,
    find_task_channel,
    known_channels,
    plain_name,
    release_words,
    task_subject,
    task_words,
)
from kneo.notify.outbox import DONE, Outcome, settle, split
from kneo.records.task import UNRESOLVED
from kneo.redaction import redact
from kneo.settings import Settings
from kneo.store import outbox, requests, tasks
from kneo.store.engine import Store, Tx
from kneo.store.outbox import Message

log = logging.getLogger("kneo.notify")

SECONDS = 10.0
"""Longest one delivery over HTTP, or one answer of a mail server, may take."""

BATCH = 20
LOOK_SECONDS = 1.0
LEASE = timedelta(seconds=BATCH * SECONDS + 30)

MakeLink = Callable[[Tx, str, str], str]
"""Creates the token of a one-time link that lets one person answer one task."""


@dataclass(frozen=True)
class Courier:
    """Delivers due messages to the channels of this process.

    Attributes:
        make_link: Makes one-time links; without it, and without a public address, messages have none.
        channels: The opened channels of extensions, by their names.
        seconds: The longest time that one delivery over HTTP takes.
    """

    store: Store
    settings: Settings
    make_link: MakeLink | None = None
    channels: Mapping[str, OpenedChannel] = field(default_factory=dict)
    seconds: float = SECONDS

    def deliver_due(self) -> int:
        """Deliver the due messages; return how many were tried. One process at a time does this on a database."""
        channels = known_channels(self.settings)
        owner = new_id("out", self.store.clock.now())
        with self.store.read() as tx:
            if not outbox.due(tx, channels, 1):
                return 0
        if not self._take_lease(owner):
            return 0
        taken, tried = self.store.clock.now(), 0
        try:
            with self.store.read() as tx:
                messages = outbox.due(tx, channels, BATCH)
            for message in messages:
                # A mail server may take its time for each answer of many.
                if self.store.clock.now() - taken > LEASE / 2:
                    if not self._take_lease(owner):
                        break
                    taken = self.store.clock.now()
                self._deliver(message)
                tried += 1
        finally:
            with self.store.write() as tx:
                requests.drop_lease(tx, "outbox", owner)
        return tried

    def _take_lease(self, owner: str) -> bool:
        """Take or renew the lease of the outbox; return whether no other process has it."""
        with self.store.write() as tx:
            return requests.take_lease(tx, "outbox", owner, LEASE) is not None

    def _deliver(self, message: Message) -> None:
        """Deliver one message. A failure postpones this message alone; the others do not wait for it."""
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
        added = self.channels.get(plain_name(message.channel))
        if added is not None:
            return added.deliver(replace(message, payload=_shown(message.payload)), self.seconds)
        channel, variable = self._channel(message)
        match channel:
            case Http():
                return Outcome(problem=self._post(channel, message))
            case Mail():
                return self._mail(channel, message)
            case None:
                return Outcome(problem=f"{variable} is not set here")

    def _channel(self, message: Message) -> tuple[Channel | None, str]:
        """Return the channel of a message, and the variable with its address."""
        ending = plain_name(message.channel).upper().replace("-", "_")
        if message.payload.get("about") == "task":
            return find_task_channel(self.settings, message.channel), f"KNEO_SERV_CHANNEL_{ending}"
        return find_release_channel(self.settings, message.channel), f"KNEO_SERV_NOTIFY_{ending}"

    def _is_moot(self, message: Message) -> bool:
        """Return whether a message is about a task that is closed."""
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
        return post(url, body, headers, self.seconds).problem

    def _mail(self, channel: Mail, message: Message) -> Outcome:
        """Mail one person; a message to several becomes one for each, so that a failure for one repeats no other.

        An address of the message is used where the settings give it too: a link in the mail decides for its person.
        """
        to, person = message.payload.get("to"), message.payload.get("person")
        if isinstance(to, str):
            if to not in (channel.addresses((person,)) if isinstance(person, str) else channel.to):
                return Outcome(problem="the settings give another address", status="failed")
            return Outcome(problem=send_mail(channel, self._written(channel, to, message)))
        people = message.payload.get("people")
        recipients = tuple(str(name) for name in people) if isinstance(people, list) else ()
        receivers: list[tuple[str, str | None]] = [(each, None) for each in channel.to]
        receivers += [(each, name) for name in recipients if not channel.to for each in channel.addresses((name,))]
        if not receivers:
            return Outcome(problem="no person of the task is known and has an address", status="failed")
        split(self.store, message, receivers)
        return DONE

    def _written(self, channel: Mail, to: str, message: Message) -> EmailMessage:
        notice = dict(_shown(message.payload))
        link = self._link(message)
        if link is not None:
            notice["link"] = link
        return write_mail(channel, to, notice, message.id)

    def _link(self, message: Message) -> str | None:
        """Make a link for this mail alone. It is not stored, so that a reader of the outbox cannot decide the task."""
        person, task = message.payload.get("person"), str(message.payload.get("continuation_id"))
        make = self.make_link
        if not (message.payload.get("links") and isinstance(person, str) and make and self.settings.public_url):
            return None
        try:
            token = self.store.transact(lambda tx: make(tx, task, person))
        except Transient:
            raise  # the whole message is tried again later
        except KneoError:
            return None  # the person may not decide any more, or has too many links; the mail goes out without one
        return f"{self.settings.public_url}/h/{token}"


def _shown(payload: Mapping[str, object]) -> Mapping[str, object]:
    """Return a payload without secrets; the names of people stay, they are the receivers."""
    redacted = redact(dict(payload), personal=False)
    assert isinstance(redacted, dict)
    return redacted


def run_outbox(courier: Courier, stopping: threading.Event) -> None:
    """Deliver messages until the process stops."""
    while not stopping.is_set():
        try:
            tried = courier.deliver_due()
        except Transient:
            tried = 0
        except Exception:
            log.exception("the outbox failed and will be tried again")
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


_MAILBOX = re.compile(r'[^\s@<>()\[\]{},;:\\"]{1,64}@[^\s@<>()\[\]{},;:\\"]{1,253}')
"""One plain address. Signs with a meaning in headers would make several addresses of a name, or another person's."""


def write_mail(channel: Mail, to: str, notice: Mapping[str, object], message_id: str) -> EmailMessage:
    """Write a mail; the same message to the same person always has the same id, so that a repetition is known as one.

    Raises:
        Invalid: ``invalid_address``: what stands for the receiver is not exactly one address.
    """
    if not (_MAILBOX.fullmatch(to) and visible(to) == to):
        msg = "the name of the person makes no single mail address"
        raise Invalid(msg, code="invalid_address")
    mail = EmailMessage()
    about_task = notice.get("about") == "task"
    mail["From"] = channel.sender
    mail["To"] = to
    mail["Subject"] = task_subject(notice) if about_task else release_words(notice)[:200]
    mail["Message-ID"] = f"<{message_id}@{channel.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(task_words(notice) if about_task else release_words(notice))
    return mail


def send_mail(channel: Mail, mail: EmailMessage) -> str | None:
    """Hand a mail to its server; return what went wrong, without addresses and passwords."""
    context = ssl.create_default_context()
    try:
        if channel.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(channel.host, channel.port, timeout=SECONDS, context=context)
        else:
            server = smtplib.SMTP(channel.host, channel.port, timeout=SECONDS)
        with server:
            if channel.security == "starttls":
                server.starttls(context=context)
            if channel.user:
                server.login(channel.user, channel.password)
            server.send_message(mail)
    except smtplib.SMTPResponseException as error:
        return f"answered {error.smtp_code}"
    except (smtplib.SMTPException, OSError) as error:
        return f"no answer: {type(error).__name__}"
    return None


@dataclass(frozen=True)
class Reply:
    """The result of a request: the status of the response, and without success the problem, without the address."""

    status: int | None
    problem: str | None


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
    """Send one request, and follow no redirect."""
    try:
        status = asyncio.run(_send(url, body, headers, seconds))
    except TimeoutError:
        return Reply(None, f"no answer in {seconds:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Reply(None, f"no answer: {type(error).__name__}")
    return Reply(status, None if 200 <= status < 300 else f"answered {status}")


async def _send(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> int:
    """Send one request. Cancellation bounds all of it: the timeouts of the client start again with each byte of a head."""
    async with (
        asyncio.timeout(seconds),
        httpx.AsyncClient(verify=_tls(), timeout=seconds, follow_redirects=False) as http,
        # The body of the response is not read: it may be large, or never end.
        http.stream("POST", url, content=body, headers=headers) as response,
    ):
        return response.status_code


@cache
def _tls() -> ssl.SSLContext:
    """Return the trusted authorities, which take tens of milliseconds to read."""
    return httpx.create_ssl_context()
