"""The page of an agent's step: tool calls with arguments and results, tokens and cost, conversations."""

from __future__ import annotations

import pytest
from builders import build_run
from console_in_process import page_html
from console_pages import HtmlPage

from kneo.agents.quota import _used
from kneo.api.run_views import UsageView
from kneo.cli.runs.runs import usage_line
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import AgentUsage, Run, RunStatus, StepRecord
from kneo.service.console import run_page
from kneo.store import agent_journal, history, runs, usage
from kneo.store.engine import Store

HOSTILE = "<img src=x onerror=alert(1)>\u202e\u200b"


def at(second: int) -> str:
    return f"2026-01-31T12:00:{second:02d}.000000+00:00"


def entry(name: str, kind: EntryKind, body: dict[str, object], facts: dict[str, object]) -> ConversationEntry:
    return ConversationEntry(
        conversation="draft~0",
        name=name,
        number=1,
        kind=kind,
        status=EntryStatus.DONE,
        body=body,
        facts=facts,
        started_at=at(2),
        completed_at=at(4),
    )


def agent_run(store: Store, cost_micros: int = 3_100) -> Run:
    """Insert a run whose agent asked a model once and called one tool."""
    run = build_run(status=RunStatus.SUCCEEDED)
    step = StepRecord(
        run_id=run.id,
        sequence=1,
        step_id="draft",
        kind="agent",
        attempt=0,
        status="completed",
        idempotency_key=f"{run.id}:draft:0",
        input_text=f"in {HOSTILE}",
        output_text=f"out {HOSTILE}",
        error=None,
        code_digest=None,
        started_at=at(1),
        completed_at=at(9),
    )
    call = {"part_kind": "tool-call", "tool_call_id": "c.1", "tool_name": HOSTILE, "args": {"to": f"Mara {HOSTILE}"}}
    result = {"part_kind": "tool-return", "tool_call_id": "c.1", "tool_name": HOSTILE, "content": f"sent {HOSTILE}"}
    reply = {"messages": [{"kind": "response", "parts": [call]}, {"kind": "request", "parts": [result]}]}
    facts = {
        "agent": HOSTILE,
        "provider": "openai",
        "model": HOSTILE,
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_micros": cost_micros,
    }
    entries = [
        entry("model:1", EntryKind.MODEL, reply, facts),
        entry("tool:1.c.1", EntryKind.TOOL, {}, {"tool": HOSTILE}),
    ]
    with store.write() as tx:
        runs.insert_run(tx, run)
        history.insert_step(tx, step)
        agent_journal.append(tx, run.id, entries)
        usage.record_usage(tx, run, entries)
    return run


def check(html: str) -> HtmlPage:
    page = HtmlPage(html)
    assert page.problems == []
    assert "<img" not in html
    assert "\u202e" not in html
    assert "\u200b" not in html
    return page


def test_a_step_shows_its_calls_with_arguments_and_results(store: Store) -> None:
    run = agent_run(store)
    page = check(page_html(store, run_page.show_step, run_id=run.id, number="1"))
    assert "Mara &lt;img" in page.html
    assert "sent &lt;img" in page.html
    assert "15 tokens, $0.0031" in page.text


def test_a_run_shows_tokens_cost_and_calls_of_its_agents(store: Store) -> None:
    run = agent_run(store)
    page = check(page_html(store, run_page.show_run, run_id=run.id))
    assert "1 request, 15 tokens, $0.0031" in page.text
    assert "Tool calls" in page.text
    assert f"/console/runs/{run.id}/conversation" in page.links


def test_a_conversation_shows_messages_and_calls_as_text(store: Store) -> None:
    run = agent_run(store)
    page = check(page_html(store, run_page.show_conversation, run_id=run.id))
    assert "Mara &lt;img" in page.html
    assert "sent &lt;img" in page.html


@pytest.mark.parametrize(
    ("micros", "cost"),
    [
        (0, "$0.0000"),
        (1, "$0.000001"),
        (40, "$0.000040"),
        (3_149, "$0.0031"),
        (9_999_949, "$9.9999"),
        (12_345_678_900, "$12,345.68"),
    ],
)
def test_a_cost_is_the_same_text_in_the_console_and_the_command_line(store: Store, micros: int, cost: str) -> None:
    run = agent_run(store, micros)
    page = check(page_html(store, run_page.show_run, run_id=run.id))
    assert f"1 request, 15 tokens, {cost}" in page.text
    usage = AgentUsage(requests=1, input_tokens=10, output_tokens=5, cost_micros=micros)
    assert usage_line(vars(UsageView.of(usage))) == f"1 request, 0 tool calls, 15 tokens, {cost}"
    assert f"15 tokens and {cost} are used" in _used(usage)
