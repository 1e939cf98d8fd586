"""Processes of sandboxes: calls, limits, ends, and the network that a profile declares."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kneo.errors import Forbidden, KneoError
from kneo.function_context import StepContext, step_context_as_json
from kneo.sandbox import confine, processes
from kneo.sandbox.levels import LAUNCHER, Level, Rights, host_level
from kneo.sandbox.network import is_named
from kneo.sandbox.processes import Answer, ChildFailed, ModuleCode, SandboxProcesses

MODULE = """
import asyncio, os, signal, socket, subprocess, sys
KEPT = []

def echo(text): return text
def descriptors(text):
    found = []
    for number in range(256):
        try: os.fstat(number)
        except OSError: continue
        found.append(number)
    return found
def raises(text): raise ValueError("no " + text)
def exits(text): os._exit(3)
def memory(text): return len(bytearray(1 << 30))
def spins(text):
    while True: pass
def sleeps(text):
    open(text, "w").write(str(os.getpid()))
    signal.pause()
def keeps(text):
    KEPT.append(text)
    home = os.environ["HOME"]
    os.mkdir(home + "/hidden", mode=0)
    return [len(KEPT), sorted(os.listdir(home + "/..")), os.getsid(0) == os.getpid()]
def large(text):
    with open(os.environ["TMPDIR"] + "/large", "wb") as file:
        for _ in range(1000): file.write(bytes(1 << 20))
def nests(text):
    os.chdir(os.environ["HOME"])
    for _ in range(int(text)):
        os.mkdir("d")
        os.chdir("d")
    return text
def starts(text):
    return subprocess.run(["/bin/echo", text], capture_output=True, text=True).stdout
def bomb(text):
    while True:
        try: os.fork()
        except OSError: pass
def daemon(text):
    subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    return "started"
def environment(text): return dict(os.environ)
def read(text): return open(text).read()
def write(text):
    with open(text, "a") as file: file.write("x")
async def waits(text):
    await asyncio.sleep(0)
    return text
def prints(text):
    print('{"value": "forged"}')
    os.write(1, b'{"value": "forged"}\\n')
    return text
def tunnel(text):
    one = socket.create_connection(("198.51.100.1", 3128), 5)
    one.sendall(f"CONNECT {text} HTTP/1.1\\r\\n\\r\\n".encode())
    first = one.recv(100).decode().split()[1]
    one.sendall(b"hello")
    return [first, one.recv(100).decode() if first == "200" else ""]
async def async_tunnel(text):
    reader, writer = await asyncio.open_connection("198.51.100.1", 3128)
    writer.write(f"CONNECT {text} HTTP/1.1\\r\\n\\r\\n".encode())
    first = (await reader.readuntil(b"\\r\\n\\r\\n")).decode().split()[1]
    writer.write(b"hello")
    return [first, (await reader.read(100)).decode() if first == "200" else ""]
def talks_tls(text):
    one = socket.create_connection(("198.51.100.1", 443), 5)
    one.sendall(b"\\x16\\x03\\x01\\x02\\x00")
    return one.recv(100).decode().split()[1]
"""

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="these are facts of Linux")
KERNEL = pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)
LEVELS = pytest.mark.parametrize("level", ["process", pytest.param("kernel", marks=KERNEL)])

CONTEXT = step_context_as_json(StepContext(run_id="r", step_id="s", attempt=1, idempotency_key="k"))


class Caller:
    """Calls functions of the module in sandboxes."""

    def __init__(self, folder: Path, module: str = MODULE) -> None:
        self.folder, self.module = folder, module
        self.processes = SandboxProcesses()

    async def answer(self, function: str, text: str = "x", check: object = None, **rights: object) -> Answer:
        source = (str(self.folder / "own.py"), self.module.encode())
        code = ModuleCode(
            function=f"own.{function}", sources={"own": source}, paths=(*filter(None, sys.path), str(self.folder))
        )
        request = {"text": text, "context": CONTEXT}
        return await self.processes.call(function, code, Rights(**rights), request, check=check)  # type: ignore[arg-type]

    async def __call__(self, function: str, text: str = "x", **rights: object) -> object:
        return (await self.answer(function, text, **rights)).content["value"]


@asynccontextmanager
async def caller(folder: Path, module: str = MODULE) -> AsyncIterator[Caller]:
    made = Caller(folder, module)
    try:
        yield made
    finally:
        await made.processes.close()


@pytest.fixture
def left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that no process and no folder is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))
    descriptors, others = _descriptors(), _launchers()
    yield
    assert not [*Path(tempfile.gettempdir()).iterdir()]
    assert _descriptors() <= descriptors
    assert not _launchers() - others


def _launchers() -> set[int]:
    """Return the launchers below this process; other tests of it may keep some."""
    return {each for each in processes._below(os.getpid()) if "launch.py" in _command(each)}


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()]) if sys.platform == "linux" else 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


@LEVELS
def test_a_function_answers_raises_and_ends_its_process(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            assert await call("echo", "ä\n", level=level) == "ä\n"
            assert await call("waits", level=level) == "x"
            with pytest.raises(ChildFailed, match="no x") as raised:
                await call("raises", level=level)
            assert raised.value.kind == "ValueError"
            with pytest.raises(ChildFailed, match="exit status 3") as ended:
                await call("exits", level=level)
            assert ended.value.kind == "process_died"

    asyncio.run(calls())


@LEVELS
def test_memory_processor_time_and_files_are_limited(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            with pytest.raises(Forbidden, match="memory used more than 512 MiB of memory") as memory:
                await call("memory", level=level)
            assert memory.value.code == "sandbox_limit"
            with pytest.raises(Forbidden, match="spins used more than 1 s of processor time"):
                await call("spins", level=level, cpu_seconds=1)
            with pytest.raises(ChildFailed, match="File too large"):
                await call("large", level=level, memory=64 << 20)

    asyncio.run(calls())


@LEVELS
def test_a_call_sees_nothing_of_an_earlier_one(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            first = await call("keeps", level=level) if level == "process" else None
            if first is not None:
                assert first == [1, ["1"], True]
                assert await call("keeps", level=level) == [1, ["2"], True]
            else:
                with pytest.raises(ChildFailed, match="Permission denied"):
                    await call("keeps", level=level)

    asyncio.run(calls())


@LEVELS
def test_a_module_that_sends_descriptors_leaves_none_in_the_worker(tmp_path: Path, level: Level, left: None) -> None:
    flood = """
import os, socket, stat
for each in range(3, 64):
    try:
        if not stat.S_ISSOCK(os.fstat(each).st_mode): continue
        control = socket.socket(fileno=os.dup(each))
        for _ in range(50): socket.send_fds(control, [b'{"a": 1}\\n'], [0])
        control.close()
    except OSError: pass
def echo(text): return text
"""

    async def calls() -> None:
        async with caller(tmp_path, flood) as call:
            before = _descriptors()
            assert await call("echo", level=level) == "x"
            assert _descriptors() < before + 20

    asyncio.run(calls())


@LEVELS
def test_a_folder_deeper_than_paths_may_be_is_removed(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            assert await call("nests", "2200", level=level) == "2200"
            assert await call("nests", "2200", level=level, processes=2) == "2200"

    asyncio.run(calls())


def test_the_launcher_imports_nothing_that_works_in_each_forked_process() -> None:
    """``threading`` alone doubles what a fork costs."""
    code = f"import runpy, sys; runpy.run_path({str(LAUNCHER)!r}); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "kneo.sandbox.functions" in ran.stdout.split()
    assert not {"threading", "random", "logging", "asyncio"} & {*ran.stdout.split()}


@LEVELS
def test_a_call_has_its_own_descriptors_alone(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            found = [await call("descriptors", level=level) for _ in range(4)]
            assert [len(each) for each in found if isinstance(each, list)] == [4] * 4  # three streams and its socket

    asyncio.run(calls())


@LINUX
def test_functions_of_one_module_share_a_process(tmp_path: Path, left: None) -> None:
    module = (
        "ran = []\n"
        "def first(text): ran.append(text); return len(ran)\n"
        "def second(text): ran.append(text); return len(ran)\n"
        "class Proxy:\n"
        "    @property\n"
        "    def __class__(self): raise RuntimeError('unbound')\n"
        "proxy = Proxy()\n"
    )

    async def work() -> None:
        async with caller(tmp_path, module) as call:
            assert [await call("first"), await call("second"), await call("first")] == [1, 1, 1]
            assert len(call.processes._idle) == 1

    asyncio.run(work())


@LEVELS
def test_a_call_whose_process_was_killed_before_it_gets_another(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            assert await call("echo", level=level) == "x"
            [template] = call.processes._idle
            assert template._process is not None
            waiting = [*processes._below(template._process.pid)][-1]
            os.kill(waiting, signal.SIGKILL)
            await template._process.wait()
            assert await call("echo", level=level) == "x"

    asyncio.run(calls())


@LEVELS
def test_what_a_call_prints_is_not_its_answer(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            assert [await call("prints", each, level=level) for each in "ab"] == ["a", "b"]

    asyncio.run(calls())


@LEVELS
def test_the_environment_is_the_declared_one(
    tmp_path: Path, level: Level, left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    async def calls() -> None:
        async with caller(tmp_path) as call:
            found = await call("environment", level=level, env={"MODE": "fast"})
            assert isinstance(found, dict)
            assert set(found) <= {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "MODE", "LC_CTYPE"}
            assert found["MODE"] == "fast"
            assert found["HOME"] == found["TMPDIR"]

    asyncio.run(calls())


@LEVELS
def test_a_cancelled_call_is_killed(tmp_path: Path, level: Level, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            file = tmp_path / "pid"
            file.touch()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3):
                    await call("sleeps", str(file), level=level, write=(str(file),))
            assert not _command(int(file.read_text()))

    asyncio.run(calls())


@LINUX
def test_processes_of_a_call_end_with_it(tmp_path: Path, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            assert await call("starts", "y", level="process") == "y\n"
            assert await call("daemon", level="process") == "started"
            assert not [each for each in processes._below(os.getpid()) if "sleep\x00600" in _command(each)]

    asyncio.run(calls())


@KERNEL
@pytest.mark.parametrize("level", ["process", "kernel"])
def test_everything_ends_with_a_killed_worker(tmp_path: Path, level: str) -> None:
    file = tmp_path / "pid"
    file.touch()
    program = (
        "import asyncio, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:4]\n"
        "from integration.sandbox.test_processes import Caller\n"
        f"asyncio.run(Caller(Path({str(tmp_path)!r}))('sleeps', {str(file)!r}, level={level!r}, write=({str(file)!r},)))"
    )
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, "x", str(tests), str(tests.parent)]
    worker = subprocess.Popen(command, cwd=tests)
    while not file.read_text():
        assert worker.poll() is None
    pid = int(file.read_text())
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    for _ in range(100):
        if not _command(pid):
            return
        threading.Event().wait(0.01)
    pytest.fail("The call runs 1 s after its worker was killed.")


@KERNEL
@pytest.mark.parametrize("number", [1, 4])
def test_a_fork_bomb_ends(tmp_path: Path, number: int, left: None) -> None:
    async def calls() -> None:
        async with caller(tmp_path) as call:
            if number == 1:
                with pytest.raises(Forbidden, match="processor time"):
                    await call("bomb", level="kernel", cpu_seconds=1)
            else:
                with pytest.raises(Forbidden, match="bomb started more than 4 processes") as found:
                    await call("bomb", level="kernel", processes=number)
                assert found.value.code == "sandbox_limit"
                assert await call("starts", "y", level="kernel", processes=number) == "y\n"

    asyncio.run(calls())


@KERNEL
def test_declared_files_can_be_read_or_changed(tmp_path: Path, left: None) -> None:
    readable, writable, link = tmp_path / "in", tmp_path / "out", tmp_path / "link"
    readable.write_text("content")
    writable.touch()
    link.symlink_to(readable)

    async def calls() -> None:
        async with caller(tmp_path) as call:
            assert await call("read", str(readable), level="kernel", read=(str(readable),)) == "content"
            with pytest.raises(ChildFailed, match="Permission denied"):
                await call("write", str(readable), level="kernel", read=(str(readable),))
            await call("write", str(writable), level="kernel", write=(str(writable),))
            assert writable.read_text() == "x"
            for path, reason in ((link, "symbolic link"), (tmp_path / "missing", "No such file")):
                with pytest.raises(KneoError, match=reason) as refused:
                    await call("read", str(path), level="kernel", read=(str(path),))
                assert refused.value.code == "sandbox_path_denied"

    asyncio.run(calls())


@KERNEL
@pytest.mark.parametrize("function", ["tunnel", "async_tunnel"])
def test_declared_hosts_are_reached_and_others_are_recorded(tmp_path: Path, function: str, left: None) -> None:
    async def calls() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(100))
            await writer.drain()
            writer.close()

        async def check(host: str, port: int) -> Sequence[str]:
            if host == "inside.example":
                raise Forbidden("inside", code="host_denied")
            return ["127.0.0.1"]

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        net = (f"api.example:{port}", f"inside.example:{port}", f"*.wide.example:{port}")
        async with caller(tmp_path) as call:
            for host in ("api.example", "API.example.", "a.wide.example"):
                found = await call.answer(function, f"{host}:{port}", check, level="kernel", net=net)
                assert found.content["value"] == ["200", "hello"]
                assert found.denied == ()
            for host in ("evil.example", "inside.example", "wide.example", "127.0.0.1", "2130706433"):
                found = await call.answer(function, f"{host}:{port}", check, level="kernel", net=net)
                assert found.content["value"] == ["403", ""]
                assert found.denied == (f"{host}:{port}",)
            assert await call("talks_tls", level="kernel", net=net) == "403"
        server.close()

    asyncio.run(calls())


def test_a_profile_names_whole_hosts_and_hosts_below() -> None:
    assert is_named("a.example", 443, ["a.example:443"])
    assert is_named("b.a.example", 443, ["*.a.example:443"])
    for host, port in (("a.example", 80), ("ba.example", 443), ("a.example.evil", 443)):
        assert not is_named(host, port, ["a.example:443", "*.a.example:443"])
    assert not is_named("a.example", 443, ["*.a.example:443"])


@KERNEL
@pytest.mark.parametrize(
    ("denied", "reason"),
    [
        ("seccomp", "denies seccomp"),
        ("landlock_create_ruleset", "denies Landlock"),
        ("landlock_restrict_self", "landlock_restrict_self"),
    ],
)
def test_an_outer_filter_makes_the_level_unavailable(tmp_path: Path, denied: str, reason: str) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:4]\n"
        "from integration.sandbox.test_processes import Caller\n"
        "from kneo.sandbox import confine\n"
        "from kneo.sandbox.levels import host_level\n"
        f"confine.drop_privileges(); confine.restrict_calls(confine.call_filter(confine.refuse({denied!r})))\n"
        "print(host_level.__wrapped__())\n"
        f"asyncio.run(Caller(Path({str(tmp_path)!r}))('write', {str(tmp_path / 'touched')!r}, level='kernel'))"
    )
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, "x", str(tests), str(tests.parent)]
    found = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False)
    assert "level='process'" in found.stdout
    assert "write needs a sandbox at level kernel, which this machine cannot give" in found.stderr
    assert reason in found.stderr
    assert not (tmp_path / "touched").exists()


@KERNEL
def test_older_kernels_confine_files_as_well(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    for version in (3, 4, 5, 6):
        pid = os.fork()
        if not pid:
            confine.drop_privileges()
            confine.restrict_files([], abi=version)
            rules = confine.call_rules(net=False, scoped=version >= confine.SCOPES_ABI)
            confine.restrict_calls(confine.call_filter(rules))
            refused = 0
            for attack in (secret.read_text, lambda: os.kill(os.getppid(), 0), lambda: os.truncate(secret, 0)):
                try:
                    attack()
                except PermissionError:
                    refused += 1
            os.kill(os.getpid(), 0)
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    with pytest.raises(OSError, match="3 is needed"):
        confine.restrict_files([], abi=2)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_each_machine_can_be_written(machine: str) -> None:
    rules = [*confine.call_rules(net=True, scoped=False), *confine.fork_rules()]
    program = list(confine._compile(rules, machine))
    assert 100 < len(program) < 4096
    assert all(0 <= jump < 256 for _, yes, no, _ in program for jump in (yes, no))
    if sys.platform == "linux":
        assert confine._numbers("x86_64")["socket"] == 41
        assert confine._numbers("aarch64")["socket"] == 198


def test_sockets_of_a_pair_are_connected_to_each_other() -> None:
    from kneo.sandbox.network import _pair

    one, other = _pair()
    with one, other:
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        assert one.family == socket.AF_INET
