"""A running service with functions that write down what they did, and people who answer its questions over HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import httpx
from gate_places import Place, Tree
from kneo_process import Machine, Process, eventually

from kneo.trust.keys import PrivateKey

FUNCTIONS = """
from pathlib import Path

def _note(context):
    with Path(__file__).with_name(f"{context.run_id}.did").open("a") as log:
        log.write(context.step_id.split("/")[-1].split("#")[0] + "\\n")

def effect(text, context):
    _note(context)
    return f"{text}>{context.step_id}"

def broken(text):
    raise ValueError("broken")
"""

ENDED = {"succeeded", "failed", "cancelled", "expired", "timed_out"}


def spec_of(workflow: object, workflows: Mapping[str, object] | None = None, **humans: object) -> Tree:
    """A spec of functions that leave a trace, with ``ann`` to ask."""
    return {
        "version": "v1",
        "agent": {"name": "helper", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": _named(workflow, "main"),
        "components": {
            "functions": {name: {"implementation": f"gate_functions.{name}"} for name in ("effect", "broken")},
            "humans": {"ann": {"description": "Go on?"}, **humans},
            "workflows": {name: _named(tree, name) for name, tree in (workflows or {}).items()},
        },
    }


def _named(workflow: object, name: str) -> object:
    tree = workflow if isinstance(workflow, Mapping) else {"type": "sequential", "steps": workflow}
    return {"name": name, **tree}


class House:
    """One database and the processes on it; ``serve`` starts another one."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.machine = Machine(folder, database_url)
        self.shared = database_url.startswith("postgres")
        """Whether a second process may execute steps beside the first."""
        if self.shared:
            self.machine.env["KNEO_SERV_SERVICE_KEY"] = PrivateKey.generate().dump().decode()
        (folder / "gate_functions.py").write_text(FUNCTIONS)
        self.at = self.serve()

    def serve(self) -> Process:
        self.at = self.machine.start("service", "serve", "--port", "0")
        return self.at

    def start(self, spec: Tree, text: str = "in", at: Process | None = None) -> Tree:
        """Start a run and return it where it first waits or ends."""
        return (at or self.at).post("/runs", {"input": text, "spec": spec})

    def start_at(self, place: Place) -> Tree:
        return self.start(spec_of(place.workflow, place.workflows))

    def look(self, run: Tree, at: Process | None = None) -> Tree:
        return (at or self.at).get(f"/runs/{run['run_id']}")

    def tasks(self, run: Tree, at: Process | None = None) -> list[Tree]:
        """The questions of a run that nobody has answered yet."""
        found = (at or self.at).get("/human-tasks", run_id=str(run["run_id"]))["tasks"]
        assert isinstance(found, list)
        return found

    def answer(self, task: Tree, at: Process | None = None, **said: object) -> httpx.Response:
        """Answer a question; whoever asks sees what became of it."""
        body = {"request_id": task["request"]["request_id"], **said}
        return (at or self.at).http.post(
            f"/human-tasks/{task['continuation_id']}/resume",
            json=body,
            headers={"Idempotency-Key": secrets.token_hex(8)},
        )

    def settle(self, run: Tree, said: Mapping[str, str]) -> Tree:
        """Answer whatever is asked, always the same, until the run is over."""
        while (now := self.look(run))["status"] not in ENDED:
            for task in self.tasks(run):
                answered = self.answer(task, **said)
                assert answered.status_code == 200, answered.text
        return now

    def did(self, run: Tree) -> list[str]:
        """The functions that ran, in the order in which they did."""
        log = self.machine.folder / f"{run['run_id']}.did"
        return log.read_text().splitlines() if log.exists() else []

    def ended(self, run: Tree) -> Tree:
        return eventually(lambda: (now := self.look(run))["status"] in ENDED and now)

    def close(self) -> None:
        self.machine.stop()
