"""Rules for sandboxes: levels that protect nothing, and capabilities that a profile cannot use."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.documents import Diagnostic, Path, warning
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
