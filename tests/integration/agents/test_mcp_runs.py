"""Runs whose agent calls a tool of an MCP server, continued by other processes against other processes of the server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kneo_process import Machine, eventually
from model_server import Call, Reply, model_server

SERVER = str(Path(__file__).parents[2] / "support" / "mcp_server.py")


def spec(*arguments: str) -> str:
    return json.dumps(
        {
            "agent": {
                "name": "shop",
                "model": {"provider": "openai", "name": "m"},
                "strategy": {"type": "react"},
                "tools": {"include": ["order", "echo"], "permissions": {"allow_network": False}},
            },
            "tools": {
                "order": {
                    "description": "Order something.",
                    "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
                    "mcp": {"server": "shop"},
                    "effects": True,
                },
                "echo": {"description": "Repeat.", "parameters": {"type": "object"}, "mcp": {"server": "shop"}},
            },
            "mcp_servers": {"shop": {"transport": "stdio", "command": sys.executable, "args": [SERVER, *arguments]}},
        }
    )


def test_a_question_of_a_server_is_a_task_that_any_process_continues(tmp_path: Path) -> None:
    replies = [Reply(calls=[Call("order", {"name": "chair"}), Call("echo", {"text": "once"})]), Reply("Ordered.")]
    with model_server(replies) as server:
        machine = Machine(
            tmp_path / "machine",
            f"sqlite:///{tmp_path}/kneo.sqlite",
            OPENAI_API_KEY="k",
            OPENAI_BASE_URL=server.openai_url,
            KNEO_SERV_MCP_COMMANDS=sys.executable,
            KNEO_SERV_MCP_CONNECT_TIMEOUT_SECONDS="120",
        )
        (machine.folder / "spec.json").write_text(spec("--key", "k" * 32, "--pid", str(tmp_path / "pid")))
        run = machine.json("run", "spec.json", "--input", "A chair, please.", expect=None)
        for prompt, answer in (("Which colour?", {"colour": "red"}), ("Which size?", {"size": 3})):
            request = run["metadata"]["pending_human_request"]
            assert (request["prompt"], request["schema"]["required"]) == (prompt, list(answer))
            misfit = machine.kneo("task", "decide", run["continuation_id"], "--provide", '{"taste": 1}', expect=None)
            assert misfit.returncode == 1, misfit
            run = machine.json("task", "decide", run["continuation_id"], "--provide", json.dumps(answer), expect=None)
        assert (run["status"], run["output_text"]) == ("succeeded", "Ordered.")
        asked = [request.body for request in server.requests]
    last_server = Path(f"/proc/{(tmp_path / 'pid').read_text()}")
    eventually(lambda: not last_server.exists())
    assert len(asked) == 2, "the model is asked once before and once after the calls"
    sent = json.dumps(asked[-1])
    for part in ("chair", "red", "size", "once"):
        assert part in sent
