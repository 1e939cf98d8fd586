"""Deltas of agents' steps: batches of text without secrets, and the steps whose text nobody may read yet."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from kneo.clock import Clock
from kneo.errors import KneoError
from kneo.records.delta import ModelDelta
from kneo.redaction import redact_text
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.settings import ExecutionSettings
from kneo.store.delta_readers import ReaderCache
from kneo.store.engine import Store

DEFAULT_BATCH = timedelta(milliseconds=ExecutionSettings.stream_ms)

MAX_CHARS = 65_536
"""Characters of one reply that are passed on as deltas."""

_SAFE = re.compile(r"[^\w\-+/=.:@%~]", re.ASCII)
"""Characters that are no part of a secret. Text is passed on up to the last of them: half a secret is not recognized."""

_LATER = frozenset({"after", "each"})
"""Positions of gates at which a person sees a step's output before others do."""


class DeltaWriter:
    """The deltas of one turn; the port ``DeltaStream`` of agents.

    Args:
        run_id: The run.
        step_id: The path of the step.
        is_read: Returns whether somebody reads the deltas of the run.
        publish: Passes on a delta without waiting.
        clock: Times the batches.
        batch: The shortest time between two deltas of one reply.
    """

    def __init__(
        self,
        *,
        run_id: str,
        step_id: str,
        is_read: Callable[[], bool],
        publish: Callable[[ModelDelta], None],
        clock: Clock,
        batch: timedelta = DEFAULT_BATCH,
    ) -> None:
        self._batch = batch
        self._run_id, self._step_id = run_id, step_id
        self._is_read, self._publish = is_read, publish
        self._clock = clock
        self._request, self._text, self._published = 0, "", ""
        self._due: datetime | None = None

    def is_read(self) -> bool:
        return self._is_read()

    def write(self, request: int, offset: int, text: str) -> None:
        if offset == 0 or request != self._request:
            self._begin(request)
        if len(self._text) >= MAX_CHARS:
            return
        self._text += text
        now = self._clock.now()
        if self._due is None or now >= self._due:
            self._due = now + self._batch
            ends = [found.end() for found in _SAFE.finditer(self._text)]
            self._pass_on(self._text[: ends[-1] if ends else 0])

    def end(self, request: int) -> None:
        if request == self._request:
            self._pass_on(self._text[:MAX_CHARS])

    def _begin(self, request: int) -> None:
        self._request, self._text, self._published, self._due = request, "", "", None

    def _pass_on(self, text: str) -> None:
        """Publish what is new in a text. Where more text made a secret of what was published, nothing follows."""
        cleaned, before = redact_text(text, personal=False), self._published
        if len(cleaned) > len(before) and cleaned.startswith(before):
            self._published = cleaned
            self._publish(
                ModelDelta(
                    run_id=self._run_id,
                    step_id=self._step_id,
                    request=self._request,
                    offset=len(before),
                    text=cleaned[len(before) :],
                )
            )


async def open_deltas(
    store: Store, readers: ReaderCache, program: Program, run_id: str, activity: Activity, *, batch: timedelta
) -> DeltaWriter | None:
    """Open the deltas of an agent's step; ``None`` where there are none, or nobody may read them yet."""
    if is_withheld(program, activity):
        return None
    if store.deltas.spans_processes:
        # A reader that was announced with the start of the run is known before the first request.
        with contextlib.suppress(KneoError):
            await asyncio.wrap_future(readers.refresh())
    return DeltaWriter(
        run_id=run_id,
        step_id=activity.path,
        is_read=partial(readers.is_read, run_id),
        publish=store.deltas.publish,
        clock=store.clock,
        batch=batch,
    )


def is_withheld(program: Program, activity: Activity) -> bool:
    """Return whether the text of a step must not be read before the step has ended, or there is none.

    It must not where a person reviews the output of the step, or of a group or workflow around it, and where a guardrail checks it.
    """
    agent = program.agents.get(activity.ref)
    if activity.choices:
        return True  # the name of a choice is nobody's answer
    if activity.kind != "agent" or agent is None or agent.model is None or agent.model.provider == "dummy":
        return True
    if agent.guardrails is not None and (agent.guardrails.output or agent.guardrails.workflow):
        return True
    return any(
        gate.position in _LATER and (not path or activity.path == path or activity.path.startswith(f"{path}/"))
        for (path, _, _), gate in program.gates.items()
    )
