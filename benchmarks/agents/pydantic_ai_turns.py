"""The same conversation with pydantic-ai alone, nothing recorded: ``python -m benchmarks.agents.pydantic_ai_turns``."""

from __future__ import annotations

import asyncio
import json
import sys

from openai import AsyncOpenAI
from pydantic_ai import Agent, Tool
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

from benchmarks.agents import conversation


def model_in_process(name: str) -> Model:
    """Return a model that follows the script of its name without a wire."""
    turns = int(name.removeprefix(conversation.model_name(0)[:-1]))

    async def reply(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        n = len(messages) // 2
        if n < turns:
            return ModelResponse([ToolCallPart("look", {"n": n}, f"call_{n}")])
        return ModelResponse([TextPart(conversation.ANSWER)])

    return FunctionModel(reply, model_name=name)


async def look(n: int) -> str:
    return str(n)


def main(url: str, lengths: list[int], count: int) -> dict[str, dict[str, float]]:
    """Have the conversations."""
    provider = OpenAIProvider(
        openai_client=AsyncOpenAI(api_key="none", base_url=url or "http://127.0.0.1:9/v1", max_retries=0)
    )
    tool = Tool.from_schema(look, "look", conversation.DESCRIPTION, conversation.PARAMETERS)
    with asyncio.Runner() as runner:

        def talk(turns: int) -> None:
            name = conversation.model_name(turns)
            model = OpenAIChatModel(name, provider=provider) if url else model_in_process(name)
            agent = Agent(model, instructions="Look everything up.", tools=[tool])
            limits = UsageLimits(request_limit=turns + 1)
            assert runner.run(agent.run("Begin.", usage_limits=limits)).output == conversation.ANSWER

        return conversation.measure(talk, lengths, count)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["url"], asked["lengths"], asked["count"])))
