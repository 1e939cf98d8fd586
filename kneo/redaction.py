"""Redaction of secrets and personal data in responses and logs.

Stored values stay whole. The rules are those of the published service: the name of a key decides about its whole value,
and patterns decide about text. Keys are compared word by word, so that ``max_tokens`` and ``session_id`` stay readable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import NamedTuple

REDACTED = "[REDACTED]"

MAX_DEPTH = 64
"""Values nested deeper are redacted whole; accepted input is never this deep."""

LOOKAHEAD = 1_000
"""Characters after a cut that decide whether a secret stands there: every pattern but one needs fewer from its beginning on."""

_SECRET_WORDS = frozenset(
    {
        "apikey",
        "apikeys",
        "authorization",
        "bearer",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "email",
        "emails",
        "passwd",
        "password",
        "passwords",
        "secret",
        "secrets",
        "session",
        "sessions",
        "ssn",
        "token",
        "tokens",
    }
)
_SECRET_PAIRS = frozenset(
    {
        ("api", "key"),
        ("api", "keys"),
        ("ca", "bundle"),
        ("client", "cert"),
        ("client", "key"),
        ("private", "key"),
        ("private", "keys"),
        ("social", "security"),
    }
)
_READABLE = frozenset(
    {
        "cached_tokens",
        "completion_tokens",
        "input_tokens",
        "max_tokens",
        "output_tokens",
        "prompt_tokens",
        "reasoning_tokens",
        "session_id",
        "token_budget",
        "token_usage",
        "tokens_per_minute",
        "total_tokens",
        "trace_event_count",
        "usage",
    }
)
"""Keys that contain a secret's word but count or name something: ``max_tokens``."""

_COUNTERS = re.compile(r"tokens_\w{1,60}_total")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_NAMED = r"pass(?:word|wd)|secret|token|api[_-]?key|authorization|credential"


class _Rule(NamedTuple):
    """A pattern and its replacement.

    A text without any of the ``signs`` cannot match; looking for the signs takes a tenth of the time.
    """

    signs: tuple[str, ...]
    pattern: re.Pattern[str]
    instead: str | Callable[[re.Match[str]], str]


def _web_token(match: re.Match[str]) -> str:
    # A run of token characters that is not followed by the rest of a token is consumed whole: a search that restarted
    # at each "eyJ" would read the run once for each.
    return REDACTED if match.end() > match.end(1) else match[0]


_PRIVATE_KEY = _Rule(
    ("-----begin",),
    re.compile(
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----END)[\s\S]){0,16384}(?:-----END [A-Z ]{0,40}-----)?"
    ),
    REDACTED,
)

_KEYS = (
    _Rule(
        ("eyj",),
        re.compile(r"\b(eyJ[A-Za-z0-9_-]{8,}+)(?:\.[A-Za-z0-9_-]{4,8192}(?:\.[A-Za-z0-9_-]{0,4096})?)?"),
        _web_token,
    ),
    _Rule(("sk-",), re.compile(r"\bsk-[A-Za-z0-9_-]{12,512}"), REDACTED),
    _Rule(("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED),
    _Rule(
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255})"),
        REDACTED,
    ),
    _Rule(("aiza",), re.compile(r"\bAIza[A-Za-z0-9_-]{30,60}"), REDACTED),
)
"""Keys and tokens of a form of their own."""

_SECRETS = (
    # The only secret of several lines comes first: another rule would take its first line, and its rest would stay.
    _PRIVATE_KEY,
    _Rule(("cookie",), re.compile(r"(?i)\b(set-cookie|cookie)[ \t]*:[^\r\n]{1,8192}"), rf"\1: {REDACTED}"),
    _Rule(
        ("bearer", "basic", "digest", "negotiate", "ntlm"),
        re.compile(r"(?i)\b(bearer|basic|digest|negotiate|ntlm)[ \t]+[A-Za-z0-9+/=._~-]{8,4096}"),
        rf"\1 {REDACTED}",
    ),
    *_KEYS,
    _Rule(
        ("passw", "secret", "token", "apikey", "api_key", "api-key", "authorization", "credential"),
        re.compile(
            rf"(?i)(?<![a-z0-9])((?:[a-z0-9]{{1,40}}[_-]){{0,4}}(?:{_NAMED}))([\"']?)[ \t]*[=:][ \t]*(?!\[REDACTED\])"
            r"(?:\"[^\"\r\n]{1,4096}\"?|'[^'\r\n]{1,4096}'?|[^\s,;&\"']{1,4096})"
        ),
        rf"\1\2={REDACTED}",
    ),
)

_PERSONAL = (
    _Rule(
        ("@",),
        re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"),
        "[REDACTED_EMAIL]",
    ),
    _Rule(("-",), re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), "[REDACTED_SSN]"),
)

_EVERYTHING = (*_SECRETS, *_PERSONAL)

_ASSIGNED = _Rule(
    ("passw", "secret", "token", "apikey", "api_key", "api-key", "credential"),
    re.compile(
        rf"(?i)(?:{_NAMED})[\"']?[ \t]*[=:][ \t]*([\"'])(?=[^\"'\r\n]*[0-9])(?=[^\"'\r\n]*[a-z])[a-z0-9+/=_.~-]{{12,4096}}\1"
    ),
    REDACTED,
)
"""A value in quotes that is given to a name of a secret."""

_PATHS = re.compile(r"(?<![\w./:-])/(?:[\w.@+-]{1,255}/){1,40}[\w.@+-]{0,255}")


def redact(value: object, *, personal: bool = True) -> object:
    """Return a value without secrets, and without personal data unless ``personal`` is false.

    Args:
        value: Any JSON value; mappings and sequences are copied.
        personal: Whether e-mail addresses and social security numbers are redacted too; reviewers of a text see them.
    """
    return _redact(value, personal, 0)


def redact_text(text: str, *, personal: bool = True) -> str:
    """Redact secrets in a text, and personal data unless ``personal`` is false."""
    folded = _folded(text)
    for signs, pattern, instead in _EVERYTHING if personal else _SECRETS:
        for sign in signs:
            if sign in folded:
                text = pattern.sub(instead, text)
                break
    return text


def redact_start(text: str, limit: int, *, personal: bool = True) -> str:
    """Return at most ``limit`` characters of the beginning of a text, redacted, without reading more than it has to.

    The result is the beginning of the redacted text and ends before a secret that the cut divides: half a secret is not
    recognized. The first ``limit + LOOKAHEAD`` characters of a text suffice.
    """
    if len(text) <= limit:
        return redact_text(text, personal=personal)[:limit]
    longer = text[: limit + LOOKAHEAD]
    if len(longer) == limit + LOOKAHEAD:
        # The header of a web token has no length at which it has to end: what may be one is completed.
        longer += "aaaa.aaaa"
    shown, whole = redact_text(text[:limit], personal=personal), redact_text(longer, personal=personal)
    if not whole.startswith(shown):
        # A secret at the cut is replaced in the longer text only: the two differ from its first character on.
        shown = shown[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shown, whole, strict=False)))]
    return shown[:limit]


def _folded(text: str) -> str:
    """Normalise a text so that every character that a pattern matches as a letter is that letter."""
    if text.isascii():
        return text.lower()
    # Patterns that ignore case match i with the Turkish letters too, with a dot above and without.
    return text.casefold().replace("\u0307", "").replace("\u0131", "i")


def find_secret(text: str) -> int | None:
    """Return the first line, counted from 1, of a source text that holds a key or a token; ``None`` where none does.

    Code names secrets without holding any (``token = read()``), so that a value counts by its own form alone, or in quotes with
    letters and digits.
    """
    folded = _folded(text)
    found = [
        match.start()
        for signs, pattern, instead in (_PRIVATE_KEY, *_KEYS, _ASSIGNED)
        if any(sign in folded for sign in signs)
        for match in pattern.finditer(text)
        if pattern.sub(instead, match[0]) != match[0] and re.search(r"[0-9]|PRIVATE KEY", match[0])
    ]
    return text.count("\n", 0, min(found)) + 1 if found else None


def hide_paths(text: str) -> str:
    """Replace absolute paths, which reveal where a service is installed, by ``[PATH]``."""
    return _PATHS.sub("[PATH]", text)


@lru_cache(maxsize=4096)
def is_secret_key(key: str) -> bool:
    """Return whether every value of a key is redacted."""
    # The end of a long key names its content, so it is checked as well as the beginning.
    words = [word.lower() for word in _WORDS.findall(key if len(key) <= 400 else f"{key[:200]} {key[-200:]}")]
    joined = "_".join(words)
    if joined in _READABLE or _COUNTERS.fullmatch(joined):
        return False
    if any(word in _SECRET_WORDS for word in words):
        return True
    return any(pair in _SECRET_PAIRS for pair in pairwise(words))


def _redact(value: object, personal: bool, depth: int) -> object:
    if isinstance(value, str):
        return redact_text(value, personal=personal)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if depth >= MAX_DEPTH:
        return REDACTED
    if isinstance(value, Mapping):
        return {key: _under(str(key), inner, personal, depth) for key, inner in value.items()}
    if isinstance(value, Sequence | frozenset | set):
        return [_redact(inner, personal, depth + 1) for inner in value]
    return value


def _under(key: str, value: object, personal: bool, depth: int) -> object:
    # Null and numbers reveal no secret, and whether a value is set may have to be visible.
    if value is None or isinstance(value, bool) or not is_secret_key(key):
        return _redact(value, personal, depth + 1)
    return REDACTED
