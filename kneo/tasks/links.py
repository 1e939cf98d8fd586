"""One-time links with which one person decides one task. The holder of the token counts as that person."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta

from kneo.clock import isoformat, new_id
from kneo.digest import hash_text
from kneo.errors import Conflict, InvalidValue, KneoError, NotFound
from kneo.records.task import HumanTask, TaskLink
from kneo.store import idempotency, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.tasks import people
from kneo.tasks.decisions import DecisionRequest, check_unresolved
from kneo.tasks.inbox import decide, find
from kneo.tasks.lifecycle import record_event
from kneo.tasks.receipts import check_without_key

LASTS = timedelta(hours=24)
"""Default lifetime of a link."""

LASTS_AT_MOST = timedelta(days=30)

LINKS_OF_A_TASK = 200
"""Links per task, so that a faulty sender does not fill the database."""

TOKEN_BYTES = 32


def make_link(tx: Tx, task_id: str, person: str, *, actor: str, lasts: timedelta = LASTS) -> tuple[TaskLink, str]:
    """Create a link for a person who may answer a task; return it and its token, which is not stored.

    Raises:
        NotFound, Conflict: there is no such task, or it is decided; ``too_many_links``.
        Invalid: ``invalid_name`` or ``unknown_person``: the person is not declared.
        Forbidden: the person may not answer it, or the actor is excluded from it; ``signature_required``: a link
            carries no signature.
        Invalid: its lifetime is zero or too long.
    """
    if not timedelta(0) < lasts <= LASTS_AT_MOST:
        msg = f"A link lasts for up to {LASTS_AT_MOST.days} days."
        raise InvalidValue(msg, field="expires_in")
    task = find(tx, task_id)
    check_unresolved(task)
    people.check_not_excluded(tx, task, actor, "make a link to")
    person = people.check_known(tx, task.environment, person)
    people.check_may_answer(tx, task, person)
    check_without_key(task, "a link")
    idempotency.bind(tx, task_id)
    if tasks.count_links(tx, task.id) >= LINKS_OF_A_TASK:
        msg = f"There are {LINKS_OF_A_TASK} links to {task.id} already."
        raise Conflict(msg, code="too_many_links")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    link = TaskLink(
        id=new_id("lnk", tx.now),
        token_hash=hash_text(token),
        task_id=task.id,
        run_id=task.run_id,
        person=person,
        subject_digest=task.subject_digest,
        created_by=actor,
        created_at=tx.at,
        expires_at=isoformat(tx.now + lasts),
    )
    tasks.insert_link(tx, link)
    record_event(tx, task, "link_made", actor, {"link": link.id, "person": person, "expires_at": link.expires_at})
    return link, token


def find_link(tx: Tx, task_id: str, link_id: str) -> TaskLink:
    """Find a link by its name; the name alone does not authorise.

    Raises:
        NotFound: there is no such task; ``link_not_found``.
    """
    find(tx, task_id)
    found = next((link for link in tasks.list_links(tx, task_id) if link.id == link_id), None)
    if found is None:
        msg = f"There is no link {link_id[:80]} to {task_id}."
        raise NotFound(msg, code="link_not_found", hint=f"kneo task link list {task_id}")
    return found


def revoke_link(tx: Tx, task_id: str, link_id: str, *, actor: str) -> TaskLink:
    """Revoke a link. Revoking it again changes nothing.

    Raises:
        NotFound: as ``find_link`` says.
        Conflict: ``link_used``: the link was used.
    """
    # Decisions hold this lock: a link is used before this point or never.
    runs.lock(tx, find(tx, task_id).run_id)
    if idempotency.made() is not None:
        return find_link(tx, task_id, link_id)
    idempotency.bind(tx, task_id)
    link = find_link(tx, task_id, link_id)
    if link.used_at is not None:
        raise _used(link)
    if tasks.expire_links(tx, task_id=task_id, link_id=link.id):
        record_event(tx, find(tx, task_id), "link_revoked", actor, {"link": link.id, "person": link.person})
    return find_link(tx, task_id, link_id)


def find_by_token(tx: Tx, token: str) -> TaskLink:
    """Find a link by its token, valid or not.

    Raises:
        NotFound: ``link_not_found``.
    """
    link = tasks.find_link(tx, hash_text(token))
    if link is None:
        msg = "There is no such link."
        raise NotFound(msg, code="link_not_found", hint="Copy the whole address, or ask for a new link.")
    return link


def look(tx: Tx, token: str) -> tuple[TaskLink, HumanTask]:
    """Return the task of a link. Changes nothing.

    Raises:
        NotFound: ``link_not_found``.
        Conflict: ``link_used``, ``link_expired``, ``subject_changed``, or the task is decided.
        Invalid, Forbidden: the person is not known or may not answer any more, or the creator of the link is excluded now.
    """
    link = find_by_token(tx, token)
    task = find(tx, link.task_id)
    _check(tx, link, task)
    return link, task


def answer(store: Store, token: str, said: DecisionRequest) -> HumanTask:
    """Answer a task with a link, as the person of the link.

    The link is used up with the answer; a refused answer does not use it.

    Raises:
        NotFound, Conflict: as ``look`` says.
        Forbidden, DecisionNotAllowed, Conflict: the answer does not fit; see ``decide``.
    """
    with store.read() as tx:
        link, _ = look(tx, token)

    def use_up(tx: Tx, task: HumanTask) -> None:
        now = tasks.find_link(tx, link.token_hash)
        assert now is not None, "links are deleted with their runs, and this one's is locked"
        _check(tx, now, task)
        if not tasks.use_link(tx, link):
            raise _used(link)
        record_event(tx, task, "link_used", link.person, {"link": link.id, "made_by": link.created_by})

    bound = replace(said, expect_digest=link.subject_digest)
    if said.expect_digest not in {None, link.subject_digest}:
        bound = said
    return decide(store, link.task_id, bound, actor=link.person, via=f"link made by {link.created_by}", first=use_up)


def _check(tx: Tx, link: TaskLink, task: HumanTask) -> None:
    if link.used_at is not None:
        raise _used(link)
    check_unresolved(task)
    if link.expires_at <= tx.at:
        msg = f"This link expired at {link.expires_at}."
        raise Conflict(msg, code="link_expired", hint="Ask for a new one, or answer in the inbox.")
    if link.subject_digest != task.subject_digest:
        msg = "What is asked now is not what this link was made for."
        raise Conflict(msg, code="subject_changed", hint="Ask for a new link.")
    # Known people and their rights can have changed since the link was created.
    people.check_known(tx, task.environment, link.person)
    people.check_may_answer(tx, task, link.person)
    people.check_not_excluded(tx, task, link.created_by, "let others answer")


def _used(link: TaskLink) -> KneoError:
    msg = f"This link was used{f' at {link.used_at}' if link.used_at else ''}; it works once."
    return Conflict(msg, code="link_used", hint="Answer in the inbox, or ask for a new link.")
