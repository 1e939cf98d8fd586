"""Tools through a whole command: whatever a tool does, the run gets a bounded, clear result and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kneo_process import Machine, eventually
from model_server import Call, ModelServer, Reply, model_server
from processes import is_executing
from receivers import WebReceiver, web_receiver

SOURCE = """
import os, subprocess, sys, time

def raises(arguments): raise ValueError("no such user; token=sk-abcdefghijklmnopqrstuvwx")
def exits(arguments): sys.exit(3)
def dies(arguments): os._exit(9)
def large(arguments): return "x" * 10_000_000
def not_json(arguments): return {1, 2}
def floods(arguments):
    os.write(1, b"x" * 1_000_000)
    return "flooded"
def hangs(arguments):
    child = subprocess.Popen(["sleep", "100000"])
    with open("pids", "w") as file: file.write(f"{os.getpid()} {child.pid}")
    time.sleep(100_000)
def works(arguments): return "works"
"""
LIMITED = ("dies", "floods")
NAMES = ("raises", "exits", "dies", "large", "not_json", "floods", "works")


@pytest.fixture
def receiver() -> Iterator[WebReceiver]:
    with web_receiver() as found:
        yield found


def spec(tools: dict[str, object], **permissions: object) -> str:
    return yaml.safe_dump(
        {
            "version": "v1",
            "agent": {
                "name": "clerk",
                "model": {"provider": "openai", "name": "gpt-5-mini"},
                "strategy": "react",
                "tools": {"include": list(tools), "permissions": {"allow_shell": False, **permissions}},
            },
            "tools": tools,
        }
    )


def machine_for(folder: Path, server: ModelServer, **variables: str) -> Machine:
    provider = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": server.openai_url}
    made = Machine(folder / "home", f"sqlite:///{folder / 'kneo.sqlite'}", **provider, **variables)
    (made.folder / "hostile.py").write_text(SOURCE)
    return made


def results(server: ModelServer) -> list[str]:
    return [item["output"] for item in server.requests[-1].body["input"] if item.get("type") == "function_call_output"]


def test_whatever_a_function_does_the_agent_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    tools = {
        name: {
            "description": name,
            "implementation": f"hostile.{name}",
            **({"timeout_seconds": 240} if name in LIMITED else {}),
        }
        for name in NAMES
    }
    with model_server([Reply(calls=[Call(name) for name in NAMES]), Reply("Done.")]) as server:
        machine = machine_for(tmp_path, server)
        (machine.folder / "spec.yaml").write_text(spec(tools))
        run = json.loads(machine.kneo("run", "spec.yaml", "--input", "go", "--json").stdout)
        assert (run["status"], run["output_text"]) == ("succeeded", "Done.")
        told = dict(zip(NAMES, results(server), strict=True))
        assert "no such user" in told["raises"]
        assert "sk-abcdef" not in told["raises"]
        assert "SystemExit" in told["exits"]
        assert "exit status 9" in told["dies"]
        assert 100_000 <= len(told["large"]) < 101_000
        assert "cut" in told["large"]
        assert "JSON cannot represent" in told["not_json"]
        assert (told["floods"], told["works"]) == ("flooded", "works")


def test_a_function_that_hangs_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    # A busy machine may need longer than the first limit to start the process and import the function.
    for seconds in (20, 120):
        tools = {"hangs": {"description": "Hangs.", "implementation": "hostile.hangs", "timeout_seconds": seconds}}
        with model_server([Reply(calls=[Call("hangs")]), Reply("Done.")]) as server:
            machine = machine_for(tmp_path, server)
            (machine.folder / "spec.yaml").write_text(spec(tools))
            run = json.loads(machine.kneo("run", "spec.yaml", "--input", "go", "--json").stdout)
            assert (run["status"], run["output_text"]) == ("succeeded", "Done.")
            (told,) = results(server)
            assert f"{seconds} s" in told
        if (machine.folder / "pids").exists():
            break
    pids = [int(pid) for pid in (machine.folder / "pids").read_text().split()]
    eventually(lambda: not any(is_executing(pid) for pid in pids))


@pytest.mark.parametrize("inside", [True, False])
def test_an_http_tool_reaches_what_the_operator_names_and_nothing_else_inside(
    tmp_path: Path, receiver: WebReceiver, inside: bool
) -> None:
    note = {
        "description": "Add a note.",
        "http": {
            "method": "POST",
            "url": f"{receiver.url}/users/{{id}}/notes",
            "secret_headers": {"Authorization": "Bearer ${CRM_TOKEN}"},
        },
        "parameters": {"type": "object", "properties": {"id": {}, "text": {}}},
        "effects": True,
    }
    call = Call("note", {"id": "u 1", "text": "hello"})
    variables = {"CRM_TOKEN": "hunter2hunter2"}
    if inside:
        variables["KNEO_SERV_TOOLS_INSIDE"] = receiver.url.removeprefix("http://")
    with model_server([Reply(calls=[call]), Reply("Done.")]) as server:
        machine = machine_for(tmp_path, server, **variables)
        allowed = {"allow_network": True, "allowed_domains": ["127.0.0.1"]}
        (machine.folder / "spec.yaml").write_text(spec({"note": note}, **allowed))
        run = json.loads(machine.kneo("run", "spec.yaml", "--input", "go", "--json").stdout)
        assert run["output_text"] == "Done."
        (told,) = results(server)
        if not inside:
            assert receiver.received == []
            assert "url_denied" in told
            return
        (received,) = receiver.received
        assert (received.path, received.body) == ("/users/u%201/notes", {"text": "hello"})
        assert received.headers["Authorization"] == "Bearer hunter2hunter2"
        assert received.headers["Idempotency-Key"].startswith(run["run_id"])
        assert b"hunter2" not in (tmp_path / "kneo.sqlite").read_bytes()


def test_a_secret_that_a_server_repeats_reaches_neither_model_nor_database(
    tmp_path: Path, receiver: WebReceiver
) -> None:
    receiver.status, receiver.location = 302, "https://hunter2hunter2.evil.example/"
    headers = {"Authorization": "Bearer ${CRM_TOKEN}"}
    note = {
        "description": "Add a note.",
        "http": {"method": "POST", "url": f"{receiver.url}/notes", "secret_headers": headers},
    }
    variables = {"CRM_TOKEN": "hunter2hunter2", "KNEO_SERV_TOOLS_INSIDE": receiver.url.removeprefix("http://")}
    with model_server([Reply(calls=[Call("note", {})]), Reply("Done.")]) as server:
        machine = machine_for(tmp_path, server, **variables)
        allowed = {"allow_network": True, "allowed_domains": ["127.0.0.1"]}
        (machine.folder / "spec.yaml").write_text(spec({"note": note}, **allowed))
        assert json.loads(machine.kneo("run", "spec.yaml", "--input", "go", "--json").stdout)["output_text"] == "Done."
        (told,) = results(server)
    assert receiver.received[0].headers["Authorization"] == "Bearer hunter2hunter2"
    assert "domain_denied" in told
    assert "[REDACTED].evil.example" in told
    assert "hunter2" not in told
    assert not [file for file in tmp_path.glob("kneo.sqlite*") if b"hunter2" in file.read_bytes()]
