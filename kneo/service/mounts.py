"""Mounts: routes that extensions add to the service, below its version and behind its limits."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kneo.extension_points import Point

if TYPE_CHECKING:
    from kneo.service.routing import ApiRouter


@dataclass(frozen=True)
class Mount:
    """Routes that an extension adds.

    Attributes:
        router: ``module:attribute`` of an ``ApiRouter``. A route without ``Depends(Require(SCOPE))`` needs no credential.
    """

    router: str


MOUNTS = Point("mounts", Mount)


def load_routers() -> Sequence[ApiRouter]:
    """Import the routers of all extensions, in the order of their names.

    Raises:
        ExtensionFailed: an extension cannot be loaded, or its name is refused.
    """
    return [_import(mount.router) for mount in MOUNTS.load_all().values()]


def _import(target: str) -> ApiRouter:
    module, _, attribute = target.partition(":")
    router: ApiRouter = getattr(importlib.import_module(module), attribute)
    return router
