"""Where Alembic finds the connection that ``kneo.store.migrate`` hands it."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from kneo.store.tables import metadata

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('kneo:migrate'))"))
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
