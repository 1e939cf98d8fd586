"""The page of a one-time link: the task, its subject, and the consequence of each decision. Pure; HTML without scripts.

All texts of people are escaped. The page loads nothing, and viewing it changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape

from kneo.names import reveal
from kneo.records.task import DecisionKind, HumanTask, TaskLink

SHOWN_CHARS = 50_000
"""Most characters of a subject that the page shows; the inbox has all of it."""

STYLE = """
:root{color-scheme:light dark}
body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:0 auto;padding:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid;padding:.75rem;max-height:24rem;overflow:auto}
fieldset{margin:1rem 0}
label{display:block;margin:.5rem 0}
textarea,select,input[type=text]{width:100%;box-sizing:border-box;font:inherit}
button{font:inherit;padding:.5rem 1.5rem}
:focus-visible{outline:3px solid;outline-offset:2px}
"""

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex, nofollow",
    "cross-origin-opener-policy": "same-origin",
}
"""Headers that keep the page from loading, leaking or storing content."""

_WORDS: Mapping[DecisionKind, str] = {
    DecisionKind.APPROVED: "Approve",
    DecisionKind.REJECTED: "Reject",
    DecisionKind.EDITED: "Continue with the text below",
    DecisionKind.PROVIDED: "Answer with the text below",
    DecisionKind.SELECTED: "Choose",
}


def question_page(task: HumanTask, link: TaskLink) -> str:
    """Return the page of a task for the person of the link, with the form that answers it."""
    subject = task.subject[:SHOWN_CHARS]
    more = f"<p>The first {SHOWN_CHARS} characters; open the inbox for the rest.</p>" if subject != task.subject else ""
    where = f" in {_shown(task.environment)}" if task.environment else ""
    deadline = f"<p>Without an answer by {_shown(task.deadline_at)}: {_silence(task)}.</p>" if task.deadline_at else ""
    return _page(
        task.title,
        f"<h1>{_shown(task.title)}</h1><p>{_shown(task.prompt)}</p>"
        f"<p>From {_shown(task.workflow_name or 'a run')}{where}, at <code>{_shown(task.key)}</code>."
        f" You answer as <strong>{_shown(link.person)}</strong>, once, until {_shown(link.expires_at)}.</p>"
        f'<h2 id="about">Subject</h2><pre tabindex="0" aria-labelledby="about">{_shown(subject)}</pre>{more}'
        f"<p>Digest: <code>{_shown(task.subject_digest)}</code></p>{deadline}{_form(task)}",
    )


def done_page(task: HumanTask) -> str:
    """Return the page after an answer."""
    decision = task.decision
    if decision is not None:
        text = f"{decision.kind.value} by {decision.actor} at {decision.at}"
    else:
        text = "Your answer is recorded; more approvals are required."
    return _page("Thank you", f'<h1>Thank you</h1><p role="status">{_shown(task.title)}: {_shown(text)}</p>')


def refused_page(message: str, hint: str | None) -> str:
    """Return the page of a link that does not work; it states that nothing was decided."""
    more = f"<p>{_shown(hint)}</p>" if hint else ""
    text = f'<h1>This link did not work</h1><p role="alert">{_shown(message)}</p>{more}<p>Nothing was decided.</p>'
    return _page("This link did not work", text)


def _form(task: HumanTask) -> str:
    kinds = [_choice(task, kind) for kind in task.decisions]
    parts = [f"<fieldset><legend>Your decision</legend>{''.join(kinds)}</fieldset>"]
    if task.options and DecisionKind.SELECTED in task.decisions:
        parts.append(_options(task))
    if {DecisionKind.EDITED, DecisionKind.PROVIDED} & set(task.decisions):
        text = task.subject if DecisionKind.EDITED in task.decisions and len(task.subject) <= SHOWN_CHARS else ""
        # A browser drops the first line break of a textarea.
        parts.append(f'<label>Text<textarea name="content" rows="8">\n{escape(text)}</textarea></label>')
    parts.append('<label>Comment (optional)<input type="text" name="comment" maxlength="2000"></label>')
    hidden = {"request_id": task.request_id, "expect_digest": task.subject_digest}
    inputs = "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in hidden.items())
    return f'<form method="post">{inputs}{"".join(parts)}<button type="submit">Send</button></form>'


def _choice(task: HumanTask, kind: DecisionKind) -> str:
    leads = _leads_to(task.consequences.get(kind.value))
    note = f" <small>{_shown(leads)}</small>" if leads else ""
    return (
        f'<label><input type="radio" name="decision" value="{kind.value}" required> '
        f"{_shown(_WORDS[kind])}{note}</label>"
    )


def _options(task: HumanTask) -> str:
    picked = f'<option value="">(none)</option>{"".join(_option(task, option) for option in task.options or ())}'
    several = " multiple" if task.multiple else ""
    return f'<label>Choice<select name="selected_option"{several}>{picked}</select></label>'


def _option(task: HumanTask, option: str) -> str:
    all_of = task.consequences.get(DecisionKind.SELECTED.value)
    each = all_of.get("options") if isinstance(all_of, Mapping) else None
    leads = _leads_to(each.get(option)) if isinstance(each, Mapping) else ""
    return f'<option value="{escape(option)}">{_shown(option)}{_shown(f" – {leads}") if leads else ""}</option>'


def _leads_to(consequence: object) -> str:
    """Return a consequence of a task as a text."""
    if not isinstance(consequence, Mapping):
        return ""
    parts: list[str] = []
    if consequence.get("effect"):
        parts.append(f"effect: {consequence['effect']}")
    if consequence.get("ends"):
        parts.append(f"the run ends as {consequence['ends']}")
    for name, words in (
        ("next", "then"),
        ("skips", "skipped"),
        ("asks", "then asks"),
        ("waits", "still waits for"),
        ("running", "still running"),
    ):
        parts += _listed(words, consequence.get(name))
    return "; ".join(parts)


def _listed(words: str, names: object) -> Iterable[str]:
    if isinstance(names, list | tuple) and names:
        yield f"{words} {', '.join(_named(name) for name in names[:10])}"


def _named(item: object) -> str:
    """Return a step by its path, and a following question by its people and its prompt."""
    if not isinstance(item, Mapping):
        return str(item)
    people, prompt = item.get("human"), item.get("prompt")
    return f"{people or item.get('key')}: {prompt}" if prompt else str(people or item.get("key"))


def _silence(task: HumanTask) -> str:
    return _shown(f"{task.on_timeout} (the gate's timeout policy)")


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_shown(title)} · Kneo</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"
    )


def _shown(text: str) -> str:
    """Return a text of people as HTML, with a mark in place of each character that cannot be seen."""
    return escape(reveal(text))
