"""Tools, verifications, guardrails, functions of memory and scripts run the code of their bundle, as functions of steps do."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from agent_runs import MODEL, begun, object_of
from config_repo import ConfigRepo
from installation_key import find_key
from model_server import Call, ModelRequest, ModelServer, Reply, Script, model_server

from kneo.clock import SystemClock
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.assemble import make_driver
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.wait import find_run
from kneo.settings import from_env
from kneo.spec.models.spec import Spec
from kneo.store import agent_journal, history, requests
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import Lease

MODULE = """
from acme.mark import MARK

def pay(arguments):
    return {"paid": f"by {MARK}"}

def was_paid(arguments):
    return {"done": True, "result": {"verified": f"by {MARK}"}}

def check(text):
    return {"passed": False, "text": f"{text} Checked by {MARK}."}

def find(arguments):
    return [f"found by {MARK}"]
"""

PAY = [Reply(calls=[Call("pay", {"amount": 5}, id="c1")]), Reply("Done.")]
SCRIPT = "import mark\nprint('{\"paid\": \"by ' + mark.MARK + '\"}')\n"
SKILL = {
    "content": "How to pay.",
    "resources": {"scripts/pay.py": SCRIPT, "scripts/mark.py": "MARK = 'the bundle'\n"},
}

FUNCTIONS = {name: {"implementation": f"acme.pay.{name}"} for name in ("check", "find")}


def spec_of(place: str) -> dict[str, object]:
    """Return a spec whose function stands at one place."""
    teller: dict[str, object] = {"name": "teller", "model": MODEL, "strategy": "react", "tools": []}
    tool: dict[str, object] = {
        "description": "Pay.",
        "implementation": "acme.pay.pay",
        "parameters": object_of("amount", "integer"),
    }
    match place:
        case "tool":
            teller["tools"] = ["pay"]
        case "script":
            teller["tools"] = ["pay"]
            tool = {**tool, "implementation": None, "script": {"skill": "pay", "file": "scripts/pay.py"}}
        case "verification":
            teller["tools"] = ["pay"]
            tool["on_interrupted"] = {"verify": "acme.pay.was_paid"}
        case "guardrail":
            teller["guardrails"] = {"output": [{"id": "check", "type": "function", "ref": "check", "action": "revise"}]}
        case "memory":
            teller["memory"] = {"policy": "retrieval", "retriever": {"ref": "find"}}
    return {
        "version": "v1",
        "agent": teller,
        "workflow": {"type": "sequential", "steps": [{"id": "work", "kind": "agent", "ref": "teller"}]},
        "tools": {"pay": tool} if teller["tools"] else {},
        "skills": {"pay": SKILL} if place == "script" else {},
        "components": {"functions": FUNCTIONS},
    }


PLACES = ("tool", "verification", "guardrail", "memory", "script")


class AgentReleases:
    """Releases with an agent, whose runs are driven as a worker in the folder of the repository drives them."""

    def __init__(self, store: Store, folder: Path, server: ModelServer) -> None:
        self.store, self.server = store, server
        self.repo = ConfigRepo(folder / "repo")
        self.repo.write("acme/__init__.py", b"")
        self.repo.write("acme/pay.py", MODULE.encode())
        self.repo.write("acme/mark.py", b"MARK = 'the bundle'\n")
        self.settings = from_env(cwd=self.repo.folder)
        self._mirror = Mirror(str(self.repo.folder), "main", folder / "mirrors")
        with store.write() as tx:
            fence = requests.take_lease(tx, "controller", "me", timedelta(minutes=5))
        assert fence is not None
        self._lease = Lease("controller", "me", fence)

    @property
    def laid_out(self) -> Path:
        (folder,) = (each for each in (self.settings.state_dir / "code").iterdir() if not each.name.startswith("."))
        return folder

    def release(self, place: str) -> None:
        self.repo.bundle("mail", "1.0.0", spec_of(place), with_code=True)
        self.repo.environment("prod", {"mail": "1.0.0"}, code="bundled")
        self.repo.commit("Release")
        Reconciler(self.store, self._mirror, self.repo.pin).reconcile(self._lease)

    def run(self, place: str, script: Script | None = None) -> Run:
        order = StartRequest(
            input="Go.", requester="bob", bundle="mail", environment="prod", origin={"session_id": uuid.uuid4().hex}
        )
        run = Starter(self.store, Spec.model_validate, pin=self.repo.pin).start(order)
        self.server.script = script or (PAY if place in {"tool", "verification", "script"} else [Reply("Done.")])
        self.server.requests.clear()
        if place == "verification":
            with self.store.write() as tx:
                agent_journal.append(tx, run.id, [begun("c1", {"amount": 5})])
        driver = make_driver(self.settings, self.store)

        async def work() -> None:
            await driver.drive(run.id)
            await driver._deps.executor.close()

        asyncio.run(work())
        return find_run(self.store, run.id)

    def said(self, run: Run) -> str:
        """Return the output of a run and all that its model received: each place shows its result in one of them."""
        return f"{run.output_text} {json.dumps([each.body for each in self.server.requests])}"


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield store
    store.close()


@pytest.fixture
def releases(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentReleases]:
    def answer(_: ModelRequest) -> Reply:
        return Reply("Done.")

    with model_server(answer) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        yield AgentReleases(store, tmp_path, server)


def edit(folder: Path) -> None:
    for file in (folder / "acme" / "mark.py", *folder.glob("skills/pay/scripts/*.py")):
        file.write_text("MARK = 'an edit'\n")


def shadow(folder: Path) -> None:
    for name in ("acme.py", "json.py", "typing.py", "sitecustomize.py"):
        (folder / name).write_text("MARK = 'a shadow'\nraise RuntimeError('a shadow')\n")


def delete(folder: Path) -> None:
    shutil.rmtree(folder / "acme")


def add(folder: Path) -> None:
    (folder / "acme" / "mark").mkdir()
    (folder / "acme" / "mark" / "__init__.py").write_text("MARK = 'an addition'\n")


CHANGES: tuple[Callable[[Path], None], ...] = (edit, shadow, delete, add)


@pytest.mark.parametrize("place", PLACES)
def test_changes_of_the_project_change_nothing(
    releases: AgentReleases, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.release(place)
    monkeypatch.chdir(releases.repo.folder)
    monkeypatch.setenv("PYTHONPATH", str(releases.repo.folder))
    for change in (add, edit, shadow, delete):
        change(releases.repo.folder)
        done = releases.run(place)
        assert done.status is RunStatus.SUCCEEDED, (change.__name__, done.error)
        assert "by the bundle" in releases.said(done), change.__name__
    with releases.store.read() as tx:
        (step,) = history.list_steps(tx, done.id)
    assert step.facts["code"] == {"digest": f"sha256:{releases.laid_out.name}", "source": "bundle"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", PLACES)
def test_changes_of_the_laid_out_code_are_refused_by_name(
    releases: AgentReleases, place: str, change: Callable[[Path], None]
) -> None:
    releases.release(place)
    assert releases.run(place).status is RunStatus.SUCCEEDED
    for each in (releases.laid_out, *releases.laid_out.rglob("*")):
        each.chmod(0o755)
    change(releases.laid_out)
    done = releases.run(place)
    assert done.status is RunStatus.FAILED
    assert done.error is not None
    assert done.error.type == "code_tampered"
    assert releases.server.requests == []


def test_code_that_changes_during_a_step_ends_it_and_no_model_reads_why(releases: AgentReleases) -> None:
    releases.release("tool")

    def answer(request: ModelRequest) -> Reply:
        releases.laid_out.chmod(0o755)
        (releases.laid_out / "more.py").write_text("")
        return PAY[request.turns]

    done = releases.run("tool", answer)
    assert done.error is not None
    assert done.error.type == "code_tampered"
    assert len(releases.server.requests) == 1
