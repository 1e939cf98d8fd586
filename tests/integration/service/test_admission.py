"""What happens to a request before anybody looks at its body."""

from __future__ import annotations

import json
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from databases import Server
from kneo_process import eventually
from logged_causes import Causes
from prometheus_client import CollectorRegistry
from service_bench import DRAFT, Bench, serving, spec_of
from sqlalchemy import text, update
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from kneo.service import access_log
from kneo.service.routing import RouteTable
from kneo.settings import HttpSettings
from kneo.store.tables import idempotency_keys
from kneo.tasks import links

RUN = {"input": "hi", "spec": spec_of(DRAFT)}


def error_of(answer: httpx.Response) -> str:
    body = answer.json()
    if isinstance(body["detail"], dict):
        assert body["detail"]["error"] == body["error"]
        assert body["detail"]["message"] == body["message"]
    return body["error"]


# ---- the order of refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{not json", b"[]", b'{"input": 1}', b"\xff\xfe"])
def test_the_key_then_the_scope_then_the_query_then_the_body(bench: Bench, body: bytes) -> None:
    json_header = {"Content-Type": "application/json"}
    anybody = httpx.post(f"{bench.url}/v1/runs?bogus=1", content=body, headers=json_header, timeout=240)
    assert (anybody.status_code, error_of(anybody)) == (401, "unauthorized")
    viewer = bench.client("viewer").post("/runs?bogus=1", content=body, headers=json_header)
    assert (viewer.status_code, error_of(viewer)) == (403, "forbidden")
    assert viewer.json()["detail"]["required_scope"] == "runs:write"
    operator = bench.client("operator").post("/runs?bogus=1", content=body, headers=json_header)
    assert (operator.status_code, error_of(operator)) == (422, "unknown_query_parameters")
    assert operator.json()["detail"]["unknown"] == ["bogus"]
    last = bench.client("operator").post("/runs", content=body, headers=json_header)
    assert last.status_code == 422
    assert error_of(last) == "validation_error"
    assert isinstance(last.json()["detail"], list)


def test_a_run_that_does_not_exist_is_a_secret_of_those_who_may_read_runs(bench: Bench) -> None:
    assert httpx.get(f"{bench.url}/v1/runs/nope", timeout=240).status_code == 401
    assert bench.ask("GET", "/runs/nope", role="viewer").status_code == 404


def test_keys_that_are_not_ascii_are_unknown_and_nothing_worse(bench: Bench) -> None:
    for value in ("Bearer schlüssel".encode(), b"Bearer \xff\xfe", b"Bearer", b"Basic abc"):
        answer = httpx.get(f"{bench.url}/v1/runs", headers={b"Authorization": value}, timeout=240)
        assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/v1/runs", "/runs"])
def test_every_path_answers_without_the_version_too(bench: Bench, path: str) -> None:
    answer = httpx.get(bench.url + path, headers={"X-Kneo-Api-Key": "viewer-key"}, timeout=240)
    assert answer.status_code == 200


def test_paths_and_verbs_that_do_not_exist(bench: Bench) -> None:
    missing = bench.ask("GET", "/nothing")
    assert (missing.status_code, error_of(missing)) == (404, "not_found")
    wrong = bench.ask("DELETE", "/runs")
    assert (wrong.status_code, error_of(wrong)) == (405, "method_not_allowed")
    assert "x-request-id" in missing.headers


# ---- request ids and headers --------------------------------------------------------------------------------------


def test_every_answer_carries_the_request_id(bench: Bench) -> None:
    for path, headers in (("/runs", {}), ("/runs/nope", {}), ("/runs?x=1", {}), ("/livez", {})):
        answer = bench.client().get(path, headers={**headers, "X-Request-ID": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
    assert httpx.get(f"{bench.url}/v1/runs", headers={"X-Request-ID": "x"}, timeout=240).headers["x-request-id"] == "x"
    made = bench.ask("GET", "/runs").headers["x-request-id"]
    assert made != bench.ask("GET", "/runs").headers["x-request-id"]
    odd = bench.client().get("/runs", headers={"X-Request-ID": "a b;c" * 100})
    assert odd.headers["x-request-id"] != "a b;c" * 100


def test_answers_are_dressed_carefully_and_nobody_is_invited_from_elsewhere(bench: Bench) -> None:
    answer = bench.client().get("/runs", headers={"Origin": "https://elsewhere.example"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


# ---- idempotency --------------------------------------------------------------------------------------------------


def test_the_same_key_does_a_thing_once(bench: Bench) -> None:
    first = bench.client("operator").post("/runs", json=RUN, headers={"Idempotency-Key": "once"})
    again = bench.client("operator").post(
        "/runs", json=dict(reversed(RUN.items())), headers={"Idempotency-Key": "once"}
    )
    assert first.json() == again.json()
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    other = bench.client("operator").post("/runs", json={**RUN, "input": "else"}, headers={"Idempotency-Key": "once"})
    assert (other.status_code, error_of(other)) == (409, "idempotency_key_conflict")
    assert other.json()["detail"]["scope"] == "runs:create"


def test_an_asynchronous_run_is_answered_again_with_its_own_status(bench: Bench) -> None:
    body = {**RUN, "async_mode": True}
    answers = [bench.client("operator").post("/runs", json=body, headers={"Idempotency-Key": "async"}) for _ in "ab"]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()


def test_a_key_belongs_to_whoever_sent_it(bench: Bench) -> None:
    mine = bench.post("/runs", RUN, role="operator", key="shared")
    theirs = bench.post("/runs", RUN, role="service", key="shared")
    assert mine["run_id"] != theirs["run_id"]


def test_a_refused_request_does_not_use_up_its_key(bench: Bench) -> None:
    bench.post("/runs", {"input": "hi"}, role="operator", key="twice", expect=400)
    bench.post("/runs", RUN, role="operator", key="twice")


def test_keys_have_a_bound_and_blank_ones_are_none(bench: Bench) -> None:
    body = bench.post("/runs", RUN, role="operator", key="k" * 257, expect=400)
    assert body["error"] == "invalid_idempotency_key"
    one = bench.client("operator").post("/runs", json=RUN, headers={"Idempotency-Key": ""}).json()
    two = bench.client("operator").post("/runs", json=RUN, headers={"Idempotency-Key": ""}).json()
    assert one["run_id"] != two["run_id"]


def test_every_post_takes_a_key(bench: Bench) -> None:
    run = bench.paused()
    for key in ("cancel-1", "cancel-1"):
        bench.post(f"/runs/{run['run_id']}/cancel", {}, role="operator", key=key)
    bench.post("/runs/run_unknown/cancel", {}, role="operator", key="cancel-1", expect=409)


def test_a_decision_is_answered_again(bench: Bench) -> None:
    run = bench.paused()
    assert bench.answer(run, key="decide") == bench.answer(run, key="decide")
    assert bench.answer(run, key="later", expect=409)["error"] == "human_task_decided"


def slow_and_same(bench: Bench) -> list[httpx.Response]:
    body = {"input": "hi", "spec": spec_of({"id": "slow", "kind": "function", "ref": "slow"})}
    with ThreadPoolExecutor(4) as pool:
        return list(
            pool.map(
                lambda _: httpx.post(
                    f"{bench.url}/v1/runs",
                    json=body,
                    timeout=240,
                    headers={"X-Kneo-Api-Key": "operator-key", "Idempotency-Key": "race"},
                ),
                range(4),
            )
        )


def check_race(answers: list[httpx.Response]) -> None:
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    assert {answer.json()["status"] for answer in answers} == {"succeeded"}
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False, True, True, True]


def test_of_many_at_once_one_is_done(bench: Bench) -> None:
    check_race(slow_and_same(bench))


def test_of_many_at_once_one_is_done_on_postgresql(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("pg"), postgres_url) as bench:
        check_race(slow_and_same(bench))


def lose_answers(bench: Bench) -> None:
    """Forget every stored answer, as if the service had been killed before it stored them."""
    with bench.store.write() as tx:
        tx.connection.execute(update(idempotency_keys).values(status=None, response=None))


def events(bench: Bench) -> int:
    return bench.get("/audit-events")["total"]


def test_a_run_whose_answer_was_lost_is_answered_for_and_not_started_again(bench: Bench) -> None:
    first = bench.client("operator").post("/runs", json=RUN, headers={"Idempotency-Key": "lost"})
    lose_answers(bench)
    again = bench.client("operator").post("/runs", json=RUN, headers={"Idempotency-Key": "lost"})
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert again.json() == first.json()
    third = bench.client("operator").post("/runs", json=RUN, headers={"Idempotency-Key": "lost"})
    assert third.json() == first.json()


def test_an_answer_to_a_task_that_was_lost_is_answered_for(bench: Bench) -> None:
    run = bench.paused()
    first = bench.answer(run, key="lost-too")
    before = events(bench)
    lose_answers(bench)
    again = bench.answer(run, key="lost-too")
    assert again == first
    assert events(bench) == before


def test_a_batch_whose_answer_was_lost_is_answered_for(bench: Bench) -> None:
    runs = [bench.paused() for _ in range(2)]
    items = [
        {
            "continuation_id": run["continuation_id"],
            "request_id": run["metadata"]["pending_human_request"]["request_id"],
            "decision": "approved",
        }
        for run in runs
    ]
    first = bench.post("/human-tasks/batch", {"items": items}, role="reviewer", key="batch")
    assert first["decided"] == 2
    for run in runs:
        eventually(lambda run=run: bench.get(f"/runs/{run['run_id']}")["status"] == "succeeded")
    before = events(bench)
    lose_answers(bench)
    again = bench.post("/human-tasks/batch", {"items": items}, role="reviewer", key="batch")
    assert again["refused"] == 0
    assert [one["continuation_id"] for one in again["results"]] == [run["continuation_id"] for run in runs]
    assert events(bench) == before


def test_requirements_that_were_resolved_and_whose_answer_was_lost(bench: Bench) -> None:
    for background in (False, True):
        run = bench.paused()
        body = {
            "step_requirements": [{"continuation_id": run["continuation_id"], "confirmed": True}],
            "background": background,
        }
        path = f"/workflows/lab/runs/{run['run_id']}/continue"
        first = bench.post(path, body, role="reviewer", key=f"go-{background}")
        eventually(lambda run=run: bench.get(f"/runs/{run['run_id']}")["status"] == "succeeded")
        before = events(bench)
        lose_answers(bench)
        again = bench.post(path, body, role="reviewer", key=f"go-{background}")
        assert again["run_id"] == first["run_id"]
        assert again["status"] == "succeeded"
        assert events(bench) == before


def test_a_value_that_was_put_in_and_whose_answer_was_lost(bench: Bench) -> None:
    run = bench.paused()
    first = bench.post(f"/runs/{run['run_id']}/input", {"value": True}, role="reviewer", key="value")
    before = events(bench)
    lose_answers(bench)
    again = bench.post(f"/runs/{run['run_id']}/input", {"value": True}, role="reviewer", key="value")
    assert again == first
    assert events(bench) == before


ACTS = {
    "claim": ("/human-tasks/{task}/claim", {}),
    "comment": ("/human-tasks/{task}/comments", {"text": "hm"}),
    "snooze": ("/human-tasks/{task}/snooze", {"until": "2999-01-01T00:00:00Z"}),
    "cancel": ("/runs/{run}/cancel", {}),
    "fork": ("/runs/{run}/fork", {"checkpoint": 1}),
    "link": ("/human-tasks/{task}/links", {}),
}


@pytest.mark.parametrize("act", ACTS)
def test_what_changes_something_changes_it_once_though_its_answer_was_lost(bench: Bench, act: str) -> None:
    run = bench.paused()
    path, body = ACTS[act]
    path = path.format(task=run["continuation_id"], run=run["run_id"])
    headers = {"Idempotency-Key": f"act-{act}"}
    assert bench.client().post(path, json=body, headers=headers).is_success
    before = {event["id"] for event in bench.get("/audit-events")["events"]}
    lose_answers(bench)
    again = bench.client().post(path, json=body, headers=headers)
    # A link is shown once.
    assert again.status_code == (409 if act == "link" else 200), again.text
    if act == "link":
        assert error_of(again) == "secret_shown_once"
        assert "retry-after" not in again.headers
    after = [event for event in bench.get("/audit-events")["events"] if event["id"] not in before]
    assert {event["event_type"] for event in after} <= {"request.refused"}


# ---- how much -----------------------------------------------------------------------------------------------------


def test_a_key_may_be_held_to_a_rate(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rate")
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", http=HttpSettings(rate_per_minute=3)) as bench:
        answers = [bench.ask("GET", "/runs", role="viewer") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert error_of(answers[-1]) == "rate_limited"
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert bench.ask("GET", "/runs", role="operator").status_code == 200
        assert bench.ask("GET", "/livez", role="viewer").status_code == 200


# ---- what is written down -----------------------------------------------------------------------------------------


def test_refusals_are_in_the_audit_log(bench: Bench) -> None:
    httpx.get(f"{bench.url}/v1/runs?secret=1", timeout=240)
    bench.ask("POST", "/runs", {}, role="viewer")
    bench.ask("POST", "/runs", {"input": "hi", "spec": {"version": "v9"}}, role="service")
    expected = {
        (None, "list_runs", "unauthorized"),
        ("viewer", "create_run", "forbidden"),
        ("service", "create_run", "spec_invalid"),
    }
    events = bench.get("/audit-events", event_type="request.refused", limit=3)["events"]
    told = {(event["actor"], event["metadata"]["operation"], event["metadata"]["error"]) for event in events}
    # Not eventually: it is written down before whoever is refused hears it.
    assert told == expected


def test_a_run_that_is_refused_is_written_down_once(bench: Bench) -> None:
    before = bench.get("/audit-events")["total"]
    bench.start(environment="nowhere", bundle="none", spec=None, expect=400)
    bench.post("/runs", {"input": "x", "bundle": "none", "environment": "nowhere"}, expect=404)
    events = bench.get("/audit-events")
    assert events["total"] == before + 2
    assert [event["event_type"] for event in events["events"][:2]] == ["run.refused", "run.refused"]


def test_a_flood_of_refusals_does_not_fill_the_audit_log(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("flood")
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}") as bench:
        with httpx.Client(base_url=f"{bench.url}/v1", timeout=240) as client:
            for _ in range(80):
                assert client.get("/runs").status_code == 401
        assert bench.get("/audit-events", event_type="request.refused")["total"] < 120  # sixty a minute


def test_each_request_is_one_line_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kneo_serv.service"):
        bench.client("viewer").get("/runs/run_x?", headers={"X-Request-ID": "logged-1", "User-Agent": "me token=abc"})
        # The line is written when the answer is on its way.
        lines = eventually(lambda: [line for line in caplog.records if getattr(line, "request_id", "") == "logged-1"])
    assert len(lines) == 1
    line = vars(lines[0])
    assert line["event"] == "http_request"
    assert (line["method"], line["path"], line["status_code"], line["run_id"]) == (
        "GET",
        "/v1/runs/run_x",
        404,
        "run_x",
    )
    assert (line["actor"], line["user_agent"]) == ("viewer", "me token=[REDACTED]")
    assert line["duration_ms"] > 0


@pytest.mark.parametrize("prefix", ["", "/agents"])
def test_the_token_of_a_link_is_not_logged(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    metrics = access_log.RequestMetrics(CollectorRegistry())
    app = access_log.AccessLog(PlainTextResponse("hi"), routes=RouteTable(()), metrics=metrics, logged=True)
    with caplog.at_level(logging.INFO, logger="kneo_serv.service"):
        TestClient(Starlette(routes=[Mount(prefix, app)])).get(f"{prefix}/h/secret-token")
    (line,) = [vars(line) for line in caplog.records if line.name == "kneo_serv.service"]
    assert line["path"] == f"{prefix}/h/[REDACTED]"


@pytest.mark.parametrize(
    "path",
    ["//h/TOKEN", "/v1/h/TOKEN", "/H/TOKEN", "/h//TOKEN", "/console//link/TOKEN", "/console/Link/TOKEN", "/x/TOKEN,/y"],
)
def test_the_token_of_a_link_is_not_logged_where_its_address_is_wrong(
    bench: Bench, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = secrets.token_urlsafe(links.TOKEN_BYTES)
    with caplog.at_level(logging.INFO, logger="kneo_serv.service"):
        address = f"{bench.url}{path.replace('TOKEN', token)}"
        httpx.get(address, headers={"X-Request-ID": token[:20]}, timeout=240)
        (line,) = eventually(lambda: [one for one in caplog.records if getattr(one, "request_id", "") == token[:20]])
    assert token[21:] not in str(vars(line))
    assert "[REDACTED]" in vars(line)["path"]


def test_a_long_name_below_a_known_route_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    name = "a" * 43
    with caplog.at_level(logging.INFO, logger="kneo_serv.service"):
        bench.client().get(f"/runs/{name}", headers={"X-Request-ID": "long-name"})
        (line,) = eventually(lambda: [one for one in caplog.records if getattr(one, "request_id", "") == "long-name"])
    assert vars(line)["path"] == f"/v1/runs/{name}"


def test_a_crash_is_an_answer_that_says_nothing_and_a_log_that_says_all(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, postgres_server: Server
) -> None:
    monkeypatch.setattr(access_log.log, "handlers", [logged := Causes("crash-1")])
    name = postgres_server.create()
    with serving(tmp_path_factory.mktemp("crash"), postgres_server.url(name)) as bench:
        # A table that neither the worker nor the timers look at.
        with bench.store.write() as tx:
            tx.connection.execute(text("ALTER TABLE conditions RENAME TO lost"))
        answer = bench.client().get("/environments", headers={"X-Request-ID": "crash-1"})
        assert (answer.status_code, error_of(answer)) == (500, "internal_error")
        assert answer.headers["x-request-id"] == "crash-1"
        assert "lost" not in answer.text
        assert "relation" not in answer.text
        with bench.store.write() as tx:
            tx.connection.execute(text("ALTER TABLE lost RENAME TO conditions"))
    postgres_server.drop(name)
    assert len(logged.causes) == 1


def test_numbers_for_prometheus(bench: Bench) -> None:
    bench.ask("GET", "/runs", role="viewer")
    bench.ask("GET", "/some/thing/else")
    told = bench.client("viewer").get(f"{bench.url}/metrics")
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'kneo_http_requests_total{method="GET",operation="list_runs",status="200"}' in told.text
    assert 'operation="unknown"' in told.text
    assert "some/thing" not in told.text
    assert "kneo_queue_depth 0.0" in told.text
    assert "kneo_service_key 1.0" in told.text
    assert json.dumps("viewer-key") not in told.text
