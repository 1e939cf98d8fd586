"""Tools that are scripts of skills: their arguments, input and output, their failures, their limits, and their sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from engine import open_sandboxes
from kneo_process import eventually
from processes import is_executing
from tool_calls import KEY, filtered, tool_call

from kneo.agents.tools.script import ScriptTools
from kneo.errors import KneoError
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.code_store import package_paths
from kneo.runtime.steps.tool_functions import ToolFunctions
from kneo.sandbox.levels import host_level
from kneo.spec.models.spec import Skill
from kneo.spec.policy import SandboxLevel, SandboxRules, ToolRules

ECHO = """
import json, os, sys
import beside
given = json.load(sys.stdin)
print(json.dumps({"args": sys.argv[1:], "given": given, "beside": beside.NAME, "cwd": sorted(os.listdir("."))}))
"""

SCRIPTS = {
    "scripts/echo.py": ECHO,
    "scripts/beside.py": "NAME = 'a file beside it'\n",
    "references/law.md": "Law.",
    "scripts/text.py": "print('two\\nlines')",
    "scripts/number.py": "print('NaN')",
    "scripts/none.py": "",
    "scripts/key.py": "import os; print(os.environ['KNEO_IDEMPOTENCY_KEY'])",
    "scripts/settings.py": "import json, os; print(json.dumps([*os.environ]))",
    "scripts/token.py": "import os, sys; print('token', os.environ['TOKEN']); sys.exit(len(sys.argv) - 1)",
    "scripts/leaks.py": "import os, sys; sys.exit('refused: ' + os.environ['TOKEN'])",
    "scripts/fails.py": "print('half'); raise ValueError('no such order')",
    "scripts/exits.py": "exit(7)",
    "scripts/deaf.py": "print('done')",
    "scripts/floods.py": "import sys\nwhile True: sys.stdout.write('x' * 1_000_000)",
    "scripts/project.py": "import acme_of_project",
    "scripts/memory.py": "x = bytearray(200 << 20)",
    "scripts/memory.sh": 'x=aaaaaaaaaaaaaaaa\nwhile :; do x="$x$x"; done',
    "scripts/awk.sh": """awk 'BEGIN { x = "aaaaaaaaaaaaaaaa"; while (1) x = x x }'""",
    "scripts/spins.py": "while True: pass",
    "scripts/forks.py": "import os, signal\nfor _ in range(20):\n    if not os.fork(): signal.pause()\nsignal.pause()",
    "scripts/read.py": "import sys; print(open(sys.argv[1]).read())",
    "scripts/itself.py": "open(__file__, 'a').write('x')\nprint(len(open(__file__).read()))",
    "scripts/hangs.py": "import os, signal, sys\nopen(sys.argv[1], 'w').write(str(os.getpid()))\nsignal.pause()",
    "scripts/hello.sh": 'read given\necho "hello $1 from $given"',
    "scripts/fails.sh": "echo refused >&2\nexit 3",
}

KERNEL = pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)

LEVELS = pytest.mark.parametrize("level", ["none", "process", pytest.param("kernel", marks=KERNEL)])


def run(
    file: str,
    arguments: Mapping[str, object] | None = None,
    *,
    args: tuple[str, ...] = (),
    level: str = "process",
    folder: Path = Path(os.sep, "nowhere"),
    floor: SandboxLevel | None = None,
    **tool: object,
) -> object:
    rules = ToolRules(sandbox=SandboxRules.model_validate({"required": level}))
    call = tool_call(arguments, script={"skill": "orders", "file": f"scripts/{file}", "args": args}, **tool)
    spec = call.turn.spec.model_copy(update={"skills": {"orders": Skill(content="Orders.", resources=SCRIPTS)}})
    call = replace(call, turn=replace(call.turn, spec=spec), floor=floor)

    async def main() -> object:
        code = CodeLoader((folder,), ())
        sandboxes = open_sandboxes(code, rules, {"CRM_TOKEN": "secret-of-the-crm"})
        async with asyncio.timeout(call.tool.timeout_seconds):
            found = await filtered(ScriptTools(ToolFunctions(code, sandboxes), package_paths())).call(call)
        assert call.observed["sandbox"]["level"] == level  # type: ignore[index]
        return found

    return asyncio.run(main())


def refusal(file: str, arguments: Mapping[str, object] | None = None, **more: object) -> KneoError:
    with pytest.raises(KneoError) as refused:
        run(file, arguments, **more)  # type: ignore[arg-type]
    return refused.value


@LEVELS
def test_a_script_has_arguments_an_input_and_the_files_of_its_folder(level: str) -> None:
    given = {"id": "a b; rm -rf /", "count": 2}
    found = run("echo.py", given, args=("--order", "{id}", "n={count}", "{}"), level=level)
    assert found == {
        "args": ["--order", "a b; rm -rf /", "n=2", "{}"],
        "given": given,
        "beside": "a file beside it",
        "cwd": ["scripts"],
    }
    assert run("hello.sh", {"id": "ann"}, args=("{id}",), level=level) == 'hello ann from {"id": "ann"}'


def test_the_output_is_a_value_of_json_or_a_text() -> None:
    assert run("text.py") == "two\nlines"
    assert run("number.py") == "NaN"
    assert run("none.py") == ""
    assert run("deaf.py", {"id": "x" * 1_000_000}) == "done"


def test_a_script_knows_the_key_of_its_call_and_no_setting_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNEO_SERV_API_SECRET", "x")
    assert run("key.py") == KEY
    names = {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "TZ", "KNEO_IDEMPOTENCY_KEY"}
    found = run("settings.py")
    assert isinstance(found, list)
    assert {*found} <= names


def test_an_exit_status_is_a_failed_call() -> None:
    failed = refusal("fails.py")
    assert failed.code == "script_failed"
    assert "exit status 1: " in failed.message
    assert failed.message.endswith("ValueError: no such order")
    assert refusal("exits.py").message == "The script ended with exit status 7: it wrote no error"
    assert refusal("fails.sh").message == "The script ended with exit status 3: refused"
    assert refusal("floods.py").code == "output_too_large"


def test_arguments_that_make_no_command_line_are_refused() -> None:
    for arguments, code in (
        ({}, "argument_missing"),
        ({"id": [1]}, "argument_invalid"),
        ({"id": "\0"}, "argument_invalid"),
    ):
        properties = {"type": "object", "properties": {"id": {}}}
        assert refusal("echo.py", arguments, args=("{id}",), parameters=properties).code == code


def test_a_file_that_the_skill_lacks_is_refused() -> None:
    assert refusal("missing.py").code == "implementation_invalid"


def test_secrets_are_given_and_hidden_in_results_and_errors() -> None:
    env = {"env": {"TOKEN": "${CRM_TOKEN}"}}
    found = run("token.py", sandbox=env)
    assert isinstance(found, str)
    assert found.startswith("token ")
    assert "secret-of-the-crm" not in found
    failed = refusal("leaks.py", sandbox=env)
    assert "refused: " in failed.message
    assert "secret-of-the-crm" not in failed.message
    assert refusal("token.py", sandbox={"env": {"TOKEN": "${OTHER}"}}).code == "secret_missing"


def test_modules_of_the_project_are_not_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_of_project.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "ModuleNotFoundError" in refusal("project.py", folder=tmp_path, level="none").message


def test_memory_and_processor_time_are_limited() -> None:
    refused = refusal("memory.py", sandbox={"memory": "64Mi"})
    assert (refused.code, refused.message) == ("sandbox_limit", "tool used more than 64 MiB of memory.")
    refused = refusal("memory.sh", sandbox={"memory": "64Mi"})  # each shell ends in its way
    assert (refused.code, "64 MiB of memory" in refused.message) == ("sandbox_limit", True)
    refused = refusal("awk.sh", sandbox={"memory": "64Mi"})
    assert (refused.code, refused.message) == ("sandbox_limit", "tool used more than 64 MiB of memory.")
    refused = refusal("spins.py", sandbox={"cpu_seconds": 1})
    assert (refused.code, refused.message) == ("sandbox_limit", "tool used more than 1 s of processor time.")


@KERNEL
def test_processes_are_limited() -> None:
    assert "PermissionError" in refusal("forks.py", level="kernel").message
    refused = refusal("forks.py", level="kernel", sandbox={"processes": 4})
    assert (refused.code, refused.message) == ("sandbox_limit", "tool started more than 4 processes.")


@KERNEL
def test_only_declared_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    assert "PermissionError" in refusal("read.py", {"file": str(file)}, args=("{file}",), level="kernel").message
    read = {"read": [str(file)]}
    assert run("read.py", {"file": str(file)}, args=("{file}",), level="kernel", sandbox=read) == "content"


def test_a_script_that_changes_itself_changes_no_other_call() -> None:
    length = len(SCRIPTS["scripts/itself.py"]) + 1
    assert [run("itself.py"), run("itself.py")] == [length, length]


@LEVELS
def test_a_script_that_takes_too_long_is_killed(tmp_path: Path, level: str) -> None:
    file = tmp_path / "pid"
    sandbox = {"write": [str(tmp_path)]}
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        run("hangs.py", {"file": str(file)}, args=("{file}",), level=level, sandbox=sandbox, timeout_seconds=3)
    assert time.monotonic() - before < 60
    eventually(lambda: not is_executing(int(file.read_text())))


@LEVELS
def test_nothing_of_a_script_is_left(tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptors = len([*Path("/proc/self/fd").iterdir()])
    assert json.dumps(run("deaf.py", level=level))
    refusal("fails.py", level=level)
    assert list(tmp_path.iterdir()) == []
    assert len([*Path("/proc/self/fd").iterdir()]) <= descriptors


def test_a_script_never_runs_at_a_lower_level_than_the_approved_one() -> None:
    with pytest.raises(KneoError, match="approved at level kernel and would run at process") as refused:
        run("deaf.py", floor="kernel")
    assert refused.value.code == "sandbox_too_weak"


@LEVELS
def test_a_script_ends_with_a_killed_worker(tmp_path: Path, level: str) -> None:
    file = tmp_path / "pid"
    file.touch()
    program = (
        "import sys; sys.path[:0] = sys.argv[1:4]; import test_script_tools\n"
        f"file, sandbox = {str(file)!r}, {{'write': [{str(file)!r}]}}\n"
        f"test_script_tools.run('hangs.py', {{'file': file}}, args=('{{file}}',), level={level!r}, sandbox=sandbox)"
    )
    tests = Path(__file__).parents[2]
    folders = [Path(__file__).parent, tests / "support", tests.parent]
    worker = subprocess.Popen([sys.executable, "-c", program, *map(str, folders)])
    try:
        eventually(lambda: file.read_text() != "")
    finally:
        worker.kill()
        worker.wait()
    killed = time.monotonic()
    eventually(lambda: not is_executing(int(file.read_text())))
    assert time.monotonic() - killed < 1
