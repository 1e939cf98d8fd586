"""A worker for tests of sandboxes, in a process of its own: it makes hostile calls and prints what they reached.

Arguments: the level, the folder of secrets, and whether an outer filter as Docker's denies namespaces.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import sys
import threading
from pathlib import Path

from kneo.function_context import StepContext, step_context_as_json
from kneo.sandbox import confine
from kneo.sandbox.levels import Rights
from kneo.sandbox.processes import ChildFailed, ModuleCode, SandboxProcesses

AS_USER = ("setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
AS_USER += ("--no-new-privs",)
"""The command that runs another as a user without capabilities."""

ATTACKS = Path(__file__).with_name("sandbox_attacks.py")

MODULE = """
import json, os, sys
import sandbox_attacks

target = json.loads(os.environ["TARGET"])
AT_IMPORT = sandbox_attacks.run(target | {"safe": True}) if os.environ.get("WHEN") == "import" else None

def attack(text):
    return {"reached": sandbox_attacks.run(target) if AT_IMPORT is None else AT_IMPORT, "failed": sandbox_attacks.needs()}

def own(text):
    return {name: sandbox_attacks.attacks(target)[name]() for name in [text]}

def old(text):
    sandbox_attacks._int80()
    return "reached"
"""


def code(function: str, folder: str, text: str = MODULE) -> ModuleCode:
    sources = {
        "hostile": (f"{folder}/hostile.py", text.encode()),
        "sandbox_attacks": (f"{folder}/sandbox_attacks.py", ATTACKS.read_bytes()),
    }
    return ModuleCode(function=f"hostile.{function}", sources=sources, paths=(*filter(None, sys.path), folder))


_held: list[socket.socket] = []

CONTEXT = step_context_as_json(StepContext(run_id="r", step_id="s", attempt=1, idempotency_key="k"))


def prepare(folder: str) -> dict[str, object]:
    """Start what attacks aim at, in this process and in a folder, and return the target."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(f"{folder}/unix")
    _held.append(datagrams)
    secret = Path(folder, "service.key")
    secret.write_text("secret")
    secret.chmod(0o600)
    os.environ["KNEO_SERV_API_SECRET"] = "x"
    shm = ctypes.CDLL(None).shmget(0, 100, 0o1600)
    return {
        "worker": os.getpid(), "secret": str(secret), "dir": folder, "port": listener.getsockname()[1],
        "home": str(Path(os.sep, "root", "evil")), "unix": f"{folder}/unix", "shm": shm, "safe": True,
    }  # fmt: skip


async def main(folder: str) -> dict[str, object]:
    project = f"{folder}/project"
    Path(project).mkdir()
    target = prepare(folder)
    secret, shm = Path(folder, "service.key"), target["shm"]
    processes = SandboxProcesses()
    results: dict[str, object] = {}
    before = secret.stat()
    for when in ("call", "import"):
        for net in ((), (f"api.example:{target['port']}",)):
            rights = Rights(level="kernel", net=net, env={"TARGET": json.dumps(target), "WHEN": when})
            answer = await processes.call("hostile", code("attack", project), rights, {"text": "", "context": CONTEXT})
            results[f"{when} {'with' if net else 'without'} net"] = answer.content["value"]
    rights = Rights(level="kernel", env={"TARGET": json.dumps(target)})
    try:
        answer = await processes.call("hostile", code("old", project), rights, {"text": "", "context": CONTEXT})
        results["old"] = answer.content
    except ChildFailed as error:
        results["old"] = str(error)
    await processes.close()
    after = secret.stat()
    results["unchanged"] = (before == after or before[:-3] == after[:-3]) and secret.read_text() == "secret"
    ctypes.CDLL(None).shmctl(shm, 0, None)
    results["left"] = sorted(set(os.listdir(folder)) - {"service.key", "unix", "project"})
    return results


def _serve(listener: socket.socket) -> None:
    while True:
        one, _ = listener.accept()
        one.recv(100)
        one.sendall(b"reached")
        one.close()


if __name__ == "__main__":
    if sys.argv[2] == "docker":
        confine.drop_privileges()
        confine.restrict_calls(
            confine.call_filter(confine.refuse("unshare setns mount umount2 pidfd_getfd pivot_root"))
        )
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
