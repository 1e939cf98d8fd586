"""What the published clients work on: a live service with keys for every role, functions, specs, and a stricter one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from kneo_process import Machine, Process

FUNCTIONS = '''
"""What the steps call."""

import time
from pathlib import Path


def draft(text):
    return f"DRAFT<{text}>"


def publish(text):
    with Path(__file__).with_name("published.txt").open("a") as file:
        file.write(text + "\\n")
    return f"Published: {text}"


def fails_once(text):
    marker = Path(__file__).with_name(f"seen-{abs(hash(text))}")
    if not marker.exists():
        marker.touch()
        raise RuntimeError("the first attempt fails")
    return f"recovered {text}"


def slow(text):
    time.sleep(3)
    return text


def breaks(text):
    raise ValueError("it broke")
'''

AGENT = {"name": "desk", "model": {"provider": "dummy", "name": "dummy"}}


def spec(name: str, steps: dict[str, str], *, components: dict[str, object] | None = None) -> dict[str, object]:
    """A sequential workflow of functions of ``shop``, and of people where a step says so."""
    functions = {ref: {"implementation": f"shop.{ref}"} for ref in steps.values() if ref != "editor"}
    return {
        "version": "v1",
        "agent": AGENT,
        "workflow": {
            "type": "sequential",
            "name": name,
            "steps": [
                {"id": step, "kind": "human" if ref == "editor" else "function", "ref": ref}
                for step, ref in steps.items()
            ],
        },
        "components": {"functions": functions, **(components or {})},
    }


def human(**fields: object) -> dict[str, object]:
    return {"humans": {"editor": {"description": "Approve the draft?", **fields}}}


REVIEWED = {"draft": "draft", "approve": "editor", "publish": "publish"}

SPECS: dict[str, dict[str, object]] = {
    "plain": spec("plain", {"draft": "draft", "publish": "publish"}),
    "reviewed": spec("reviewed", REVIEWED, components=human(assignee="ann@example.com", timeout_seconds=3600)),
    "expiring": spec("expiring", REVIEWED, components=human(timeout_seconds=1, on_timeout="fail")),
    "choosing": spec("choosing", REVIEWED, components=human(request_type="selection", options=["short", "long"])),
    "fails_once": spec("fails-once", {"draft": "draft", "risky": "fails_once"}),
    "slow": spec("slow", {"first": "slow", "second": "slow"}),
    "broken": spec("broken", {"draft": "draft", "breaks": "breaks"}),
    "invalid": spec("invalid", {"draft": "draft"}) | {"components": {}},
    "graph": {
        "version": "v1",
        "agent": AGENT,
        "workflow": {
            "type": "graph",
            "name": "routed",
            "start": "a",
            "nodes": {
                "a": {"id": "a", "kind": "function", "ref": "draft"},
                "b": {"id": "b", "kind": "human", "ref": "editor"},
                "c": {"id": "c", "kind": "function", "ref": "publish"},
            },
            "edges": [
                {
                    "from": "a",
                    "to": "b",
                    "label": "drafted",
                    "condition": {"type": "output_contains", "value": "DRAFT"},
                },
                {"from": "b", "to": "c"},
            ],
        },
        "components": {
            "functions": {name: {"implementation": f"shop.{name}"} for name in ("draft", "publish")},
            **human(),
        },
    },
    "skilled": {
        "version": "v1",
        "agent": AGENT | {"skills": ["tone"]},
        "skills": {"tone": {"content": "Write short sentences.", "description": "How we write."}},
    },
}

ROLES = ("admin", "operator", "reviewer", "service", "viewer")
KEYS = {role: f"{role}-key-of-the-scene" for role in ROLES}


class Scene:
    """The services, and the file that tells a driver where they are.

    Attributes:
        service: Answers, executes, with everything at its default.
        old: Says the published words to everybody: the first clients do not say who they are.
        strict: Executes nothing, takes one waiting run and a few requests a minute, and is not ready.
    """

    def __init__(self, folder: Path) -> None:
        keys = ";".join(f"{role}:{key}:{role}" for role, key in KEYS.items())
        self.machine = Machine(folder, f"sqlite:///{folder / 'kneo.sqlite'}", KNEO_SERV_API_KEYS=keys)
        (folder / "shop.py").write_text(FUNCTIONS)
        (folder / "skills" / "tone").mkdir(parents=True)
        (folder / "skills" / "tone" / "SKILL.md").write_text(
            "---\nname: tone\ndescription: How we write.\n---\nBriefly.\n"
        )
        for name, tree in SPECS.items():
            (folder / f"{name}.json").write_text(json.dumps(tree))
        self.service = self.machine.up()
        self.strict = self._strict(folder / "strict", keys)
        self.old = self._old(folder / "old", keys)
        self.told = {
            "url": self.service.url,
            "strict_url": self.strict.url,
            "old_url": self.old.url,
            "keys": KEYS,
            "specs": SPECS,
            "folder": str(folder),
        }

    def _strict(self, folder: Path, keys: str) -> Process:
        machine = Machine(
            folder,
            f"sqlite:///{folder / 'kneo.sqlite'}",
            KNEO_SERV_API_KEYS=keys,
            KNEO_SERV_MAX_QUEUE_DEPTH="1",
            KNEO_SERV_RATE_LIMIT_PER_MINUTE="4",
            KNEO_SERV_HEALTH_PROVIDERS="openai",
        )
        (folder / "shop.py").write_text(FUNCTIONS)
        process = machine.start("service", "serve", "--port", "0", "--workers", "0")
        self.machine.processes.append(process)
        return process

    def _old(self, folder: Path, keys: str) -> Process:
        machine = Machine(
            folder, f"sqlite:///{folder / 'kneo.sqlite'}", KNEO_SERV_API_KEYS=keys, KNEO_SERV_STATUS_WORDS="published"
        )
        (folder / "shop.py").write_text(FUNCTIONS)
        process = machine.up()
        self.machine.processes.append(process)
        return process

    def drive(self, python: Path, driver: str, *, seconds: float = 1800, **more: str) -> dict[str, str | None]:
        """Run a driver in a published client's environment.

        Returns:
            For each check that ran, what went wrong with it; None for nothing.
        """
        script = Path(__file__).parent / driver
        file = self.machine.folder / f"{driver}.json"
        file.write_text(json.dumps({**self.told, **more}))
        done = subprocess.run(
            [python, script, file],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=self.machine.env,
        )
        results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
        ran = {str(item["check"]): item["problem"] for item in results}
        assert done.returncode == 0, f"{driver} died after {list(ran)[-1:]}: {done.stderr[-2000:]}"
        return ran

    def stop(self) -> None:
        self.machine.stop()
