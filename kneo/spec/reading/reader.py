"""Reader of YAML and JSON files: bounded, strict, and with positions.

The result for any bytes is a :class:`Document`, or an :class:`Unreadable` with file, line and column. The checks run in
this order: size, encoding, shape (depth and count), meaning.
"""

from __future__ import annotations

from functools import cache, partial

from kneo.spec.documents import DEFAULT_LIMITS, Document, Path, ReadLimits, SourceLocation, Unreadable
from kneo.spec.reading.json_reader import build_json, locations
from kneo.spec.reading.yaml_reader import build_yaml

__all__ = [
    "DEFAULT_LIMITS",
    "Document",
    "Path",
    "ReadLimits",
    "SourceLocation",
    "Unreadable",
    "read",
    "read_json",
    "read_yaml",
]


def read(data: bytes, *, file: str, limits: ReadLimits = DEFAULT_LIMITS) -> Document:
    """Read a file by its name: ``.json`` as JSON, everything else as YAML.

    Raises:
        Unreadable: the bytes are not a document of this format.
    """
    reader = read_json if file.lower().endswith(".json") else read_yaml
    return reader(data, file=file, limits=limits)


def read_json(data: bytes, *, file: str, limits: ReadLimits = DEFAULT_LIMITS) -> Document:
    """Read JSON: no duplicate keys, no NaN, no integer that other readers would round.

    Raises:
        Unreadable: the bytes are not such a document, or exceed a limit.
    """
    text = _decode(data, file, limits)
    return Document(build_json(text, file=file, limits=limits), file, text, cache(partial(locations, text)))


def read_yaml(data: bytes, *, file: str, limits: ReadLimits = DEFAULT_LIMITS) -> Document:
    """Read one YAML document of plain maps, lists and scalars; an empty file is the value None.

    Raises:
        Unreadable: the bytes are not such a document, or exceed a limit.
    """
    return build_yaml(_decode(data, file, limits), file=file, limits=limits)


def _decode(data: bytes, file: str, limits: ReadLimits) -> str:
    if len(data) > limits.max_bytes:
        message = f"The file has {len(data)} bytes; at most {limits.max_bytes} are read."
        raise Unreadable(message, file=file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"The byte 0x{data[error.start]:02X} is not UTF-8."
        raise Unreadable(message, file=file, line=line, column=column) from error
