"""Log lines: one JSON object each, with the fields of the work that wrote them."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import threading

from kneo.telemetry import JsonLines, log_fields


def line(**extra: object) -> dict[str, object]:
    record = logging.LogRecord("kneo.test", logging.INFO, "x.py", 1, "said %s", ("this",), None)
    vars(record).update(extra)
    return json.loads(JsonLines().format(record))


def test_a_line_outside_of_any_work_has_the_four_fields() -> None:
    assert set(line()) == {"at", "level", "logger", "message"}


def test_a_line_has_no_character_that_cannot_be_seen() -> None:
    hostile = "\x9b2J\u202ea\u200b\u2800\U000e0041\U000e01f0"
    record = logging.LogRecord("kneo.test", logging.INFO, "x.py", 1, hostile, None, None)
    text = JsonLines().format(record)
    assert text.isascii()
    assert json.loads(text)["message"] == hostile


def test_fields_of_the_work_are_on_each_line_of_its_block() -> None:
    with log_fields(request_id="req-1", trace_id=None):
        with log_fields(run_id="run_1"):
            assert line(step_id="a").items() >= {"request_id": "req-1", "run_id": "run_1", "step_id": "a"}.items()
        assert "run_id" not in line()
        assert "trace_id" not in line()
        assert line(request_id="mine")["request_id"] == "mine", "what the line itself states wins"
    assert "request_id" not in line()


def test_tasks_inherit_the_fields_and_threads_with_the_context_do() -> None:
    found: list[object] = []

    async def work() -> None:
        with log_fields(run_id="run_1"):
            task = asyncio.create_task(note())
        with log_fields(run_id="run_2"):
            await task

    async def note() -> None:
        found.append(line().get("run_id"))

    asyncio.run(work())
    with log_fields(run_id="run_3"):
        context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.append(context.run(line).get("run_id")))
    thread.start()
    thread.join()
    assert found == ["run_1", "run_3"]
    assert "run_id" not in line()
