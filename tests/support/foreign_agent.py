"""An agent of another program on loopback, served by the Agent2Agent SDK: it echoes, asks, works until it is told to end, or fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from a2a.helpers import get_data_parts, new_data_part, new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, Message, Role
from a2a.utils.constants import TransportProtocol
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


@dataclass
class ForeignAgent(AgentExecutor):
    """The agent and what it was sent."""

    url: str = ""
    card: AgentCard = field(default_factory=AgentCard)
    received: list[Any] = field(default_factory=list)
    message_ids: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    authorization: list[str] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    end: Callable[[], object] = lambda: None
    status: int = 0
    """An HTTP status for every request to a task."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        message = context.message
        assert message is not None
        text, data = context.get_user_input(), get_data_parts(message.parts)
        self.received.append(data[0] if data else text)
        self.message_ids.append(message.message_id)
        if text == "talk":
            reply = Message(role=Role.ROLE_AGENT, message_id="r-1", parts=[new_text_part("a plain message")])
            await event_queue.enqueue_event(reply)
            return
        task = context.current_task or new_task_from_user_message(message)
        if context.current_task is None:
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        if text == "ask":
            await updater.requires_input(updater.new_agent_message([new_text_part("Which colour?")]))
            return
        if text == "fail":
            await updater.failed(updater.new_agent_message([new_text_part("no such order")]))
            return
        if text == "work":
            await self.may_end.wait()
        parts = [new_data_part({"given": data[0], "count": 2})] if data else [new_text_part(f"done: {text}")]
        await updater.add_artifact(parts)
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.task_id is not None
        assert context.context_id is not None
        self.cancelled.append(context.task_id)
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


@asynccontextmanager
async def foreign_agent(version: str = "1.0") -> AsyncIterator[ForeignAgent]:
    """Serve an agent that speaks one version of the protocol, beside the test on its event loop."""
    agent = ForeignAgent()
    card = agent.card
    card.name, card.description, card.version = "painter", "Paints.", "1"
    card.capabilities.CopyFrom(AgentCapabilities())
    card.default_input_modes.append("text/plain")
    card.default_output_modes.append("text/plain")
    handler = DefaultRequestHandler(agent, InMemoryTaskStore(), card)
    routes = [
        *create_agent_card_routes(card),
        *create_jsonrpc_routes(handler, "/rpc", enable_v0_3_compat=version == "0.3"),
    ]
    served = Starlette(routes=routes)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope.get("headers", ())}
        agent.authorization.append(headers.get("authorization", ""))
        if agent.status and scope["path"] == "/rpc":
            await Response("busy", agent.status)(scope, receive, send)
        else:
            await served(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    agent.url = f"http://127.0.0.1:{port}"
    interface = AgentInterface(
        url=f"{agent.url}/rpc", protocol_binding=TransportProtocol.JSONRPC.value, protocol_version=version
    )
    card.supported_interfaces.append(interface)
    try:
        yield agent
    finally:
        agent.may_end.set()
        server.should_exit = server.force_exit = True
        await serving


@contextmanager
def foreign_agent_in_thread() -> Iterator[ForeignAgent]:
    """Serve an agent in a thread, for tests with event loops of their own. It ends its work at once when ``end`` is called."""
    begun, over, agents = threading.Event(), asyncio.Event(), list[ForeignAgent]()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with foreign_agent() as agent:
            agents.append(agent)
            begun.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert begun.wait(120)
        (agent,) = agents
        agent.end = lambda: loop.call_soon_threadsafe(agent.may_end.set)
        yield agent
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(120)
        loop.close()
