"""The backend of tools that are scripts of skills: arguments into the command line and the input, output into the call's result."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from kneo.agents.tools.http import Template
from kneo.agents.turn import ToolCall
from kneo.errors import Invalid
from kneo.spec.models.spec import SkillScript

START = """
import json, os, runpy, site, sys
site.setquit()
sys.path[:], sys.argv = json.loads(sys.argv[1]), sys.argv[2:]
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The program that runs a script: an isolated interpreter has neither packages nor the script's folder."""

PYTHON = (sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", START)


class Scripts(Protocol):
    """The scripts of skills, and where they run."""

    async def run_script(self, call: ToolCall, script: SkillScript, command: Sequence[str], data: bytes) -> bytes:
        """Run a script in a sandbox, and return its output.

        Raises:
            KneoError: its exit status is not 0, or it may not run.
        """
        ...


class ScriptTools:
    """Runs the scripts of skills.

    Args:
        scripts: The scripts.
        paths: The folders of the standard library and of installed packages.
    """

    def __init__(self, scripts: Scripts, paths: Sequence[str]) -> None:
        self._scripts, self._paths = scripts, list(paths)

    async def call(self, call: ToolCall) -> object:
        """Run the script of a call.

        Raises:
            Invalid: ``argument_missing``, ``argument_invalid``.
            KneoError: its exit status is not 0, or it may not run.
        """
        script = call.tool.script
        assert script is not None
        program = (*PYTHON, json.dumps(self._paths)) if script.file.endswith(".py") else ("/bin/sh",)
        command = (*program, script.file, *_arguments(script, call))
        data = json.dumps(call.arguments, ensure_ascii=False, allow_nan=False).encode(errors="replace")
        return read_output(await self._scripts.run_script(call, script, command, data))


def _arguments(script: SkillScript, call: ToolCall) -> list[str]:
    """Return the arguments of a command line.

    Raises:
        Invalid: ``argument_missing``, or ``argument_invalid``: it is no text, number or boolean, or has a NUL.
    """
    declared = call.tool.parameters.get("properties")
    names = frozenset(declared if isinstance(declared, Mapping) else ()) | call.arguments.keys()
    template = Template(names, call.arguments)
    filled = [template.text(each) for each in script.args]
    if any("\0" in each for each in filled):
        msg = f"An argument of {PurePosixPath(script.file).name} has a NUL character, which no command line can have."
        raise Invalid(msg, code="argument_invalid")
    return filled


def read_output(data: bytes) -> object:
    """Return the output of a script as the result of its call: the value of JSON, else the text without its last line break."""
    text = data.decode(errors="replace").replace("\0", "\ufffd")
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text.removesuffix("\n")
    return value


def _no_constant(name: str) -> object:
    raise ValueError(name)
