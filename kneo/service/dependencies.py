"""The platform that a server made by ``create_app()`` serves."""

from __future__ import annotations

from pathlib import Path

from kneo.embed.platform import PlatformManager
from kneo.errors import Usage
from kneo.service.factory import create_default_platform_manager
from kneo.telemetry import log_unknown_variables

_chosen: list[PlatformManager] = []


def set_platform_manager(manager: PlatformManager | None) -> None:
    """Set the platform that ``create_app()`` serves; ``None`` unsets it."""
    _chosen[:] = [manager] if manager is not None else []


def chosen_platform_manager() -> PlatformManager:
    """Return the platform that was set.

    Raises:
        Usage: no platform is set.
    """
    if not _chosen:
        msg = "No platform is set."
        raise Usage(msg, hint="Call set_platform_manager(manager) before serving.")
    return _chosen[0]


def default_platform_manager(state_path: str | Path | None = None) -> PlatformManager:
    """Return the platform that was set; otherwise create the default one, with a worker."""
    if not _chosen:
        log_unknown_variables()
        manager = create_default_platform_manager(state_path)
        manager.start_worker()
        set_platform_manager(manager)
    return _chosen[0]
