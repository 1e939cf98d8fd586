"""Rules for sandboxes and scripts: levels that protect nothing, capabilities that a profile cannot use, and files that no skill has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kneo.spec.call_title import named_arguments
from kneo.spec.documents import Diagnostic, Path, error, warning
from kneo.spec.index import SpecIndex
from kneo.spec.models.sandbox import Sandbox
from kneo.spec.tool_kinds import Capability

_FIELDS: dict[Capability, str] = {
    "network": "net",
    "filesystem_read": "read",
    "filesystem_write": "write",
    "shell": "processes",
}


def sandboxes(index: SpecIndex) -> Iterator[Diagnostic]:
    """A sandbox confines, and grants what the capabilities of its tool or function need."""
    for name, tool in index.spec.tools.items():
        yield from _sandbox(name, tool.sandbox, tool.capabilities, ("tools", name))
    for name, function in index.spec.components.functions.items():
        yield from _sandbox(name, function.sandbox, function.capabilities, ("components", "functions", name))
    for name, server in index.spec.mcp_servers.items():
        yield from _sandbox(name, server.sandbox, (), ("mcp_servers", name))


def scripts(index: SpecIndex) -> Iterator[Diagnostic]:
    """A script is a file of a declared skill, and its command line names arguments of the tool."""
    for name, tool in index.spec.tools.items():
        script, path = tool.script, ("tools", name, "script")
        if script is None:
            continue
        skill = index.spec.skills.get(script.skill)
        if skill is None:
            message = f"The skill {script.skill} of the tool {name} is not in skills."
            yield index.undeclared("E_SCRIPT", message, (*path, "skill"), script.skill, index.spec.skills, "skills")
        elif skill.content is not None and script.file not in skill.resources:
            message = f"The skill {script.skill} has no text {script.file}."
            hint = (
                index.hints.near(script.file, skill.resources)
                or "Name a file by its path below the folder of the skill."
            )
            yield error("E_SCRIPT", message, (*path, "file"), suggestion=hint)
        declared = tool.parameters.get("properties")
        known = list(declared) if isinstance(declared, Mapping) else []
        for number, text in enumerate(script.args):
            for argument in named_arguments(text):
                if argument not in known:
                    message = f"{{{argument}}} stands for no argument of {name}."
                    near = index.hints.near(argument, known) or "Declare it under parameters.properties."
                    yield error("E_SCRIPT", message, (*path, "args", number), suggestion=near)


def _sandbox(
    name: str, sandbox: Sandbox | None, capabilities: tuple[Capability, ...], path: Path
) -> Iterator[Diagnostic]:
    if sandbox is None:
        return
    if sandbox.level == "none":
        message = f"{name} runs in the worker, which has its settings and keys, where the environment trusts it."
        hint = "Declare level process or kernel, or leave the level to the environment."
        yield warning("W_SANDBOX_NONE", message, (*path, "sandbox", "level"), suggestion=hint)
    for capability in capabilities:
        if capability in _FIELDS and capability not in sandbox.capabilities:
            field = _FIELDS[capability]
            message = f"{name} declares {capability}, which its sandbox does not grant at level kernel."
            hint = f"Declare sandbox.{field}, or remove the capability."
            yield warning("W_SANDBOX_CAPABILITY", message, (*path, "capabilities"), suggestion=hint)
