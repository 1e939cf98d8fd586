"""Graphs of LangGraph in flows: each interrupt of the graph is a human task. Needs ``langgraph`` 1.x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.types import Command, Interrupt
from pydantic_core import to_jsonable_python

from kneo.embed.steps import POLL_SECONDS, CheckpointCall, active_step
from kneo.errors import Usage
from kneo.sdk.waits import wait

__all__ = ["run_graph"]


def run_graph(
    graph: Any,
    given: object,
    *,
    config: Mapping[str, Any] | None = None,
    timeout: float | None = POLL_SECONDS,
) -> Any:
    """Invoke a compiled graph and return its state; people answer its interrupts.

    The graph's thread is named after the run, so that the flow continues the graph where it stopped. Compile the graph with a
    checkpointer that is stored: with one in memory, another process begins the graph again and asks again.

    Args:
        graph: A compiled graph with a checkpointer.
        given: The input of the graph.
        config: Further configuration of LangGraph; a ``thread_id`` in it replaces the run's.
        timeout: Seconds that the program polls for each answer, as for ``wait``.

    Raises:
        Usage: the graph has no checkpointer, or no step runs.
    """
    if not graph.checkpointer:
        msg = "The graph has no checkpointer, so it could not continue after an answer."
        raise Usage(msg, hint="Compile it with one: builder.compile(checkpointer=SqliteSaver(...)).")
    more = dict(config or {})
    thread = {"thread_id": active_step().context.run_id, **more.get("configurable", {})}
    whole = {**more, "configurable": thread}
    answers: dict[str, object] = {}
    call = _next_round()
    while recorded := call.recorded():
        answers |= _ask(recorded[0], timeout)
        call = _next_round()
    while True:
        snapshot = graph.get_state(whole)
        if snapshot.interrupts:
            asked = [_as_json(each) for each in snapshot.interrupts if each.id not in answers]
            if asked:
                answers |= _ask(call.record(asked), timeout)
                call = _next_round()
            graph.invoke(Command(resume={each.id: answers[each.id] for each in snapshot.interrupts}), whole)
        elif snapshot.created_at is None:
            graph.invoke(given, whole)
        elif snapshot.next:  # a crash stopped it between two nodes
            graph.invoke(None, whole)
        else:
            return snapshot.values


def _next_round() -> CheckpointCall:
    """Return the checkpoint of the next interrupts: they are asked in the same order each time that the flow runs."""
    return CheckpointCall.of("interrupts", (), {})


def _as_json(interrupt: Interrupt) -> Mapping[str, object]:
    return {"id": interrupt.id, "value": to_jsonable_python(interrupt.value, fallback=str)}


def _ask(interrupts: object, timeout: float | None) -> Mapping[str, object]:
    """Return the answers to interrupts, by their ids."""
    assert isinstance(interrupts, Sequence)
    return {str(each["id"]): _answer(str(each["id"]), each["value"], timeout) for each in interrupts}


def _answer(interrupt_id: str, value: object, timeout: float | None) -> object:
    question = value if isinstance(value, str) else "What should the graph continue with?"
    metadata = value if isinstance(value, Mapping) else {"value": value}
    return wait(name=f"interrupt:{interrupt_id}", question=question, metadata=metadata, timeout=timeout)
