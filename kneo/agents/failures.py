"""Failures of requests to models: which are repeated, which are final, and their errors without the provider's words.

A provider's message can repeat the key or the conversation, so it reaches no message, log or chain of exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

from pydantic_ai.exceptions import ContentFilterError, ModelAPIError, ModelHTTPError, UnexpectedModelBehavior

from kneo.agents.http import ReplyTooLarge
from kneo.agents.providers import ProviderConnection
from kneo.errors import Invalid, KneoError, Transient
from kneo.spec.models.agent import ModelChoice
from kneo.spec.models.providers import PROVIDERS

_REPEATED = frozenset({408, 409, 425, 429})
_OVERLOADED = frozenset({429, 503, 529})
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|(prompt|input|request) (is |are )?too (long|large)|maximum prompt length"
    r"|input token count|too many (input )?tokens|request_too_large",
    re.IGNORECASE,
)
"""What providers write where a request is longer than the window of the model."""

_LIBRARIES = frozenset(
    {"anthropic", "anyio", "google", "httpcore", "httpcore2", "httpx", "httpx2", "openai", "pydantic_core"}
)

_MISFITS = frozenset({400, 413, 422})

MAX_BODY_CHARS = 20_000
"""Characters of an error's body that are looked at."""

MAX_CAUSES = 20
"""Links of a chain of exceptions that are looked at."""

MOST_SECONDS = 3_600.0
"""The longest wait that a provider can ask for."""


class ModelRefused(Invalid):
    """The provider refused the request, or its reply is too large; a repetition would end in the same way."""

    default_code = "model_refused"


class ModelUnavailable(Transient):
    """The provider did not answer, or was overloaded, until the tries were used up."""

    default_code = "model_unreachable"


class IncompleteReply(Exception):
    """A stream that ended without a reason to finish. Every library takes what came for the whole reply."""


@dataclass(frozen=True, kw_only=True)
class RequestFailure:
    """One failed try.

    Attributes:
        reason: For the trace: a status or the kind of the error, never content.
        status: The HTTP status, where there was one.
        is_repeated: Whether the request is made again.
        retry_after: Seconds that the provider asks to wait.
        is_too_long: Whether the request is longer than the window of the model.
    """

    reason: str
    status: int | None = None
    is_repeated: bool = True
    retry_after: float | None = None
    is_too_long: bool = False

    @property
    def is_overload(self) -> bool:
        return self.status in _OVERLOADED

    @classmethod
    def of(cls, error: BaseException, now: datetime) -> RequestFailure | None:
        """Return the failure behind an exception; ``None`` for one that is no failure of a request."""
        if isinstance(error, ModelHTTPError):
            status = error.status_code
            repeated = status in _REPEATED or status >= 500
            return cls(
                reason=f"status {status}",
                status=status,
                is_repeated=repeated,
                retry_after=_retry_after(error, now),
                is_too_long=status in _MISFITS and _TOO_LONG.search(str(error.body)[:MAX_BODY_CHARS]) is not None,
            )
        final = "content filter" if isinstance(error, ContentFilterError) else _too_large(error)
        if final is not None:
            return cls(reason=final, is_repeated=False)
        if isinstance(error, IncompleteReply):
            return cls(reason="incomplete stream")
        if isinstance(error, TimeoutError):
            return cls(reason="timeout")
        if isinstance(error, ModelAPIError | UnexpectedModelBehavior | OSError) or _is_of_library(error):
            return cls(reason=type(error).__name__)
        return None

    def error(self, choice: ModelChoice, connection: ProviderConnection, tries: int) -> KneoError:
        """Return the error of the step: a final refusal, or tries or patience that are used up."""
        name = f"{choice.provider}/{choice.name} at {connection.address}"
        if not self.is_repeated:
            msg = f"The request to the model {name} failed, and a repetition would too: {self.reason}."
            return ModelRefused(msg, hint=_refusal_hint(choice, self.status), status=self.status)
        code = "model_overloaded" if self.is_overload else "model_unreachable"
        msg = f"The model {name} gave no reply in {tries} {'try' if tries == 1 else 'tries'}: {self.reason}."
        hint = "Give the step on_error: retry, or the model fallbacks; see KNEO_SERV_PROVIDER_RETRIES."
        if self.status is None:
            other = (
                f"{connection.provider.url_variable}, models.connections of the environment or base_url of the model"
            )
            hint = f"Check that a server runs there and that the worker reaches {connection.address}; {other} names another address. {hint}"
        return ModelUnavailable(msg, code=code, hint=hint, status=self.status)


def _too_large(error: BaseException) -> str | None:
    """Return why a reply was not read to its end, from the chain of causes: the libraries wrap the exception."""
    link: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if isinstance(link, ReplyTooLarge):
            return str(link)
        link = link and (link.__cause__ or link.__context__)
    return None


def _is_of_library(error: BaseException) -> bool:
    return isinstance(error, Exception) and type(error).__module__.partition(".")[0] in _LIBRARIES


def _refusal_hint(choice: ModelChoice, status: int | None) -> str | None:
    provider = PROVIDERS.get(choice.provider)
    variable = provider.key_variable if provider is not None else "the key"
    hints = {
        400: "Check the settings of the model and the schemas of its tools.",
        401: f"Check the key: {variable}, or the one that the project or the environment names instead.",
        403: f"Check what the key may do: {variable}, or the one that the project or the environment names instead.",
        404: "Check the model's name and the provider's address.",
        413: "The conversation is too long for the model.",
    }
    return hints.get(status) if status is not None else None


def _retry_after(error: BaseException, now: datetime) -> float | None:
    """Return the wait of a Retry-After header: seconds, also with a fraction, or a date; ``None`` for no time to wait."""
    headers = getattr(getattr(error.__cause__, "response", None), "headers", None)
    text = str(headers.get("retry-after") or "") if isinstance(headers, Mapping) else ""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - now).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(seconds, MOST_SECONDS) if seconds > 0 else None
