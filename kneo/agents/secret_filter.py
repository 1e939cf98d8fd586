"""The filter around the backends of tools: what a call leads to holds no secret that the call was given."""

from __future__ import annotations

import re
from dataclasses import replace

from kneo.agents.secrets import CallSecrets
from kneo.agents.turn import AnswerRequired, ToolBackend, ToolCall
from kneo.errors import KneoError

MAX_PROMPT_CHARS = 4_000
"""Characters of a tool's own question that are shown. The prompt is cut here, because half a secret is not recognized."""


class SecretFilter:
    """A backend of tools whose results, errors and questions are without the secrets of their call.

    Models, conversations, middleware, traces and people receive nothing of a call in another way.

    Args:
        backend: Makes the calls, and adds the secrets that it takes to those of the call.
    """

    def __init__(self, backend: ToolBackend) -> None:
        self._backend = backend

    async def call(self, call: ToolCall) -> object:
        """Make a call; raises what the backend raises, without the secrets."""
        secrets = CallSecrets()
        try:
            return secrets.hide(await self._backend.call(replace(call, secrets=secrets)))
        except AnswerRequired as question:
            prompt, schema = secrets.hide_text(question.prompt), secrets.hide_fields(question.schema)
            shown = AnswerRequired(prompt[:MAX_PROMPT_CHARS], schema, question.state, restarted=question.restarted)
            raise shown from None
        except Exception as error:  # noqa: BLE001 - each leaves as it is, without the secrets
            raise hide_in_error(error, secrets) from None


_INPUT = re.compile(r", input_value=.*?(?=, input_type=|$)", re.DOTALL)
"""The part of a message of pydantic that repeats the beginning and the end of what it refused: half a secret is not recognized."""


def hide_in_error(error: Exception, secrets: CallSecrets) -> Exception:
    """Return an error without secrets; one of another library whose text has a secret becomes one of Kneo."""
    if not secrets:
        return error
    if isinstance(error, KneoError):
        error.message = secrets.hide_text(_INPUT.sub("", error.message))
        error.hint = secrets.hide_text(error.hint) if error.hint is not None else None
        error.details = secrets.hide_fields(error.details)
        error.args = (error.message,)
        return error
    shown = secrets.hide_text(_INPUT.sub("", str(error)))
    return error if shown == str(error) else KneoError(shown, code=type(error).__name__)
