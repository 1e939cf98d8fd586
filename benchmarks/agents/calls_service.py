"""The measured service of calls, in a process of its own until its standard input ends: ``python -m benchmarks.agents.calls_service FOLDER URL PORT``.

Its bundle has a hundred tools of the MCP server at the port, and one that people approve and the caller makes itself.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from config_repo import ConfigRepo
from service_bench import serving

from kneo.cli.serve.controller import Repository, make_controller

TOOLS = 100
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
GATED = "delete"


def spec(port: int) -> dict[str, object]:
    """Return the bundle."""
    reads = {
        f"echo{number}": {
            "description": f"Return the text, number {number}.",
            "parameters": TEXT,
            "effects": False,
            "mcp": {"server": "tests", "name": "echo"},
        }
        for number in range(TOOLS)
    }
    gated = {"description": "Delete.", "parameters": TEXT, "capabilities": ["privileged"]}
    review = {"before": {"human": "finance"}, "external": {"human": "caller"}}
    permissions = {"allow_network": True, "allowed_domains": ["127.0.0.1"]}
    return {
        "version": "v1",
        "targets": ["call"],
        "agent": {"name": "shop", "tools": {"include": [*reads, GATED], "permissions": permissions}},
        "tools": {**reads, GATED: {**gated, "review": review}},
        "mcp_servers": {"tests": {"transport": "http", "url": f"http://127.0.0.1:{port}/mcp"}},
        "components": {"humans": {"finance": {"description": "May it be done?"}}},
    }


def main(folder: str, url: str, port: str) -> None:
    """Release the bundle and serve until the standard input ends."""
    repo = ConfigRepo(Path(folder) / "repo")
    repo.bundle("shop", "1.0.0", spec(int(port)))
    inside = {"inside": [f"127.0.0.1:{port}"], "mcp": {"hosts": ["127.0.0.1"]}}
    repo.environment("prod", {"shop": "1.0.0"}, protocols={"calls": [{"bundle": "shop"}]}, tools=inside)
    repo.commit("Serve tools")
    with serving(Path(folder) / "house", url) as bench:
        source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
        outcome = make_controller(bench.settings, bench.store, source).run_once()
        if outcome.outcomes["prod"].state != "Ready":
            raise AssertionError(outcome)
        sys.stdout.write(f"{bench.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
