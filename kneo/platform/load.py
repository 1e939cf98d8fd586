"""The platform that ``KNEO_SERV_PLATFORM`` names, for commands and processes that are Kneo's own."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from kneo.errors import Invalid
from kneo.platform.manager import PlatformManager, looking_only
from kneo.runtime.steps import modules
from kneo.settings import Settings


def load_platform(settings: Settings) -> PlatformManager | None:
    """Call the factory that the setting names, once for each process; ``None`` where it names none.

    What it brings is used; a worker that it starts is not started: which process executes steps is what its command
    says.

    Raises:
        Invalid: ``invalid_setting``: there is no such factory, it failed, or what it makes is no platform.
    """
    named = settings.execution.platform
    return _make(named, settings.import_roots) if named else None


@cache
def _make(named: str, roots: tuple[Path, ...]) -> PlatformManager:
    module, _, attribute = named.partition(":")
    modules.make_importable(roots)
    try:
        with modules.lock:
            # The factory may import what specs name: from bytes that can be compared with what environments pin.
            modules.accept(modules.closure(module, roots))
        factory = getattr(importlib.import_module(module), attribute)
        with looking_only():
            made = factory()
    except Exception as error:
        msg = f"KNEO_SERV_PLATFORM names {named}, which does not make a platform: {type(error).__name__}: {error}"
        raise Invalid(msg, code="invalid_setting", hint="Write module:factory.") from error
    if not isinstance(made, PlatformManager):
        msg = f"KNEO_SERV_PLATFORM names {named}, which makes a {type(made).__name__} and no PlatformManager."
        raise Invalid(msg, code="invalid_setting")
    return made
