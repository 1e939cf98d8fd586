"""Secrets that specs name: ``${NAME}`` stands for a secret of the process that runs steps."""

from __future__ import annotations

import base64
import binascii
import html
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote

from kneo.errors import Forbidden
from kneo.redaction import REDACTED
from kneo.spec.models.providers import PROVIDER_VARIABLES
from kneo.spec.models.spec import SECRET_REFERENCE

Secrets: TypeAlias = Callable[[str], str | None]
"""From a name to the secret's value."""

SECRET_CHARS = 8
"""Shorter values, and shorter words of a value (``Bearer``), are no secrets."""

MAX_DEPTH = 200
"""Values nested deeper are hidden whole."""


def require_secret(name: str, secrets: Secrets) -> str:
    """Return a secret for a tool.

    Raises:
        Forbidden: ``secret_denied`` or ``secret_missing``.
    """
    if name in PROVIDER_VARIABLES.values():
        msg = f"{name} is the key of a model provider, which tools do not receive."
        raise Forbidden(msg, code="secret_denied")
    value = secrets(name)
    if not value:
        msg = f"The secret {name} is not set in the process that runs this step."
        hint = f"Set {name}, {name}_FILE, or a file in KNEO_SERV_SECRETS_DIR."
        raise Forbidden(msg, code="secret_missing", hint=hint)
    return value


class CallSecrets:
    """The secrets that the backend of one call received. Each is hidden in every text of the call.

    A server may repeat a secret as it received it or encoded: a text is searched for the secret itself in any case of letters,
    percent-encoded, escaped as JSON or HTML does, also partly, and for its base64 within that of a longer text.
    """

    def __init__(self) -> None:
        self._forms: dict[str, _Form] = {}
        self._sources: list[Callable[[], Iterable[str]]] = []

    def __len__(self) -> int:
        return sum(1 for _ in self._current())

    def require(self, name: str, secrets: Secrets) -> str:
        """Return a secret, and hide it from now on.

        Raises:
            Forbidden: ``secret_denied`` or ``secret_missing``.
        """
        value = require_secret(name, secrets)
        self.add(value)
        return value

    def fill(self, text: str, secrets: Secrets) -> str:
        """Return a text with the values of its secrets, and hide these from now on; of short ones, the whole text.

        Raises:
            Forbidden: ``secret_denied`` or ``secret_missing``.
        """
        values = {name: self.require(name, secrets) for name in SECRET_REFERENCE.findall(text)}
        filled = SECRET_REFERENCE.sub(lambda found: values[found[1]], text)
        if any(len(value) < SECRET_CHARS for value in values.values()):
            self.add(filled)
        return filled

    def add(self, *values: str) -> None:
        """Hide further values from now on."""
        for value in values:
            for part in _parts(value):
                if len(part) >= SECRET_CHARS and part not in self._forms:
                    self._forms[part] = _Form.of(part)

    def follow(self, source: Callable[[], Iterable[str]]) -> None:
        """Hide the values that a source returns, such as the tokens that a connection gets during the call."""
        self._sources.append(source)

    def hide(self, value: object, depth: int = 0) -> object:
        """Return a JSON value without the secrets, names of fields included."""
        if isinstance(value, str):
            return self.hide_text(value)
        if not isinstance(value, Mapping | list | tuple):
            return value
        if depth >= MAX_DEPTH:
            return REDACTED
        if isinstance(value, Mapping):
            return {self.hide(name, depth + 1): self.hide(each, depth + 1) for name, each in value.items()}
        return [self.hide(each, depth + 1) for each in value]

    def hide_fields(self, fields: Mapping[str, object]) -> dict[str, object]:
        """Return the fields of an object without the secrets, names included."""
        return {self.hide_text(name): self.hide(value, 1) for name, value in fields.items()}

    def hide_text(self, text: str) -> str:
        """Return a text without the secrets."""
        if len(text) < SECRET_CHARS:
            return text
        folded = text.lower()
        spans = [span for form in self._current() if form.may_be_in(text, folded) for span in form.find(text)]
        if (unescaped := _Unescaped.of(text)) is not None:
            spans += [unescaped.span(*span) for form in self._current() for span in form.find_unescaped(unescaped.text)]
        return _without(text, spans) if spans else text

    def hide_divided(self, text: str) -> str:
        """Return a text whose end was cut off, without the part of a secret that the cut divides."""
        for form in self._current():
            for length in range(min(len(form.plain) - 1, len(text)), SECRET_CHARS - 1, -1):
                if text[-length:].lower() == form.folded[:length]:
                    return text[:-length] + REDACTED
        return text

    def _current(self) -> Iterable[_Form]:
        for source in self._sources:
            self.add(*source())
        return self._forms.values()


Span: TypeAlias = tuple[int, int]
"""Begin and end of a part of a text."""


@dataclass(frozen=True)
class _Form:
    """A secret in the forms in which texts may repeat it.

    Attributes:
        plain: The secret; ``folded`` in lower case.
        escaped: The secret as it is read in an ``_Unescaped`` text.
        encoded: Parts of the base64 of every text with the secret, in both alphabets.
    """

    plain: str
    folded: str
    escaped: frozenset[str]
    encoded: frozenset[str]

    @classmethod
    def of(cls, secret: str) -> _Form:
        escaped = {secret, secret.encode(errors="replace").decode("latin-1"), _units(secret)}
        escaped = {each.replace("\\", "") for each in escaped}
        escaped |= {each.translate(_CONTROLS) for each in escaped}
        escaped |= {each.replace(" ", "+") for each in escaped}
        in_base64 = {secret, quote(secret, safe="")}
        encoded = {part for text in in_base64 for part in _base64_parts(text.encode(errors="replace"))}
        return cls(
            secret,
            secret.lower(),
            frozenset(each for each in escaped if len(each) >= SECRET_CHARS),
            frozenset(encoded | {part.translate(_URL_SAFE) for part in encoded}),
        )

    def may_be_in(self, text: str, folded: str) -> bool:
        """Return quickly whether to search a text, which is also given in lower case."""
        if self.folded in folded:
            return True
        for part in self.encoded:  # noqa: SIM110 - a generator takes longer than the search of a short text
            if part in text:
                return True
        return False

    def find(self, text: str) -> Iterator[Span]:
        yield from _find(self.plain, text)
        for part in self.encoded:
            at = text.find(part)
            while at >= 0:
                begin, end = at, at + len(part)
                while begin > 0 and text[begin - 1] in _BASE64:
                    begin -= 1
                while end < len(text) and text[end] in _BASE64:
                    end += 1
                yield begin, end
                at = text.find(part, end)

    def find_unescaped(self, text: str) -> Iterator[Span]:
        for form in self.escaped:
            yield from _find(form, text)


def _find(secret: str, text: str) -> Iterator[Span]:
    if secret.lower() in text.lower():
        for found in re.finditer(re.escape(secret), text, re.IGNORECASE):
            yield found.span()


_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")
_URL_SAFE = str.maketrans("+/", "-_")
_CONTROLS = str.maketrans("\n\r\t", "nrt")
_ESCAPE = re.compile(
    r"%[0-9a-f]{2}|\\+u[0-9a-f]{4}|\\+|&(?:#[0-9]{1,7}|#x[0-9a-f]{1,6}|amp|lt|gt|quot|apos);", re.IGNORECASE
)


class _Unescaped:
    """A text with one character for each escape sequence, without its backslashes.

    Escapes of any depth (JSON in JSON) and of several kinds are read alike.
    """

    def __init__(self, text: str, begins: list[int], origins: list[int]) -> None:
        self.text = text
        # Pieces of the text and of its origin: each with an odd number is an escape sequence, the others are as they were.
        self._begins, self._origins = begins, origins

    @classmethod
    def of(cls, text: str) -> _Unescaped | None:
        """Read a text; ``None`` where it has no escape sequences."""
        parts, begins, origins, length, after = list[str](), [0], [0], 0, 0
        for found in _ESCAPE.finditer(text):
            begin, end = found.span()
            character = _character(found[0])
            parts += (text[after:begin], character)
            length += begin - after
            begins += (length, length + len(character))
            origins += (begin, end)
            length, after = length + len(character), end
        return cls("".join([*parts, text[after:]]), begins, origins) if parts else None

    def span(self, begin: int, end: int) -> Span:
        """Return the part of the origin that a part of the text was read from."""
        last = bisect_right(self._begins, end - 1) - 1
        if last % 2:
            return self._origin(begin), self._origins[last + 1]
        return self._origin(begin), self._origin(end - 1) + 1

    def _origin(self, at: int) -> int:
        piece = bisect_right(self._begins, at) - 1
        return self._origins[piece] + at - self._begins[piece]


def _character(escape: str) -> str:
    """Return the character of an escape sequence; bytes and halves of surrogate pairs count as characters."""
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    if escape[0] == "&":
        return html.unescape(escape)[:1]
    return chr(int(escape[-4:], 16)) if escape[-1] != "\\" else ""


def _units(text: str) -> str:
    """Return a text with two characters for each that JSON escapes as two numbers."""
    data = text.encode("utf-16-be", "surrogatepass")
    return "".join(chr(int.from_bytes(data[at : at + 2])) for at in range(0, len(data), 2))


def _base64_parts(data: bytes) -> Iterator[str]:
    """Yield the characters that bytes alone determine in the base64 of a longer text, for each place in its groups of three."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        yield whole[(8 * before + 5) // 6 : 8 * (before + len(data)) // 6]


def _parts(value: str) -> Iterator[str]:
    """Yield a secret value, its words where it is one line (``Bearer TOKEN``), and the password of basic authentication."""
    value = value.strip()
    yield value
    words = value.split() if "\n" not in value else []
    yield from words
    try:
        pair = base64.b64decode(words[-1] if words else "", validate=True).decode()
    except (binascii.Error, ValueError):
        return
    if ":" in pair and pair.isprintable():
        yield pair
        yield pair.partition(":")[2]


def _without(text: str, spans: list[Span]) -> str:
    """Return a text with ``REDACTED`` in place of parts, which may overlap."""
    parts, after = list[str](), 0
    for begin, end in sorted(spans):
        if begin >= after:
            parts += (text[after:begin], REDACTED)
        after = max(after, end)
    return "".join([*parts, text[after:]])
