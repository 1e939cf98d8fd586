"""Every operation that makes something makes it once under one idempotency key, though its answer was lost.

The operations are those of the routers. A new one has to stand here: among those that are sent twice, or with its reason among
those that need no key.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import controller_bench
import httpx
import pytest
from canary_bench import PLAN
from kneo_process import eventually
from service_bench import DRAFT, Bench, spec_of
from sqlalchemy import func, select, update

from kneo.controller.loop import Controller
from kneo.digest import hash_text
from kneo.runtime.engine.start import Starter
from kneo.service.app import create_app, routers
from kneo.service.routing import RouteTable
from kneo.settings import from_env
from kneo.store.engine import Store
from kneo.store.tables import idempotency_keys, metadata
from kneo.trust.dsse import serialise, sign
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, build_approval, rewrite_subject

Json = dict[str, object]

CHANGES_NOTHING = {
    "validate_spec",
    "lint_spec",
    "compile_spec",
    "explain_spec",
    "graph_spec",
    "report_spec_policy",
    "resolve_spec",
    "migrate_spec",
    "diff_specs",
    "preview_environment_policy",
    "verify_receipts",
    "get_answer_to_sign",
    "get_grant_to_sign",
}
"""They answer a question; at most an audit event says that it was asked."""

SENT_TWICE_ELSEWHERE = dict.fromkeys(("create_grant", "approve_grant", "revoke_grant"), "test_grants.py sends it twice")
"""Operations that need an environment of their own; each is sent twice under one key there."""

NEEDS_NO_KEY = SENT_TWICE_ELSEWHERE | {
    "receive_hook": "its sender has no key; a delivery makes the controller look at the repository, and counts once",
    "answer_slack": "its sender has no key; a button decides one request of a task once; test_slack_buttons.py",
    "send_to_agent": "the id of its message is the key; test_a2a.py sends a message twice",
    "send_to_mcp_server": "`_meta.idempotencyKey` of a call is the key; test_mcp_face.py sends a call twice",
    "send_to_bundle_tools": "as send_to_mcp_server; test_mcp_tools.py sends a call twice",
    "answer_claude_code_hook": "the id of the tool use is the key; test_claude_code.py sends an event twice",
    "create_call": "a repetition gets the call as it then is, not the first answer; test_calls.py sends one twice",
    "begin_call": "a second beginning is refused; test_calls.py",
    "report_call": "a second report is refused; test_calls.py",
    "cancel_call": "a second cancellation is refused; test_calls.py",
    "delete_session": "a second deletion finds nothing to delete",
}


@dataclass(frozen=True)
class Request:
    path: str
    body: Json
    method: str = "POST"


def run_order(_bench: Bench) -> Json:
    return {"input": "hi", "spec": spec_of(DRAFT)}


def of_task(act: str, body: Json) -> Callable[[Bench], Request]:
    def make(bench: Bench) -> Request:
        return Request(f"/human-tasks/{bench.paused()['continuation_id']}/{act}", body)

    return make


def failed(bench: Bench) -> Request:
    run = bench.start(spec_of(DRAFT, {"id": "boom", "kind": "function", "ref": "boom"}))
    return Request(f"/runs/{run['run_id']}/continue", {})


def released(bench: Bench) -> Request:
    run = bench.paused()
    bench.post(f"/human-tasks/{run['continuation_id']}/claim")
    return Request(f"/human-tasks/{run['continuation_id']}/unclaim", {})


def linked(bench: Bench) -> Request:
    path = f"/human-tasks/{bench.paused()['continuation_id']}/links"
    link = bench.post(path, {"person": "reviewer"})
    return Request(f"{path}/{link['id']}/revoke", {})


def answer_of(run: Json) -> Json:
    return {"request_id": run["metadata"]["pending_human_request"]["request_id"], "decision": "approved"}


def resumed(bench: Bench) -> Request:
    run = bench.paused()
    return Request(f"/human-tasks/{run['continuation_id']}/resume", answer_of(run))


def batch(bench: Bench) -> Request:
    runs = [bench.paused(), bench.paused()]
    items = [{"continuation_id": run["continuation_id"], **answer_of(run)} for run in runs]
    return Request("/human-tasks/batch", {"items": items})


def continued(bench: Bench) -> Request:
    run = bench.paused()
    body = {"step_requirements": [{"continuation_id": run["continuation_id"], "confirmed": True}]}
    return Request(f"/workflows/lab/runs/{run['run_id']}/continue", body)


RUNS: dict[str, Callable[[Bench], Request]] = {
    "create_run": lambda bench: Request("/runs", run_order(bench)),
    "run_spec": lambda bench: Request("/specs/run", run_order(bench)),
    "continue_run": failed,
    "fork_run": lambda bench: Request(f"/runs/{bench.paused()['run_id']}/fork", {"checkpoint": 1}),
    "cancel_run": lambda bench: Request(f"/runs/{bench.paused()['run_id']}/cancel", {}),
    "resume_human_task": resumed,
    "resume_human_tasks": batch,
    "continue_workflow_run": continued,
    "put_run_input": lambda bench: Request(f"/runs/{bench.paused()['run_id']}/input", {"value": True}),
    "claim_human_task": of_task("claim", {}),
    "unclaim_human_task": released,
    "assign_human_task": of_task("assign", {"to": "reviewer"}),
    "delegate_human_task": of_task("delegate", {"to": "reviewer"}),
    "snooze_human_task": of_task("snooze", {"until": "2999-01-01T00:00:00Z"}),
    "comment_human_task": of_task("comments", {"text": "hm"}),
    "create_link": of_task("links", {"person": "reviewer"}),
    "revoke_link": linked,
    "set_environment_policy": lambda _bench: Request("/policies/environment/prod", {"require_guardrails": True}, "PUT"),
}

CANARY_ACTS = ("pause", "resume", "promote", "abort", "restart")

BEFORE = {
    "unsuspend_environment": "suspend_environment",
    "unhold_release": "hold_release",
    "resume_canary": "pause_canary",
    "restart_canary": "abort_canary",
}
"""What has to be done first."""

RELEASES: dict[str, tuple[str, Json]] = {
    "suspend_environment": ("/environments/prod/suspend", {"reason": "x"}),
    "unsuspend_environment": ("/environments/prod/unsuspend", {}),
    "hold_release": ("/environments/prod/hold", {"bundle": "mail", "reason": "x"}),
    "unhold_release": ("/environments/prod/unhold", {"bundle": "mail"}),
    "rollback_release": ("/environments/prod/rollback", {"bundle": "mail", "reason": "x"}),
    "reconcile_environment": ("/environments/prod/reconcile", {}),
    "approve_promotion": ("/promotions/{waiting}/approve", {}),
    "reject_promotion": ("/promotions/{waiting}/reject", {}),
    "accept_rewrite": ("/source/accept-rewrite", {}),
    **{f"{act}_canary": (f"/environments/prod/canaries/mail/{act}", {"reason": "x"}) for act in CANARY_ACTS},
}


def test_every_operation_that_changes_something_is_sent_twice_or_says_why_not() -> None:
    changing = {operation.id for operation in RouteTable(routers()) if operation.method != "GET"}
    tables = [CHANGES_NOTHING, NEEDS_NO_KEY, RUNS, RELEASES]
    known = [name for table in tables for name in table]
    assert len(known) == len(set(known))
    assert changing == set(known)


# ---- what was made ------------------------------------------------------------------------------------------------

NOT_MADE = {"idempotency_keys", "leases", "audit_events", "audit_nodes"}
"""Tables of the keys themselves, of who works, and of what is counted by its kind instead."""


def made(store: Store) -> Mapping[str, int]:
    """Count everything that there is, but refusals in the audit log."""
    events = metadata.tables["audit_events"]
    with store.read() as tx:
        counted = {
            table.name: tx.connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
            if table.name not in NOT_MADE and "audit" not in table.name
        }
        done = select(func.count()).where(events.c.event_type != "request.refused")
        return counted | {"audit": tx.connection.execute(done).scalar_one()}


REFUSALS_OF_A_REPETITION = {"idempotency_key_in_progress", "secret_shown_once"}

TOKEN = re.compile(r"[A-Za-z0-9_-]{20,}")


def stored_tokens(store: Store) -> set[str]:
    """Return the words of stored answers whose SHA-256 is in the database: only who received a token may know it."""
    with store.read() as tx:
        answers = tx.connection.execute(select(idempotency_keys.c.response)).scalars().all()
        columns = [
            column for table in metadata.tables.values() for column in table.columns if column.name.endswith("_hash")
        ]
        hashes = {value for column in columns for value in tx.connection.execute(select(column)).scalars()}
    words = {word for answer in answers for word in TOKEN.findall(json.dumps(answer))}
    return {word for word in words if hash_text(word) in hashes}


def lose_answers(store: Store) -> None:
    """Forget every stored answer, as if the service had been killed before it stored them."""
    with store.write() as tx:
        tx.connection.execute(update(idempotency_keys).values(status=None, response=None))


def check_once(store: Store, send: Callable[[], httpx.Response], quiet: Callable[[], bool]) -> None:
    before = made(store)
    first = send()
    assert first.is_success, first.text
    eventually(quiet)
    after = made(store)
    assert after != before
    assert stored_tokens(store) == set()
    again = send()
    assert again.json() == first.json() or again.json()["error"] == "secret_shown_once", again.text
    assert made(store) == after
    lose_answers(store)
    again = send()
    assert again.is_success or again.json()["error"] in REFUSALS_OF_A_REPETITION, again.text
    eventually(quiet)
    assert made(store) == after


# ---- runs and tasks -----------------------------------------------------------------------------------------------


def at_rest(store: Store) -> bool:
    runs = metadata.tables["runs"]
    with store.read() as tx:
        moving = select(func.count()).where(runs.c.status == "running")
        return tx.connection.execute(moving).scalar_one() == 0


@pytest.mark.parametrize("name", RUNS)
def test_what_is_done_with_runs_and_tasks_is_done_once(bench: Bench, name: str) -> None:
    request = RUNS[name](bench)
    eventually(lambda: at_rest(bench.store))
    headers = {"Idempotency-Key": f"once-{name}"}

    def send() -> httpx.Response:
        return bench.client().request(request.method, request.path, json=request.body, headers=headers)

    check_once(bench.store, send, lambda: at_rest(bench.store))


def test_a_policy_that_is_sent_again_does_not_undo_a_later_one(bench: Bench) -> None:
    path = "/policies/environment/prod"
    for key, flag in (("first", "require_guardrails"), ("second", "fail_on_warnings"), ("first", "require_guardrails")):
        answer = bench.client().put(path, json={flag: True}, headers={"Idempotency-Key": key}).json()
        assert answer["policy"][flag] is True
    policy = bench.client().get(path).json()["policy"]
    assert (policy["fail_on_warnings"], policy["require_guardrails"]) == (True, False)


# ---- releases -----------------------------------------------------------------------------------------------------


@contextmanager
def reconciling(bench: controller_bench.Bench) -> Iterator[None]:
    controller = Controller(bench.store, bench.reconciler(), interval=timedelta(hours=1))
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        eventually(bench.followed)
        yield
    finally:
        controller.stop()
        thread.join()


@contextmanager
def asked(bench: controller_bench.Bench, folder: Path) -> Iterator[httpx.Client]:
    env = {
        "KNEO_SERV_API_KEYS": "bob:bobs-key:approver,operator",
        "KNEO_SERV_SERVICE_KEY": bench.service_key.dump().decode(),
    }
    settings = replace(from_env(env, folder), trust_root=bench.repo.pin)
    app = create_app(settings, bench.store, Starter(bench.store, lambda spec: spec, pin=bench.repo.pin))
    with controller_bench.serving(app) as client:
        client.headers["Authorization"] = "Bearer bobs-key"
        yield client


def rewritten(bench: controller_bench.Bench) -> Json:
    """Rewrite history, have it refused, and return what accepts it."""
    old = bench.repo.head()
    bench.repo.git("reset", "-q", "--soft", "HEAD~1")
    new = bench.repo.commit("Another past")
    with pytest.raises(Exception, match="does not follow"):
        bench.reconcile()
    bench.drop_lease()
    about, now = rewrite_subject(old, new), bench.store.clock.now()
    statement = build_approval(
        bundle_name=about.name,
        bundle_digest=about.digest,
        about=about,
        environment="source",
        policy_digest=bench.repo.pin,
        decision=ApprovalDecision.APPROVE,
        issued_at=now,
        expires=now + timedelta(days=1),
    )
    return {"envelope": serialise(sign(PAYLOAD_TYPE, statement.payload, bench.repo.key)).decode()}


@pytest.mark.parametrize("name", RELEASES)
def test_what_is_done_with_releases_is_done_once(store: Store, tmp_path: Path, name: str) -> None:
    bench = controller_bench.Bench(store, tmp_path)
    people = {"bob": {"roles": ["approver"]}}
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.bundle("mail", "1.1.0", bench.repo.other_spec())
    canaries = {"mail": PLAN} if name.endswith("_canary") else {}
    bench.repo.environment("prod", {"mail": "1.1.0"}, canaries=canaries)
    bench.repo.commit("Release mail 1.1.0")
    bench.reconcile()
    path, body = RELEASES[name]
    if "{waiting}" in path:
        bench.repo.bundle("mail", "1.2.0")
        approvals = {"required": 1, "roles": ["approver"]}
        bench.repo.environment("prod", {"mail": "1.2.0"}, approvals=approvals, people=people)
        bench.repo.commit("Release mail 1.2.0")
        bench.reconcile()
        path = path.replace("{waiting}", bench.pending()[0].id)
    if name == "accept_rewrite":
        body = rewritten(bench)
    bench.drop_lease()
    with reconciling(bench), asked(bench, tmp_path) as http:
        if name in BEFORE:
            way, order = RELEASES[BEFORE[name]]
            assert http.post(f"/v1{way}", json=order).is_success

        def send() -> httpx.Response:
            return http.post(f"/v1{path}", json=body, headers={"Idempotency-Key": f"once-{name}"})

        check_once(store, send, lambda: True)
