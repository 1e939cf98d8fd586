"""The cost of a function in a sandbox: its first call and later ones, what its template holds, and connections by the proxy.

A call is measured from its request to its answer, one after the other, as the runtime makes them; processor time is that of the
worker and of all processes of the sandbox.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kneo.agents.sandboxes import SandboxHost
from kneo.agents.secrets import CallSecrets
from kneo.function_context import StepContext, step_context_as_json
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.sandboxes import FunctionUse, Sandboxes
from kneo.runtime.steps.threads import in_thread
from kneo.sandbox.levels import host_level
from kneo.spec.code import RunCode
from kneo.spec.coverage.sandboxes import CodePart
from kneo.spec.models.sandbox import Sandbox
from kneo.spec.policy import SandboxLevel, SandboxRules, ToolRules

MODULE = """
import socket, time

def echo(text):
    return text

def connect(text):
    port, count = map(int, text.split())
    durations = []
    for _ in range(count):
        begun = time.perf_counter()
        with socket.create_connection(("198.51.100.1", 443)) as one:
            one.sendall(f"CONNECT api.example:{port} HTTP/1.1\\r\\n\\r\\n".encode())
            assert one.recv(100).startswith(b"HTTP/1.1 200"), "refused"
        durations.append((time.perf_counter() - begun) * 1_000)
    return durations
"""

CONTEXT = step_context_as_json(StepContext(run_id="r", step_id="s", attempt=1, idempotency_key="k"))

FIRST, CALLS, CONNECTIONS = 3, 200, 100


def sandbox_costs(rounds: int) -> dict[str, object]:
    """Return the costs of each level that this machine gives, in milliseconds and megabytes."""
    levels: tuple[SandboxLevel, ...] = ("none", "process", "kernel")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "measured.py").write_text(MODULE)
        found: dict[str, object] = {
            level: asyncio.run(_costs(Path(folder), level, CALLS * rounds))
            for level in levels
            if host_level().gives(level)
        }
        if host_level().gives("kernel"):
            found["a connection by the proxy"] = asyncio.run(_connections(Path(folder)))
    return found


def _sandboxes(folder: Path, level: SandboxLevel) -> tuple[CodeLoader, Sandboxes]:
    code = CodeLoader((folder,), ())
    rules = ToolRules(sandbox=SandboxRules(required=level))

    def read(_environment: str | None) -> ToolRules:
        return rules

    return code, Sandboxes(code, read, {}.get, SandboxHost(operator=rules.sandbox))


def _use(function: str, sandbox: Sandbox | None = None) -> FunctionUse:
    part = CodePart(name=function, sandbox=sandbox)
    return FunctionUse(part=part, implementation=f"measured.{function}", environment=None, code=RunCode())


async def _costs(folder: Path, level: SandboxLevel, calls: int) -> dict[str, float]:
    firsts = []
    for _ in range(FIRST):
        code, sandboxes = _sandboxes(folder, level)
        firsts.append(await _call(code, sandboxes))
        await sandboxes.close()
    code, sandboxes = _sandboxes(folder, level)
    await _call(code, sandboxes)
    begun = _processor_time()
    durations = [await _call(code, sandboxes) for _ in range(calls)]
    held = _private_megabytes(os.getpid()) if sys.platform == "linux" else 0.0
    await sandboxes.close()  # from now on the time of its processes counts
    used = _processor_time() - begun
    return {
        "first": round(statistics.median(firsts), 1),
        "median": round(statistics.median(durations), 2),
        "p90": round(statistics.quantiles(durations, n=10)[-1], 2),
        "least": round(min(durations), 2),
        "processor time": round(used / calls * 1_000, 2),
        "private, MB": round(held, 1),
    }


async def _call(code: CodeLoader, sandboxes: Sandboxes) -> float:
    """Make a call as a step does, and return its milliseconds."""
    use = _use("echo")
    assert use.implementation is not None
    begun = time.perf_counter()
    called = await sandboxes.call(use, {"text": "x", "context": CONTEXT}, CallSecrets())
    if called is None:
        function = code.load(use.implementation).function
        assert await in_thread(partial(function, "x")) == "x"
    else:
        assert called.answer["value"] == "x"
    return (time.perf_counter() - begun) * 1_000


async def _connections(folder: Path) -> dict[str, float]:
    """Return what a connection to a declared host takes in a function, and one without the proxy in this process."""

    async def check(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, sandboxes = _sandboxes(folder, "kernel")
    use, request = _use("connect", Sandbox(net=(f"api.example:{port}",))), {"context": CONTEXT}
    try:
        called = await sandboxes.call(
            use, {**request, "text": f"{port} {CONNECTIONS}"}, CallSecrets(), check=lambda _: check
        )
    finally:
        await sandboxes.close()
        server.close()
    assert called is not None
    durations = called.answer["value"]
    assert isinstance(durations, list)
    return {"median": round(statistics.median(durations), 2), "least": round(min(durations), 2)}


def _processor_time() -> float:
    used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _private_megabytes(process: int) -> float:
    """Return the private memory of the processes that a process started."""
    found = 0.0
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            held = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
            kilobytes = sum(int(line.split()[1]) for line in held if line.startswith("Private_"))
            found += kilobytes / 1_024 + _private_megabytes(child)
    return found
