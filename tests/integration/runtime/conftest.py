"""A store with the time of the machine, and runs of agents on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from agent_runs import AgentRuns, MakeRuns
from installation_key import find_key
from model_server import ModelRequest, Reply, model_server

from kneo.clock import SystemClock
from kneo.store.engine import Store
from kneo.store.migrate import open_store


@pytest.fixture
def timed_store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield store
    store.close()


@pytest.fixture
def make(timed_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRuns]:
    with ExitStack() as servers:

        def runs(answer: Callable[[ModelRequest], Reply]) -> AgentRuns:
            server = servers.enter_context(model_server(answer))
            return AgentRuns(timed_store, tmp_path / "code", server, monkeypatch)

        yield runs
