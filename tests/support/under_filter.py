"""A program: read the names of denied system calls from its input, deny them, and print what sandboxes can then do, as JSON.

An outer filter as systemd, Docker and Kubernetes install it: denied calls fail with EPERM.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from integration.sandbox.test_processes import caller

from kneo.sandbox import confine
from kneo.sandbox.levels import host_level

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def system_calls() -> dict[str, int]:
    """Return the numbers of all system calls of this machine by name."""
    found = re.findall(r"^#define __NR_(\w+)\s+(\d+)$", HEADER.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


async def results() -> dict[str, object]:
    with TemporaryDirectory() as folder:
        async with caller(Path(folder)) as call:
            secret = Path(folder) / "secret"
            secret.write_text("x")
            calls = {
                "plain": call("echo", "x", level="kernel"),
                "denied": call("read", str(secret), level="kernel"),
                "declared": call("read", str(secret), level="kernel", read=(str(secret),)),
                "program": call("starts", "x", level="kernel", processes=4),
                "proxy": call("tunnel", "else.example:443", level="kernel", net=("crm.example:443",)),
            }
            found: dict[str, object] = {"level": host_level().level}
            for name, made in calls.items():
                try:
                    found[name] = await made
                except Exception as error:  # noqa: BLE001 - every failure is a result
                    found[name] = str(error)
            return found


def main() -> None:
    confine._numbers("x86_64").update(system_calls())
    confine.drop_privileges()
    confine.restrict_calls(confine.call_filter(confine.refuse(sys.stdin.read())))
    host_level.cache_clear()
    print(json.dumps(asyncio.run(results())))


if __name__ == "__main__":
    main()
