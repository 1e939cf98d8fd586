"""Every command that asks about runs, people, policies or the log answers the same beside the database and through a
service: the same exit status, the same JSON. What differs between two databases (ids, times) is masked, nothing else."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Machine

FUNCTIONS = """
from pathlib import Path


def draft(text):
    return f"DRAFT<{text}>"


def publish(text):
    return f"Published: {text}"


def fails_once(text):
    marker = Path(__file__).with_name("seen-" + text.strip("DRAFT<>"))
    if not marker.exists():
        marker.touch()
        raise RuntimeError("the first attempt fails")
    return "recovered"
"""


def steps(**refs: str) -> list[dict[str, str]]:
    return [{"id": name, "kind": "human" if ref == "editor" else "function", "ref": ref} for name, ref in refs.items()]


def spec(name: str, **refs: str) -> dict[str, object]:
    functions = {ref: {"implementation": f"both_modes.{ref}"} for ref in refs.values() if ref != "editor"}
    return {
        "version": "v1",
        "agent": {"name": "desk", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {"type": "sequential", "name": name, "steps": steps(**refs)},
        "components": {"functions": functions, "humans": {"editor": {"description": "Publish it?"}}},
    }


SPECS = {
    "plain": spec("plain", draft="draft", publish="publish"),
    "asks": spec("asks", draft="draft", approve="editor", publish="publish"),
    "flaky": spec("flaky", draft="draft", risky="fails_once"),
    "invalid": spec("invalid", draft="draft") | {"components": {}},
}

TABLE: tuple[tuple[str, int], ...] = (
    ("runs list", 0),
    ("human list", 0),
    ("run plain.json --input hello", 0),
    ("runs get {run}", 0),
    ("runs trace {run}", 0),
    ("runs steps {run}", 0),
    ("runs conversation {run}", 0),
    ("runs conversation {run} draft --whole", 0),
    ("usage", 0),
    ("usage --by model --env prod --since 2026-01-01", 0),
    ("usage --by week", 2),
    ("usage --since yesterday", 1),
    ("runs checkpoints {run}", 0),
    ("runs replay {run}", 0),
    ("runs recovery {run}", 0),
    ("runs checkpoint-diff {run}", 0),
    ("runs checkpoint-diff {run} --from-sequence 1 --to-sequence 2", 0),
    ("runs checkpoint-diff {run} --from-sequence 1 --to-sequence 1", 1),
    ("runs continue {run}", 5),
    ("runs cancel {run}", 0),
    ("runs watch {run}", 0),
    ("run plain.json --input x --session s-1 --timeout 1h", 0),
    ("runs list --session s-1", 0),
    ("runs list --status succeeded --limit 1", 0),
    ("runs list --status completed --limit 1", 0),
    ("runs list --workflow plain --search hello --fine", 0),
    ("runs list --offset 1", 0),
    ("run plain.json --input x --target agent", 0),
    ("run plain.json --input x --target nobody", 2),
    ("run invalid.json --input x", 1),
    ("run missing.json --input x", 4),
    ("run plain.json", 2),
    ("run --bundle nothing --env dev --input x", 4),
    ("run asks.json --input first", 0),
    ("runs get {run}", 0),
    ("runs watch {run} --until-pause", 0),
    ("runs continue {run}", 5),
    ("human list", 0),
    ("human list --run-id {run}", 0),
    ("human list --status escalated", 0),
    ("human list --status nonsense", 1),
    ("human list --mine", 0),
    ("human get {task}", 0),
    ("human resume {task} --request-id wrong --approve", 5),
    ("human resume {task} --request-id {request}", 2),
    ("human resume {task} --request-id {request} --approve --reject", 2),
    ("human resume {task} --request-id {request} --approve", 0),
    ("human resume {task} --request-id {request} --approve", 5),
    ("human get {task}", 0),
    ("run asks.json --input second", 0),
    ("human resume {task} --request-id {request} --reject --reason no", 0),
    ("run asks.json --input third", 0),
    ("human resume {task} --request-id {request} --edit better", 0),
    ("run asks.json --input fourth", 0),
    ("runs cancel {run}", 0),
    ("human resume {task} --request-id {request} --approve", 5),
    ("run flaky.json --input again", 1),
    ("runs recovery {run}", 0),
    ("runs list --failed", 0),
    ("runs continue {run}", 0),
    ("runs fork {run} --from risky", 0),
    ("runs fork {run}", 2),
    ("runs get run_unknown", 4),
    ("runs trace run_unknown", 4),
    ("runs steps run_unknown", 4),
    ("runs conversation run_unknown", 4),
    ("runs checkpoints run_unknown", 4),
    ("runs replay run_unknown", 4),
    ("runs recovery run_unknown", 4),
    ("runs checkpoint-diff run_unknown", 4),
    ("runs cancel run_unknown", 4),
    ("runs continue run_unknown", 4),
    ("human get cont_unknown", 4),
    ("human resume cont_unknown --request-id r --approve", 4),
    ("policy list", 0),
    ("policy get prod", 0),
    ("policy preview prod --require-human-review", 0),
    ("policy set prod --require-human-review --block E_UNSAFE_TOOL_IMPORT", 0),
    ("policy get prod", 0),
    ("policy list", 0),
    ("run plain.json --input x --env prod", 1),
    ("credentials --provider openai --extra MCP_API_KEY", 0),
    ("credentials --no-service-tokens", 0),
    ("audit list --type policy.changed", 0),
    ("audit list --type human.decision", 0),
    ("audit list --type credential.inventory_accessed", 0),
    ("audit prove 1", 0),
    ("status", 0),
    ("status nowhere", 4),
    ("history nowhere", 4),
    ("spec validate plain.json", 0),
    ("spec validate invalid.json", 1),
    ("spec lint asks.json", 0),
    ("spec compile asks.json", 0),
    ("spec explain asks.json", 0),
    ("spec policy-report asks.json", 0),
)

# The service knows whoever asks by the name of their account, as commands beside a database do.
KEYS = {
    "KNEO_SERV_API_KEYS": f"{getpass.getuser()}:a-key-of-this-test:admin",
    "KNEO_SERV_API_KEY": "a-key-of-this-test",
}

MASKED = (
    (re.compile(r"\b(run|cont|req|evt|task|cp|ckpt|chk|step)_[0-9a-hjkmnp-tv-z]{20,}"), r"\1_ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "TIME"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UUID"),
)


MASKED_KEYS = {"checkpoint", "milliseconds", "key", "canonical", "seq", "leaf", "size"}
"""What the log says of itself: the service seals a little later, and records what it refused; and how long steps took."""


class Mode:
    """One way to work: a folder, its commands, and what the last run and task were."""

    def __init__(self, machine: Machine, *connection: str) -> None:
        self.machine = machine
        self.connection = connection
        self.known = {"run": "", "task": "", "request": ""}

    def ask(self, command: str, kneo: object) -> tuple[int, object]:
        words = [word.format(**self.known) for word in command.split()]
        answer = kneo(*words, *self.connection, "--json")
        lines = answer.out.splitlines()
        # Commands that follow something print one JSON value on each line.
        said = [json.loads(line) for line in lines] if "watch" in words else json.loads(answer.out)
        if words[0] == "run" and isinstance(said, dict) and "run_id" in said:
            request = said["metadata"].get("pending_human_request") or {}
            self.known = {"run": said["run_id"], "task": said["continuation_id"], "request": request.get("request_id")}
        return answer.status, masked(said)


def masked(value: object, key: str = "") -> object:
    if isinstance(value, dict):
        return {name: masked(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return "MASKED" if key == "path" else [masked(inner, key) for inner in value]
    if isinstance(value, str):
        for pattern, instead in MASKED:
            value = pattern.sub(instead, value)
        return "MASKED" if key in MASKED_KEYS else value
    return "MASKED" if isinstance(value, float) or key in MASKED_KEYS else value


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("service")
    furnish(folder)
    machine = Machine(folder, f"sqlite:///{folder / 'kneo.sqlite'}", **KEYS)
    machine.up()
    yield machine
    machine.stop()


def furnish(folder: Path) -> None:
    (folder / "both_modes.py").write_text(FUNCTIONS)
    for name, tree in SPECS.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))


def test_every_command_answers_the_same_in_both_modes(service: Machine, tmp_path, monkeypatch, kneo):
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    furnish(tmp_path)
    local, remote = Mode(service), Mode(service, "--service-url", service.processes[0].url)
    differences = []
    for command, status in TABLE:
        here, there = local.ask(command, kneo), remote.ask(command, kneo)
        if here != there or here[0] != status:
            differences.append((command, status, here, there))
    assert not differences, "\n".join(tell(*found) for found in differences)


def tell(command: str, status: int, here: tuple[int, object], there: tuple[int, object]) -> str:
    lines = [f"kneo {command}: {status} expected, {here[0]} beside the database, {there[0]} through the service"]
    first, second = flat(here[1]), flat(there[1])
    lines += [
        f"    {path}: {first.get(path, '-')!r} | {second.get(path, '-')!r}"
        for path in sorted(first.keys() | second.keys())
        if first.get(path, "-") != second.get(path, "-")
    ][:12]
    return "\n".join(lines)


def flat(value: object, path: str = "") -> dict[str, object]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = {k: v for name, item in items for k, v in flat(item, f"{path}.{name}").items()}
    return inner or {path: value}
