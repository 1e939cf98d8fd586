"""The commands under "Try it" in the README of each template, executed in their order in the repository that kneo init makes."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from kneo_process import Machine, eventually
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from examples import demo_agent

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SERVER = "kneo up --repo ."
ADDRESS = "http://127.0.0.1:8000"


def commands(readme: Path) -> list[str]:
    section = readme.read_text().split("\n## Try it\n")[1].split("\n## ")[0]
    return "".join(re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)).splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, "")
    del made.env["KNEO_SERV_DATABASE_URL"]  # a newcomer sets no variable
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("template", "asked", "last"),
    [
        ("workflow", "Publish this announcement?", "We ship on Friday"),
        ("agent", "Refund 120 EUR for order 8", "We refunded 120 EUR for order 8."),
        ("gateway", "Refund 120 EUR for order 8", '"euros_refunded": 120'),
    ],
)
def test_the_commands_of_the_readme_work(machine: Machine, template: str, asked: str, last: str) -> None:
    words = ["--principal", "bob", "--approver", "ann"]
    words += [] if template == "workflow" else ["--model", demo_agent.SCRIPTED]
    machine.kneo("init", "acme", "--template", template, *words)
    acme, script, printed = machine.folder / "acme", "", ""
    with demo_agent.model_variables(demo_agent.SCRIPTED) as variables:
        machine.env.update(variables)
        for command in commands(acme / "README.md"):
            if command.startswith(("export ", "AT=")):
                script += command + "\n"
            elif command == SERVER:
                exported = subprocess.run(
                    ["bash", "-c", f"{script}echo $KNEO_SERV_API_KEYS"],
                    env=machine.env,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                keys = exported.stdout.strip()
                key = {"KNEO_SERV_API_KEY": keys.split(":")[1]} if keys else {}
                machine.env |= {"KNEO_SERV_API_KEYS": keys} if keys else {}
                up = machine.start("up", "--repo", ".", "--port", "0", "--interval", "1h", cwd=acme)
                machine.env |= key
                eventually(lambda: "1.0.0" in machine.kneo("status", "prod", cwd=acme, expect=None).stdout)
                for name in key:
                    del machine.env[name]
                script = script.replace(ADDRESS, up.url)
            else:
                tasks = re.findall(r"cont_[0-9a-z]{20,}", printed)
                line = command.replace("cont_…", tasks[-1] if tasks else "")
                ran = subprocess.run(
                    ["bash", "-c", script.replace(ADDRESS, up.url) + line if "$AT" in line else line],
                    cwd=acme,
                    env=machine.env,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                printed += ran.stdout + ran.stderr
                assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    before, _, decided = printed.rpartition(asked)
    assert last in decided
    assert template == "gateway" or "kneo task decide cont_" in before
    if template == "gateway":
        named = (acme / ".mcp.json").read_text().replace(ADDRESS, up.url)
        assert asyncio.run(small_refund(named.replace("${KNEO_SERV_API_KEY}", "KEY-OF-MY-AGENT"))) == 20


async def small_refund(settings: str) -> float:
    """Refund 20 EUR as a client of MCP that reads the generated settings."""
    server = json.loads(settings)["mcpServers"]["support"]
    async with (
        httpx2.AsyncClient(headers=server["headers"]) as http,
        Client(streamable_http_client(server["url"], http_client=http)) as client,
    ):
        assert {"lookup_order", "refund"} <= {tool.name for tool in (await client.list_tools()).tools}
        done = await client.call_tool("refund", {"order": 7, "euros": 20})
    return json.loads(done.content[0].text)["euros_refunded"]
