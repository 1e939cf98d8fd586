"""The delivery of notifications by a process, with links to the tasks that they are about."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator

from kneo.background import background
from kneo.errors import Forbidden
from kneo.notify.channel_kinds import open_channels
from kneo.notify.channels import known_channels
from kneo.settings import Settings
from kneo.store.engine import Store, Tx
from kneo.tasks import links
from kneo.tasks.inbox import find
from kneo.tasks.lifecycle import is_asked, people_asked


@contextlib.contextmanager
def deliver_notifications(settings: Settings, store: Store) -> Iterator[None]:
    """Deliver notifications in the background of a block, where a channel is configured.

    Raises:
        Invalid: a channel of an extension cannot be opened.
    """
    if not known_channels(settings):
        yield
        return
    stopping = threading.Event()
    # httpx takes a tenth of a second to import, and many processes have no channel.
    delivery = importlib.import_module("kneo.notify.delivery")
    channels = open_channels(settings, store, is_asked)
    courier = delivery.Courier(store, settings, _token, channels)
    with background("outbox", lambda: delivery.run_outbox(courier, stopping), stopping.set):
        yield


def _token(tx: Tx, task_id: str, person: str) -> str:
    """Return the token of a link for the recipient of a message.

    Raises:
        Forbidden: ``not_a_candidate``: the message names a person whom the task does not ask.
        KneoError: as ``make_link`` says.
    """
    if person not in people_asked(tx, find(tx, task_id)):
        msg = f"{task_id} does not ask {person}."
        raise Forbidden(msg, code="not_a_candidate")
    _, token = links.make_link(tx, task_id, person, actor="notifications")
    return token
