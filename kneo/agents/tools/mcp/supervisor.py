"""The process between a worker and an MCP server over stdio: it ends the server's process group with the worker.

The server inherits the standard streams. The supervisor alone holds the other end of the worker's pipe, which closes when the
worker ends in any way. Imports only the standard library: it is run by path, in an interpreter without packages.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(pipe: int, command: list[str]) -> int:
    """Run a server until it ends or the worker does, and return the server's exit status."""
    if os.getpgrp() != os.getpid():
        sys.stderr.write("The supervisor of an MCP server leads a process group of its own.\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: None)  # a group that is asked to end gets its grace period from the worker
    try:
        server = subprocess.Popen(command)  # noqa: S603 - the worker has compared it with the allowed commands
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        return 127
    for stream in (0, 1):
        os.close(stream)  # the server's own copies remain, so their ends mean its end
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    return server.wait()


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    status = main(int(sys.argv[1]), sys.argv[2:])
    if status:
        sys.stderr.write(f"exit status {status}\n")
        sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # what the server has left behind ends with it
