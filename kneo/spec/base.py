"""What all declared models share, and the small value types they are made of."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

from kneo.clock import parse_duration
from kneo.errors import Invalid

MAX_DURATION = timedelta(days=3660)
"""Ten years; longer is a slip of the finger, and overflows when added to a date."""

MAX_TEXT = 262_144  # characters; the longest text a person may write into one field
MAX_ITEMS = 20_000  # entries of one list or map


class Declared(BaseModel):
    """A part of a file that people write: unknown keys are errors, values are not coerced, records do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, serialize_by_alias=True)


T = TypeVar("T")

Many: TypeAlias = Annotated[tuple[T, ...], Strict(strict=False), Field(max_length=MAX_ITEMS)]
"""A list in the file, a tuple in the program."""

Named: TypeAlias = Annotated[dict[str, T], Field(max_length=MAX_ITEMS)]
"""A map from names that people choose."""

Text: TypeAlias = Annotated[str, Field(max_length=MAX_TEXT)]
FreeMap: TypeAlias = dict[str, object]


def _duration(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return value
    try:
        length = parse_duration(value if isinstance(value, str) else f"{value}s")
    except Invalid as refusal:
        raise PydanticCustomError("duration", "{reason}", {"reason": refusal.message}) from refusal
    if length > MAX_DURATION:
        raise PydanticCustomError("duration", "A duration is at most ten years.")
    return length


def _text_duration(value: object) -> object:
    return value if isinstance(value, int) else _duration(value)


_DURATION_SCHEMA: dict[str, object] = {"type": "string", "pattern": "^[0-9]{1,9}[smhd]$", "examples": ["90s", "24h"]}

Duration: TypeAlias = Annotated[timedelta, BeforeValidator(_text_duration), WithJsonSchema(_DURATION_SCHEMA)]
"""A length of time written ``90s``, ``15m``, ``24h`` or ``7d``."""

Seconds: TypeAlias = Annotated[
    timedelta,
    BeforeValidator(_duration),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, _DURATION_SCHEMA]}),
]
"""A length of time written as a number of seconds or like a :data:`Duration`."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"

Name: TypeAlias = Annotated[str, Field(pattern=_NAME)]
"""A name that is also a file name."""

DigestText: TypeAlias = Annotated[str, Field(pattern=_DIGEST)]

PATTERN_WORDS = {
    _NAME: "a letter or digit and then at most 99 letters, digits, dots, dashes and underscores",
    _DIGEST: "sha256: and 64 lower-case hex digits",
}
"""What a pattern asks for, in words."""

ApiVersion: TypeAlias = Literal["kneo/v1"]
