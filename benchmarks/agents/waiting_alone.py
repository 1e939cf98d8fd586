"""The same requests at once without an engine: what they take at least. Prints JSON: ``python -m benchmarks.agents.waiting_alone``."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from httpx2 import Limits
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from benchmarks.agents import conversation


def look(n: int) -> str:
    """Look something up."""
    return str(n)


async def main(url: str, count: int) -> dict[str, float]:
    """Make the requests."""
    # The library's own limit of 1,000 connections would let the others wait for those that wait for all.
    http = DefaultAsyncHttpxClient(limits=Limits(max_connections=None, max_keepalive_connections=100))
    async with AsyncOpenAI(api_key="none", base_url=url, max_retries=0, timeout=600, http_client=http) as client:
        provider = OpenAIProvider(openai_client=client)
        agent = Agent(
            OpenAIChatModel(conversation.model_name(0), provider=provider), instructions="Look everything up."
        )
        warm = Agent(OpenAIChatModel(conversation.model_name(1), provider=provider), instructions="Look everything up.")
        warm.tool_plain(look)
        await warm.run("Warm up.")
        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(agent.run("Begin.") for _ in range(count)))
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(asyncio.run(main(asked["url"], asked["runs"]))))
