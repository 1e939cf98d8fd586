"""The service's answers, through the whole application over a real store."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from config_repo import FUNCTIONS, announcement
from engine import level_sandboxes
from sqlalchemy import select

from kneo.background import background
from kneo.errors import Invalid
from kneo.roles import ROLES
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import Starter
from kneo.runtime.engine.worker import Driver, Worker
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.service.app import create_app
from kneo.service.auth import configured, keyring
from kneo.settings import Limits, Settings, from_env
from kneo.spec.models.spec import Spec
from kneo.store.engine import Store
from kneo.store.tables import runs as runs_table
from kneo.store.tables import tasks as tasks_table

KEYS = {role: f"{role}-key" for role in ROLES}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "test_functions.py").write_text(FUNCTIONS)
    # Each test has functions of its own under the same name.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "test_functions", raising=False)
    keys = ";".join(f"{role}:{key}:{role}" for role, key in KEYS.items())
    made = from_env({"KNEO_SERV_API_KEYS": keys, "HOME": str(tmp_path)}, tmp_path)
    return replace(made, limits=Limits(body_bytes=20_000, input_chars=500, human_content_chars=100))


@pytest.fixture
def client(settings: Settings, store: Store) -> Iterator[httpx.Client]:
    code = CodeLoader(settings.import_roots, ())
    driver = Driver(store, ProgramLoader(store), Executor(code, level_sandboxes(code)))
    worker = Worker(store, driver)

    def check(tree: object) -> Spec:
        return Spec.model_validate(tree)

    app = create_app(settings, store, Starter(store, check, pin=None))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with (
        background("worker", worker.run, worker.stop),
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=240) as made:
            yield made
        server.should_exit = True
        thread.join()


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[role]}"}


def start(client: httpx.Client, **body: object) -> dict[str, object]:
    answer = client.post("/v1/runs", json={"input": "hi", "spec": announcement(), **body}, headers=bearer("operator"))
    assert answer.status_code == 200, answer.text
    return answer.json()


def resume(client: httpx.Client, run: dict[str, object], **answer: object) -> tuple[int, dict[str, object]]:
    request = run["metadata"]["pending_human_request"]["request_id"]
    body = {"request_id": request, "decision": "approved", **answer}
    got = client.post(f"/v1/human-tasks/{run['continuation_id']}/resume", json=body, headers=bearer("reviewer"))
    return got.status_code, got.json()


def rows(store: Store) -> list[tuple[object, ...]]:
    with store.read() as tx:
        return [tuple(row) for table in (tasks_table, runs_table) for row in tx.connection.execute(select(table))]


def test_health_needs_no_key_and_everything_else_does(client: httpx.Client) -> None:
    assert client.get("/v1/livez").json()["version"] == "1.2.0"
    assert client.get("/readyz").json()["metadata"]["ready"]
    refused = client.get("/v1/runs")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"] == refused.json()["detail"]["error"] == "unauthorized"


def test_both_key_headers_work(client: httpx.Client) -> None:
    assert client.get("/v1/runs", headers=bearer("viewer")).status_code == 200
    assert client.get("/v1/runs", headers={"X-Kneo-Api-Key": KEYS["viewer"]}).status_code == 200
    assert client.get("/v1/runs", headers={"X-Kneo-Api-Key": "viewer"}).status_code == 401


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("admin", True),
        ("operator", True),
        ("service", True),
        ("viewer", False),
        ("reviewer", False),
        ("approver", False),
    ],
)
def test_who_may_start_runs(client: httpx.Client, role: str, allowed: bool) -> None:
    answer = client.post("/v1/runs", json={"input": "x"}, headers=bearer(role))
    assert (answer.status_code != 403) == allowed
    if not allowed:
        assert answer.json()["detail"]["required_scope"] == "runs:write"


def test_a_bad_request_is_judged_after_the_key_and_the_scope(client: httpx.Client) -> None:
    bad = {"input": 1, "bogus": True}
    assert client.post("/v1/runs", json=bad).status_code == 401
    assert client.post("/v1/runs", json=bad, headers=bearer("viewer")).status_code == 403
    answer = client.post("/v1/runs", json=bad, headers=bearer("operator"))
    assert answer.status_code == 422
    assert {tuple(item["loc"]) for item in answer.json()["detail"]} == {("body", "input"), ("body", "bogus")}
    assert "1" not in str([item.get("input") for item in answer.json()["detail"]])
    assert answer.json()["error"] == "validation_error"


def test_bodies_are_bounded_when_streamed_too(client: httpx.Client) -> None:
    def stream() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(30):
            yield b"x" * 1_000

    for body in (b"x" * 30_000, stream()):
        answer = client.post("/v1/runs", content=body, headers=bearer("operator"))
        assert answer.status_code == 413, answer.text
        assert answer.json()["max_body_bytes"] == 20_000


@pytest.mark.parametrize("framing", ["Content-Length: 12000000", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large_is_read_before_the_answer(client: httpx.Client, framing: str) -> None:
    """Half of the body is sent, then a request on another connection is answered, and the first one still is not."""
    host, port = client.base_url.host, client.base_url.port
    half = b"x" * 6_000_000
    part = half if "Length" in framing else b"5b8d80\r\n" + half + b"\r\n"
    head = f"POST /v1/runs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEYS['operator']}\r\n{framing}\r\n\r\n"
    with socket.create_connection((host, port), 60) as connection:
        connection.sendall(head.encode() + part)
        assert client.get("/v1/livez").status_code == 200
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(60)
        connection.sendall(part + (b"" if "Length" in framing else b"0\r\n\r\n"))
        assert connection.makefile("rb").readline().split()[1] == b"413"


def test_a_body_that_is_too_large_is_refused_before_it_is_sent_where_the_client_waits(client: httpx.Client) -> None:
    host, port = client.base_url.host, client.base_url.port
    head = f"POST /v1/runs HTTP/1.1\r\nHost: {host}\r\nExpect: 100-Continue\r\nContent-Length: 30000\r\n\r\n"
    with socket.create_connection((host, port), 60) as connection:
        connection.sendall(head.encode())
        assert connection.makefile("rb").readline().split()[1] == b"413"


def test_an_input_that_is_too_long_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/runs", json={"input": "x" * 501, "spec": announcement()}, headers=bearer("operator"))
    assert answer.status_code == 422
    assert answer.json()["field"] == "input"


def test_published_clients_hear_their_own_words(client: httpx.Client) -> None:
    assert start(client)["status"] == "paused"
    theirs = {**bearer("operator"), "User-Agent": "kneo-client/1.2.0"}
    listed = client.get("/v1/runs", headers=theirs).json()["runs"]
    assert [run["status"] for run in listed] == ["blocked"]
    for word in ("paused", "blocked"):
        assert client.get(f"/v1/runs?status={word}", headers=bearer("viewer")).json()["total"] == 1
    refused = client.get("/v1/runs?status=nonsense", headers=bearer("viewer"))
    assert (refused.status_code, refused.json()["error"]) == (422, "validation_error")


def test_a_run_goes_through_a_person(client: httpx.Client, tmp_path: Path) -> None:
    run = start(client)
    status, done = resume(client, run)
    assert (status, done["status"]) == (200, "succeeded")
    assert done["output_text"] == "published: Final answer: hi"
    assert (tmp_path / "published.jsonl").read_text().count("\n") == 1
    events = client.get("/v1/audit-events?event_type=human.decision", headers=bearer("viewer")).json()["events"]
    assert [event["actor"] for event in events] == ["reviewer"]
    assert events[0]["metadata"] == events[0]["payload"]


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ({"request_id": "req_other"}, 409, "request_mismatch"),
        ({"expect_digest": "sha256:" + "0" * 64}, 409, "subject_changed"),
        ({"decision": "edited"}, 422, "content_required"),
        ({"decision": "edited", "content": "  "}, 422, "content_required"),
        ({"decision": "selected"}, 422, "decision_not_allowed"),
        ({"decision": "approve"}, 422, "validation_error"),
        ({"surprise": 1}, 422, "validation_error"),
        ({"content": "x" * 101}, 422, "input_too_large"),
    ],
)
def test_an_answer_that_does_not_fit_changes_nothing(
    client: httpx.Client, store: Store, answer: dict[str, object], status: int, code: str
) -> None:
    run = start(client)
    before = rows(store)
    got, body = resume(client, run, **answer)
    assert (got, body["error"]) == (status, code)
    assert rows(store) == before
    assert resume(client, run)[0] == 200


def test_a_second_answer_is_too_late(client: httpx.Client) -> None:
    run = start(client)
    assert resume(client, run)[0] == 200
    status, body = resume(client, run, decision="rejected")
    assert (status, body["error"]) == (409, "human_task_decided")


def test_a_rejection_ends_the_run_and_publishes_nothing(client: httpx.Client, tmp_path: Path) -> None:
    run = start(client)
    status, body = resume(client, run, decision="rejected", content="not yet")
    assert (status, body["status"], body["error"]["type"]) == (200, "cancelled", "human_rejected")
    assert "not yet" in body["error"]["message"]
    assert not (tmp_path / "published.jsonl").exists()


def test_an_edit_is_what_goes_on(client: httpx.Client) -> None:
    _, done = resume(client, start(client), decision="edited", content="Better words")
    assert done["output_text"] == "published: Better words"


def test_cancelling_withdraws_the_question(client: httpx.Client) -> None:
    run = start(client)
    answer = client.post(f"/v1/runs/{run['run_id']}/cancel", headers=bearer("operator"))
    assert answer.json()["status"] == "cancelled"
    assert client.get("/v1/human-tasks", headers=bearer("reviewer")).json()["tasks"] == []
    status, body = resume(client, run)
    assert (status, body["error"]) == (409, "human_task_cancelled")


def test_a_failed_step_is_an_answer_and_not_a_crash(client: httpx.Client) -> None:
    spec = announcement()
    spec["components"] = {**spec["components"], "functions": {"publish": {"implementation": "test_functions.boom"}}}
    _, done = resume(client, start(client, spec=spec))
    assert (done["status"], done["error"]) == ("failed", {"type": "RuntimeError", "message": "boom"})


def test_code_outside_the_project_is_not_imported(client: httpx.Client) -> None:
    spec = announcement()
    spec["components"] = {**spec["components"], "functions": {"publish": {"implementation": "subprocess.getoutput"}}}
    _, done = resume(client, start(client, spec=spec))
    assert done["error"]["type"] == "implementation_forbidden"


@pytest.mark.parametrize(
    "keys",
    [
        "ann:k1:boss",
        "ann:k1",
        "ann:k1:runs:fly",
        "ann:k1:viewer;bob:k1:viewer",
        ":k1:viewer",
        "ann:sha256:viewer",
        "ann:sha256:abc:viewer",
        "ann:sha256:" + "A" * 64 + ":viewer",
        "ann:sha256:" + "a" * 64,
    ],
)
def test_keys_that_make_no_sense_keep_the_service_from_starting(keys: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        keyring(configured(from_env({"KNEO_SERV_API_KEYS": keys}, tmp_path)))


def test_asking_for_keys_without_any_keeps_the_service_from_starting(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        keyring(configured(from_env({"KNEO_SERV_AUTH_ENABLED": "true"}, tmp_path)))


def test_without_a_controller_nobody_can_be_asked_to_look(client: httpx.Client) -> None:
    answer = client.post("/v1/environments/prod/reconcile", headers=bearer("operator"))
    assert (answer.status_code, answer.json()["error"]) == (503, "no_controller")
    assert answer.headers["retry-after"]
