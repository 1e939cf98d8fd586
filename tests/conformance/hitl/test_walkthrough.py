"""The walk through a question to a person, as the tutorial tells it: its YAML, its commands, its requests, word for word."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from service_bench import Bench, serving

from kneo.cli.main import run

ROOT = Path(__file__).parents[3]

STEPS_AND_HUMANS = """
workflow:
  type: sequential
  steps:
    - id: draft
      kind: function
      ref: draft_report
    - id: approve
      kind: human          # the pause point
      ref: approval-reviewer
    - id: publish
      kind: function
      ref: publish_report

components:
  humans:
    approval-reviewer:
      description: Please approve or edit the draft report.
      assignee: reviewer@example.com
      timeout_seconds: 86400
      on_timeout: escalate
"""

START = """{
    "input": "draft the launch announcement",
    "spec_path": "examples/human_approval_workflow.yaml",
    "target": "workflow"
  }"""

APPROVE = """{
  "request_id": "<request_id>",
  "decision": "approved",
  "content": "Looks good. Ship it."
}"""


# ---- the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], dict]:
    """Types a line as it is printed in the tutorial and reads the JSON that comes of it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_DATABASE_URL", "KNEO_SERV_IMPORT_ALLOW"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def type_in(line: str) -> dict:
        program, *arguments = shlex.split(line.replace("\\\n", " "))
        assert program == "kneo"
        capsys.readouterr()
        status = run(arguments if "--json" in arguments else [*arguments, "--json"])
        captured = capsys.readouterr()
        assert status == 0, captured
        return json.loads(captured.out)

    return type_in


def test_the_declared_step_is_a_spec(terminal: Callable[[str], dict], tmp_path: Path) -> None:
    spec = yaml.safe_load(STEPS_AND_HUMANS)
    spec["agent"] = {"name": "report-desk", "model": {"provider": "dummy", "name": "echo"}}
    spec["components"]["functions"] = {
        name: {"implementation": f"examples.human_functions.{name}"} for name in ("draft_report", "publish_report")
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    assert terminal("kneo spec validate spec.yaml")["diagnostics"] == []
    assert terminal("kneo run spec.yaml --input hello --target workflow")["status"] == "paused"


def test_the_walk_on_the_command_line(terminal: Callable[[str], dict]) -> None:
    paused = terminal(
        """kneo run examples/human_approval_workflow.yaml \\
  --input "draft the launch announcement" \\
  --target workflow --json"""
    )
    assert (paused["status"], paused["output_text"], paused["human_intervention_required"]) == ("paused", None, True)
    assert paused["run_id"].startswith("run_")
    continuation, request = paused["continuation_id"], paused["metadata"]["pending_human_request"]
    assert continuation.startswith("cont_")
    assert request["request_id"].startswith("req_")
    assert request["prompt"]

    [listed] = terminal("kneo task list")["tasks"]
    assert listed["continuation_id"] == continuation
    assert terminal(f"kneo task get {continuation}")["request"]["request_id"] == request["request_id"]
    ended = terminal(
        f"""kneo task decide {continuation} \\
  --request-id {request["request_id"]} \\
  --approve"""
    )
    assert (ended["run_id"], ended["status"]) == (paused["run_id"], "succeeded")


@pytest.mark.parametrize(
    ("option", "status"),
    [
        ("--approve", "succeeded"),
        ("--edit 'Mine.'", "succeeded"),
        ("--provide 'Mine.'", "succeeded"),
        ("--reject", "cancelled"),
    ],
)
def test_the_decisions_are_options(terminal: Callable[[str], dict], option: str, status: str) -> None:
    paused = terminal("kneo run examples/smoke_human_workflow.yaml --input smoke --target workflow --json")
    request = paused["metadata"]["pending_human_request"]["request_id"]
    ended = terminal(f"kneo task decide {paused['continuation_id']} --request-id {request} {option}")
    assert ended["status"] == status
    assert ("Mine." in (ended["output_text"] or "")) == ("Mine." in option)


# ---- HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("walkthrough")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_sqlite_template, folder / "kneo.sqlite")
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", KNEO_SERV_IMPORT_ALLOW="examples") as made:
        yield made


def curl(bench: Bench, method: str, path: str, data: str | None = None, **headers: str) -> httpx.Response:
    sent = {"Content-Type": "application/json"} if data is not None else {}
    return bench.client().request(method, path, content=data, headers=sent | headers)


def answered(bench: Bench, started: dict, data: str = APPROVE, **headers: str) -> httpx.Response:
    request = started["metadata"]["pending_human_request"]["request_id"]
    path = f"/human-tasks/{started['continuation_id']}/resume"
    return curl(bench, "POST", path, data.replace("<request_id>", request), **headers)


@pytest.fixture
def started(bench: Bench) -> dict:
    answer = curl(bench, "POST", "/runs", START)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "paused"
    return answer.json()


def test_the_walk_over_http(bench: Bench, started: dict) -> None:
    listed = curl(bench, "GET", f"/human-tasks?run_id={started['run_id']}").json()
    assert [task["continuation_id"] for task in listed["tasks"]] == [started["continuation_id"]]
    shown = curl(bench, "GET", f"/human-tasks/{started['continuation_id']}").json()
    assert shown["request"]["request_id"] == started["metadata"]["pending_human_request"]["request_id"]
    ended = answered(bench, started).json()
    assert (ended["run_id"], ended["status"]) == (started["run_id"], "succeeded")
    assert curl(bench, "GET", f"/human-tasks?run_id={started['run_id']}").json()["tasks"] == []


def test_a_repeated_answer_is_replayed_and_another_one_refused(bench: Bench, started: dict) -> None:
    key = {"Idempotency-Key": f"key-{started['run_id']}"}
    first, again = answered(bench, started, **key), answered(bench, started, **key)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    other = answered(bench, started, APPROVE.replace("Ship it", "Wait"), **key)
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_conflict")


def test_a_decision_is_in_the_audit_log_without_its_content(bench: Bench, started: dict) -> None:
    answered(bench, started)
    events = curl(bench, "GET", "/audit-events?event_type=human.decision").json()["events"]
    [event] = [each for each in events if each["continuation_id"] == started["continuation_id"]]
    assert event["payload"]["decision"] == "approved"
    assert event["payload"]["content_present"] is True
    assert "Ship it" not in json.dumps(event)


# ---- where the documents contradict each other or what they describe --------------------------------------------


def test_a_paused_run_says_so_in_the_documented_words(started: dict) -> None:
    assert started["status"] == "paused"
    request = started["metadata"]["pending_human_request"]
    assert request["id"] == request["request_id"]


def test_lists_understand_the_other_words_too(bench: Bench, started: dict) -> None:
    for word in ("paused", "blocked"):
        listed = curl(bench, "GET", f"/runs?status={word}&limit=100").json()["runs"]
        assert started["run_id"] in [each["run_id"] for each in listed]


def test_a_rejection_at_a_step_of_its_own_stops(bench: Bench, started: dict) -> None:
    ended = answered(bench, started, APPROVE.replace("approved", "rejected")).json()
    assert (ended["status"], ended["output_text"]) == ("cancelled", None)


def test_on_reject_continue_forwards_as_it_used_to(bench: Bench) -> None:
    spec = yaml.safe_load((ROOT / "examples" / "human_approval_workflow.yaml").read_text())
    spec["components"]["humans"]["approval-reviewer"]["on_reject"] = "continue"
    paused = curl(bench, "POST", "/runs", json.dumps({"input": "cats", "spec": spec})).json()
    ended = answered(bench, paused, APPROVE.replace("approved", "rejected")).json()
    assert ended["status"] == "succeeded"
    assert "Rejected by human reviewer: Looks good. Ship it." in ended["output_text"]


@pytest.mark.parametrize(
    "word", ["fail", "continue", "escalate", "approve", "reject", "skip", "cancel", "select:later"]
)
def test_there_is_one_list_of_what_silence_does(bench: Bench, word: str) -> None:
    spec = yaml.safe_load((ROOT / "examples" / "human_approval_workflow.yaml").read_text())
    human = spec["components"]["humans"]["approval-reviewer"]
    human |= {"on_timeout": word, **({"options": ["now", "later"]} if word.startswith("select") else {})}
    assert curl(bench, "POST", "/specs/validate", json.dumps({"spec": spec})).json()["valid"], word


def test_a_word_that_is_not_on_it_is_refused(bench: Bench) -> None:
    spec = yaml.safe_load((ROOT / "examples" / "human_approval_workflow.yaml").read_text())
    spec["components"]["humans"]["approval-reviewer"]["on_timeout"] = "explode"
    assert not curl(bench, "POST", "/specs/validate", json.dumps({"spec": spec})).json()["valid"]


def test_parallel_steps_may_ask_any_number_of_people(bench: Bench) -> None:
    spec = yaml.safe_load((ROOT / "examples" / "human_approval_workflow.yaml").read_text())
    asked = [{"id": name, "kind": "human", "ref": "approval-reviewer"} for name in ("one", "two", "three")]
    done = {"id": "draft", "kind": "function", "ref": "draft_report"}
    spec["workflow"] = {"type": "concurrent", "name": "many", "participants": [*asked, done]}
    paused = curl(bench, "POST", "/runs", json.dumps({"input": "cats", "spec": spec})).json()
    tasks = curl(bench, "GET", f"/human-tasks?run_id={paused['run_id']}").json()["tasks"]
    assert sorted(task["step_path"] for task in tasks) == ["one", "three", "two"]
    for task in tasks:
        body = {"request_id": task["request"]["request_id"], "decision": "approved"}
        ended = curl(bench, "POST", f"/human-tasks/{task['continuation_id']}/resume", json.dumps(body)).json()
    assert ended["status"] == "succeeded"
