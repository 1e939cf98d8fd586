"""Errors, and how a caller reacts to them.

::

    KneoError
    ├── Invalid      the input is wrong; change it            HTTP 400/422  exit 1
    ├── Usage        the command or request is wrong          HTTP 400      exit 2
    ├── Unauthorized no valid credentials                     HTTP 401      exit 3
    ├── Forbidden    missing permission                       HTTP 403      exit 1
    ├── Untrusted    no trusted signature of these bytes      HTTP 403      exit 3
    ├── NotFound     no such object                           HTTP 404      exit 4
    ├── Conflict     the object has changed, or its state     HTTP 409      exit 5
    └── Transient    temporarily unavailable; try again       HTTP 503      exit 75

Only ``kneo.service.problems`` and ``kneo.cli.main`` translate these into responses. A message says what happened and
where; ``hint`` says what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class KneoError(Exception):
    """Base class of all errors that Kneo raises.

    Args:
        message: What happened and where, in one or two sentences.
        code: Stable code for programs (``bundle_not_approved``); defaults to the class's own.
        hint: What to do next, where the message does not imply it.
        details: Further fields for programs; never secrets.
    """

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.details = details
        self.recorded = False
        """Whether the audit log already records this refusal."""

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class Invalid(KneoError):
    http_status = 400
    default_code = "invalid_request"


class InvalidValue(Invalid):
    """An unacceptable value: too long, out of range, or an unknown word."""

    http_status = 422
    default_code = "validation_error"


class Usage(KneoError):
    http_status = 400
    exit_code = 2
    default_code = "invalid_request"


class Unauthorized(KneoError):
    http_status = 401
    exit_code = 3
    default_code = "unauthorized"


class Forbidden(KneoError):
    http_status = 403
    default_code = "forbidden"


class Untrusted(KneoError):
    http_status = 403
    exit_code = 3
    default_code = "untrusted"


class NotFound(KneoError):
    http_status = 404
    exit_code = 4
    default_code = "not_found"


class Conflict(KneoError):
    http_status = 409
    exit_code = 5
    default_code = "conflict"


class Transient(KneoError):
    http_status = 503
    exit_code = 75
    default_code = "try_again"


class QuotaExceeded(Transient):
    """An environment has used up a quota of its file."""

    http_status = 429
    default_code = "quota_exceeded"
