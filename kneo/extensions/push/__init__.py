"""Web Push: a notification channel to the browsers of people, their switch in the console, its key and its check."""

from __future__ import annotations

from kneo.cli.checks import Check
from kneo.cli.commands import Entry
from kneo.service.console.parts import ConsoleExtension

CONSOLE = ConsoleExtension("kneo.extensions.push.console:PART")

_COMMANDS = "kneo.extensions.push.commands"

VAPID = Entry(f"{_COMMANDS}:vapid", "Generate the key of notifications in browsers")

CHECK = Check(f"{_COMMANDS}:check_web_push")
