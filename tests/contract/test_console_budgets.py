"""Pages of the console cost the same with 10,000 runs and 2,000 open tasks as with a few: statements and bytes, on both databases."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from builders import build_run, build_task
from console_in_process import page_html
from sqlalchemy import Column, ColumnElement, case, event, func, literal, select

from kneo.clock import isoformat, new_id
from kneo.digest import digest_of
from kneo.records.release import EnvironmentRecord, Pending
from kneo.records.run import Run, RunStatus, StepRecord
from kneo.records.task import Candidates
from kneo.service.console import audit_log, environments, inbox, run_page, search
from kneo.service.console import runs as runs_page
from kneo.service.console import task as task_page
from kneo.service.console.page import PageFunction
from kneo.store import audit, history, releases, runs, tables, tasks
from kneo.store.engine import Store, Tx
from kneo.store.task_filter import TaskFilter
from kneo.tasks import people

FEW = 64

TASK_ROUNDS, RUN_ROUNDS = 5, 8
"""Doublings of the rows: to 2,048 tasks and 16,384 runs."""

MAX_BYTES = 10_000
"""Bytes of a compressed page."""

MAX_STATEMENTS = 20

MORE_STATEMENTS = {"task": 34, "environment": 30}
"""Statements of pages that show several lists: the task with the list of those that wait, the environment with its history."""

CHANGES = 20
"""Pending changes of an environment."""


def insert(tx: Tx, number: int, *, waits: bool) -> Run:
    run = build_run(
        id=new_id("run", tx.now),
        status=RunStatus.PAUSED if waits else RunStatus.SUCCEEDED,
        environment="prod",
        input_text=f"ticket {number}: the lamp came with a crack in its base " * 5,
        created_at=isoformat(tx.now),
        updated_at=isoformat(tx.now),
    )
    runs.insert_run(tx, run)
    if waits:
        # Every other task belongs to an environment that Git does not declare, whose people the issuer of tokens may know.
        environment, roles = (("prod", ("reviewer",)), ("lab", ()))[number % 2]
        candidates = Candidates(roles=roles, exclude=("requester", "bundle_signer", "previous_reviewers"))
        task = build_task(run_id=run.id, environment=environment, subject="Dear Mara, " * 50, requester="bob")
        task = replace(task, candidates=candidates, bundle_digest=digest_of(b"a bundle"))
        tasks.insert_task(tx, task, people.candidate_rows(task, iter(())))
    return run


def declare(tx: Tx) -> None:
    """Declare prod with its people, as the controller does, and a change that waits for them."""
    tree = {
        "apiVersion": "kneo/v1",
        "kind": "Environment",
        "metadata": {"name": "prod"},
        "spec": {
            "people": {"ann": {"roles": ["reviewer", "approver"]}},
            "policy": {"enabled": True},
            "signatures": {"roles": ["release"], "threshold": 1},
        },
    }
    declaration = json.dumps(tree).encode()
    digest = digest_of(declaration)
    record = EnvironmentRecord(
        name="prod",
        declaration=declaration,
        policy_digest=digest,
        revision="main@sha1:1",
        pending=(),
        updated_at="",
    )
    releases.put_environment(tx, record)
    changes = [
        Pending(
            bundle=f"refund-{number}",
            version="2.0.0",
            gate="approvals",
            reason="AwaitingApproval",
            message="waiting for approval (0 of 1)",
            who=("ann",),
            digest=digest_of(b"%d" % number),
            subject=digest_of(b"subject %d" % number),
            policy_digest=digest,
            id=f"prom_{number:026d}",
            since=tx.at,
        )
        for number in range(CHANGES)
    ]
    releases.put_pending(tx, "prod", changes)


def fill(store: Store) -> Run:
    """Insert runs that wait, and one of 200 steps."""
    with store.write() as tx:
        declare(tx)
        for each in range(FEW):
            insert(tx, each, waits=True)
        last = insert(tx, FEW, waits=False)
        for sequence in range(1, 201):
            history.insert_step(tx, step(last, sequence))
        for _ in range(FEW):
            audit.record(tx, "run.created", actor="ann", run_id=last.id, metadata={"reason": "because " * 20})
    return last


def multiply(store: Store) -> None:
    """Double the rows of runs and tasks several times."""
    with store.write() as tx:
        for number in range(RUN_ROUNDS):
            for table in (tables.runs, tables.tasks)[: 1 if number >= TASK_ROUNDS else 2]:
                changed = {
                    name: copied(table.c[name], number) for name in ("id", "run_id", "request_id") if name in table.c
                }
                columns = [changed.get(column.name, column) for column in table.c]
                tx.connection.execute(table.insert().from_select(list(table.c), select(*columns)))


def copied(column: Column[str], number: int) -> ColumnElement[str]:
    """Return an id with one more character after its prefix."""
    prefix = case((column.like("cont%"), 5), else_=4)
    return func.substr(column, 1, prefix) + literal(chr(ord("a") + number)) + func.substr(column, prefix + 1)


def step(run: Run, sequence: int) -> StepRecord:
    at = "2026-01-31T12:00:00.000000+00:00"
    return StepRecord(
        run_id=run.id,
        sequence=sequence,
        step_id=f"loop/step{sequence}",
        kind="function",
        attempt=0,
        status="completed",
        idempotency_key=f"{run.id}:loop/step{sequence}:0",
        input_text="<b>in</b>" * 20_000,
        output_text="out " * 20_000,
        error=None,
        code_digest=None,
        started_at=at,
        completed_at=at,
    )


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    found: list[str] = []

    def listen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("SELECT", "WITH")):
            found.append(statement)

    event.listen(store.engine, "before_cursor_execute", listen)
    try:
        yield found
    finally:
        event.remove(store.engine, "before_cursor_execute", listen)


def show(store: Store, function: PageFunction, query: str = "", **path: str) -> tuple[int, int]:
    """Return the statements and the compressed bytes of a page."""
    with statements(store) as found:
        html = page_html(store, function, query, **path)
    return len(found), len(gzip.compress(html.encode(), 5))


def costs(store: Store, run: Run) -> dict[str, tuple[int, int]]:
    with store.read() as tx:
        waiting = tasks.list_tasks(tx, TaskFilter(), limit=1)[0].id
    return {
        "inbox": show(store, inbox.show_inbox),
        "task": show(store, task_page.show_task, task=waiting),
        "environments": show(store, environments.show_environments),
        "environment": show(store, environments.show_environment, environment="prod"),
        "decided tasks": show(store, inbox.show_inbox, "show=decided"),
        "runs": show(store, runs_page.show_runs),
        "paused runs": show(store, runs_page.show_runs, "status=paused"),
        "run": show(store, run_page.show_run, run_id=run.id),
        "later steps": show(store, run_page.show_run, "offset=150", run_id=run.id),
        "audit": show(store, audit_log.show_audit),
        "audit of a run": show(store, audit_log.show_audit, f"run={run.id}"),
        "search": show(store, search.find, "q=crack"),
    }


def test_pages_cost_the_same_with_many_runs_and_tasks(store: Store) -> None:
    run = fill(store)
    few = costs(store, run)
    multiply(store)
    with store.read() as tx:
        assert tx.connection.execute(select(func.count()).select_from(tables.runs)).scalar_one() > 10_000
        assert tx.connection.execute(select(func.count()).select_from(tables.tasks)).scalar_one() >= 2_000
    assert page_html(store, inbox.show_inbox).count("data-task=") == CHANGES + inbox.PAGE_SIZE
    many = costs(store, run)
    assert {name: number for name, (number, _) in many.items() if number > few[name][0] + 1} == {}, few
    limits = dict.fromkeys(many, MAX_STATEMENTS) | MORE_STATEMENTS
    assert {name: number for name, (number, _) in many.items() if number > limits[name]} == {}
    assert {name: size for name, (_, size) in many.items() if size > MAX_BYTES} == {}


@pytest.mark.parametrize("page", ["run", "step"])
def test_long_texts_are_cut_in_rows_and_bounded_on_the_page_of_a_step(store: Store, page: str) -> None:
    with store.write() as tx:
        run = insert(tx, 1, waits=False)
        text = "<script>\u202e\x1b[31m" * 100_000
        history.insert_step(tx, replace(step(run, 1), input_text=text, output_text=text))
    if page == "run":
        assert show(store, run_page.show_run, run_id=run.id)[1] < MAX_BYTES
    else:
        assert show(store, run_page.show_step, run_id=run.id, number="1")[1] < 10 * MAX_BYTES
