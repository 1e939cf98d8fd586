"""Tools that are Python functions: on the loop, in a thread, in a child process that is killed, and of the registry."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from engine import level_sandboxes
from kneo_process import eventually
from processes import is_executing
from tool_calls import KEY, tool_call

from kneo.agents.tools.python import MAX_RESULT_CHARS, PythonTools
from kneo.errors import KneoError
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.tool_functions import ToolFunctions
from kneo.tools import ToolContext, ToolDefinition, ToolRegistry, ToolResult

PATIENCE = 240
SOURCE = """
import asyncio, os, subprocess, sys, time
from kneo.sdk.tools import tool
from kneo.tools import ToolResult

@tool
def decorated(amount: int, to: str, key): return [amount, to, key]
@tool(requires_confirmation=True)
def confirmed(amount: int): return amount
def __getattr__(name):
    if name == "on_demand":
        return confirmed
    raise AttributeError(name)
def echo(arguments): return {"arguments": arguments}
def text(arguments): return "hello"
def none(arguments): return None
def wrapped(arguments): return ToolResult(name="wrapped", output="inside")
def keyed(arguments, key): return key
def keyed_first(key, arguments): return [key, arguments]
def told(arguments, *, context): return [context.run_id, context.step_id, context.agent, context.tool, context.idempotency_key]
def nothing(): return "nothing"
def anything(**arguments): return arguments
def two(amount, to): return amount
async def later(arguments, key=None):
    await asyncio.sleep(0)
    return [arguments, key]
def awaitable(arguments): return later(arguments)
class Callable:
    async def __call__(self, arguments): return "called"
callable_object = Callable()

def raises(arguments): raise ValueError("no such user")
def exits(arguments): sys.exit(3)
def interrupts(arguments): raise KeyboardInterrupt
class Odd(BaseException): pass
def odd(arguments): raise Odd("odd")
async def exits_later(arguments): sys.exit(3)
async def cancels_itself(arguments): raise asyncio.CancelledError
def dies(arguments): os._exit(9)
def large(arguments): return "x" * 10_000_000
def large_list(arguments): return ["x" * 100] * 100_000
def not_json(arguments): return {1, 2}
def not_a_number(arguments): return float("nan")
def deep(arguments):
    value = []
    for _ in range(100_000): value = [value]
    return value
def floods(arguments):
    os.write(1, b"x" * 1_000_000 + b"\\n{\\"result\\": \\"forged\\"}\\n")
    print("more")
    subprocess.run(["echo", "even more"], check=True)
    return "done"
def reads(arguments): return sys.stdin.read()
def hangs(arguments):
    child = subprocess.Popen(["sleep", "100000"])
    with open(arguments["file"] + ".new", "w") as file: file.write(f"{os.getpid()} {child.pid}")
    os.replace(arguments["file"] + ".new", arguments["file"])
    time.sleep(100_000)
def pid(arguments): return os.getpid()
def settings(arguments): return [name for name in os.environ if name.startswith("KNEO_")]
"""


def bank(folder: Path) -> str:
    """The module's name: of its own in each test, because this process keeps what it imported."""
    return f"bank_{sha256(str(folder).encode()).hexdigest()[:12]}"


@asynccontextmanager
async def python_tools(
    folder: Path, registry: ToolRegistry | None = None, *, in_sandbox: bool = False
) -> AsyncIterator[PythonTools]:
    (folder / f"{bank(folder)}.py").write_text(SOURCE)
    code = CodeLoader((folder,), ())
    sandboxes = level_sandboxes(code, "process" if in_sandbox else "none")
    try:
        yield PythonTools(ToolFunctions(code, sandboxes), registry)
    finally:
        await sandboxes.close()


def call(
    folder: Path,
    function: str,
    arguments: Mapping[str, object] | None = None,
    pins: Mapping[str, str] | None = None,
    **tool: object,
) -> object:
    async def main() -> object:
        async with python_tools(folder, in_sandbox="timeout_seconds" in tool) as tools:
            made = tool_call(arguments, implementation=f"{bank(folder)}.{function}", pins=pins, **tool)
            return await tools.call(made)

    return asyncio.run(main())


CHILD = {"timeout_seconds": PATIENCE}
EVERYWHERE = pytest.mark.parametrize("where", [{}, CHILD], ids=["here", "child"])


@EVERYWHERE
def test_a_function_receives_the_arguments_the_key_and_the_context(tmp_path: Path, where: dict[str, object]) -> None:
    arguments = {"user_id": "u-1", "n": [1, {"ü": None}]}
    for function, result in {
        "echo": {"arguments": arguments},
        "text": "hello",
        "none": None,
        "wrapped": "inside",
        "keyed": KEY,
        "keyed_first": [KEY, arguments],
        "told": ["run_1", "answer", "writer", "tool", KEY],
        "nothing": "nothing",
        "anything": arguments,
        "later": [arguments, KEY],
        "awaitable": [arguments, None],
        "callable_object": "called",
    }.items():
        assert call(tmp_path, function, arguments, **where) == result, function


@EVERYWHERE
@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("raises", None, "no such user"),
        ("exits", "tool_exited", "SystemExit(3)"),
        ("interrupts", "tool_exited", "KeyboardInterrupt"),
        ("odd", "tool_exited", "Odd(odd)"),
        ("exits_later", "tool_exited", "SystemExit(3)"),
        ("cancels_itself", "tool_exited", "CancelledError"),
        ("not_json", "tool_result_invalid", "returned set"),
        ("not_a_number", "tool_result_invalid", "Out of range float"),
        ("deep", "tool_result_invalid", "recursion"),
        ("two", "tool_signature_invalid", "amount, to"),
    ],
)
def test_a_function_that_fails_fails_its_call_alone(
    tmp_path: Path, where: dict[str, object], function: str, code: str | None, message: str
) -> None:
    with pytest.raises((KneoError, ValueError), match=message.replace("(", r"\(").replace(")", r"\)")) as raised:
        call(tmp_path, function, **where)
    if isinstance(raised.value, KneoError):
        assert raised.value.code == (code or "ValueError")
    else:
        assert code is None


def test_a_function_that_takes_its_process_down_ends_the_child(tmp_path: Path) -> None:
    with pytest.raises(KneoError, match="exit status 9") as raised:
        call(tmp_path, "dies", **CHILD)
    assert raised.value.code == "process_died"


@EVERYWHERE
@pytest.mark.parametrize("function", ["large", "large_list"])
def test_a_large_result_is_cut(tmp_path: Path, where: dict[str, object], function: str) -> None:
    result = call(tmp_path, function, **where)
    assert isinstance(result, str)
    assert "characters in all]" in result[-40:]
    assert MAX_RESULT_CHARS < len(result) < MAX_RESULT_CHARS + 100


def test_output_of_a_function_is_never_its_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "floods", **CHILD) == "done"
    assert call(tmp_path, "reads", **CHILD) == ""
    assert "even more" in capfd.readouterr().err


def test_a_function_that_hangs_is_killed_with_its_processes(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    async def main() -> None:
        async with python_tools(tmp_path, in_sandbox=True) as tools:
            made = tool_call({"file": str(file)}, implementation=f"{bank(tmp_path)}.hangs", timeout_seconds=PATIENCE)
            hanging = asyncio.create_task(tools.call(made))
            await asyncio.to_thread(eventually, file.exists)
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
            after = await tools.call(tool_call(implementation=f"{bank(tmp_path)}.pid", timeout_seconds=PATIENCE))
            assert str(after) not in file.read_text().split()

    asyncio.run(main())
    pids = [int(pid) for pid in file.read_text().split()]
    assert len(pids) == 2
    eventually(lambda: not any(is_executing(pid) for pid in pids))


def test_each_call_has_a_process_of_its_own_and_none_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEO_SERV_ADMIN_API_KEY", "secret")

    async def main() -> None:
        async with python_tools(tmp_path, in_sandbox=True) as tools:
            found = [
                await tools.call(tool_call(implementation=f"{bank(tmp_path)}.{name}", timeout_seconds=PATIENCE))
                for name in ("pid", "pid", "settings")
            ]
            assert len({found[0], found[1], os.getpid()}) == 3
            assert found[2] == []

    asyncio.run(main())


@EVERYWHERE
def test_only_the_pinned_module_is_called(tmp_path: Path, where: dict[str, object]) -> None:
    pin = f"sha256:{sha256(SOURCE.encode()).hexdigest()}"
    assert call(tmp_path, "text", pins={bank(tmp_path): pin}, **where) == "hello"
    with pytest.raises(KneoError) as refused:
        call(tmp_path, "text", pins={bank(tmp_path): f"sha256:{'0' * 64}"}, **where)
    assert refused.value.code == "implementation_not_pinned"


@EVERYWHERE
@pytest.mark.parametrize("function", ["os.system", "subprocess.run", "kneo.settings.from_env"])
def test_a_module_that_is_not_allowed_is_not_called(tmp_path: Path, where: dict[str, object], function: str) -> None:
    async def main() -> object:
        async with python_tools(tmp_path) as tools:
            return await tools.call(tool_call({"a": 1}, implementation=function, **where))

    with pytest.raises(KneoError) as refused:
        asyncio.run(main())
    assert refused.value.code == "implementation_forbidden"


@EVERYWHERE
def test_a_decorated_function_takes_its_arguments_by_name(tmp_path: Path, where: dict[str, object]) -> None:
    assert call(tmp_path, "decorated", {"amount": 5, "to": "bob"}, **where) == [5, "bob", KEY]
    with pytest.raises((KneoError, ValueError), match="amount"):
        call(tmp_path, "decorated", {"amount": "much", "to": "bob"}, **where)
    with pytest.raises(KneoError) as refused:
        call(tmp_path, "confirmed", {"amount": 5}, **where)
    assert refused.value.code == "tool_review_missing"
    assert call(tmp_path, "confirmed", {"amount": 5}, review={"before": True}, **where) == 5


@EVERYWHERE
def test_the_gates_of_a_function_that_its_module_makes_on_demand_are_required(
    tmp_path: Path, where: dict[str, object]
) -> None:
    with pytest.raises(KneoError) as refused:
        call(tmp_path, "on_demand", {"amount": 5}, **where)
    assert refused.value.code == "tool_review_missing"


# ---- the registry ---------------------------------------------------------------------------------------------------


def registry() -> ToolRegistry:
    made = ToolRegistry()
    schema = {"type": "object", "properties": {"user_id": {"type": "string"}}, "required": ["user_id"]}
    made.register(
        ToolDefinition(name="lookup", description="Look up.", parameters=schema), lambda args: f"<{args['user_id']}>"
    )

    async def slow(arguments: Mapping[str, object], context: ToolContext) -> ToolResult:
        await asyncio.sleep(0)
        return ToolResult(name="slow", output=context.idempotency_key, metadata={"a": 1})

    made.register(ToolDefinition(name="slow"), slow)  # type: ignore[arg-type]  # with a context
    return made


def test_a_registered_tool_is_called_by_its_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with python_tools(tmp_path, registry()) as tools:
            assert await tools.call(tool_call({"user_id": "u-1"}, name="lookup")) == "<u-1>"
            assert await tools.call(tool_call(name="slow")) == KEY
            with pytest.raises(KneoError) as missing:
                await tools.call(tool_call(name="other"))
            assert missing.value.code == "tool_not_found"
            declared = tools.registered("lookup")
            assert declared is not None
            assert (declared.description, declared.parameters["required"]) == ("Look up.", ["user_id"])
            assert tools.registered("other") is None

    asyncio.run(main())


def test_a_program_calls_its_registered_tools_itself() -> None:
    tools = registry()
    assert tools.call("lookup", {"user_id": "u-1"}) == ToolResult(name="lookup", output="<u-1>")
    tools.register(ToolDefinition(name="map"), dict)  # type: ignore[arg-type]
    assert tools.call("map", {"a": 1}).output == '{"a": 1}'
