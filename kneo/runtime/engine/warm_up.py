"""Imports at the start of a worker: the libraries of the models and MCP servers that its releases and runs name.

The first import takes seconds on a busy machine. In a thread, before the first agent needs it, no run waits for it.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping

from kneo.clock import monotonic
from kneo.runtime.steps.agents import CLIENTS, LOOP
from kneo.spec.models.providers import PROVIDERS
from kneo.store import releases, runs
from kneo.store.engine import Store

log = logging.getLogger("kneo.runtime")

MAX_SPECS = 50
"""Released bundles, and as many specs of runs, that are looked at."""

SERVICES, MCP_SERVERS = "kneo.runtime.engine.agent_services", "kneo.agents.mcp.servers"


def start_warm_up(store: Store) -> threading.Thread | None:
    """Import in a thread what agents of this database need; ``None`` where it has no specs."""
    with store.read() as tx:
        specs = (*releases.released_payloads(tx, MAX_SPECS), *runs.latest_specs(tx, MAX_SPECS))
    if not specs:
        return None
    thread = threading.Thread(target=import_libraries, args=(specs,), name="warm-up", daemon=True)
    thread.start()
    return thread


def import_libraries(specs: Iterable[bytes]) -> None:
    """Import the libraries of providers and MCP servers that specs name, each once. A missing library is no error here:
    the start of a run says so.
    """
    began = monotonic()
    providers, has_mcp = set[str](), False
    for body in specs:
        for name, value in _fields(_tree(body)):
            if name == "provider" and isinstance(value, str) and value in PROVIDERS:
                providers.add(value)
            has_mcp |= name == "mcp_servers" and bool(value)
    if not providers:
        return
    try:
        importlib.import_module(LOOP)
        importlib.import_module(SERVICES)
        importlib.import_module(CLIENTS).warm_up(sorted(providers))
        if has_mcp:
            importlib.import_module(MCP_SERVERS)
    except ImportError as error:
        log.info("libraries of agents are not imported ahead: %s", error)
        return
    log.info(
        "imported the libraries of agents",
        extra={"providers": sorted(providers), "seconds": round(monotonic() - began, 3)},
    )


def _tree(body: bytes) -> object:
    try:
        tree: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return tree


def _fields(tree: object) -> Iterator[tuple[str, object]]:
    """Yield every field of a JSON tree."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield from part.items()
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
