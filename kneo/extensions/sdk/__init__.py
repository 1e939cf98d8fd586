"""The command of ``kneo.sdk``, which is an extension too: its import names are those that programs use."""

from kneo.cli.commands import SERVERS, Entry

_COMMANDS = "kneo.sdk.commands"

SDK = Entry(
    f"{_COMMANDS}:app",
    "Run programs written with the Python SDK",
    SERVERS,
    {"serve": Entry(f"{_COMMANDS}:serve_flows", "Continue the flows of a program whenever they are answered")},
)
