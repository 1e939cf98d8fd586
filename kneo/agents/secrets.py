"""Secrets that specs name: ``${NAME}`` stands for a secret of the process that runs steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

from kneo.errors import Forbidden
from kneo.redaction import REDACTED
from kneo.spec.models.providers import PROVIDER_VARIABLES
from kneo.spec.models.spec import SECRET_REFERENCE

Secrets: TypeAlias = Callable[[str], str | None]
"""From a name to the secret's value."""


SECRET_CHARS = 8
"""Shorter values, and shorter words of a header (``Bearer``), are no secrets."""


def hide_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return what a server wrote without the secrets that it repeats, also with characters escaped as JSON does."""
    for secret in sorted({each for each in secrets if len(each) >= SECRET_CHARS}, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
        if "\\" in text:
            text = re.sub("".join(map(_escaped, secret)), lambda _: REDACTED, text)
    return text


def words_of(headers: Iterable[str]) -> Iterable[str]:
    """Return the values of secret headers, and the words of these."""
    return [word for value in headers for word in (value, *value.split())]


def _escaped(character: str) -> str:
    """Return a pattern for a character in JSON: itself, after a backslash, or by its number."""
    code = character.encode("utf-16-be").hex()
    number = "".join(rf"\\u(?i:{code[at : at + 4]})" for at in range(0, len(code), 4))
    return rf"(?:\\?{re.escape(character)}|{number})"


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


def fill_secrets(text: str, secrets: Secrets) -> str:
    """Return a text with the values of its secrets.

    Raises:
        Forbidden: ``secret_denied`` or ``secret_missing``.
    """
    return SECRET_REFERENCE.sub(lambda found: require_secret(found[1], secrets), text)
