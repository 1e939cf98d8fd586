"""What a program that embeds Kneo adds to this command: ``KNEO_SERV_PLATFORM`` names the factory that makes it."""

from __future__ import annotations

import importlib

from kneo.settings import Settings
from kneo.spec.compiler import SpecCompiler


def spec_compiler(settings: Settings) -> SpecCompiler:
    """Return how specs are checked here: with the tools of the platform, where one is named.

    Raises:
        Invalid: ``invalid_setting``: there is no such factory, or what it makes is no platform.
    """
    if not settings.execution.platform:
        return SpecCompiler()
    # A good part of a second to import, and rarely needed.
    compiler: SpecCompiler = importlib.import_module("kneo.platform").load_platform(settings).compiler
    return compiler
