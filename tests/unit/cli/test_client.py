"""The client repeats what is harmless to repeat, and nothing else; against a server that counts."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kneo.api.decisions import TaskDecision, resume_human_task
from kneo.api.run_start import RunCreate, cancel_run, create_run
from kneo.api.runs import list_runs
from kneo.cli.client import ServiceBackend
from kneo.cli.main import run
from kneo.errors import Conflict, Forbidden, Invalid, Transient, Unauthorized, Untrusted
from kneo.settings import HttpSettings, from_env

EVENTS = (
    'id: 1\nevent: step_completed\ndata: {"sequence": 1, "step_id": "a"}\n\n: still here\n\n',
    'id: 2\nevent: step_completed\ndata: {"sequence": 2, "step_id": "b"}\n\nevent: end\ndata: {"status": "done"}\n\n',
)


class Service(ThreadingHTTPServer):
    """Answers what it was told to, one after the other, the last one for ever; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, object], dict[str, str]]] = []
        self.asked: list[tuple[str, str, str | None]] = []
        self.streams: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        service = self.server
        assert isinstance(service, Service)
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        key = self.headers.get("idempotency-key") or self.headers.get("last-event-id")
        service.asked.append((self.command, self.path, key))
        if service.streams and self.path.partition("?")[0].endswith("/events"):
            self._send(200, service.streams.pop(0).encode(), {"content-type": "text/event-stream; charset=utf-8"})
            return
        status, body, headers = service.answers[0]
        if len(service.answers) > 1:
            service.answers.pop(0)
        self._send(status, json.dumps(body).encode(), headers)

    do_POST = do_GET  # noqa: N815 - the name is the server's

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


STARTED = {
    "run_id": "r",
    "status": "running",
    "output_text": None,
    "human_intervention_required": False,
    "continuation_id": None,
    "metadata": {},
    "error": None,
}


@pytest.fixture
def client(service: Service, tmp_path) -> Iterator[ServiceBackend]:
    made = connect(service, tmp_path)
    yield made
    made.close()


def connect(service: Service, folder, **http: object) -> ServiceBackend:
    settings = from_env({"HOME": str(folder)}, folder)
    return ServiceBackend(service.url, "k", replace(settings, http=HttpSettings(client_backoff_seconds=0.01, **http)))


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
def test_what_was_not_done_is_asked_again_under_the_same_key(status, service, client):
    service.answers = [(status, {"error": "busy"}, {}), (200, STARTED, {})]
    assert client.call(create_run, RunCreate(input="x")).run_id == "r"
    (_, _, first), (_, _, second) = service.asked
    assert first == second is not None


@pytest.mark.parametrize(("status", "kind"), [(500, Invalid), (400, Invalid), (403, Forbidden), (409, Conflict)])
def test_what_may_have_been_done_or_never_will_be_is_asked_once(status, kind, service, client):
    service.answers = [(status, {"error": "no", "message": "No. Do this.", "hint": "Do this."}, {})]
    with pytest.raises(kind) as caught:
        client.call(create_run, RunCreate(input="x"))
    assert len(service.asked) == 1
    assert (caught.value.code, caught.value.message, caught.value.hint) == ("no", "No.", "Do this.")


@pytest.mark.parametrize(
    ("code", "kind"),
    [("SignatureInvalid", Untrusted), ("spec_tampered", Untrusted), ("bundle_not_approved", Forbidden)],
)
def test_what_nobody_vouches_for_ends_as_it_does_without_a_service(code, kind, service, client):
    service.answers = [(403, {"error": code, "message": "No."}, {})]
    with pytest.raises(kind) as caught:
        client.call(list_runs)
    assert caught.value.exit_code == kind.exit_code


def test_a_request_that_is_still_being_answered_is_asked_again(service, client):
    busy = (409, {"error": "idempotency_key_in_progress"}, {"retry-after": "0"})
    service.answers = [busy, busy, (200, STARTED, {})]
    assert client.call(create_run, RunCreate(input="x")).run_id == "r"


def test_it_gives_up_after_as_many_times_as_it_is_told(service, tmp_path):
    service.answers = [(503, {"error": "busy"}, {})]
    for retries in (0, 1):
        service.asked.clear()
        with pytest.raises(Transient):
            connect(service, tmp_path, client_retries=retries).call(list_runs)
        assert len(service.asked) == retries + 1


def test_it_does_not_wait_for_longer_than_a_person_would(service, client):
    service.answers = [(429, {"error": "rate_limited"}, {"retry-after": "3600"})]
    with pytest.raises(Transient):
        client.call(list_runs)
    assert len(service.asked) == 1


def test_a_key_of_the_operator_stands_for_one_start_and_one_answer(service, tmp_path):
    service.answers = [(200, STARTED, {})]
    client = connect(service, tmp_path, client_idempotency_key="mine")
    client.call(create_run, RunCreate(input="x"))
    client.call(resume_human_task, "cont_1", TaskDecision(decision="approved"))
    with pytest.raises(Invalid, match="unexpected format"):
        client.call(cancel_run, "run_1")
    keys = [key for _, _, key in service.asked]
    assert keys[:2] == ["mine", "mine"]
    assert keys[2] != "mine"


def test_nothing_listening_is_said_after_every_attempt(tmp_path):
    settings = replace(from_env({"HOME": str(tmp_path)}, tmp_path), http=HttpSettings(client_backoff_seconds=0.001))
    with pytest.raises(Transient) as caught:
        ServiceBackend("http://127.0.0.1:9", "", settings).call(list_runs)
    assert caught.value.code == "service_unreachable"


def test_a_stream_that_breaks_is_taken_up_where_it_broke(service, client):
    service.streams = list(EVENTS)
    told = list(client.follow("run_1", until_pause=False))
    assert [event["type"] for event in told] == ["step_completed", "step_completed", "end"]
    assert [key for _, path, key in service.asked if path.endswith("/events")] == [None, "1"]


def test_a_service_without_streams_is_asked_again_and_again(service, client):
    service.answers = [
        (404, {"error": "not_found"}, {}),
        (200, {"run_id": "run_1", "status": "running"}, {}),
        (200, {"events": [{"type": "workflow_started"}]}, {}),
        (200, {"run_id": "run_1", "status": "completed"}, {}),
        (200, {"events": [{"type": "workflow_completed"}]}, {}),
    ]
    told = [event["type"] for event in client.follow("run_1", until_pause=False)]
    assert told == ["workflow_started", "status", "workflow_completed", "end"]


def test_following_stops_at_a_pause_when_asked_to(service, client):
    service.streams = ['event: status\ndata: {"status": "paused"}\n\nevent: end\ndata: {}\n\n']
    assert [event["type"] for event in client.follow("run_1", until_pause=True)] == ["status"]


def test_deltas_are_asked_for_and_do_not_move_the_position(service, client):
    delta = 'event: model_delta\ndata: {"run_id": "run_1", "step_id": "a", "request": 1, "offset": 0, "text": "Hi"}\n\n'
    first, second = EVENTS
    service.streams = [delta + first + delta, second]
    told = list(client.follow("run_1", until_pause=False, deltas=True))
    assert [event["type"] for event in told if event["type"] != "model_delta"] == [
        "step_completed",
        "step_completed",
        "end",
    ]
    assert told[0] == {
        "type": "model_delta",
        "run_id": "run_1",
        "step_id": "a",
        "request": 1,
        "offset": 0,
        "text": "Hi",
    }
    asked = [(path, key) for _, path, key in service.asked if "/events" in path]
    assert asked == [("/v1/runs/run_1/events?deltas=1", None), ("/v1/runs/run_1/events?deltas=1", "1")]


def test_a_refused_key_is_told_in_the_words_of_the_command(service: Service, client: ServiceBackend) -> None:
    body = {
        "error": "unauthorized",
        "message": "A valid API key is required.",
        "hint": "Send Authorization: Bearer KEY.",
    }
    service.answers = [(401, body, {})]
    with pytest.raises(Unauthorized) as refused:
        client.call(list_runs)
    hint = str(refused.value.hint)
    assert "KNEO_SERV_API_KEY" in hint
    assert "--profile" in hint
    assert "Authorization" not in hint


def test_a_run_that_is_not_there_is_told_with_the_command_that_lists_them(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"error": "not_found", "message": "There is no run run_1.", "run_id": "run_1"}
    service.answers = [(404, body, {})]
    assert run(["runs", "get", "run_1", "--service-url", service.url]) == 4
    assert "kneo runs list" in capsys.readouterr().err


def test_a_stream_that_ends_early_is_read_again_until_the_pause(service, client):
    paused = 'event: status\ndata: {"status": "paused"}\n\n'
    service.streams = [paused.replace("paused", "running"), EVENTS[0] + paused]
    events = [event["type"] for event in client.follow("r", until_pause=True)]
    assert events == ["status", "step_completed", "status"]


def test_a_long_trace_says_what_is_left_out(service, monkeypatch, capsys, tmp_path):
    page = {"run_id": "r", "events": [], "count": 1000, "total": 1200, "window": 10_000, "limit": 1000, "offset": 0}
    service.answers = [(200, {**page, "sort_by": "sequence", "sort_order": "asc"}, {})]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["runs", "trace", "r", "--service-url", service.url]) == 0
    assert "The first 1000 of 1200 are listed" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "[" * 100_000])
def test_a_value_that_is_no_json_is_a_text(text, service, monkeypatch, tmp_path):
    service.answers = [(404, {"error": "not_found", "message": "No run."}, {})]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["runs", "input", "r", "--value", text, "--service-url", service.url]) == 4
    assert [path for _, path, _ in service.asked] == ["/v1/runs/r/input"]


def test_a_file_of_decisions_that_is_nested_too_deep_is_refused(capsys, tmp_path):
    file = tmp_path / "decisions.json"
    file.write_text("[" * 100_000)
    assert run(["task", "batch", str(file)]) == 1
    assert "nested more than" in capsys.readouterr().err


PAGE = {"count": 0, "total": 0, "limit": 100, "offset": 0}
CUT = {"session_id": "s", "environment": None, "requester": "ann", "messages": [], "truncated": True, **PAGE}
CHANGES = {name: [] for name in ("added", "removed", "changed")} | {"run_id": "r", "change_count": 0, "truncated": True}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["sessions", "show", "s"], CUT),
        (["runs", "checkpoint-diff", "r"], {**CHANGES, "from_checkpoint": {}, "to_checkpoint": {}}),
    ],
)
def test_a_command_says_that_a_response_is_cut(command, answer, service, monkeypatch, capsys, tmp_path):
    service.answers = [(200, answer, {})]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run([*command, "--service-url", service.url]) == 0
    assert re.search("are (cut|left out)", capsys.readouterr().err)


SPEC = "version: v1\nagent: {name: a, model: {provider: dummy, name: dummy}}\n"


def test_the_policy_report_of_a_service_decides_the_exit_status(service, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    finding = {"code": "E_ENV_POLICY_HUMAN_REVIEW", "severity": "error", "message": "No review."}
    command = ["spec", "policy-report", "spec.yaml", "--service-url", service.url]
    for findings, status in (([], 0), ([finding], 1)):
        service.answers = [(200, {"valid": True, "report": {"valid": True, "diagnostics": findings}}, {})]
        assert run(command) == status


def test_a_spec_that_no_service_can_check_is_refused_in_json(service, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text("version: v1\n")
    assert run(["spec", "validate", "spec.yaml", "--service-url", service.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["valid"] is False
    assert not service.asked
