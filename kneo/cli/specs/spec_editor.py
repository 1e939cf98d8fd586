"""Edits of tools in the text of a spec; comments and everything else stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kneo.errors import Conflict
from kneo.spec.documents import DEFAULT_LIMITS, Document, SourceLocation, Unreadable
from kneo.spec.reading.reader import read
from kneo.spec.reading.yaml_writer import write_yaml

Declaration = Mapping[str, object]


def with_tools(document: Document, tools: Mapping[str, Declaration]) -> str:
    """Return the text of a spec with further tools, and with other values for fields of those that it has.

    Raises:
        Conflict: the text cannot be edited without changing more, as tools in braces.
    """
    assert isinstance(document.value, dict)
    present = document.value.get("tools") or {}
    wanted = {**present, **{name: {**present.get(name, {}), **fields} for name, fields in tools.items()}}
    value = {**document.value, "tools": wanted}
    text = _as_json(value) if document.file.endswith(".json") else _edited(document, present, tools)
    if _value_of(text, document.file) != value:
        msg = f"{document.file} cannot be edited: its tools are not one block of lines."
        raise Conflict(msg, hint="Write each tool below tools on lines of its own, or pass --print and copy the tools.")
    return text


def _value_of(text: str, file: str) -> object:
    try:
        return read(text.encode(), file=file, limits=DEFAULT_LIMITS).value
    except Unreadable:
        return None


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _edited(document: Document, present: Mapping[str, Declaration], tools: Mapping[str, Declaration]) -> str:
    lines = document.text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    root = document.locations()
    if not present:
        if "tools" in root.keys:
            del lines[root.keys["tools"][0] - 1]
        return "".join([*lines, *_block({"tools": dict(tools)}, 0)])
    block = root.children["tools"]
    end = _end(lines, root, "tools", len(lines))
    column = min(column for _, column in block.keys.values())
    added = {name: fields for name, fields in tools.items() if name not in present}
    lines[end:end] = _block(added, column - 1)
    for name in sorted(tools.keys() & present.keys(), key=lambda name: block.keys[name], reverse=True):
        _update(lines, block.children[name], tools[name], _end(lines, block, name, end))
    return "".join(lines)


def _update(lines: list[str], tool: SourceLocation, fields: Declaration, end: int) -> None:
    """Replace fields of a tool, the last one first, so that the lines of the others stay where they are."""
    indent = min(column for _, column in tool.keys.values()) - 1
    lines[end:end] = _block({key: value for key, value in fields.items() if key not in tool.keys}, indent)
    for key in sorted(fields.keys() & tool.keys.keys(), key=lambda key: tool.keys[key], reverse=True):
        lines[tool.keys[key][0] - 1 : _end(lines, tool, key, end)] = _block({key: fields[key]}, indent)


def _end(lines: list[str], parent: SourceLocation, key: str, end: int) -> int:
    """Return the number of lines up to the end of a key's value, without the comments before the next key."""
    start = parent.keys[key][0]
    last = min((line - 1 for line, _ in parent.keys.values() if line > start), default=end)
    while last > start and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1
    return last


def _block(value: Declaration, indent: int) -> list[str]:
    text = write_yaml(dict(value)) if value else ""
    return [" " * indent + line if line.strip() else line for line in text.splitlines(keepends=True)]
