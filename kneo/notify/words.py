"""Notices in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

Fields = Mapping[str, object]

DONE = ("promoted", "rolled_back", "retired")

_VERBS = {"waiting": "waits", "refused": "was refused", "drifted": "is served, but should not be"}

PROMPT_CHARS = 1_000
"""How much of a question a message shows; what is to be judged stands in the inbox only."""


def release_words(notice: Fields) -> str:
    """Say in one line what happened to a release."""
    what = f"{notice['bundle']} {notice['version']}"
    if notice["phase"] in DONE:
        why = f": {notice['message']}" if notice["message"] else "."
        return f"{notice['environment']}: {what} was {str(notice['phase']).replace('_', ' ')}{why}"
    verb = _VERBS[str(notice["phase"])]
    return f"{notice['environment']}: {what} {verb}: {notice['reason']}: {notice['message']}"


def task_subject(notice: Fields) -> str:
    """Say in one line what is asked."""
    begin = {"requested": "", "reminded": "Reminder: ", "escalated": "Escalated: "}[str(notice["what"])]
    return " ".join(f"{begin}{notice['title']}".split())[:200]


def task_words(notice: Fields) -> str:
    """Say what is asked, of whom, until when, and where to answer."""
    where = " / ".join(str(part) for part in (notice.get("environment"), notice.get("workflow_name")) if part)
    lines = [task_subject(notice), "", str(notice["prompt"])[:PROMPT_CHARS], ""]
    asked = notice.get("assignee") or ", ".join(_texts(notice.get("people")))
    said = {
        "Where": f"{where} ({notice['step_path']})" if where else str(notice["step_path"]),
        "Asked": asked,
        "Until": notice.get("deadline_at"),
        "Answers": ", ".join(_texts(notice.get("decisions"))),
        "Shown": notice["subject_digest"],
    }
    lines += [f"{name}: {value}" for name, value in said.items() if value]
    answer = notice.get("link") or f"kneo human get {notice['continuation_id']}"
    return "\n".join([*lines, f"Answer: {answer}"])


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else []
