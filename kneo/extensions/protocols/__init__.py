"""Agent2Agent and MCP: released agents are served over both, and remote agents called over the first."""

from kneo.cli.commands import SERVERS, Entry
from kneo.service.mounts import Mount

_COMMANDS = "kneo.extensions.protocols.commands"
_HELP = "Serve released agents as MCP tools over stdio"

MCP = Entry(
    f"{_COMMANDS}:app",
    _HELP,
    SERVERS,
    {"serve": Entry(f"{_COMMANDS}:serve", "Serve the agents of an environment as MCP tools over stdio")},
)
ROUTES = Mount("kneo.extensions.protocols.routes:router")
