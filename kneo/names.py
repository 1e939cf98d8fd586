"""Names of people and parts: refused names, and the comparison of two spellings of a person's name; and marks for unseen characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from kneo.errors import Invalid, InvalidValue

MAX_PERSON_CHARS = 200
"""Characters that the name of a person may have, as columns for names do."""

MAX_ENVIRONMENT_CHARS = 128

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2064\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\U000e0020-\U000e007f\U000e0100-\U000e01ef]"
)
"""Characters without a glyph that only change how their neighbours join: soft hyphen, zero-width space and the like."""

_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of a line, and so the order in which the text around them is shown."""

_TOGETHER: tuple[frozenset[str], ...] = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
)
"""Scripts that are written together, as in Unicode's Highly Restrictive profile (UTS 39)."""

_SAME_SCRIPT = {"IDEOGRAPHIC": "CJK", "KATAKANA-HIRAGANA": "KATAKANA", "FULLWIDTH": "LATIN"}


def person_key(name: str) -> str:
    """Return the key by which the spellings of a person's name are compared: case, width and invisible characters aside."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", name)).casefold()
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
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", name)).split())


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
    bad = next((letter for letter in name if _is_control(letter)), None)
    if bad is not None:
        return f"{shown(name)} has the character U+{ord(bad):04X}, which is not visible or changes how lines are read."
    return None


def shown(name: str) -> str:
    """Return a name for a message: cut, quoted, and with escapes in place of what cannot be printed."""
    return (
        ascii(name[:80]) if any(_is_control(letter) or _INVISIBLE.match(letter) for letter in name) else repr(name[:80])
    )


def _is_control(letter: str) -> bool:
    # Control characters, halves of characters, and the separators of lines and paragraphs.
    return letter in _DIRECTION or unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"}


def _parts(name: str) -> Iterator[str]:
    """Yield the parts of a name that have one script each: of an address the local part and each label of the domain."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", name))
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


_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f"
    "\u2028-\u202e\u2060-\u2069\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
    # A joiner between two pictures makes one picture of them.
    "|(?<![\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])\u200d|\u200d(?![\u2190-\u2bff\U0001f000-\U0001faff])"
    # One selector chooses the form of a picture, an ideograph or a keycap; others, and each further one, only hide data.
    f"|(?<![0-9#*\u00a1-\ufdff\ufe10-\U000e00ff\U000e01f0-\U0010ffff])[{_SELECTORS}]"
)
"""Control characters, and characters without a glyph that hide text or change its order."""


def reveal(text: str) -> str:
    """Return a text with a visible mark in place of each character that cannot be seen."""
    # Most texts of a page are of these characters; a long page has thousands of texts.
    if text.isascii() and text.isprintable():
        return text
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return a text of unknown origin without control characters, which terminals obey and readers do not see."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
