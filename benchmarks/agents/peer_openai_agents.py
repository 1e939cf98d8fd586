"""The same conversation with the OpenAI Agents SDK and its SQLite session. Runs in an environment of its own; prints JSON."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conversation
from agents import Agent, OpenAIChatCompletionsModel, Runner, SQLiteSession, function_tool, set_tracing_disabled
from openai import AsyncOpenAI


@function_tool
async def look(n: int) -> str:
    """Look a number up."""
    return str(n)


def main(url, lengths, count):
    set_tracing_disabled(True)
    client = AsyncOpenAI(api_key="none", base_url=url, max_retries=0)
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        sessions = iter(range(10**9))

        def talk(turns):
            model = OpenAIChatCompletionsModel(model=conversation.model_name(turns), openai_client=client)
            agent = Agent(name="bench", instructions="Look everything up.", model=model, tools=[look])
            session = SQLiteSession(str(next(sessions)), str(Path(folder, "sessions.sqlite")))
            done = runner.run(Runner.run(agent, "Begin.", max_turns=turns + 1, session=session))
            assert done.final_output == conversation.ANSWER, done.final_output

        return conversation.measure(talk, lengths, count)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["url"], asked["lengths"], asked["count"])))
