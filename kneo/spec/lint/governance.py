"""What agents may do, said openly, and whether anybody is asked."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.permissions import allows, callable_tools, permissions_of
from kneo.spec.coverage.questions import asks_somebody
from kneo.spec.diagnostics import Diagnostic, warning
from kneo.spec.documents import Path
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.lint.implementations import unsafe_imports
from kneo.spec.models import ToolPermissions
from kneo.spec.models.tools import Capability


def governance(view: SpecIndex) -> Iterator[Diagnostic]:
    """What is dangerous is named; where something is, a workflow asks a person somewhere."""
    fired = [*unsafe_imports(view)]
    for at in view.agents:
        fired.extend(_permissions(at))
    yield from fired
    if fired and not asks_somebody(view):
        message = "The spec can do privileged things, and no workflow asks a person."
        hint = "Add a step of kind human, or a review at the step or tool that needs one."
        yield warning("W_HUMAN_APPROVAL_MISSING", message, ("workflow",), suggestion=hint)


def _permissions(at: LocatedAgent) -> Iterator[Diagnostic]:
    if at.agent.tools is None:
        return
    path = (*at.path, "tools", "permissions")
    given = at.agent.tools.permissions
    if given is None:
        if at.agent.tools.include:
            message = f"The agent {at.agent.name} has tools and does not say what they may do."
            hint = "Write tools.permissions: what is not needed is false."
            yield warning("W_TOOL_POLICY_UNRESTRICTED", message, path, suggestion=hint)
        return
    yield from _grants(at, given, path)


def _grants(at: LocatedAgent, given: ToolPermissions, path: Path) -> Iterator[Diagnostic]:
    name = at.agent.name
    if given.allow_network and not given.allowed_domains:
        message = f"The tools of {name} may reach every host."
        hint = "List the hosts they need in allowed_domains."
        yield warning("W_TOOL_NETWORK_UNRESTRICTED", message, (*path, "allowed_domains"), suggestion=hint)
    if given.allow_shell:
        message = f"The tools of {name} may run any command."
        hint = "Give the agent a tool for the command it needs, and set allow_shell to false."
        yield warning("W_TOOL_SHELL_ALLOWED", message, (*path, "allow_shell"), suggestion=hint)
    if given.allow_filesystem_write:
        message = f"The tools of {name} may write files."
        hint = "Set allow_filesystem_write to false unless a tool needs it."
        yield warning("W_TOOL_FILESYSTEM_WRITE_ALLOWED", message, (*path, "allow_filesystem_write"), suggestion=hint)
    if given.allow_filesystem_read:
        message = f"The tools of {name} may read files."
        hint = "Set allow_filesystem_read to false unless a tool needs it."
        yield warning("W_TOOL_FILESYSTEM_READ_ALLOWED", message, (*path, "allow_filesystem_read"), suggestion=hint)


_PERMISSION: dict[Capability, str] = {
    "network": "allow_network",
    "filesystem_read": "allow_filesystem_read",
    "filesystem_write": "allow_filesystem_write",
    "shell": "allow_shell",
}


def capabilities(view: SpecIndex) -> Iterator[Diagnostic]:
    """Tools do not claim what the agent that selects them forbids: every such call would be refused."""
    for at in view.agents:
        given = permissions_of(at.agent)
        for name in callable_tools(at.agent):
            tool = view.spec.tools.get(name)
            for capability in () if tool is None else tool.capabilities:
                if allows(given, capability) is False:
                    key = _PERMISSION[capability]
                    message = f"The tool {name} needs {capability}, which {at.agent.name} does not allow its tools."
                    hint = f"Set {key} to true, or leave the tool out."
                    path = (*at.path, "tools", "permissions", key)
                    yield warning("W_TOOL_CAPABILITY_DENIED", message, path, suggestion=hint)
