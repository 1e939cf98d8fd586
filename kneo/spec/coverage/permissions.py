"""What an agent's tools may do."""

from __future__ import annotations

from kneo.spec.models import Agent, ToolPermissions
from kneo.spec.models.tools import Capability


def permissions_of(agent: Agent) -> ToolPermissions | None:
    """Return the agent's tool permissions, or None where it states none; the other way to write them is normalised."""
    return agent.tools.permissions if agent.tools else None


def is_unrestricted(agent: Agent) -> bool:
    """Tell whether the agent's tools may do things that nothing narrows down.

    That is so without permissions, with shell or file access, and with network access to any host; never without tools.
    """
    if agent.tools is None or not agent.tools.include:
        return False
    given = agent.tools.permissions
    if given is None:
        return True
    files = given.allow_filesystem_read or given.allow_filesystem_write
    return bool(given.allow_shell or files or (given.allow_network and not given.allowed_domains))


def callable_tools(agent: Agent) -> tuple[str, ...]:
    """Return the tools that the agent can really call: included, not excluded, and not denied."""
    if agent.tools is None:
        return ()
    given = agent.tools.permissions or ToolPermissions()
    closed = frozenset((*agent.tools.exclude, *given.denied_tools))
    opened = None if given.allowed_tools is None else frozenset(given.allowed_tools)
    included = (name for name in dict.fromkeys(agent.tools.include) if name not in closed)
    return tuple(name for name in included if opened is None or name in opened)


def allows(given: ToolPermissions | None, capability: Capability) -> bool | None:
    """Return what permissions say of a capability; None where they do not say."""
    if given is None:
        return None
    stated: dict[Capability, bool | None] = {
        "network": given.allow_network,
        "filesystem_read": given.allow_filesystem_read,
        "filesystem_write": given.allow_filesystem_write,
        "shell": given.allow_shell,
    }
    return stated.get(capability)
