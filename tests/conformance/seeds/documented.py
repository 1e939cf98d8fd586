"""Comparison of an answer with the output that a document shows.

The answer has every key of the output, with its value. Different are only ids, which have the same prefix, and times; three dots
in a documented text stand for any text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

_ID = re.compile(r"(run|cont|req|evt)_[^\s\"]+")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|\+00:00)")
_DOTS = re.compile(r"…|\.\.\.")


def differences(documented: str, answer: str) -> dict[str, str]:
    """Return what differs from a documented JSON output, by its path: what the document has, and what the answer has."""
    return dict(_compare(json.loads(documented), json.loads(answer), ""))


def _compare(documented: object, ours: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(documented, Mapping) and isinstance(ours, Mapping):
        for key, value in documented.items():
            inner = f"{path}.{key}".removeprefix(".")
            if key in ours:
                yield from _compare(value, ours[key], inner)
            else:
                yield inner, f"{_shown(value)} is missing"
    elif isinstance(documented, list) and isinstance(ours, list) and len(documented) <= len(ours):
        for number, value in enumerate(documented):
            yield from _compare(value, ours[number], f"{path}[{number}]")
    elif not _fits(documented, ours, path):
        yield path, f"{_shown(documented)} is {_shown(ours)}"


def _fits(documented: object, ours: object, path: str) -> bool:
    if path.endswith("_epoch"):
        return isinstance(documented, int) and isinstance(ours, int | float)
    if not isinstance(documented, str) or not isinstance(ours, str):
        return documented == ours and type(documented) is type(ours)
    if _TIME.fullmatch(documented):
        return _TIME.fullmatch(ours) is not None
    if found := _ID.fullmatch(documented):
        return ours.startswith(f"{found[1]}_")
    return re.fullmatch(".*".join(map(re.escape, _DOTS.split(documented))), ours, re.DOTALL) is not None


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
