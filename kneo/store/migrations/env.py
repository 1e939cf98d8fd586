"""Alembic's environment: migrations run on the connection that ``kneo.store.migrate`` passes."""

from __future__ import annotations

from alembic import context

from kneo.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
