"""Kneo inside another program, by the names such programs already use."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from controller_bench import serving
from operation_context import operation_context

from kneo.api.receipts import get_receipt
from kneo.errors import Conflict, Invalid, KneoError, NotFound, Usage
from kneo.maintenance import LockAcquisitionError
from kneo.platform import Database, PlatformManager, load_platform
from kneo.service.app import create_app
from kneo.service.auth import APIKeyRecord, AuthConfig
from kneo.service.dependencies import default_platform_manager, set_platform_manager
from kneo.service.limits import RequestLimits
from kneo.settings import Settings, from_env
from kneo.spec import SpecCompiler
from kneo.tools import ToolDefinition, ToolRegistry

SPEC = {
    "version": "v1",
    "agent": {"name": "root", "model": {"provider": "dummy", "name": "dummy"}},
    "workflow": {
        "type": "sequential",
        "steps": [{"id": "ask", "kind": "human", "ref": "ann"}, {"id": "up", "kind": "function", "ref": "up"}],
    },
    "components": {
        "humans": {"ann": {"description": "Fine?"}},
        "functions": {"up": {"implementation": "embedded_steps.up"}},
    },
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "embedded_steps.py").write_text("def up(text): return text.upper()\n")
    (tmp_path / "spec.yaml").write_text(json.dumps(SPEC))
    return from_env({"HOME": str(tmp_path)}, tmp_path)


@pytest.fixture
def manager(settings: Settings) -> Iterator[PlatformManager]:
    with PlatformManager(settings=settings) as made:
        yield made


@pytest.mark.parametrize("with_worker", [False, True])
def test_a_run_from_start_to_end(manager: PlatformManager, with_worker: bool) -> None:
    if with_worker:
        manager.start_worker()
    paused = manager.run_from_spec(input_text="hello", spec_path="spec.yaml", target="workflow")
    assert (paused.status, paused.human_intervention_required) == ("paused", True)
    task = manager.list_human_tasks(run_id=paused.run_id)[0]
    assert manager.get_human_task(paused.continuation_id) == task
    with pytest.raises(Invalid, match="'yes' is not a decision; use one of: approved"):
        manager.resume_human_task(task.id, request_id=task.request_id, decision="yes")
    with pytest.raises(Invalid, match="'done' is not a status; use one of: running"):
        manager.list_runs(status="done")
    done = manager.resume_human_task(task.id, request_id=task.request_id, decision="approved")
    assert (done.status, done.output_text) == ("succeeded", "HELLO")
    assert [run.id for run in manager.list_runs(status="succeeded")] == [done.run_id]
    assert manager.get_run(done.run_id).visited_steps == ("ask", "up")
    assert manager.replay_view(done.run_id)["checkpoint_count"] == len(manager.list_checkpoints(done.run_id))
    assert manager.get_trace(done.run_id)[-1].type == "workflow_completed"
    assert manager.fork_run(done.run_id, "up").output_text == "HELLO"
    forked = manager.fork_run(done.run_id, "up", input_text="other")
    assert (forked.status, manager.get_human_task(forked.continuation_id).subject) == ("paused", "other")
    request = manager.get_human_task(forked.continuation_id).request_id
    again = manager.resume_human_task(forked.continuation_id, request_id=request, decision="approved")
    assert again.output_text == "OTHER"
    assert manager.prune_expired_human_tasks() == manager.prune_timed_out_runs() == 0
    assert manager.prune_retention().runs == 0
    kinds = {event.event.event_type for event in manager.list_audit_events(run_id=done.run_id)}
    assert {"run.created", "human.requested", "human.decision", "run.succeeded"} <= kinds
    assert get_receipt(operation_context(manager.store), task.id).receipt["actor"]


def test_one_program_at_a_time_executes_steps(manager: PlatformManager, settings: Settings) -> None:
    manager.start_worker()
    with PlatformManager(settings=settings) as other, pytest.raises(LockAcquisitionError):
        other.start_worker()


def test_tools_of_the_program_count_as_known() -> None:
    registry = ToolRegistry()
    registry.register(ToolDefinition(name="lookup", description="Looks up."), lambda user_id: user_id)
    tree = {**SPEC, "agent": {**SPEC["agent"], "tools": {"include": ["lookup"]}}}
    codes = {found.code for found in SpecCompiler(tool_registry=registry).load_tree(tree).diagnostics if found.is_error}
    assert "E_TOOL_REF" not in codes
    with pytest.raises(Invalid):
        SpecCompiler().compile(tree)


def test_a_tool_is_registered_once_and_makes_sense() -> None:
    registry = ToolRegistry()
    registry.register(ToolDefinition(name="a"), print)
    for definition, error in (
        (ToolDefinition(name="a"), Conflict),
        (ToolDefinition(name="no spaces"), Invalid),
        (ToolDefinition(name="b", parameters={"type": 7}), Invalid),
    ):
        with pytest.raises(error):
            registry.register(definition, print)
    assert registry.names == {"a"}
    with pytest.raises(NotFound):
        registry.get("b")


def test_specs_are_looked_at_without_opening_a_database(settings: Settings) -> None:
    manager = PlatformManager(settings=settings)
    assert manager.validate_spec(spec_path="spec.yaml").valid
    broken = manager.validate_spec(spec_path="spec.yaml", overrides={"workflow": {"steps": [{"id": "a"}]}})
    assert not broken.valid
    assert manager.compile_spec(spec=SPEC).workflow_type == "sequential"
    assert manager.policy_report(spec=SPEC)["valid"] is True
    for wrong in ({}, {"spec": SPEC, "spec_path": "spec.yaml"}, {"spec": SPEC, "overlays": ["spec.yaml"]}):
        with pytest.raises(Usage):
            manager.validate_spec(**wrong)
    with pytest.raises(NotFound):
        manager.validate_spec(spec_path="none.yaml")
    assert not list(settings.project_root.rglob("*.sqlite*"))


def test_what_a_run_executes_is_reported(manager: PlatformManager) -> None:
    run = manager.start_run_from_spec("x", spec=SPEC)
    assert manager.policy_report_for_run(run.id) == manager.policy_report(spec=SPEC)


@pytest.fixture
def chosen(manager: PlatformManager) -> Iterator[PlatformManager]:
    manager.start_worker()
    yield manager
    set_platform_manager(None)


def test_a_server_of_a_platform(chosen: PlatformManager) -> None:
    late = create_app(configure_default_manager=False)
    set_platform_manager(chosen)
    for app in (late, create_app()):
        with serving(app) as client:
            assert client.get("/livez").status_code == 200
            paused = client.post("/v1/runs", json={"input": "x", "spec": SPEC}).json()
            assert paused["status"] == "paused", paused
            answer = {"request_id": paused["metadata"]["pending_human_request"]["request_id"], "decision": "approved"}
            done = client.post(f"/v1/human-tasks/{paused['continuation_id']}/resume", json=answer).json()
            assert (done["status"], done["output_text"]) == ("succeeded", "X")


def test_an_application_without_a_platform_says_so() -> None:
    set_platform_manager(None)
    with pytest.raises(Usage):
        asyncio.run(create_app(configure_default_manager=False)({"type": "http"}, None, None))
    with pytest.raises(Usage):
        create_app(from_env({}))


def test_the_default_platform_keeps_everything_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = create_app(state_path=tmp_path / "own.sqlite", auth_enabled=False)
    try:
        with serving(app) as client:
            assert client.post("/v1/runs", json={"input": "x", "spec": SPEC}).json()["status"] == "paused"
    finally:
        default_platform_manager().close()
        set_platform_manager(None)
    assert (tmp_path / "own.sqlite").is_file()


def test_a_program_says_which_keys_there_are_and_how_much_a_request_may_bring(chosen: PlatformManager) -> None:
    set_platform_manager(chosen)
    key = APIKeyRecord("ann", "ann-key", roles=("viewer",), scopes=("runs:write",))
    auth, limits = AuthConfig(enabled=True, api_keys=(key,)), RequestLimits(max_input_chars=3, max_body_bytes=2_000)
    with serving(create_app(auth_config=auth, request_limits=limits)) as client:
        assert client.get("/v1/runs").status_code == 401
        client.headers["X-Kneo-Api-Key"] = "ann-key"
        started = client.post("/v1/runs", json={"input": "x", "spec": SPEC})
        assert started.json()["metadata"]["requester"] == "ann"
        assert client.get("/v1/security/credentials").json()["required_scope"] == "credentials:read"
        assert client.post("/v1/runs", json={"input": "xxxx", "spec": SPEC}).json()["error"] == "input_too_large"
        assert client.post("/v1/runs", json={"input": "x" * 2_000}).status_code == 413
    with serving(create_app(auth_config=auth, auth_enabled=False)) as client:
        assert client.get("/v1/runs").status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"auth_config": AuthConfig(enabled=True)},
        {"auth_config": AuthConfig(api_keys=(APIKeyRecord("ann", "k", roles=("king",)),))},
        {"auth_config": AuthConfig(api_keys=(APIKeyRecord("ann", "k", scopes=("viewer",)),))},
        {"auth_config": AuthConfig(api_keys=(APIKeyRecord("ann", "k"), APIKeyRecord("ben", "k")))},
        {"auth_config": AuthConfig(api_keys=(APIKeyRecord("ann", ""),))},
        {"request_limits": RequestLimits(max_body_bytes=0)},
    ],
    ids=["no keys", "no role", "no scope", "the same key twice", "an empty key", "no bound"],
)
def test_what_makes_no_sense_is_refused_before_anything_is_served(chosen: PlatformManager, wrong: dict) -> None:
    set_platform_manager(chosen)
    with pytest.raises(Invalid):
        create_app(**wrong)


FACTORY = """
from kneo.platform import PlatformManager
def build():
    manager = PlatformManager()
    manager.start_worker()
    return manager
def wrong(): return 7
def broken(): raise KeyError("nothing here")
"""


def test_a_factory_named_by_the_environment(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_factory_module.py").write_text(FACTORY)

    def named(value: str) -> Settings:
        return from_env({"HOME": str(tmp_path), "KNEO_SERV_PLATFORM": value}, tmp_path)

    assert load_platform(settings) is None
    made = load_platform(named("my_factory_module:build"))
    assert made is not None
    assert made is load_platform(named("my_factory_module:build"))
    with made.store.exclusive("worker") as free:
        assert free
    made.close()
    for wrong in ("my_factory_module", "my_factory_module:none", "no_such_module:x", ":x", "my_factory_module:wrong"):
        with pytest.raises(Invalid, match="KNEO_SERV_PLATFORM"):
            load_platform(named(wrong))
    with pytest.raises(Invalid, match="nothing here"):
        load_platform(named("my_factory_module:broken"))


def test_stores_that_are_not_one_are_refused(settings: Settings) -> None:
    with pytest.raises(Invalid):
        PlatformManager(None, Database("sqlite:///a"), Database("sqlite:///b"), settings=settings)


def test_what_an_environment_asks_for_is_asked_of_every_run(manager: PlatformManager) -> None:
    assert manager.get_environment_policy("prod") is None
    asked = manager.set_environment_policy("prod", enabled=True, require_guardrails=True)
    assert manager.list_environment_policies() == {"prod": asked}
    with pytest.raises(KneoError, match="guardrail"):
        manager.run_from_spec("x", spec=SPEC, environment="prod")
    with pytest.raises(Invalid):
        manager.set_environment_policy("prod", no_such_flag=True)
    assert manager.get_environment_policy("prod") == asked


def test_the_program_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "guides" / "python" / "embed.md").read_text()
    program, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(program, "embedding.md", "exec"), {})
