"""Databases that the published platform made, and their import."""

from __future__ import annotations

from pathlib import Path

from kneo.clock import isoformat
from kneo.extensions.kneo_serv import importer
from kneo.extensions.kneo_serv.source import open_published
from kneo.store.engine import Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "published"


def run_import(location: Path | str, store: Store, *, dry_run: bool = False) -> importer.ImportReport:
    """Import runs and the audit log of a database."""
    with open_published(str(location)) as source:
        return importer.import_history(
            source,
            store,
            actor="ann",
            now=isoformat(store.clock.now()),
            dry_run=dry_run,
            progress=importer.no_progress,
        )
