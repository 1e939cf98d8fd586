"""An agent over the HTTP API: its gated call is edited, refused edits change nothing, and processes may die in between."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
from kneo_process import Machine, Process, eventually
from model_server import Call, ModelServer, Reply, model_server

from kneo.trust.keys import PrivateKey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

TOOLS = """
from pathlib import Path
def pay(arguments, key):
    with Path(__file__).with_suffix(".log").open("a") as log:
        log.write(f"{arguments['amount']}\\n")
    return {"paid": arguments["amount"]}
"""

SPEC = {
    "agent": {
        "name": "teller",
        "model": {"provider": "openai", "name": "m", "extra": {"api": "chat"}},
        "strategy": "react",
        "tools": ["pay"],
    },
    "tools": {
        "pay": {
            "description": "Pay.",
            "implementation": "bank.pay",
            "parameters": {
                "type": "object",
                "properties": {"amount": {"type": "integer"}},
                "required": ["amount"],
                "additionalProperties": False,
            },
            "capabilities": ["privileged"],
            "review": {"before": {"human": "ops"}},
        }
    },
    "components": {"humans": {"ops": {"description": "May it pay?"}}},
}

ENDED = {"succeeded", "failed", "cancelled"}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server([]) as server:
        yield server


@pytest.fixture
def machine(database_url: str, tmp_path: Path, server: ModelServer) -> Iterator[Machine]:
    keys = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": server.openai_url}
    machine = Machine(tmp_path / "house", database_url, **keys)
    if database_url.startswith("postgres"):
        machine.env["KNEO_SERV_SERVICE_KEY"] = PrivateKey.generate().dump().decode()
    (machine.folder / "bank.py").write_text(TOOLS)
    yield machine
    machine.stop()


def serve(machine: Machine) -> Process:
    return machine.start("service", "serve", "--port", "0")


def paid(machine: Machine) -> list[str]:
    log = machine.folder / "bank.log"
    return log.read_text().split() if log.exists() else []


def tasks(at: Process, run: dict[str, object]) -> dict[str, dict[str, object]]:
    found = at.get("/human-tasks", run_id=str(run["run_id"]), status="pending")["tasks"]
    return {str(task["current_input"]): task for task in found}  # type: ignore[union-attr,index,call-overload]


def test_a_gated_call_is_edited_over_http_and_the_service_may_die_in_between(
    machine: Machine, server: ModelServer
) -> None:
    server.script = [Reply(calls=[Call("pay", {"amount": 5})]), Reply("Paid.")]
    at = serve(machine)
    run = at.post("/runs", {"input": "Pay 5.", "spec": SPEC})
    assert run["status"] == "paused"
    [task] = tasks(at, run).values()
    where = f"/human-tasks/{task['continuation_id']}"
    before = at.get(where)
    answer = {"request_id": task["request"]["request_id"], "decision": "edited"}  # type: ignore[index]
    for unfit in ({"content": '{"amount": "six"}'}, {"arguments": {"amount": 6, "to": "eve"}}, {"content": "six"}):
        refused = at.http.post(f"{where}/resume", json={**answer, **unfit})
        assert (refused.status_code, refused.json()["error"]) == (422, "human_input_invalid")
    assert at.get(where) == before
    at.kill()
    at = serve(machine)
    answered = at.http.post(f"{where}/resume", json={**answer, "arguments": {"amount": 6}})
    assert answered.status_code == 200, answered.text
    ended = eventually(lambda: (now := at.get(f"/runs/{run['run_id']}"))["status"] in ENDED and now)
    assert (ended["status"], ended["output_text"]) == ("succeeded", "Paid.")
    assert paid(machine) == ["6"]
    assert len(server.requests) == 2


def test_calls_are_answered_in_any_order_from_two_processes(
    postgres_url: str, tmp_path: Path, server: ModelServer
) -> None:
    keys = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": server.openai_url}
    key = PrivateKey.generate().dump().decode()
    machine = Machine(tmp_path / "two", postgres_url, KNEO_SERV_SERVICE_KEY=key, **keys)
    (machine.folder / "bank.py").write_text(TOOLS)
    server.script = [Reply(calls=[Call("pay", {"amount": amount}) for amount in (1, 2, 3)]), Reply("Paid.")]
    try:
        processes = [serve(machine), serve(machine)]
        for order in permutations((1, 2, 3)):
            (machine.folder / "bank.log").unlink(missing_ok=True)
            run = processes[0].post("/runs", {"input": "Pay.", "spec": SPEC})
            for count, amount in enumerate(order):
                at = processes[count % 2]
                subject = f'{{"arguments":{{"amount":{amount}}},"tool":"pay"}}'
                task = tasks(at, run)[subject]
                request = task["request"]["request_id"]  # type: ignore[index]
                body = {"request_id": request, "decision": "approved"}
                answered = at.http.post(f"/human-tasks/{task['continuation_id']}/resume", json=body)
                assert answered.status_code == 200, answered.text
                made = [str(one) for one in order[: count + 1]]
                eventually(lambda made=made: paid(machine) == made)
            eventually(lambda run=run: processes[1].get(f"/runs/{run['run_id']}")["status"] == "succeeded")
    finally:
        machine.stop()
