"""The page of a one-time link: the task, its subject, and the form that answers it. HTML without scripts, which loads its icon alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import lru_cache

from markupsafe import Markup

from kneo.api.task_views import HumanTaskView
from kneo.errors import KneoError
from kneo.records.task import HumanTask, TaskLink
from kneo.service.console import task_words
from kneo.service.console.answer_form import form_values
from kneo.service.console.page import Form
from kneo.service.console.render import STATIC, render

SHOWN_CHARS = 50_000
"""Most characters of a subject that the page shows; the inbox has all of it."""

STYLE = STATIC["console.css"].decode()

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex, nofollow",
    "cross-origin-opener-policy": "same-origin",
}
"""Headers that keep the page from loading, leaking or storing content."""


def question_page(
    task: HumanTask, link: TaskLink, edit_limit: int, typed: Form | None = None, problem: KneoError | None = None
) -> str:
    """Return the page of a task for the person of the link, with the form that answers it.

    Args:
        task: The task.
        link: The link.
        edit_limit: Most characters of an edit.
        typed: The fields of a form that was refused, which are shown again.
        problem: The error that refused it.
    """
    view = HumanTaskView.of(task)
    values = {
        **form_values(view, typed or Form(), edit_limit=edit_limit, shown_chars=SHOWN_CHARS),
        "me": link.person,
        "keys": False,
        "now": None,
        "problem": problem,
        "expires_at": link.expires_at,
        "silence": task_words.silence(view.timeout),
        "whole_text": "",
        "may_read_content": False,
    }
    return _page("link_task.html", task.headline, values)


def done_page(task: HumanTask) -> str:
    """Return the page after an answer."""
    decision = task.decision
    if decision is not None:
        text = f"{decision.kind.value} by {decision.actor} at {decision.at}"
    else:
        text = "Your answer is recorded; more approvals are required."
    return _page("link_closed.html", "Thank you", {"role": "status", "text": f"{task.headline}: {text}", "more": ()})


@lru_cache(maxsize=32)
def refused_page(message: str, hint: str | None) -> str:
    """Return the page of a link that does not work; it states that nothing was decided.

    Pages are kept: strangers ask for unknown links as often as they like, and there are few refusals.
    """
    values = {"role": "alert", "text": message, "more": (hint, "Nothing was decided.")}
    return _page("link_closed.html", "This link did not work", values)


def _page(template: str, title: str, values: Mapping[str, object]) -> str:
    return render(template, {"title": title, "style": Markup(STYLE), **values})  # noqa: S704 - a file of the package
