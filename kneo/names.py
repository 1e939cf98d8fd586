"""Names of people and parts: refused names, and the comparison of two spellings of a person's name; and marks for unseen characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from kneo.errors import Invalid, InvalidValue
from kneo.invisible import INVISIBLE

MAX_PERSON_CHARS = 200
"""Characters that the name of a person may have, as columns for names do."""

MAX_ENVIRONMENT_CHARS = 128

_HIDDEN = re.compile(f"[{INVISIBLE}]")

_TOGETHER: tuple[frozenset[str], ...] = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
)
"""Scripts that are written together, as in Unicode's Highly Restrictive profile (UTS 39)."""

_SAME_SCRIPT = {"IDEOGRAPHIC": "CJK", "KATAKANA-HIRAGANA": "KATAKANA", "FULLWIDTH": "LATIN"}


def person_key(name: str) -> str:
    """Return the key by which the spellings of a person's name are compared: case, width and invisible characters aside."""
    plain = _HIDDEN.sub("", unicodedata.normalize("NFKC", name)).casefold()
    return " ".join(unicodedata.normalize("NFKC", plain).split())


def is_same_person(one: str, other: str) -> bool:
    """Return whether two names are spellings of one person's name."""
    return person_key(one) == person_key(other)


def person_name(name: str, where: str = "The name") -> str:
    """Return the normal spelling of a person's name.

    Args:
        name: The name.
        where: The subject of the message.

    Raises:
        Invalid: ``invalid_name``: empty, too long, with control characters, or of mixed scripts.
    """
    problem = person_problem(name)
    if problem is not None:
        msg = f"{where} {problem}"
        raise Invalid(msg, code="invalid_name")
    return " ".join(_HIDDEN.sub("", unicodedata.normalize("NFKC", name)).split())


def person_problem(name: str) -> str | None:
    """Return why a text is not the name of a person, as the end of a sentence; ``None`` where it is one."""
    problem = name_problem(name)
    if problem is not None:
        return problem
    if len(name) > MAX_PERSON_CHARS:
        return f"{shown(name)} has {len(name)} characters; at most {MAX_PERSON_CHARS} are accepted."
    mixed = next((scripts for part in _parts(name) if (scripts := _mixed_scripts(part))), None)
    if mixed is not None:
        return f"{name[:80]!a} mixes the scripts {' and '.join(mixed)}, which lets it look like another name."
    return None


def check_environment_name(name: str) -> str:
    """Return the name of an environment.

    Only one spelling is accepted: two names that look alike would have two policies.

    Raises:
        InvalidValue: ``invalid_name``: empty, too long, with ``/`` or characters that are not visible, or not in normal
            form.
    """
    problem = person_problem(name)
    if problem is None and len(name) > MAX_ENVIRONMENT_CHARS:
        problem = f"has {len(name)} characters; at most {MAX_ENVIRONMENT_CHARS} are accepted."
    if problem is None and ("/" in name or name != person_name(name)):
        problem = f"{shown(name)} has a slash, spaces at its ends, or characters that look like others."
    if problem is not None:
        msg = f"The name of the environment {problem}"
        raise InvalidValue(msg, code="invalid_name", field="environment")
    return name


def name_problem(name: str) -> str | None:
    """Return why a text cannot be a name, as the end of a sentence; ``None`` where it can."""
    if not person_key(name):
        return "is empty."
    bad = next((found[0] for found in _UNSEEN.finditer(name) if not _joins(name, found.start())), None)
    if bad is not None:
        return f"{shown(name)} has the character U+{ord(bad):04X}, which is not visible or changes how lines are read."
    return None


def shown(name: str) -> str:
    """Return a name for a message: cut, quoted, and with escapes in place of what cannot be seen."""
    return ascii(name[:80]) if _UNSEEN.search(name) else repr(name[:80])


def _parts(name: str) -> Iterator[str]:
    """Yield the parts of a name that have one script each: of an address the local part and each label of the domain."""
    plain = _HIDDEN.sub("", unicodedata.normalize("NFKC", name))
    local, _, domain = plain.rpartition("@")
    yield local or plain
    if local:
        yield from domain.split(".")


def _mixed_scripts(text: str) -> tuple[str, ...] | None:
    scripts = dict.fromkeys(script for letter in text if (script := _script(letter)))
    if len(scripts) < 2 or any(scripts.keys() <= together for together in _TOGETHER):
        return None
    return tuple(name.capitalize() for name in scripts)


def _script(letter: str) -> str | None:
    """Return the script of a letter, by the first word of its Unicode name; ``None`` for characters that all scripts
    share.
    """
    if not unicodedata.category(letter).startswith("L"):
        return None
    word = unicodedata.name(letter, "").partition(" ")[0]
    return None if word in {"", "MODIFIER"} else _SAME_SCRIPT.get(word, word)


_UNSEEN = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{INVISIBLE}]")
"""Control characters, line separators, halves of characters, and the characters that are drawn as nothing."""

_MARKED = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{INVISIBLE}]")
"""The same in a text of several lines."""

_PICTURE = re.compile(
    "[\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u27bf\u2934\u2935\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)

_COMMAND = re.compile(
    r"^(?P<before>[^\S\n]*)(?P<sign>:)(?=:[\w-]+(?: [^\n]*)?::)|(?P<hash>#)(?=#(?:vso|teamcity)?\[)", re.MULTILINE
)
"""The beginning of a line that runners of CI obey: ``::add-mask::x``, and ``##[add-mask]x`` also within a line."""

_VIRAMA = 9
"""The combining class of the signs that join two letters of an Indic script."""


def reveal(text: str) -> str:
    """Return a text for a page, with a mark such as ⟨U+200B⟩ in place of each character that cannot be seen."""
    # Most texts of a page are of these characters; a long page has thousands of texts.
    if text.isascii() and text.isprintable():
        return text
    return replace_unseen(text, lambda letter: letter if letter == "\r" else f"⟨U+{ord(letter):04X}⟩")


def visible(text: str) -> str:
    """Return a text for one line, with an escape in place of each character that cannot be seen, without exception. Commands to
    runners of CI are none in it.
    """
    text = _without_commands(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() and not _HIDDEN.match(c) else _escape(c) for c in text)


def plain(text: str) -> str:
    """Return a text of unknown origin, of several lines, for a terminal or a log: with an escape in place of each
    character that terminals or runners of CI obey, or readers do not see. The escapes are those of JSON, whose value stays
    the same.
    """
    text = _without_commands(text)
    if text.isascii() and text.isprintable():
        return text
    return replace_unseen(text, _escape)


def replace_unseen(text: str, replacement: Callable[[str], str]) -> str:
    """Return a text of several lines with a replacement of each character that cannot be seen.

    A character that visibly changes its neighbour stays: the selector of a picture or a keycap, the joiner of two
    pictures, and of two letters where their script needs one.
    """
    return _MARKED.sub(lambda found: found[0] if _is_drawn(found) else replacement(found[0]), text)


def _without_commands(text: str) -> str:
    if "::" not in text and "##" not in text:
        return text
    return _COMMAND.sub(lambda found: f"{found['before'] or ''}{_escape(found['sign'] or found['hash'])}", text)


def _escape(letter: str) -> str:
    if ord(letter) < 0x10000:
        return f"\\u{ord(letter):04x}"
    high, low = divmod(ord(letter) - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def _is_drawn(found: re.Match[str]) -> bool:
    """Return whether a character without a glyph is seen, because its neighbour is drawn otherwise."""
    text, at = found.string, found.start()
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if found[0] == "\ufe0f":
        return bool(_PICTURE.match(before)) or (before != "" and before in "0123456789#*" and after == "\u20e3")
    if found[0] == "\u200d" and _PICTURE.match(after) and (_PICTURE.match(before) or before == "\ufe0f"):
        return True
    return _joins(text, at)


def _joins(text: str, at: int) -> bool:
    """Return whether a joiner stands where Persian and Indic words need one (RFC 5892, A.1 and A.2)."""
    before = text[at - 1 : at]
    if text[at] not in "\u200c\u200d" or not before:
        return False
    return unicodedata.combining(before) == _VIRAMA or (
        text[at] == "\u200c" and unicodedata.bidirectional(before) == "AL"
    )
