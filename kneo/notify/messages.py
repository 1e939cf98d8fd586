"""Texts of notifications. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

Fields = Mapping[str, object]

DONE = ("promoted", "rolled_back", "retired")

_VERBS = {"waiting": "waits", "refused": "was refused", "drifted": "is served, but should not be"}

PROMPT_CHARS = 1_000
"""Characters of a prompt that a message shows; the inbox has all of it."""


_HIDDEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that are invisible, or that change the direction of text."""

QUOTE = "> "
"""Prefix of each line that a spec or a run's input wrote, so that no line passes for one of Kneo's."""


def one_line(value: object) -> str:
    """Return a text as one line of visible characters."""
    return " ".join(_HIDDEN.sub(" ", str(value)).split())


def quoted(text: str) -> list[str]:
    """Return the lines of a text from outside, marked as quoted, with links disabled."""
    plain = [_HIDDEN.sub("", line) for line in text.splitlines()]
    return [f"{QUOTE}{line}".rstrip() for line in unlinked("\n".join(plain)).split("\n")]


def unlinked(text: str) -> str:
    """Return a text in which mail and chat programs recognise no address to link."""
    return re.sub(r"(?i)\b(www)\.", r"\1[.]", text.replace("://", "[:]//"))


def release_words(notice: Fields) -> str:
    """Describe a change of a release in one line."""
    what = f"{notice['bundle']} {notice['version']}"
    if notice["phase"] in DONE:
        why = f": {notice['message']}" if notice["message"] else "."
        return one_line(f"{notice['environment']}: {what} was {str(notice['phase']).replace('_', ' ')}{why}")
    verb = _VERBS[str(notice["phase"])]
    return one_line(f"{notice['environment']}: {what} {verb}: {notice['reason']}: {notice['message']}")


def task_subject(notice: Fields) -> str:
    """Describe a task in one line."""
    begin = {"requested": "", "reminded": "Reminder: ", "escalated": "Escalated: "}[str(notice["what"])]
    return unlinked(one_line(f"{begin}{notice['title']}"))[:200]


def task_words(notice: Fields) -> str:
    """Describe a task: the question, who is asked, until when, and where to answer."""
    where = " / ".join(str(part) for part in (notice.get("environment"), notice.get("workflow_name")) if part)
    # The title and the prompt come from a spec and, through templates, from the person who started the run.
    prompt = str(notice["prompt"])[:PROMPT_CHARS]
    first = task_subject(notice) if notice["what"] != "requested" else f"Question: {task_subject(notice)}"
    lines = [first, "", "The question, as the workflow asks it:", *quoted(prompt), ""]
    recipients = notice.get("assignee") or ", ".join(_texts(notice.get("people")))
    fields = {
        "Where": f"{where} ({notice['step_path']})" if where else str(notice["step_path"]),
        "Asked": recipients,
        "Until": notice.get("deadline_at"),
        "Answers": ", ".join(_texts(notice.get("decisions"))),
        "Shown": notice["subject_digest"],
    }
    lines += [f"{name}: {unlinked(one_line(value))}" for name, value in fields.items() if value]
    answer = notice.get("link") or f"kneo task get {notice['continuation_id']}"
    return "\n".join([*lines, f"Answer: {answer}"])


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else []
