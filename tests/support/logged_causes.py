"""The exceptions that a service logs for one request."""

from __future__ import annotations

import logging

from kneo.telemetry import current_fields


class Causes(logging.Handler):
    """The exceptions that are logged for one request."""

    def __init__(self, request_id: str) -> None:
        super().__init__()
        self.request_id = request_id
        self.causes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and current_fields().get("request_id") == self.request_id:
            self.causes.append(str(record.exc_info[1]))
