"""The service key of this installation: it signs decisions that are recorded for people, receipts and checkpoints of the audit log, and
authenticates records.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from kneo.errors import Invalid
from kneo.settings import Settings
from kneo.trust.keys import PrivateKey

FILE = "service_key.pem"


def service_key(settings: Settings) -> PrivateKey:
    """Read the service key; on SQLite, where everything is on one machine, create it when there is none.

    Raises:
        Invalid: no key is configured and several machines need the same one, or the text is not a key.
    """
    key = find_service_key(settings)
    if key is None:
        raise missing_key()
    return key


def missing_key() -> Invalid:
    """Return the error of a process or an operation that needs the service key where there is none."""
    msg = "KNEO_SERV_SERVICE_KEY is not set, and on PostgreSQL the service key, which signs and authenticates records, has to be."
    hint = "Create one: kneo keys generate --output service.pem. Give its PEM text to every service, worker and controller."
    return Invalid(msg, code="no_service_key", hint=hint)


def find_service_key(settings: Settings) -> PrivateKey | None:
    """Read or create the service key; ``None`` where it must be configured and is not."""
    passphrase = settings.key_passphrase or None
    if settings.service_key:
        return PrivateKey.load(settings.service_key.replace("\\n", "\n").encode(), passphrase)
    if not settings.database_url.startswith("sqlite"):
        return None
    path = settings.state_dir / FILE
    if not path.is_file():
        _make(path)
    return PrivateKey.load(path.read_bytes())


def _make(path: Path) -> None:
    """Write a new key atomically: several processes may start at once, and one key wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # An unpredictable name: the folder may come from a checkout, with a link or a readable file in it.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE}.")
    mine = Path(name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(PrivateKey.generate().dump())
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(mine)
    mine.unlink()
