"""Where the normal form of a spec is written in the file, which may use short forms and other spellings.

A path of the normal form is followed through the places of a document. Where the next key is not there, it may be one
that only the long form has (a list of tools is ``tools.include``), or one that is spelled differently.
"""

from __future__ import annotations

from itertools import pairwise

from kneo.spec.documents import Path, SourceLocation

_WRAPPERS = frozenset({"include", "steps", "conditions"})
"""Keys whose value may be written directly in the place of the map that holds them."""

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "timeout_seconds": ("timeout",),
    "type": ("field_type",),
    "conditions": ("any_of", "all_of"),
    "condition": ("not",),
}

_POLICY_WORDS = {
    "allow_network": "network",
    "allow_filesystem_read": "filesystem",
    "allow_filesystem_write": "filesystem",
    "allow_shell": "shell",
    "allowed_tools": "allow",
    "denied_tools": "deny",
}


def source_path(path: Path, root: SourceLocation) -> Path:
    """Return the path under which a file says what the normal form has at ``path``, as far as it says it."""
    written, rest = _follow(path, root)
    if rest and _in_policy(path):
        at = path.index("tools")
        other = (*path[:at], "policies", "tool", *(_POLICY_WORDS.get(str(part), part) for part in path[at + 2 :]))
        followed, left = _follow(other, root)
        if len(left) < len(rest):
            return (*followed, *left)
    return (*written, *rest)


def _in_policy(path: Path) -> bool:
    return any(pair == ("tools", "permissions") for pair in pairwise(path))


def _follow(path: Path, place: SourceLocation) -> tuple[Path, Path]:
    """Go as far as the document goes; return what was followed and what is left."""
    written: list[str | int] = []
    for index, part in enumerate(path):
        key = part if part in place.children else _spelling(part, place)
        if key is None and part in _WRAPPERS and index + 1 < len(path) and path[index + 1] in place.children:
            continue
        if key is None:
            return tuple(written), path[index:]
        written.append(key)
        place = place.children[key]
    return tuple(written), ()


def _spelling(part: str | int, place: SourceLocation) -> str | None:
    return next((word for word in _SPELLINGS.get(str(part), ()) if word in place.children), None)
