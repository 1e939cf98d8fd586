"""Thousands of calls in sandboxes, with calls that end in every way and workers that are killed: nothing of them is left.

A few here; all of them with ``make crash``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from e2e.crash.test_kill import SOURCE, Processes
from engine import Engine, step
from installation_key import find_key
from integration.runtime.test_bundle_code import World
from kneo_process import eventually
from sqlalchemy import func, select

from kneo.clock import ManualClock, SystemClock
from kneo.errors import KneoError
from kneo.function_context import StepContext, step_context_as_json
from kneo.records.run import RunStatus
from kneo.sandbox.levels import LAUNCHER, Level, Rights, host_level
from kneo.sandbox.processes import ChildFailed, ModuleCode, SandboxProcesses
from kneo.store import tables
from kneo.store.engine import Store
from kneo.store.migrate import open_store

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

KERNEL = pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)
LEVELS = pytest.mark.parametrize("level", ["process", pytest.param("kernel", marks=KERNEL)])

CALLS, EVERY_CALLS = 120, 10_000
RUNS, EVERY_RUNS, STEPS = 6, 250, 4
RELEASED, EVERY_RELEASED = 20, 1_000
AT_ONCE = 4

MODULE = """
import os, signal
def echo(text): return text
def raises(text): raise ValueError(text)
def exits(text): os._exit(3)
def killed(text): os.kill(os.getpid(), signal.SIGKILL)
def litters(text):
    folder = os.environ["HOME"] + "/below"
    os.mkdir(folder)
    open(folder + "/file", "w").write(text)
    os.chmod(folder, 0)
    return text
def never(text): signal.pause()
"""

CONTEXT = step_context_as_json(StepContext(run_id="r", step_id="s", attempt=1, idempotency_key="k"))

WAYS = {"echo": 60, "litters": 15, "raises": 8, "exits": 5, "killed": 5, "timeout": 3, "cancel": 2, "template": 2}
"""The share of calls that end in each way."""


async def call(processes: SandboxProcesses, folder: Path, level: Level, way: str, text: str) -> str:
    """Make a call that ends in some way; return how it ended."""
    function = way if way in {"echo", "litters", "raises", "exits", "killed"} else "never"
    code = ModuleCode(
        function=f"own.{function}",
        sources={"own": (str(folder / "own.py"), MODULE.encode())},
        paths=tuple(filter(None, sys.path)),
    )
    request = {"text": text, "context": CONTEXT}
    calling = asyncio.ensure_future(processes.call(function, code, Rights(level=level), request))
    try:
        if way == "timeout":
            async with asyncio.timeout(0.05):
                await calling
        if way in {"cancel", "template"}:
            await asyncio.wait([calling], timeout=0.05)
        if way == "cancel":
            calling.cancel()
        if way == "template":
            for launcher in random.sample(found := launchers(os.getpid()), min(1, len(found))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(launcher, signal.SIGKILL)
            await asyncio.wait([calling], timeout=0.05)
            calling.cancel()
        answer = (await calling).content["value"]
    except ChildFailed as error:
        return error.kind
    except (TimeoutError, asyncio.CancelledError, KneoError) as error:
        return type(error).__name__
    assert answer == text, "the answer of another call"
    return "answered"


def launchers(below: int) -> list[int]:
    """Return the processes of launchers that a process started, and those that they started."""
    found = []
    for task in Path(f"/proc/{below}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                if str(LAUNCHER).encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    found += [child]
                found += launchers(child)
    return found


def launchers_in(folder: Path) -> list[str]:
    """Return the processes of launchers of this machine with scratch folders in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
            if f"{folder}/kneo-sandbox-".encode() in command:
                found.append(process.name)
    return found


@LEVELS
def test_calls_that_end_in_every_way_leave_nothing(
    tmp_path: Path, level: Level, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = EVERY_CALLS if request.config.getoption("--every-write", default=False) else CALLS
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    ways = random.Random(20261124).choices([*WAYS], [*WAYS.values()], k=count)
    ended: Counter[tuple[str, str]] = Counter()

    async def work() -> None:
        processes = SandboxProcesses()
        waiting = iter(enumerate(ways))

        async def one_after_the_other() -> None:
            for number, way in waiting:
                ended[way, await call(processes, tmp_path, level, way, f"{way} {number}")] += 1

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
        await processes.close()

    descriptors = os.listdir("/proc/self/fd")  # noqa: PTH208 - as few descriptors as possible
    asyncio.run(work())
    assert sum(ended.values()) == count
    assert ended["echo", "answered"] + ended["litters", "answered"] > count / 2, ended
    assert ended["raises", "ValueError"], ended
    assert ended["killed", "process_died"], ended
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)  # noqa: PTH208
    assert not launchers(os.getpid())
    assert not launchers_in(scratch)
    assert not [*scratch.iterdir()]


@LEVELS
def test_killed_workers_leave_nothing(
    migrated_url: str, tmp_path: Path, level: Level, request: pytest.FixtureRequest
) -> None:
    count = EVERY_RUNS if request.config.getoption("--every-write", default=False) else RUNS
    scratch, chance = tmp_path / "scratch", random.Random(20261124)
    scratch.mkdir()
    store = open_store(migrated_url, SystemClock(), find_key)
    engine = Engine(store, tmp_path / "code", SOURCE + "def same(text): return text\n")
    function = "effect" if level == "process" else "same"  # at kernel nothing is written
    runs = [engine.start([step(f"s{number}", function) for number in range(STEPS)]) for _ in range(count)]
    variables = {"TMPDIR": str(scratch), "KNEO_SERV_TOOLS_SANDBOX": level}
    processes = Processes(engine, migrated_url, runs[-1], **variables)
    kills = 2 + count // 10

    def work() -> bool:
        processes.reap()
        over = all(engine.look(run).status is not RunStatus.RUNNING for run in runs)
        if not processes.alive and not over:
            unsettled = next(run for run in runs if engine.look(run).status is RunStatus.RUNNING)
            processes.run = unsettled
            processes.start(chance.randint(3, 12) if processes.killed < kills else 0)
        return over

    try:
        eventually(work, seconds=60 + 5 * count)
        eventually(lambda: processes.reap() or not processes.alive)
        assert processes.killed >= 2
        ended = Counter(engine.look(run).status for run in runs)
        assert set(ended) <= {RunStatus.SUCCEEDED, RunStatus.FAILED}  # a run that lost three workers has failed
        assert ended[RunStatus.SUCCEEDED] > count / 2
        # What a killed worker started ends on its own.
        eventually(lambda: not launchers_in(scratch) and not [*scratch.glob("kneo-sandbox-*")], seconds=10)
        effects = engine.log.read_text().split() if level == "process" else []
        assert len(effects) == len(set(effects)), "an effect happened twice"
        assert open_rows(store) == {"steps": 0, "owners": 0, "agent_journal": 0}
    finally:
        processes.stop()
        store.close()


def open_rows(store: Store) -> dict[str, int]:
    """Count the rows that say that something is still under way."""
    asked = {
        "steps": select(func.count()).where(tables.steps.c.completed_at.is_(None)),
        "owners": select(func.count()).where(tables.runs.c.owner.is_not(None)),
        "agent_journal": select(func.count()).where(tables.agent_journal.c.completed_at.is_(None)),
    }
    with store.read() as tx:
        return {name: tx.connection.execute(query).scalar_one() for name, query in asked.items()}


def test_two_releases_of_one_module_are_called_at_once(
    store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = EVERY_RELEASED if request.config.getoption("--every-write", default=False) else RELEASED
    assert isinstance(store.clock, ManualClock)
    store.clock.advance(SystemClock().now() - store.clock.now())
    world = World(store, tmp_path)
    world.release("first", "1.0.0")
    began = [world.start("first", str(number)) for number in range(count)]
    world.repo.write("acme/money.py", b"def euros(text):\n    return f'{text} euros'\n")
    world.release("first", "1.1.0")
    began += [world.start("first", str(number)) for number in range(count)]
    random.Random(20261124).shuffle(began)
    ended = world.drive(*began)
    texts = Counter((run.release.version if run.release else "", run.output_text) for run in ended)
    assert texts == Counter(
        (version, f"{number} {word} PAID")
        for version, word in (("1.0.0", "EUR"), ("1.1.0", "EUROS"))
        for number in range(count)
    )
    assert len([each for each in world.state.iterdir() if not each.name.startswith(".")]) == 2
