"""Pages of the console cost the same with 10,000 runs and 2,000 open tasks as with a few: statements and bytes, on both databases."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest
from console_in_process import page_at
from console_load import CHANGES, declare, fill, insert, multiply, pages, serve, statements, step
from console_pages import HtmlPage
from sqlalchemy import func, select

from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run
from kneo.service.console import inbox, render, run_page
from kneo.service.console.render import STATIC, STATIC_HASH
from kneo.store import agent_journal, history, releases, tables
from kneo.store.engine import Store

MAX_BYTES = 10_000
"""Bytes of a compressed page."""

MAX_FIRST_BYTES, MAX_FIRST_REQUESTS = 30_000, 4
"""Bytes and requests of the first page, with everything that it loads."""

MAX_STATIC = {"console.css": 40_000, "console.js": 16_000}

LONG_PLAN_BYTES = 25_000
"""Bytes of a compressed page with a hundred changes of forty lines each."""

COMPRESSED = (".css", ".js", ".svg", ".webmanifest")
"""Static files that the service compresses."""

RUNS_SHOWN = 50

MAX_STATEMENTS = 20

MORE_STATEMENTS = {"task": 34, "environments": 25, "environment": 26, "release": 35, "promotion": 35}
"""Statements of pages that show several lists: the task with the list of those that wait, all environments with their releases and
the bundles, one environment and a release with their history, decisions and the signed results about the bundle."""


def show(store: Store, path: str) -> tuple[int, int, str]:
    """Return the statements, the compressed bytes and the HTML of a page."""
    with statements(store) as found:
        html = page_at(store, path)
    return len(found), wire(html.encode()), html


def wire(content: bytes) -> int:
    """Return the bytes of a content as the service compresses it."""
    return len(gzip.compress(content, 5))


def costs(store: Store, run: Run) -> dict[str, tuple[int, int]]:
    return {name: show(store, path)[:2] for name, path in pages(store, run).items()}


def test_pages_cost_the_same_with_many_runs_and_tasks(store: Store) -> None:
    run = fill(store)
    few = costs(store, run)
    multiply(store)
    with store.read() as tx:
        assert tx.connection.execute(select(func.count()).select_from(tables.runs)).scalar_one() > 10_000
        assert tx.connection.execute(select(func.count()).select_from(tables.tasks)).scalar_one() >= 2_000
    assert page_at(store, "/inbox").count("data-task=") == CHANGES + inbox.PAGE_SIZE
    assert page_at(store, "/runs").count('href="/console/runs/run_') >= RUNS_SHOWN
    drawn = HtmlPage(page_at(store, f"/runs/{run.id}"))
    assert len(drawn.having("data-graph")) == 1
    many = costs(store, run)
    assert {name: number for name, (number, _) in many.items() if number > few[name][0] + 1} == {}, few
    limits = dict.fromkeys(many, MAX_STATEMENTS) | MORE_STATEMENTS
    assert {name: number for name, (number, _) in many.items() if number > limits[name]} == {}
    largest = dict.fromkeys(many, MAX_BYTES) | {"release": LONG_PLAN_BYTES, "promotion": LONG_PLAN_BYTES}
    assert {name: size for name, (_, size) in many.items() if size > largest[name]} == {}
    plan = page_at(store, "/environments/prod/refund-0")
    assert plan.count("writer99.system_prompt"), "the plan is the one that was kept with the change"
    with store.read() as tx:
        assert tx.connection.execute(select(func.count()).select_from(tables.requests)).scalar_one() == 0


def test_promotions_of_a_page_and_their_audit_events_are_read_in_one_statement_each(store: Store) -> None:
    """A release counts by its promotion and the audit event of that: both are read together, whatever the page lists."""
    with store.write() as tx:
        declare(tx)
        prod = releases.environment(tx, "prod")
        assert prod is not None
        for name in ("dev", "staging"):
            releases.put_environments(tx, [replace(prod, name=name, pending=())])
            serve(tx, name)
    for path, lists in (("/environments", 2), ("/environments/prod", 1), ("/environments/prod/refund-0", 1)):
        with statements(store) as found:
            page = page_at(store, path)
        latest = [each for each in found if "FROM promotions" in each and "max(promotions.id)" in each]
        events = [each for each in found if "FROM audit_events" in each and "audit_events.id IN" in each]
        assert (len(latest), len(events)) == (lists, lists), path
        assert "served-19" in page or path.endswith("refund-0")


def test_a_line_of_a_plan_is_one_text_of_its_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan has thousands of lines: each further expression of a line costs the page as much as the line itself."""
    with store.write() as tx:
        declare(tx)
    printed: list[str] = []
    monkeypatch.setattr(render, "reveal", lambda text: printed.append(text) or text)
    page = page_at(store, "/environments/prod/refund-0")
    lines = page.count('<tr class="new">')
    assert lines == 4_000
    assert len([text for text in printed if text.startswith(" line ")]) == lines
    assert len(printed) < 2 * lines


def test_the_first_page_loads_little(shared_store: Store) -> None:
    """A browser loads the page, its stylesheet, its script and its icon, and keeps the last three for ever."""
    page = HtmlPage(page_at(shared_store, "/inbox"))
    loaded = [each["href"] for each in page.having("rel") if each["rel"] in {"stylesheet", "icon"}]
    loaded += [each["src"] for each in page.having("src")]
    assert {each.partition("?")[2] for each in loaded} == {STATIC_HASH}, "a browser keeps each version for ever"
    assert 1 + len(loaded) <= MAX_FIRST_REQUESTS
    names = [each.partition("?")[0].rpartition("/")[2] for each in loaded]
    files = [wire(STATIC[name]) if name.endswith(COMPRESSED) else len(STATIC[name]) for name in names]
    assert wire(page.html.encode()) + sum(files) <= MAX_FIRST_BYTES
    assert {name: len(STATIC[name]) for name, limit in MAX_STATIC.items() if len(STATIC[name]) > limit} == {}
    scripts = sum(len(content) for name, content in STATIC.items() if name.endswith(".js"))
    assert scripts <= MAX_STATIC["console.js"], "all scripts together"


@pytest.mark.parametrize("page", ["run", "step"])
def test_long_texts_are_cut_in_rows_and_bounded_on_the_page_of_a_step(store: Store, page: str) -> None:
    with store.write() as tx:
        run = insert(tx, 1, waits=False)
        text = "<script>\u202e\x1b[31m" * 100_000
        history.insert_step(tx, replace(step(run, 1), input_text=text, output_text=text))
    if page == "run":
        assert show(store, f"/runs/{run.id}")[1] < MAX_BYTES
    else:
        assert show(store, f"/runs/{run.id}/steps/1")[1] < 10 * MAX_BYTES


def test_a_long_conversation_is_bounded_on_the_page_of_its_run(store: Store) -> None:
    with store.write() as tx:
        run = insert(tx, 1, waits=False)
        history.insert_step(tx, replace(step(run, 1, 1), step_id="work", kind="agent"))
        agent_journal.append(tx, run.id, [reply(number) for number in range(1, 200)])
    number, size, html = show(store, f"/runs/{run.id}")
    assert (number <= MAX_STATEMENTS, size < MAX_BYTES) == (True, True), (number, size)
    assert html.count('class="said"') == run_page.MOST_MESSAGES
    assert "169 earlier messages" in html


def reply(number: int) -> ConversationEntry:
    """Build the journal entry of a long reply."""
    text = {"part_kind": "text", "content": f"reply {number} {LONG_TEXT}"}
    return ConversationEntry(
        conversation="work~0",
        name=f"model:{number}",
        number=number,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        body={"messages": [{"kind": "response", "parts": [text]}]},
        facts={"agent": "writer", "provider": "openai", "model": "m", "input_tokens": 10, "output_tokens": 5},
        started_at="2026-01-31T12:00:00.000000+00:00",
        completed_at="2026-01-31T12:00:01.000000+00:00",
    )


LONG_TEXT = " ".join(f"word{number * 7919 % 10_007}" for number in range(5_000))
