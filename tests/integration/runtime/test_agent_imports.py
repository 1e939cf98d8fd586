"""The libraries of models are imported by the first step that needs them, and not on the event loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from model_server import Reply, model_server

from kneo.settings import process_environment

CODE = """
import asyncio, importlib.abc, sys, threading
from pathlib import Path

importers = {}

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        root = name.partition(".")[0]
        if root in {"openai", "pydantic_ai", "anthropic", "google"}:
            importers.setdefault(root, set()).add(threading.current_thread() is threading.main_thread())
        return None

sys.meta_path.insert(0, Watch())

from kneo.clock import SystemClock
from kneo.records.run import RunStatus
from kneo.runtime.engine.assemble import make_driver
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.wait import find_run
from kneo.settings import from_env
from kneo.spec.models.spec import Spec
from kneo.store.migrate import open_store
import json

store = open_store("sqlite:///runs.sqlite", SystemClock())
starter = Starter(store, lambda tree: Spec.model_validate_json(json.dumps(tree)), pin=None)
driver = make_driver(from_env(), store)
for provider in ("dummy", "openai"):
    model = {"provider": provider, "name": "m", "extra": {"api": "chat"}}
    run = starter.start(StartRequest(input="Go.", requester="bob", spec={"agent": {"name": "a", "model": model}}))
    asyncio.run(driver.drive(run.id))
    assert find_run(store, run.id).status is RunStatus.SUCCEEDED, find_run(store, run.id).error
    print(provider, {name: sorted(who) for name, who in sorted(importers.items())})
"""


def test_an_agent_imports_its_library_when_its_step_runs_and_not_on_the_loop(tmp_path: Path) -> None:
    with model_server([Reply("Done.")]) as server:
        keys = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": server.openai_url}
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=tmp_path,
            env={**process_environment("PATH"), **keys},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    dummy, openai = done.stdout.splitlines()
    assert dummy == "dummy {}"
    assert openai == "openai {'openai': [False], 'pydantic_ai': [False]}"


WORKER = """
import json, sys, threading
from pathlib import Path

from kneo.clock import SystemClock
from kneo.runtime.engine.assemble import working
from kneo.settings import from_env
from kneo.store import runs
from kneo.store.migrate import open_store

store = open_store("sqlite:///runs.sqlite", SystemClock())
if sys.argv[1] != "-":
    with store.write() as tx:
        model = {"provider": sys.argv[1], "name": "m"}
        runs.insert_spec(tx, "sha256:0", json.dumps({"agent": {"name": "a", "model": model}}).encode())
with working(from_env(), store, 1):
    for thread in threading.enumerate():
        if thread.name == "warm-up":
            thread.join(280)
    print(sorted(name for name in ("openai", "pydantic_ai", "anthropic") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("provider", "imported"), [("ollama", "['openai', 'pydantic_ai']"), ("dummy", "[]"), ("-", "[]")]
)
def test_a_worker_imports_at_its_start_what_its_specs_name(provider: str, imported: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, provider],
        cwd=tmp_path,
        env=process_environment("PATH"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == (imported, 0), done.stderr
