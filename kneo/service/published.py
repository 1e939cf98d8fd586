"""The words of the published service for statuses of runs, translated to and from Kneo's own at the edge of the service."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from kneo.records.run import RunStatus

V = TypeVar("V")

WORDS: Mapping[RunStatus, str] = {RunStatus.PAUSED: "blocked", RunStatus.SUCCEEDED: "completed"}
"""The published words that differ from Kneo's own."""

_OWN: Mapping[str, RunStatus] = {word: status for status, word in WORDS.items()}

CLIENT = "kneo-client/"
"""The beginning of the ``User-Agent`` of published clients."""

STATUS_PARAMETERS: Mapping[str, str] = {"list_runs": "status"}
"""The parameters of operations that are statuses of runs, separated by commas."""


def expects_published_words(setting: str, user_agent: str = "") -> bool:
    """Return whether a caller gets the published words.

    Args:
        setting: ``auto``, ``documented`` or ``published``.
        user_agent: The request's ``User-Agent``; with ``auto``, published clients get the published words.
    """
    return setting == "published" or (setting == "auto" and user_agent.startswith(CLIENT))


def published_word(status: RunStatus) -> str:
    """Return the published word for a status."""
    return WORDS.get(status, status.value)


def in_published_words(view: V) -> V:
    """Return a view with run statuses in the published words; data of runs stays as it is."""
    translated: object = view
    if isinstance(view, RunStatus):
        translated = published_word(view)
    elif isinstance(view, list):
        translated = [in_published_words(item) for item in view]
    elif dataclasses.is_dataclass(view) and not isinstance(view, type):
        values = {item.name: in_published_words(getattr(view, item.name)) for item in dataclasses.fields(view)}
        translated = dataclasses.replace(view, **values)
    return translated  # type: ignore[return-value]  # a status is written as its word


def own_word(word: str) -> str:
    """Return Kneo's word for a status of either vocabulary; another word stays as it is."""
    return _OWN.get(word, word)


def own_words(statuses: str) -> str:
    """Return statuses of either vocabulary, separated by commas, in Kneo's own words."""
    return ",".join(own_word(word.strip()) for word in statuses.split(","))


def own_parameters(operation: str, parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of an operation with statuses of runs in Kneo's own words."""
    name = STATUS_PARAMETERS.get(operation, "")
    statuses = parameters.get(name)
    return {**parameters, name: own_words(statuses)} if isinstance(statuses, str) else dict(parameters)


def both_words(*statuses: RunStatus) -> frozenset[str]:
    """Return the words for statuses in both vocabularies."""
    return frozenset({*statuses, *map(published_word, statuses)})
