"""Agents of other libraries in flows, with the real libraries: ``make extras``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conformance.extras.test_extras import Install, call, install
from model_server import Call, ModelRequest, Reply, model_server

__all__ = ["install"]

LANGGRAPH = """
import sqlite3, sys
from typing import TypedDict
from pathlib import Path
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import Executions, flow
from kneo.sdk.durable.adapters.langgraph import run_graph

class State(TypedDict):
    text: str

def did(what):
    with Path("log").open("a") as log:
        log.write(what + "\\n")

def draft(state):
    did("draft")
    return {"text": state["text"] + " draft"}

def review(state):
    suffix = interrupt({"review": state["text"]})
    ok = interrupt("Publish?")
    return {"text": f"{state['text']} {suffix} {ok}"}

builder = StateGraph(State)
builder.add_node("draft", draft)
builder.add_node("review", review)
builder.add_edge(START, "draft")
builder.add_edge("draft", "review")
builder.add_edge("review", END)
graph = builder.compile(checkpointer=SqliteSaver(sqlite3.connect("graph.db", check_same_thread=False)))

@flow(database=SqliteDb("flows.db"))
def publish(topic):
    return run_graph(graph, {"text": topic}, timeout=0)["text"]

if sys.argv[1] == "start":
    print(publish.start("cats").id)
else:
    execution = Executions([publish]).input(sys.argv[2], value=sys.argv[3])
    print(execution.result or execution.status, [each.question for each in execution.pending_waits])
"""

OPENAI_AGENTS = """
import os, sys
from pathlib import Path
from agents import Agent, OpenAIChatCompletionsModel, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from kneo.sdk.db.sqlite import SqliteDb
from kneo.sdk.durable import Executions, flow
from kneo.sdk.durable.adapters.openai_agents import run_agent

set_tracing_disabled(True)

@function_tool(needs_approval=True)
def pay(amount: int) -> str:
    with Path("log").open("a") as log:
        log.write(f"paid {amount}\\n")
    return f"paid {amount}"

client = AsyncOpenAI(base_url=os.environ["MODEL_URL"], api_key="k")
agent = Agent(name="payer", tools=[pay], model=OpenAIChatCompletionsModel("m", openai_client=client))

@flow(database=SqliteDb("flows.db"))
async def pay_bill(text):
    return await run_agent(agent, text, timeout=0)

if sys.argv[1] == "start":
    print(pay_bill.start("Pay.").id)
else:
    execution = Executions([pay_bill]).input(sys.argv[2], value=sys.argv[3] == "yes")
    print(execution.result or execution.status, [each.question for each in execution.pending_waits])
"""


def program(python: Path, folder: Path, *arguments: str, **env: str) -> str:
    done = call(
        [python, "program.py", *arguments], cwd=folder, env={**env, "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def with_packages(python: Path, *packages: str) -> Path:
    pip = ["-m", "pip", "-qq", "--disable-pip-version-check", "--no-input", "install"]
    done = call([python, *pip, *packages])
    assert done.returncode == 0, done.stderr
    return python


def test_interrupts_of_a_langgraph_graph_are_human_tasks(install: Install, tmp_path: Path) -> None:
    python = with_packages(install("agents"), "langgraph>=1.2,<2", "langgraph-checkpoint-sqlite>=3,<5")
    (tmp_path / "program.py").write_text(LANGGRAPH)
    run_id = program(python, tmp_path, "start")
    assert program(python, tmp_path, "answer", run_id, "Verified.") == "waiting ['Publish?']"
    assert program(python, tmp_path, "answer", run_id, "yes") == "cats draft Verified. yes []"
    assert (tmp_path / "log").read_text() == "draft\n"


@pytest.mark.parametrize(("decision", "paid"), [("yes", "paid 5\n"), ("no", "")])
def test_approvals_of_an_openai_agent_are_human_tasks(
    install: Install,
    tmp_path: Path,
    decision: str,
    paid: str,
) -> None:
    def answer(request: ModelRequest) -> Reply:
        last = request.body["messages"][-1]
        return Reply(str(last["content"])) if last["role"] == "tool" else Reply(calls=[Call("pay", {"amount": 5})])

    python = with_packages(install("agents"), "openai-agents>=0.24,<1")
    (tmp_path / "program.py").write_text(OPENAI_AGENTS)
    (tmp_path / "log").touch()
    with model_server(answer) as server:
        run_id = program(python, tmp_path, "start", MODEL_URL=server.openai_url)
        assert (tmp_path / "log").read_text() == ""
        printed = program(python, tmp_path, "answer", run_id, decision, MODEL_URL=server.openai_url)
        assert len(server.requests) == 2
    assert json.dumps(printed).endswith('[]"')
    assert (tmp_path / "log").read_text() == paid
