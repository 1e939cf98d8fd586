"""The database of a command, and what starts runs on it. No HTTP, no Git."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kneo.clock import SystemClock
from kneo.errors import NotFound
from kneo.settings import Settings
from kneo.store.engine import Store
from kneo.store.migrate import open_store

if TYPE_CHECKING:
    from kneo.runtime.engine.start import Starter
    from kneo.trust.keys import PrivateKey


def make_store(settings: Settings) -> Store:
    """Open the database and bring it up to date."""

    def find_key() -> PrivateKey | None:
        from kneo.store.service_key import find_service_key  # whoever signs nothing needs no cryptography

        return find_service_key(settings)

    return open_store(settings.database_url, SystemClock(), find_key)


def find_store(settings: Settings) -> Store:
    """Open a database that is there already.

    Raises:
        NotFound: there is none; whoever looks for proof must not be shown a new, empty one.
    """
    path = settings.database_url.removeprefix("sqlite:///")
    if path != settings.database_url and not Path(path).is_file():
        msg = f"There is no database at {path}."
        hint = "Work where kneo up runs, set KNEO_SERV_DATABASE_URL, or ask a service with --service-url."
        raise NotFound(msg, code="no_database", hint=hint)
    return make_store(settings)


def make_starter(settings: Settings, store: Store) -> Starter:
    """Make what starts runs; whoever starts none does not import it."""
    from cli.embedding import spec_compiler
    from kneo.project import read_config
    from kneo.runtime.engine.start import Starter

    return Starter(
        store,
        spec_compiler(settings).compile,
        pin=settings.trust_root,
        hmac_key=settings.spec_signing_key,
        max_queue=settings.execution.max_queue_depth,
        project=read_config(settings),
    )
