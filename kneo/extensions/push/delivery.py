"""Web Push: notifications of tasks in the browsers of people who subscribed. A message has the id of the task and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta

import jwt

from kneo.errors import Invalid
from kneo.extensions.push.addresses import push_service
from kneo.extensions.push.keys import ReceiverKeys, VapidKey, encrypt
from kneo.notify.channel_kinds import ChannelContext, IsAsked
from kneo.notify.delivery import Reply, post
from kneo.notify.outbox import ATTEMPTS, DONE, Outcome, split
from kneo.records.sign_in import PushSubscription
from kneo.settings import PushSettings
from kneo.store import audit, push_subscriptions
from kneo.store.engine import Store, Tx
from kneo.store.outbox import Message

MAX_PEOPLE = 2_000
"""People with a subscription who are considered for one task."""

KEPT_FOR = timedelta(days=1)
"""The time for which a push service keeps a message to a browser that is not connected."""

TOKEN_LIFETIME = timedelta(hours=12)
"""The time for which the token that identifies the service is valid; push services accept at most 24 hours."""

GONE = frozenset({404, 410})
"""Statuses by which a push service reports that a subscription has ended."""

TOPIC_CHARS = 32


@dataclass(frozen=True)
class WebPush:
    """Delivers messages to subscribed browsers.

    Attributes:
        store: The database.
        settings: The push services, and the contact of the operator.
        key: The key that identifies the service.
        is_asked: Returns whether a task asks a person.
    """

    store: Store
    settings: PushSettings
    key: VapidKey
    is_asked: IsAsked

    def deliver(self, message: Message, seconds: float) -> Outcome:
        """Deliver one message; one about a task becomes one for each browser of the people who are asked."""
        task_id, to = str(message.payload["continuation_id"]), message.payload.get("to")
        if not isinstance(to, str):
            split(self.store, message, self._receivers(task_id))
            return DONE
        with self.store.read() as tx:
            subscription = push_subscriptions.find(tx, to)
            if subscription is None or not self.is_asked(tx, task_id, subscription.person):
                return Outcome(status="dropped")
        service = push_service(subscription.endpoint, self.settings.hosts)
        if service is None:
            self._end(subscription, "host_not_allowed")
            return Outcome(problem="its push service is not in KNEO_SERV_PUSH_HOSTS", status="dropped")
        try:
            reply = self._send(subscription, service, task_id, seconds)
        except Invalid as error:
            self._end(subscription, error.code)
            return Outcome(problem=error.message, status="dropped")
        return self._outcome(subscription, reply, is_last=message.attempts + 1 >= ATTEMPTS)

    def _receivers(self, task_id: str) -> list[tuple[str, str | None]]:
        """List the subscriptions of the people whom a task asks, each with its person."""
        with self.store.read() as tx:
            names = push_subscriptions.list_people(tx, MAX_PEOPLE)
            asked = [name for name in names if self.is_asked(tx, task_id, name)]
            return [(each, name) for name in asked for each in push_subscriptions.of_person(tx, name).values()]

    def _send(self, subscription: PushSubscription, service: str, task_id: str, seconds: float) -> Reply:
        keys = ReceiverKeys.read(subscription.p256dh, subscription.auth)
        body = encrypt(json.dumps({"task": task_id}).encode(), keys)
        topic = base64.urlsafe_b64encode(hashlib.sha256(task_id.encode()).digest())[:TOPIC_CHARS].decode()
        headers = {
            "Authorization": f"vapid t={self._token(service)}, k={self.key.public}",
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(int(KEPT_FOR / timedelta(seconds=1))),
            # Of several messages about one task the push service keeps the last one.
            "Topic": topic,
            "Urgency": "high",
        }
        return post(subscription.endpoint, body, headers, seconds)

    def _token(self, service: str) -> str:
        claims = {"aud": service, "exp": self.store.clock.now() + TOKEN_LIFETIME, "sub": self.settings.subject}
        return jwt.encode(claims, self.key.pem, algorithm="ES256")

    def _outcome(self, subscription: PushSubscription, reply: Reply, *, is_last: bool) -> Outcome:
        if reply.status in GONE:
            self._end(subscription, "gone")
            return Outcome(problem=reply.problem, status="dropped")
        if reply.problem is None:
            self.store.transact(lambda tx: push_subscriptions.record_success(tx, subscription.id))
        elif is_last:
            self.store.transact(lambda tx: _record_failure(tx, subscription))
        return Outcome(problem=reply.problem)

    def _end(self, subscription: PushSubscription, reason: str) -> None:
        def work(tx: Tx) -> None:
            if push_subscriptions.end(tx, subscription.id):
                _record_end(tx, subscription, reason)

        self.store.transact(work)


def open_web_push(context: ChannelContext) -> WebPush:
    """Return the delivery to browsers.

    Raises:
        Invalid: ``invalid_setting``: the key is not valid.
    """
    push = context.settings.push
    return WebPush(context.store, push, VapidKey.load(push.private_key), context.is_asked)


def _record_failure(tx: Tx, subscription: PushSubscription) -> None:
    if push_subscriptions.record_failure(tx, subscription.id):
        _record_end(tx, subscription, "failed")


def _record_end(tx: Tx, subscription: PushSubscription, reason: str) -> None:
    facts = {"person": subscription.person, "reason": reason}
    audit.record(tx, "console.notifications_ended", actor=None, metadata=facts)
