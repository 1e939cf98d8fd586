"""Comments on pull requests: lines of Markdown, up to the size that forges accept."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kneo.names import plain
from kneo.spec.diff.texts import count

MAX_COMMENT = 65_536
"""Characters of a comment on GitHub."""

_NOTE_CHARS = 400
"""Characters that are kept for the note about what is left out, without its command."""

_FENCE = re.compile(r" *(`{3,})")


def bounded_comment(lines: Iterable[str], command: str) -> str:
    """Return the lines of a comment as one text; what is more than a comment may have is counted.

    Args:
        lines: Lines of Markdown, of which some have several lines.
        command: The command that shows all.
    """
    text = plain("\n".join(lines))
    if len(text) <= MAX_COMMENT:
        return text
    whole, kept = text.split("\n"), list[str]()
    room = MAX_COMMENT - _NOTE_CHARS - len(command)
    for line in whole:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    left = whole[len(kept) :]
    left_out = f"{count(len(left), 'more line')} with {count(sum(map(len, left)), 'character')}"
    return "\n".join((*kept, *_ends(kept), "", f"‼ … {left_out}: `{command}`"))


def _ends(lines: Iterable[str]) -> Iterable[str]:
    """Yield the ends of the fence and of the folded part that lines leave open."""
    fence, folded = "", 0
    for line in lines:
        if fence:
            fence = "" if line.strip() == fence else fence
        elif found := _FENCE.match(line):
            fence = found[1]
        else:
            folded += line.count("<details") - line.count("</details>")
    if fence:
        yield fence
    yield from ["</details>"] * folded
