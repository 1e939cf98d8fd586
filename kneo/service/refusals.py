"""Refusals in the audit log: who was turned away from what. Bounded, because whoever is turned away costs nothing."""

from __future__ import annotations

import logging

from kneo.errors import KneoError
from kneo.redaction import redact_text
from kneo.service.rate import Rate
from kneo.service.routing import RouteEntry
from kneo.store import audit
from kneo.store.engine import Store

log = logging.getLogger("kneo.service")

PER_MINUTE = 60
"""Refusals of one caller that one process records in a minute. The request log has all of them."""


class Refusals:
    """Records refused and failed requests."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rate = Rate(PER_MINUTE)

    def record(self, operation: RouteEntry, path: str, caller: str | None, status: int, code: str) -> None:
        """Write one down, unless this caller has filled the minute."""
        if self._rate.take(caller or "") > 0:
            return
        facts = {
            "operation": operation.id,
            "method": operation.method,
            "path": redact_text(path[:500]),
            "status": status,
            "error": code,
            "required_scope": [need.scope for need in operation.required],
        }
        try:
            with self.store.write() as tx:
                audit.record(tx, "request.refused", actor=caller, metadata=facts)
        except KneoError as error:
            # Whoever was refused has their answer; that it could not be written down is the operator's to know.
            log.warning("a refusal could not be recorded: %s", error)
