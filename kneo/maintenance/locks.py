"""What an embedding catches when somebody else was quicker."""

from __future__ import annotations

from kneo.errors import Conflict


class LockAcquisitionError(Conflict):
    """Somebody else answers the same task, or executes steps on the same database."""

    default_code = "resource_locked"
