"""Kinds of notification channels that extensions add, next to the webhooks, Slack and mail of Kneo itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kneo.errors import Invalid
from kneo.extension_points import Point
from kneo.notify.outbox import Outcome
from kneo.settings import WEB_PUSH, Settings
from kneo.store.engine import Store, Tx
from kneo.store.outbox import Message

IsAsked = Callable[[Tx, str, str], bool]
"""Returns whether an open task asks a person who may answer it now."""


@dataclass(frozen=True, kw_only=True)
class ChannelContext:
    """What a channel is opened with.

    Attributes:
        name: The name of the channel: that of ``KNEO_SERV_CHANNEL_NAME``.
        address: The text after ``KIND:`` in that variable; it may contain a secret.
        settings: The settings of the process.
        store: The database.
        is_asked: Returns whether a task asks a person.
    """

    name: str
    address: str = field(repr=False)
    settings: Settings = field(repr=False)
    store: Store
    is_asked: IsAsked


class OpenedChannel(Protocol):
    """A channel of this process. One thread uses it."""

    def deliver(self, message: Message, seconds: float) -> Outcome:
        """Deliver one message within a time; a message that was delivered before has the same id.

        Args:
            message: The message; its payload has no secrets.
            seconds: The longest time that the delivery takes.

        Returns:
            The outcome. With a ``problem`` the message is delivered again later, with growing pauses.
        """
        ...


@dataclass(frozen=True)
class ChannelKind:
    """A kind of channel that an extension adds; an address of ``KNEO_SERV_CHANNEL_NAME`` begins with its name and a colon.

    Attributes:
        open: Opens a channel; raises ``Invalid`` where its address or the settings are not valid, without repeating the address.
    """

    open: Callable[[ChannelContext], OpenedChannel]


CHANNEL_KINDS = Point("notification_channels", ChannelKind, own={"http", "https", "slack", "smtp", "smtps"})


def open_channels(settings: Settings, store: Store, is_asked: IsAsked) -> Mapping[str, OpenedChannel]:
    """Open the channels of the settings whose kinds extensions add; return them by their names.

    Raises:
        Invalid: an address is not valid, or the settings have a key of Web Push and its extension is not installed.
        ExtensionFailed: an extension cannot be loaded.
    """
    opened = {}
    for name, kind, address in _list_addresses(settings):
        context = ChannelContext(name=name, address=address, settings=settings, store=store, is_asked=is_asked)
        opened[name] = CHANNEL_KINDS.load(kind).open(context)
    return opened


def _list_addresses(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield the names, kinds and addresses of the channels whose kinds are installed."""
    for name, text in settings.channels.items():
        kind, _, address = text.partition(":")
        if kind not in CHANNEL_KINDS.own and CHANNEL_KINDS.has(kind):
            yield name, kind, address
    if settings.push.private_key:
        if not CHANNEL_KINDS.has(WEB_PUSH):
            msg = "KNEO_SERV_VAPID_PRIVATE_KEY is set, and no installed package delivers to browsers."
            raise Invalid(msg, code="invalid_setting", hint="Install Kneo again, with its extensions.")
        yield WEB_PUSH, WEB_PUSH, ""
