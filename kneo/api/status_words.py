"""The two vocabularies of run statuses: the documented one, and the one of the published clients."""

from __future__ import annotations

import dataclasses
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, WithJsonSchema

from kneo.errors import InvalidValue
from kneo.records.run import RunStatus

V = TypeVar("V")

PUBLISHED = {RunStatus.PAUSED: "blocked", RunStatus.SUCCEEDED: "completed"}
PUBLISHED_CLIENT = "kneo-client/"


def speaks_published(setting: str, user_agent: str) -> bool:
    """Return whether a request gets the published statuses.

    Args:
        setting: ``auto``, ``documented`` or ``published``.
        user_agent: The request's ``User-Agent``; with ``auto``, published clients get the published words.
    """
    return setting == "published" or (setting == "auto" and user_agent.startswith(PUBLISHED_CLIENT))


def say(status: RunStatus, *, published: bool) -> str:
    return PUBLISHED.get(status, status.value) if published else status.value


def parse_status(word: str) -> RunStatus | None:
    """Parse a status of either vocabulary; ``None`` where there is no such status."""
    for status, other in PUBLISHED.items():
        if word == other:
            return status
    return RunStatus(word) if word in RunStatus.__members__.values() else None


def check_status(word: str) -> RunStatus:
    """Parse a status of either vocabulary.

    Raises:
        Invalid: there is no such status.
    """
    status = parse_status(word)
    if status is None:
        known = ", ".join([*RunStatus, *PUBLISHED.values()])
        msg = f"{word[:40]!r} is not a run status; known: {known}."
        raise InvalidValue(msg)
    return status


def in_published_words(view: V) -> V:
    """Return a view with run statuses of the published vocabulary; data of runs stays as it is."""
    translated: object = view
    if isinstance(view, RunStatus):
        translated = PUBLISHED.get(view, view.value)
    elif isinstance(view, list):
        translated = [in_published_words(item) for item in view]
    elif dataclasses.is_dataclass(view) and not isinstance(view, type):
        values = {item.name: in_published_words(getattr(view, item.name)) for item in dataclasses.fields(view)}
        translated = dataclasses.replace(view, **values)
    return translated  # type: ignore[return-value]  # a status is written as its word


StatusWord = Annotated[
    RunStatus,
    BeforeValidator(lambda word: check_status(word) if isinstance(word, str) else word),
    WithJsonSchema({"type": "string", "examples": ["succeeded"]}),
]
"""The status of a run in a view: read in either vocabulary."""
