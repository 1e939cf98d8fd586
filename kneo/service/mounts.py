"""Mounts: routes that extensions add to the service, below its version and behind its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from kneo.extension_points import Point, import_target

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
    return [cast("ApiRouter", import_target(mount.router)) for mount in MOUNTS.load_all().values()]
