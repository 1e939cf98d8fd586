"""The tools of a program that embeds Kneo: ``KNEO_SERV_PLATFORM`` names the factory of its platform."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kneo.settings import Settings
from kneo.spec.compiler import SpecCompiler

if TYPE_CHECKING:
    from kneo.platform import PlatformManager
    from kneo.tools import ToolRegistry


def spec_compiler(settings: Settings) -> SpecCompiler:
    """Return the check of specs with the tools of the platform, where one is configured.

    Raises:
        Invalid: ``invalid_setting``: the factory does not exist, or does not create a platform.
    """
    platform = _platform(settings)
    return platform.compiler if platform is not None else SpecCompiler()


def registered_tools(settings: Settings) -> ToolRegistry | None:
    """Return the tools that the platform registered; ``None`` without a platform.

    Raises:
        Invalid: ``invalid_setting``: as for ``spec_compiler``.
    """
    platform = _platform(settings)
    return platform.tools if platform is not None else None


def _platform(settings: Settings) -> PlatformManager | None:
    if not settings.execution.platform:
        return None
    # The import takes a good part of a second, and is rarely needed.
    platform: PlatformManager = importlib.import_module("kneo.platform").load_platform(settings)
    return platform
