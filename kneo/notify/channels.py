"""Where notices go: a webhook, a Slack-compatible one, and commit statuses of Git hosts. The only HTTP sent from here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta

import httpx

from kneo.clock import new_id
from kneo.errors import Transient
from kneo.notify.outbox import settle
from kneo.settings import Settings
from kneo.store import outbox, requests
from kneo.store.engine import Store
from kneo.store.outbox import Message

SECONDS = 10.0
"""Longest one delivery may take."""

BATCH = 20
LOOK_SECONDS = 1.0
LEASE = timedelta(seconds=BATCH * SECONDS + 30)

Fields = Mapping[str, object]

_STATES: Mapping[str, str] = {
    "promoted": "success",
    "rolled_back": "success",
    "retired": "success",
    "waiting": "pending",
}
_GITLAB: Mapping[str, str] = {"failure": "failed"}
_STATUS_CHARS = 140


def send(settings: Settings, http: httpx.Client, message: Message) -> str | None:
    """Deliver one message; return what went wrong, without the address, which may be a secret."""
    make = _CHANNELS.get(message.channel)
    address = settings.notify.get(message.channel)
    if make is None or not address:
        return f"the channel {message.channel} is not configured any more"
    url, body = make(address.rstrip("/"), message.payload)
    headers = {"Idempotency-Key": message.id}
    if message.channel in {"github", "gitlab", "gitea"} and settings.notify_token:
        headers["Authorization"] = f"Bearer {settings.notify_token}"
    try:
        answer = http.post(url, json=body, headers=headers)
    except httpx.HTTPError as error:
        return f"no answer: {type(error).__name__}"
    return None if answer.is_success else f"answered {answer.status_code}"


def words(notice: Fields) -> str:
    """Say a notice in one line."""
    what = f"{notice['bundle']} {notice['version']}"
    if notice["phase"] in _STATES and notice["phase"] != "waiting":
        return f"{notice['environment']}: {what} was {str(notice['phase']).replace('_', ' ')}."
    verb = "waits" if notice["phase"] == "waiting" else "was refused"
    return f"{notice['environment']}: {what} {verb}: {notice['reason']}: {notice['message']}"


def _webhook(address: str, notice: Fields) -> tuple[str, Fields]:
    return address, {"event": f"release.{notice['phase']}", **notice, "text": words(notice)}


def _slack(address: str, notice: Fields) -> tuple[str, Fields]:
    # Slack reads <, > and & as markup: a message must not be able to mention everybody or disguise a link.
    text = words(notice).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return address, {"text": text}


def _status(address: str, notice: Fields) -> tuple[str, Fields]:
    commit = str(notice["revision"]).rpartition(":")[2]
    state = _STATES.get(str(notice["phase"]), "failure")
    body = {"state": state, "context": f"kneo/{notice['environment']}", "description": words(notice)[:_STATUS_CHARS]}
    return f"{address}/statuses/{commit}", body


def _gitlab(address: str, notice: Fields) -> tuple[str, Fields]:
    url, body = _status(address, notice)
    return url, {**body, "state": _GITLAB.get(str(body["state"]), body["state"]), "name": body["context"]}


_CHANNELS: Mapping[str, Callable[[str, Fields], tuple[str, Fields]]] = {
    "webhook": _webhook,
    "slack": _slack,
    "github": _status,
    "gitea": _status,
    "gitlab": _gitlab,
}


def deliver_due(store: Store, settings: Settings, http: httpx.Client) -> int:
    """Deliver what is due; return how many were tried. One process at a time does this on a database."""
    owner = new_id("out", store.clock.now())
    with store.read() as tx:
        if not outbox.due(tx, 1):
            return 0
    with store.write() as tx:
        if requests.take_lease(tx, "outbox", owner, LEASE) is None:
            return 0
    try:
        with store.read() as tx:
            messages = outbox.due(tx, BATCH)
        for message in messages:
            settle(store, message, send(settings, http, message))
    finally:
        with store.write() as tx:
            requests.drop_lease(tx, "outbox", owner)
    return len(messages)


def run_outbox(store: Store, settings: Settings, stopping: threading.Event) -> None:
    """Deliver until told to stop."""
    with httpx.Client(timeout=SECONDS, follow_redirects=False) as http:
        while not stopping.is_set():
            try:
                tried = deliver_due(store, settings, http)
            except Transient:
                tried = 0
            if not tried:
                stopping.wait(LOOK_SECONDS)
