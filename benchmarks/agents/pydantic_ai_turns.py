"""The same conversation with pydantic-ai alone, nothing recorded: ``python -m benchmarks.agents.pydantic_ai_turns``."""

from __future__ import annotations

import asyncio
import json
import sys

from openai import AsyncOpenAI
from pydantic_ai import Agent, Tool
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

from benchmarks.agents import conversation


async def look(n: int) -> str:
    return str(n)


def main(url: str, lengths: list[int], count: int) -> dict[str, dict[str, float]]:
    """Have the conversations."""
    provider = OpenAIProvider(openai_client=AsyncOpenAI(api_key="none", base_url=url, max_retries=0))
    tool = Tool.from_schema(look, "look", conversation.DESCRIPTION, conversation.PARAMETERS)
    with asyncio.Runner() as runner:

        def talk(turns: int) -> None:
            model = OpenAIChatModel(conversation.model_name(turns), provider=provider)
            agent = Agent(model, instructions="Look everything up.", tools=[tool])
            limits = UsageLimits(request_limit=turns + 1)
            assert runner.run(agent.run("Begin.", usage_limits=limits)).output == conversation.ANSWER

        return conversation.measure(talk, lengths, count)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["url"], asked["lengths"], asked["count"])))
