"""What goes wrong in the published service and must not here, as far as no other test shows it. The page
``docs/conformance/weaknesses.md`` names the test for each weakness."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Machine, Process, eventually
from sqlalchemy import Engine, event

from kneo.cli.main import run
from kneo.store import runs
from kneo.store.engine import Store

ROOT = Path(__file__).parents[3]

FUNCTIONS = '''
import time
from pathlib import Path

HERE = Path(__file__).parent


def waits(text):
    """Goes on when the test says so."""
    with (HERE / "began").open("a") as file:
        file.write("x")
    while not (HERE / "go").exists():
        time.sleep(0.01)
    return "waited"


def draft(text):
    return text


def fails_once(text):
    if not (HERE / "failed").exists():
        (HERE / "failed").touch()
        raise RuntimeError("the first attempt fails")
    return f"sent to {text}"
'''


def spec(**steps: str) -> dict[str, object]:
    return {
        "version": "v1",
        "agent": {"name": "a", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {
            "type": "sequential",
            "name": "w",
            "steps": [{"id": name, "kind": "function", "ref": ref} for name, ref in steps.items()],
        },
        "components": {
            "functions": {ref: {"implementation": f"weakly.{ref}"} for ref in set(steps.values())},
        },
    }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("weaknesses")
    (folder / "weakly.py").write_text(FUNCTIONS)
    (folder / "tmp").mkdir()
    machine = Machine(folder, f"sqlite:///{folder / 'kneo.sqlite'}", TMPDIR=str(folder / "tmp"))
    yield machine.up()
    machine.stop()


@pytest.fixture
def folder(service: Process) -> Path:
    return service.log.parent


def test_every_dependency_has_an_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(each for name in extras for each in extras[name])]
    outside = [each for each in named if not each.startswith("kneo[")]
    assert len(outside) > 10
    assert not [each for each in outside if "<" not in each]


def test_a_step_at_work_keeps_nobody_waiting_and_is_not_started_again(service: Process, folder: Path):
    started: list[dict[str, object]] = []
    body = {"input": "x", "spec": spec(first="waits")}
    thread = threading.Thread(target=lambda: started.append(service.post("/runs", body)))
    thread.start()
    try:
        eventually((folder / "began").exists)
        assert service.get("/livez")["ok"] is True
        (item,) = [item for item in service.get("/runs")["runs"] if item["status"] == "running"]
        refused = service.http.post(f"/runs/{item['run_id']}/continue")
        assert (refused.status_code, refused.json()["error"]) == (409, "run_state_conflict")
        assert not started, "the run answered before its step had ended"
    finally:
        (folder / "go").touch()
        thread.join()
    assert started[0]["output_text"] == "waited"
    assert (folder / "began").read_text() == "x"


def test_what_is_shown_redacted_is_passed_on_as_it_is(service: Process):
    begun = service.post("/runs", {"input": "ann@example.com", "spec": spec(first="draft", second="fails_once")})
    assert begun["status"] == "failed"
    ended = service.post(f"/runs/{begun['run_id']}/continue")
    assert ended["output_text"] == "sent to ann@example.com"


def test_specs_in_requests_leave_no_files(service: Process, folder: Path):
    def files() -> list[Path]:
        return sorted((folder / "tmp").rglob("*"))

    # The sandbox of a function has an empty folder, and is kept for its next calls.
    service.post("/runs", {"input": "0", "spec": spec(first="draft")})
    before = files()
    assert all(path.name.startswith("kneo-sandbox-") for path in before)
    for number in range(1, 4):
        service.post("/runs", {"input": str(number), "spec": spec(first="draft")})
        service.post("/specs/validate", {"spec": spec(first="draft")})
    assert files() == before


def test_a_refusal_does_not_repeat_what_was_sent(service: Process):
    needle = "needle" * 5_000
    for body in ({"input": needle, "spec": spec(first="draft")}, {"input": {"no": needle}}, {"unknown": needle}):
        answer = service.http.post("/runs", json=body)
        assert answer.status_code in {400, 422}
        assert "needle" not in answer.text


def test_listing_one_of_many_runs_reads_one(store: Store):
    if not store.is_sqlite:
        pytest.skip("the plan is read in the words of SQLite")
    said: list[tuple[str, object]] = []

    def listen(_connection, _cursor, statement, parameters, _context, _many):
        said.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        with store.read() as tx:
            runs.list_runs(tx, limit=1)
            statement, parameters = next(each for each in said if "FROM runs" in each[0])
            plan = tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    told = " ".join(str(row[-1]) for row in plan)
    assert "INDEX" in told
    assert "TEMP B-TREE FOR ORDER BY" not in told


def test_a_new_project_needs_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["config", "init"]) == 0
    assert run(["runs", "list"]) == 0
    assert "No runs." in capsys.readouterr().out


def test_importing_the_application_makes_nothing(tmp_path: Path):
    code = "import kneo.service.app, os; print(os.listdir())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.strip() == "[]"


def test_a_path_is_meant_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / ".kneo").mkdir()
    (tmp_path / ".kneo" / "config.yaml").write_text("project: {name: p}\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    for place, name in ((tmp_path, "outer"), (inner, "inner")):
        tree = {"version": "v1", "agent": {"name": name, "model": {"provider": "dummy", "name": "dummy"}}}
        (place / "agent.json").write_text(json.dumps(tree))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KNEO_SERV_SPEC_SIGNING_KEY", "k")
    monkeypatch.delenv("KNEO_PROJECT_CONFIG", raising=False)
    monkeypatch.chdir(inner)
    for command in (["explain"], ["compile"], ["policy-report"], ["validate"]):
        assert run(["spec", *command, "agent.json", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["file"] == "agent.json"
    assert run(["spec", "explain", "agent.json"]) == 0
    assert "agent inner" in capsys.readouterr().out
    assert run(["spec", "bundle", "sign", "agent.json", "--output", "b.json", "--approved-by", "ann"]) == 0
    assert '"name": "inner"' in (inner / "b.json").read_text()


def test_a_date_in_a_spec_is_signed_like_any_other_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KNEO_SERV_SPEC_SIGNING_KEY", "k")
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "version: v1\nmetadata: {released: 2026-01-31}\nagent: {name: a, model: {provider: dummy, name: dummy}}\n"
    )
    assert run(["spec", "bundle", "sign", "a.yaml", "--output", "b.json", "--approved-by", "ann"]) == 0
    assert run(["spec", "bundle", "verify", "b.json"]) == 0


def agent(**fields: object) -> dict[str, object]:
    return {"agent": {"name": "a", "model": {"provider": "dummy", "name": "dummy"}, **fields}}


def guarded(**fields: object) -> dict[str, object]:
    return agent(guardrails={"input": [{"id": "g", "type": "regex", "pattern": "a", **fields}]})


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        pytest.param(guarded(pattern="("), "agent.guardrails.input[0]", id="a pattern that is none"),
        pytest.param(guarded(action="explode"), "agent.guardrails.input[0]", id="an action nobody knows"),
        pytest.param(agent(memory={"max_messages": 3}), "agent.memory", id="memory without a policy"),
        pytest.param(
            {"components": {"functions": {"draft": {"implementation": "weakly_missing.draft"}}}},
            "components.functions.draft",
            id="a module that is not there",
        ),
        pytest.param(
            {"components": {"functions": {"draft": {"implementation": "weakly.missing"}}}},
            "components.functions.draft",
            id="a name that is not in its module",
        ),
        pytest.param(
            {"workflow": {"type": "sequential", "steps": [{"id": "g", "kind": "guardrail", "ref": "nobody"}]}},
            "workflow.steps[0]",
            id="a guardrail step for nobody",
        ),
    ],
)
def test_validating_sees_what_would_fail_later(changed, path, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "weakly.py").write_text(FUNCTIONS)
    (tmp_path / "blind.json").write_text(json.dumps(spec(first="draft") | changed))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["spec", "validate", "blind.json", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["diagnostics"]
    assert [item for item in found if item["severity"] == "error" and item["path"].startswith(path)], found


TWICE = """
version: v1
agent: {name: a, model: {provider: dummy, name: dummy}}
workflow:
  type: graph
  name: w
  start: nowhere
  nodes: {a: {id: a, kind: agent, ref: a}}
  edges: []
"""


def test_one_mistake_is_one_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "twice.yaml").write_text(TWICE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(["spec", "validate", "twice.yaml", "--json"])
    found = json.loads(capsys.readouterr().out)["diagnostics"]
    assert [item["code"] for item in found if item["path"] == "workflow.start"] == ["E_GRAPH_START"]
