"""A kind of tools that a package adds: its calls, its refusals, and runs on a machine without the package."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_runs import MODEL, AgentRuns
from example_extension import install_example, on_path
from model_server import Call, Reply, model_server
from tool_calls import filtered, tool_call

from kneo.agents.http import HttpClient
from kneo.agents.providers import OperatorConnections
from kneo.agents.services import unrestricted
from kneo.agents.start_check import check_agents
from kneo.agents.tools.kinds import BACKEND_KINDS, BackendContext
from kneo.agents.turn import ToolCall
from kneo.errors import Invalid
from kneo.records.run import RunStatus
from kneo.settings import from_env
from kneo.spec.models.spec import Spec, Tool
from kneo.spec.policy import ToolRules
from kneo.store.engine import Store


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def _on_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with on_path(installed, monkeypatch):
        yield


def orders(folder: Path) -> Path:
    file = folder / "orders.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE orders (id INTEGER, city TEXT)")
        database.execute("INSERT INTO orders VALUES (7, 'Oslo'), (8, 'Rome')")
    database.close()
    return file


def spec(config: dict[str, object], **permissions: object) -> dict[str, Any]:
    tools = {"include": ["order"], "permissions": {"allow_network": True, **permissions}}
    parameters = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    order = {"description": "Reads an order.", "parameters": parameters, "effects": False}
    return {
        "agent": {"name": "root", "model": MODEL, "strategy": "react", "tools": tools},
        "tools": {"order": {**order, "extension": {"kind": "sqlite", "config": config}}},
    }


QUERY = "SELECT * FROM orders WHERE id = :id"


def called(store: Store, folder: Path, patch: pytest.MonkeyPatch, query: str, **permissions: object) -> str:
    """What the model is shown of a call in a whole run."""
    with model_server([Reply(calls=[Call("order", {"id": 7})]), Reply("Done.")]) as server:
        runs = AgentRuns(store, folder / "code", server, patch)
        run = runs.drive(runs.begin(spec({"file": str(orders(folder)), "query": query}, **permissions)))
        assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "Done.")
        return str(server.requests[-1].body)


@pytest.mark.usefixtures("_on_path")
def test_an_agent_calls_a_tool_of_the_kind(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = called(store, tmp_path, monkeypatch, QUERY)
    assert "Oslo" in shown
    assert "Rome" not in shown


@pytest.mark.usefixtures("_on_path")
def test_a_call_that_fails_is_a_result(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "attempt to write a readonly database" in called(store, tmp_path, monkeypatch, "DELETE FROM orders")


@pytest.mark.usefixtures("_on_path")
def test_the_guard_stands_before_the_kind(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = called(store, tmp_path, monkeypatch, QUERY, allow_network=False)
    assert "do not allow the tool order" in shown
    assert "Oslo" not in shown


def check(config: dict[str, object]) -> None:
    checked = Spec.model_validate(spec(config))
    operator = OperatorConnections(secret={"OPENAI_API_KEY": "k"}.get)
    check_agents(checked, {"root": checked.agent}, operator, None)


@pytest.mark.usefixtures("_on_path")
def test_a_declaration_that_the_kind_refuses_starts_no_run() -> None:
    check({"file": "/orders.db", "query": QUERY})
    with pytest.raises(Invalid, match="absolute path of a file and a query"):
        check({"file": "orders.db", "query": QUERY})


def test_without_the_package_no_run_starts() -> None:
    assert not BACKEND_KINDS.has("sqlite")
    with pytest.raises(Invalid, match="no package that is installed here adds its kind sqlite") as caught:
        check({"file": "/orders.db", "query": QUERY})
    assert caught.value.code == "tool_kind_not_installed"


@pytest.mark.parametrize("kind", ["python", "http", "mcp", "agent", "a2a", "extension", "", "../x", "Sqlite"])
def test_no_package_adds_a_kind_of_kneo(kind: str) -> None:
    with pytest.raises(ValueError, match="kind"):
        Tool.model_validate({"description": "x", "extension": {"kind": kind}})


def test_rules_of_an_environment_know_the_kind() -> None:
    names = Tool.model_validate(
        {"description": "x", "extension": {"kind": "sqlite", "url": "https://db.example"}}
    ).names("a")
    assert ToolRules(deny=["sqlite"]).denied(names) == "sqlite"
    assert ToolRules(deny=["https://db.example*"]).denied(names) == "https://db.example"
    assert ToolRules(allow=["a"]).not_allowed(names) == "sqlite"
    assert ToolRules(allow=["a", "sqlite"]).not_allowed(names) is None


def test_the_secrets_of_a_declaration_reach_the_kind_and_leave_no_call(tmp_path: Path) -> None:
    context = BackendContext(
        settings=from_env({}, cwd=tmp_path),
        secrets={"PASSWORD": "hunter2hunter2"}.get,
        rules=unrestricted,
        client=HttpClient,
        on_close=print,
    )
    seen = []

    class Echo:
        async def call(self, call: ToolCall) -> object:
            seen.append(context.secrets_of(call))
            return f"connected with {seen[0]['password']}"

    made = tool_call(extension={"kind": "sqlite", "secrets": {"password": "${PASSWORD}"}})
    result = asyncio.run(filtered(Echo()).call(made))
    assert seen == [{"password": "hunter2hunter2"}]
    assert "hunter2" not in str(result)
