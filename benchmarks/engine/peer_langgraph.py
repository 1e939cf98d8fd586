"""The same flows on LangGraph with SqliteSaver. Runs in an environment of its own; prints JSON."""

import asyncio
import json
import resource
import sqlite3
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt


class State(TypedDict):
    text: str


def adding(words):
    return lambda state: {"text": state["text"] + words}


def approve(state):
    interrupt({"prompt": "Publish it?"})
    return {"text": state["text"]}


def graph(saver, nodes):
    made = StateGraph(State)
    names = [f"s{number}" for number in range(len(nodes))]
    for name, node in zip(names, nodes, strict=True):
        made.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        made.add_edge(before, after)
    return made.compile(checkpointer=saver)


def main(count, workers, lengths):
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder, "graph.sqlite"), check_same_thread=False)
        saver = SqliteSaver(connection)
        saver.setup()
        connection.execute("PRAGMA synchronous=FULL")
        plain = graph(saver, [adding(" (draft)"), adding(" (polished)"), adding(" (published)")])
        asking = graph(saver, [adding(" (draft)"), approve, adding(" (published)")])
        threads = iter(range(10**9))

        def config(length=3):
            return {"configurable": {"thread_id": str(next(threads))}, "recursion_limit": length + 10}

        def run_plain(number):
            done = plain.invoke({"text": f"text {number}"}, config(), durability="sync")
            assert done["text"] == f"text {number} (draft) (polished) (published)", done

        def run_asking(number):
            where = config()
            asking.invoke({"text": f"text {number}"}, where, durability="sync")
            done = asking.invoke(Command(resume="approved"), where, durability="sync")
            assert done["text"] == f"text {number} (draft) (published)", done

        def chain(length):
            made = graph(saver, [adding("")] * length)
            return lambda number: made.invoke({"text": f"{number}"}, config(length), durability="sync")

        answer = {}
        for title, work in (("plain", run_plain), ("asking", run_asking)):
            measure(work, 5, workers)
            answer[title] = measure(work, count, 1)
            answer[f"{title} x{workers}"] = measure(work, count, workers)
        for length in lengths:
            work = chain(length)
            work(0)
            found = measure(work, max(1, min(10, 1000 // length)), 1)
            answer[f"chain {length}"] = {**found, "ms_per_step": found["ms"] / length}
        return answer


def measure(work, count, workers):
    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(count)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"per_second": count / seconds, "ms": seconds / count * 1000, "cpu_ms": cpu / count * 1000}


async def waiting(count):
    """So many invocations at once that each wait two seconds in an async node."""

    async def wait(state):
        await asyncio.sleep(2.0)
        return {"text": state["text"]}

    with tempfile.TemporaryDirectory() as folder:
        async with AsyncSqliteSaver.from_conn_string(str(Path(folder, "graph.sqlite"))) as saver:
            await saver.setup()
            await saver.conn.execute("PRAGMA synchronous=FULL")
            made = graph(saver, [wait])
            started, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(
                *(
                    made.ainvoke({"text": "2"}, {"configurable": {"thread_id": str(number)}}, durability="sync")
                    for number in range(count)
                )
            )
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu, "threads": threading.active_count(), "megabytes": memory}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if "runs" in asked:
        print(json.dumps(asyncio.run(waiting(asked["runs"]))))
    else:
        print(json.dumps(main(asked["count"], asked["workers"], asked["lengths"])))
