"""The tools of a program that embeds Kneo: ``KNEO_SERV_PLATFORM`` names the factory of its platform."""

from __future__ import annotations

import importlib

from kneo.settings import Settings
from kneo.spec.compiler import SpecCompiler


def spec_compiler(settings: Settings) -> SpecCompiler:
    """Return the check of specs with the tools of the platform, where one is configured.

    Raises:
        Invalid: ``invalid_setting``: the factory does not exist, or does not create a platform.
    """
    if not settings.execution.platform:
        return SpecCompiler()
    # The import takes a good part of a second, and is rarely needed.
    compiler: SpecCompiler = importlib.import_module("kneo.platform").load_platform(settings).compiler
    return compiler
