"""Turns of Kneo's agent with the whole engine, on one SQLite file: ``python -m benchmarks.agents.kneo_turns``. Prints JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.agents import conversation
from benchmarks.agents.pydantic_ai_turns import model_in_process
from kneo.agents.clients import ModelClient, ModelClients
from kneo.agents.providers import ProviderConnection
from kneo.platform import PlatformManager
from kneo.settings import from_env

SOURCE = "async def look(arguments):\n    return str(arguments['n'])\n"


def spec(turns: int) -> dict[str, object]:
    """Return an agent with one tool."""
    return {
        "version": "v1",
        "agent": {
            "name": "bench",
            "system_prompt": "Look everything up.",
            "model": {"provider": "openai", "name": conversation.model_name(turns), "extra": {"api": "chat"}},
            "strategy": {"type": "react", "max_iterations": turns + 1},
            "tools": {"include": ["look"]},
        },
        "tools": {
            "look": {
                "description": conversation.DESCRIPTION,
                "parameters": conversation.PARAMETERS,
                "implementation": "bench_tools.look",
            }
        },
    }


def without_wire() -> None:
    """Give every connection the model of this process instead of a client."""

    async def close() -> None:
        pass

    def client(_clients: ModelClients, connection: ProviderConnection) -> ModelClient:
        return ModelClient(connection, model_in_process, close)

    ModelClients.client = client  # type: ignore[method-assign]


def main(url: str, lengths: list[int], count: int) -> dict[str, dict[str, float]]:
    """Have the conversations."""
    if not url:
        without_wire()
    os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": url or "http://127.0.0.1:9/v1"}  # noqa: TID251 - what an operator does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench_tools.py").write_text(SOURCE)
        with PlatformManager(settings=from_env({"HOME": name}, folder)) as manager:
            manager.start_worker(2)

            def talk(turns: int) -> None:
                done = manager.run_from_spec("Begin.", spec=spec(turns), target="agent")
                assert done.output_text == conversation.ANSWER, done

            return conversation.measure(talk, lengths, count)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["url"], asked["lengths"], asked["count"])))
