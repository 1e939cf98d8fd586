"""Operations on one-time approval links."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from kneo.api.operation import Body, Context, OneTimeSecret, operation
from kneo.api.page import view_of
from kneo.api.subjects import TASK
from kneo.clock import parse_duration, parse_time
from kneo.records.task import TaskLink
from kneo.store import tasks
from kneo.tasks import links
from kneo.tasks.inbox import find

LINK_FOR_OTHERS = "human:link"
"""The scope to make and revoke links of other people: who delivers a link could use it."""


@dataclass(frozen=True, kw_only=True)
class CreatedLinkView:
    """A link with its token, which is shown only once."""

    id: str
    continuation_id: str
    person: str
    subject_digest: str
    expires_at: str
    path: Annotated[OneTimeSecret, Field(examples=["/h/TOKEN"])]
    url: Annotated[
        OneTimeSecret | None, Field(description="`path` at `KNEO_SERV_PUBLIC_URL`; null where that is not set.")
    ]


@dataclass(frozen=True, kw_only=True)
class LinkView:
    """A link without its token."""

    id: str
    continuation_id: str
    person: str
    subject_digest: str
    state: Literal["open", "used", "expired"]
    created_by: str
    created_at: str
    expires_at: str
    used_at: str | None

    @classmethod
    def of(cls, link: TaskLink, now: datetime) -> LinkView:
        """Build the view of a link at a time."""
        return view_of(
            cls,
            link,
            continuation_id=link.task_id,
            state="used" if link.used_at is not None else "expired" if parse_time(link.expires_at) <= now else "open",
        )


@dataclass(frozen=True, kw_only=True)
class LinkListView:
    """The links of a task."""

    continuation_id: str
    links: list[LinkView]
    count: int


class LinkRequest(Body):
    """The person and the lifetime of a link."""

    person: str | None = Field(default=None, min_length=1, max_length=200, description="Left out: the caller.")
    expires_in: str = Field(default="24h", max_length=20, examples=["30m", "24h", "7d"])


@operation("POST", "/human-tasks/{continuation_id}/links", scope="human:write", shows_secret=True, about=TASK)
def create_link(context: Context, continuation_id: str, body: LinkRequest) -> CreatedLinkView:
    """Create a link with which one person decides this task once. Its token is shown only in this response."""
    person = body.person if body.person is not None else context.actor
    if person != context.actor:
        context.principal.require(LINK_FOR_OTHERS)
    lifetime = parse_duration(body.expires_in)
    with context.store.write() as tx:
        link, token = links.make_link(tx, continuation_id, person, actor=context.actor, lasts=lifetime)
    # The address comes from the settings: a sender could choose the Host header.
    address = context.settings.public_url.rstrip("/")
    return CreatedLinkView(
        id=link.id,
        continuation_id=link.task_id,
        person=link.person,
        subject_digest=link.subject_digest,
        expires_at=link.expires_at,
        path=f"/h/{token}",
        url=f"{address}/h/{token}" if address else None,
    )


@operation("GET", "/human-tasks/{continuation_id}/links", scope="human:read", about=TASK)
def list_links(context: Context, continuation_id: str) -> LinkListView:
    """List the links of a task and the state of each."""
    with context.store.read() as tx:
        find(tx, continuation_id)
        views = [LinkView.of(link, tx.now) for link in tasks.list_links(tx, continuation_id)]
    return LinkListView(continuation_id=continuation_id, links=views, count=len(views))


@operation("POST", "/human-tasks/{continuation_id}/links/{link_id}/revoke", scope="human:write", about=TASK)
def revoke_link(context: Context, continuation_id: str, link_id: str) -> LinkView:
    """Revoke a link. The link of another person needs the scope to make it."""
    with context.store.read() as tx:
        link = links.find_link(tx, continuation_id, link_id)
    if context.actor not in {link.person, link.created_by}:
        context.principal.require(LINK_FOR_OTHERS)
    with context.store.write() as tx:
        return LinkView.of(links.revoke_link(tx, continuation_id, link_id, actor=context.actor), tx.now)
