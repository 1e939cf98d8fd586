"""Servers of published clients, started by the first check that needs one and ended with the checks."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request

PATIENCE = 240


def until(look, what):
    """Look until there is something to see; what was seen last is in the failure."""
    for _ in range(PATIENCE * 10):
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: still {found!r}")


def free_port():
    """Return a port below those that systems give to sockets whose port is 0: nothing else takes one unasked."""
    for number in range(20_000):
        port = 10_000 + (os.getpid() * 97 + number) % 20_000
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no port is free")


def serve(command, variables, folder, port):
    """Start a server, and wait until it answers; returns its address."""
    # A server that cannot start says why on its error output, which is ours.
    whole = ["env", *(f"{name}={value}" for name, value in variables.items()), *command]
    server = subprocess.Popen(whole, cwd=folder, stdout=subprocess.DEVNULL)
    atexit.register(server.kill)
    url = f"http://127.0.0.1:{port}"
    until(lambda: server.poll() is not None or _answers(url), f"{command[0]} does not answer")
    assert server.poll() is None, f"{command} ended with {server.returncode}"
    return url


def _answers(url):
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
