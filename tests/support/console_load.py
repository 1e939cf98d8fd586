"""A database with 10,000 runs and 2,000 open tasks for the console, and the pages that people open in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from builders import build_run, build_task
from sqlalchemy import Column, ColumnElement, case, event, func, literal, select

from kneo import registry
from kneo.clock import isoformat, new_id
from kneo.digest import Digest, digest_of
from kneo.records.release import BundleRecord, EnvironmentRecord, Pending, PendingPlan, Promotion, PromotionKind
from kneo.records.run import Run, RunStatus, StepRecord
from kneo.records.task import Candidates
from kneo.store import audit, history, releases, runs, tables, tasks
from kneo.store.engine import Store, Tx
from kneo.store.task_filter import TaskFilter
from kneo.tasks import people
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import ApprovalDecision

FEW = 64

TASK_ROUNDS, RUN_ROUNDS = 5, 8
"""Doublings of the rows: to 2,048 tasks and 16,384 runs."""

CHANGES = 20
"""Pending changes of an environment."""

SERVED = 20
"""Releases that an environment serves."""

DECISIONS = 200
"""Decisions about one change, and past changes of one bundle."""

NODES = 12
"""Nodes of the graph of a run."""


def insert(tx: Tx, number: int, *, waits: bool, **changes: object) -> Run:
    """Insert a run, and its task where it waits."""
    run = build_run(
        id=new_id("run", tx.now),
        status=RunStatus.PAUSED if waits else RunStatus.SUCCEEDED,
        environment="prod",
        input_text=f"ticket {number}: the lamp came with a crack in its base " * 5,
        created_at=isoformat(tx.now),
        updated_at=isoformat(tx.now),
        **changes,
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
    releases.put_environments(tx, [record])
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
    decide_often(tx, changes[0])
    serve(tx)


def serve(tx: Tx, environment: str = "prod") -> None:
    """Release bundles, as the controller does: each has a promotion and its audit event."""
    change = registry.ReleaseChange(revision="main@sha1:1")
    bundles = [
        BundleRecord(
            digest=digest_of(b"served %d" % number),
            name=f"served-{number}",
            version="1.0.0",
            seq=1,
            prev=None,
            payload=b"served %d" % number,
            envelope=b"{}",
            spec_digest=digest_of(b"spec %d" % number),
            signers=("ann",),
            first_seen_at=tx.at,
            revision=change.revision,
        )
        for number in range(SERVED)
    ]
    promoted = [
        registry.BundlePromotion(bundle=each, kind=PromotionKind.PROMOTE, current=None, change=change)
        for each in bundles
    ]
    registry.promote(tx, environment, promoted)


def decide_often(tx: Tx, change: Pending) -> None:
    """Record the past of a bundle and a long plan of its next change, as the controller and its approvers leave them."""
    service, digest = PrivateKey.generate(), Digest(str(change.policy_digest))
    ids = []
    for number in range(DECISIONS):
        decided = registry.UnsignedDecision(
            environment="prod",
            subject_name=change.bundle,
            subject=Digest(str(change.subject)),
            policy_digest=digest,
            decision=ApprovalDecision.REJECT,
            issued_at=tx.now + timedelta(seconds=number),
            expires=tx.now + timedelta(days=7),
            reason="because " * 20,
        )
        ids.append(registry.record_decision(tx, decided, approver="ann", service_key=service).id)
    past = [
        Promotion(
            id=f"prom_past{number:022d}",
            environment="prod",
            bundle=change.bundle,
            kind=PromotionKind.PROMOTE,
            from_digest=None,
            to_digest=digest_of(b"%d" % number),
            version=f"1.{number}.0",
            actor="controller",
            revision="main@sha1:1",
            audit_event_id=f"evt_{number}",
            at=tx.at,
            approvals=(identity,),
        )
        for number, identity in enumerate(ids)
    ]
    releases.insert_promotions(tx, past)
    lines = [f"+ line {number} of the new prompt, which differs from the one before" for number in range(40)]
    changes = [
        {
            "path": f"components.agents.writer{number}.system_prompt",
            "area": "prompt",
            "danger": "high",
            "message": "The prompt changes.",
            "lines": lines,
        }
        for number in range(100)
    ]
    content = {
        "from_version": "1.0.0",
        "signers": ["ann"],
        "summary": "100 changes",
        "changes": changes,
        "more": 0,
        "rules": [],
        "weakened": [],
    }
    releases.put_plan(tx, PendingPlan(id=change.id, environment="prod", base=None, content=content))


def graph_spec() -> dict[str, object]:
    """Return the spec of a run with a graph: a way through all nodes, and ways around some."""
    names = [f"node{number}" for number in range(NODES)]
    around = [{"from": names[at], "to": names[at + 2], "label": "skip"} for at in range(0, NODES - 2, 3)]
    return {
        "version": "v1",
        "agent": {"name": "writer", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {
            "type": "graph",
            "name": "publish",
            "start": names[0],
            "nodes": {name: {"id": name, "kind": "function", "ref": "note"} for name in names},
            "edges": [*({"from": first, "to": second} for first, second in pairwise(names)), *around],
        },
        "components": {"functions": {"note": {"implementation": "lab_functions.publish"}}},
    }


def fill(store: Store, repeats: int = 20_000) -> Run:
    """Insert runs that wait, and one of 200 steps with a graph.

    Args:
        store: The database.
        repeats: The length of the texts of steps, in repetitions of some characters.
    """
    with store.write() as tx:
        declare(tx)
        for each in range(FEW):
            insert(tx, each, waits=True)
        spec = json.dumps(graph_spec()).encode()
        runs.insert_spec(tx, digest_of(spec), spec)
        last = insert(tx, FEW, waits=False, spec_digest=digest_of(spec), visited_steps=("node0", "node1"))
        for sequence in range(NODES):
            history.insert_step(tx, replace(step(last, 1 + sequence, repeats), step_id=f"node{sequence}"))
        for sequence in range(1 + NODES, 201):
            history.insert_step(tx, step(last, sequence, repeats))
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


def step(run: Run, sequence: int, repeats: int = 20_000) -> StepRecord:
    """Build a step with long texts."""
    at = "2026-01-31T12:00:00.000000+00:00"
    return StepRecord(
        run_id=run.id,
        sequence=sequence,
        step_id=f"loop/step{sequence}",
        kind="function",
        attempt=0,
        status="completed",
        idempotency_key=f"{run.id}:loop/step{sequence}:0",
        input_text="<b>in</b>" * repeats,
        output_text="out " * repeats,
        error=None,
        code_digest=None,
        started_at=at,
        completed_at=at,
    )


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Collect the statements that read."""
    found: list[str] = []

    def listen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("SELECT", "WITH")):
            found.append(statement)

    event.listen(store.engine, "before_cursor_execute", listen)
    try:
        yield found
    finally:
        event.remove(store.engine, "before_cursor_execute", listen)


def pages(store: Store, run: Run) -> Mapping[str, str]:
    """Return the addresses of pages below the console, by name."""
    with store.read() as tx:
        waiting = tasks.list_tasks(tx, TaskFilter(), limit=1)[0].id
    return {
        "inbox": "/inbox",
        "task": f"/inbox/{waiting}",
        "decided tasks": "/inbox?show=decided",
        "environments": "/environments",
        "environment": "/environments/prod",
        "release": "/environments/prod/refund-0",
        "promotion": f"/promotions/prom_{0:026d}",
        "runs": "/runs",
        "paused runs": "/runs?status=paused",
        "run": f"/runs/{run.id}",
        "later steps": f"/runs/{run.id}?offset=150",
        "audit": "/audit",
        "audit of a run": f"/audit?run={run.id}",
        "search": "/find?q=crack",
    }
