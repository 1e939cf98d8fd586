"""A real MCP server for tests, on the SDK's server: over stdio, or over HTTP at a port that it prints first.

Options: ``--http``, ``--sse`` (the older transport over HTTP), ``--key KEY`` (seals the state of elicitations; left out: a key
of the process), ``--stubborn`` (ignores the end of its input and SIGTERM), ``--pid FILE`` (writes its id), ``--child FILE`` (starts
a process that sleeps, and writes its id), ``--tools FILE`` (descriptions by tool, read at each start), ``--silent`` (never
answers), ``--noisy`` (one endless line).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.server.request_state import RequestStateSecurity
from pydantic import BaseModel, Field

REPEATED = os.environ.get("REPEATED", "")  # noqa: TID251
"""What the server repeats of its environment when it asks and describes itself."""


class Colour(BaseModel):
    colour: str = Field(description=REPEATED)


class Size(BaseModel):
    size: int


def ask_colour() -> Elicit[Colour]:
    return Elicit(f"Which colour?{REPEATED}", Colour)


def ask_size() -> Elicit[Size]:
    return Elicit(f"Which size?{REPEATED}", Size)


def make(options: argparse.Namespace) -> MCPServer:
    security = RequestStateSecurity(keys=[options.key.encode()]) if options.key else None
    server = MCPServer("tests", request_state_security=security)
    texts = json.loads(Path(options.tools).read_text()) if options.tools else {}

    @server.tool(description=texts.get("echo", f"Return the text.{REPEATED}"))
    def echo(text: str) -> str:
        return text

    @server.tool()
    def about(context: Context) -> dict[str, Any]:
        meta = context.request_context.meta or {}
        return {"pid": os.getpid(), "key": dict(meta).get("idempotencyKey"), "environment": dict(os.environ)}  # noqa: TID251

    @server.tool()
    def headers(context: Context) -> dict[str, str]:
        return dict(context.request_context.request.headers)

    @server.tool()
    def big(size: int) -> str:
        return "x" * size

    @server.tool()
    def fail(text: str) -> str:
        raise ToolError(text)

    @server.tool()
    async def hang(file: str = "") -> str:
        if file:
            Path(file).write_text("called")  # noqa: ASYNC240
        await asyncio.Event().wait()
        return ""

    @server.tool()
    def die() -> str:
        sys.stderr.write(f"{REPEATED}\nended\n")
        sys.stderr.flush()
        os._exit(3)

    @server.tool()
    def order(
        name: str, colour: Annotated[Colour, Resolve(ask_colour)], size: Annotated[Size, Resolve(ask_size)]
    ) -> dict[str, Any]:
        return {"name": name, "colour": colour.colour, "size": size.size, "pid": os.getpid()}

    return server


def serve_http(server: MCPServer, *, sse: bool) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # before the port is known: connections wait until the server accepts them
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    app = server.sse_app() if sse else server.streamable_http_app()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--http", "--sse", "--stubborn", "--silent", "--noisy"):
        parser.add_argument(flag, action="store_true")
    for option in ("--key", "--child", "--tools", "--pid"):
        parser.add_argument(option)
    options = parser.parse_args()
    if options.pid:
        Path(options.pid).write_text(str(os.getpid()))
    if options.child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(options.child).write_text(str(child.pid))
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=time.sleep, args=(600,)).start()  # outlives the main thread
    if options.silent:
        time.sleep(600)
    if options.noisy:
        while True:
            sys.stdout.write("x" * 65_536)
    server = make(options)
    if options.http or options.sse:
        serve_http(server, sse=options.sse)
    else:
        server.run("stdio")


if __name__ == "__main__":
    main()
