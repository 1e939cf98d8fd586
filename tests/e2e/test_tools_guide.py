"""The guide of tools: its spec runs with the commands beside it, its Python runs, and its functions are those of the examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from foreign_agent import foreign_agent_in_thread
from kneo_process import Machine
from model_server import Call, Reply, model_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "specs" / "tools.md").read_text()
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {kind: [each["text"] for each in BLOCK.finditer(PAGE) if each["kind"] == kind] for kind in ("python", "yaml")}


def test_the_functions_of_the_guide_are_those_of_the_examples() -> None:
    shown = BLOCKS["python"][0].removeprefix("# examples/shop_tools.py\n")
    assert (ROOT / "examples" / "shop_tools.py").read_text().endswith(shown)


def test_the_spec_of_the_guide_waits_for_the_refund_and_finishes(tmp_path: Path) -> None:
    calls = [Call("lookup_order", {"id": "o-7"}), Call("refund", {"id": "o-7", "amount": 20})]
    with model_server([Reply(calls=calls), Reply("Refunded.")]) as server:
        provider = {"OPENAI_API_KEY": "sk-guide", "OPENAI_BASE_URL": server.openai_url}
        machine = Machine(tmp_path / "home", f"sqlite:///{tmp_path / 'kneo.sqlite'}", **provider)
        (machine.folder / "shop.yaml").write_text(BLOCKS["yaml"][0])
        examples = machine.folder / "examples"
        examples.mkdir()
        (examples / "__init__.py").write_text("")
        (examples / "shop_tools.py").write_text((ROOT / "examples" / "shop_tools.py").read_text())
        started = machine.kneo("run", "shop.yaml", "--input", "Refund order o-7, 20 EUR", "--json")
        waiting = json.loads(started.stdout)
        assert waiting["status"] == "paused", waiting
        task = json.loads(machine.kneo("task", "get", waiting["continuation_id"], "--json").stdout)
        assert "o-7" in json.dumps(task)
        request_id = waiting["metadata"]["pending_human_request"]["request_id"]
        decided = machine.kneo(
            "task", "decide", waiting["continuation_id"], "--request-id", request_id, "--approve", "--json"
        )
        assert "Refunded." in decided.stdout
        results = server.requests[-1].text
        assert "refunded 20 for o-7 with the key" in results
        assert '\\"total\\": 20' in results.replace('\\"total\\":20', '\\"total\\": 20')


def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls = [
        Call("send_money", {"amount": 5, "to": "bob"}),
        Call("invite", {"name": "ann"}),
        Call("run_query", {"sql": "select count(*) from users"}),
    ]
    with model_server([Reply(calls=calls), Reply("All done.")]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-guide")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        for number, program in enumerate(BLOCKS["python"][1:]):
            assert "assert" in program
            exec(compile(program, f"tools.md: {number}", "exec"), {"__name__": "example"})
        assert "invited ann at ann@example.com" in server.requests[-1].text
        assert "42 users" in server.requests[-1].text


def test_the_remote_agent_of_the_guide_is_called(tmp_path: Path) -> None:
    (shown,) = [block for block in BLOCKS["yaml"] if "a2a:" in block]
    replies = [Reply(calls=[Call("translate", {"input": "Good morning."})]), Reply("Published.")]
    with foreign_agent_in_thread() as agent, model_server(replies) as server:
        host = agent.url.removeprefix("http://")
        variables = {
            "OPENAI_BASE_URL": server.openai_url,
            "KNEO_SERV_TOOLS_INSIDE": host,
            "TRANSLATOR_KEY": "k-12345678",
        }
        url = f"sqlite:///{tmp_path / 'kneo.sqlite'}"
        machine = Machine(tmp_path / "home", url, OPENAI_API_KEY="sk-guide", **variables)
        spec = shown.replace("https://agents.example/v1/a2a/prod/translator", agent.url)
        (machine.folder / "publisher.yaml").write_text(spec.replace("[agents.example]", "[127.0.0.1]"))
        run = machine.json("run", "publisher.yaml", "--input", "Publish it in French.")
        assert (run["status"], run["output_text"]) == ("succeeded", "Published.")
        assert "done: Good morning." in server.requests[-1].text
        assert set(agent.authorization) == {"Bearer k-12345678"}
