"""The same conversation on LangGraph's agent with SqliteSaver. Runs in an environment of its own; prints JSON."""

import json
import sqlite3
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conversation
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


@tool
def look(n: int) -> str:
    """Look a number up."""
    return str(n)


def graph(url, turns, saver):
    model = ChatOpenAI(model=conversation.model_name(turns), base_url=url, api_key="none", max_retries=0)
    bound = model.bind_tools([look])
    made = StateGraph(MessagesState)
    made.add_node(
        "model", lambda state: {"messages": [bound.invoke([("system", "Look everything up."), *state["messages"]])]}
    )
    made.add_node("tools", ToolNode([look]))
    made.add_edge(START, "model")
    made.add_conditional_edges("model", tools_condition)
    made.add_edge("tools", "model")
    return made.compile(checkpointer=saver)


def main(url, lengths, count):
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder, "graph.sqlite"), check_same_thread=False)
        saver = SqliteSaver(connection)
        saver.setup()
        connection.execute("PRAGMA synchronous=FULL")
        graphs = {turns: graph(url, turns, saver) for turns in lengths}
        threads = iter(range(10**9))

        def talk(turns):
            config = {"configurable": {"thread_id": str(next(threads))}, "recursion_limit": 2 * turns + 10}
            done = graphs[turns].invoke({"messages": [("user", "Begin.")]}, config, durability="sync")
            assert done["messages"][-1].content == conversation.ANSWER, done["messages"][-1]

        return conversation.measure(talk, lengths, count)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["url"], asked["lengths"], asked["count"])))
