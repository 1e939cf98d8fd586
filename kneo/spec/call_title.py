"""The title of a tool call: one line for people, made of the tool's template and the arguments, or of the call itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from kneo.names import visible
from kneo.redaction import redact_text

MAX_TEMPLATE_CHARS = 120
MAX_VALUE_CHARS = 40
"""Characters of one argument; a longer one is cut in its middle, so that its beginning and its end are read."""

MAX_CALL_CHARS = 160
"""Characters of the arguments where a tool has no template."""

_ARGUMENT = re.compile(r"\{([A-Za-z0-9_.-]{1,100})\}")


def named_arguments(template: str) -> tuple[str, ...]:
    """Return the arguments that a template names, in their order: ``order`` of ``Refund of order {order}``."""
    return tuple(dict.fromkeys(_ARGUMENT.findall(template)))


def call_title(tool: str, template: str | None, arguments: Mapping[str, object]) -> str:
    """Return the title of a call.

    Args:
        tool: The tool's name.
        template: A text with arguments in braces; without one the title is ``refund(order: 7, euros: 20)``.
        arguments: The arguments of the call. One that the call leaves out is shown as ``–``.
    """
    if template is not None:
        return visible(_ARGUMENT.sub(lambda found: _value(arguments.get(found[1])), template))
    shown: list[str] = []
    length = 0
    for name, value in arguments.items():
        shown.append(f"{visible(name[:MAX_VALUE_CHARS])}: {_value(value)}")
        length += len(shown[-1])
        if length > MAX_CALL_CHARS:
            break
    if len(shown) < len(arguments):
        shown.append(f"… {len(arguments) - len(shown)} more")
    return f"{tool}({', '.join(shown)})"


def _value(value: object) -> str:
    if value is None:
        return "–"
    text = " ".join(value.split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = visible(text)
    if len(text) <= MAX_VALUE_CHARS:
        return text
    # What redacts titles on the way out does not find a secret that was cut.
    text = redact_text(text, personal=False)
    if len(text) <= MAX_VALUE_CHARS:
        return text
    half = (MAX_VALUE_CHARS - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
