"""The queue of runs, on PostgreSQL: Procrastinate's own schema, in a place apart."""

from __future__ import annotations

import importlib

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = "kneo_queue"

# Its functions name their tables plainly; they have to find them from our transactions too.
PIN_SEARCH_PATH = f"""
DO $$
DECLARE found regprocedure;
BEGIN
    FOR found IN SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                 WHERE n.nspname = '{SCHEMA}'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = {SCHEMA}, pg_catalog', found);
    END LOOP;
END
$$
"""  # noqa: S608 - our own name


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    schema = importlib.import_module("procrastinate.schema").SchemaManager.get_schema()
    before = connection.exec_driver_sql("SHOW search_path").scalar_one()
    connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
    connection.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")
    driver = connection.connection.driver_connection
    assert driver is not None
    # Past SQLAlchemy, so that percent signs in the scripts are only percent signs.
    driver.execute(schema)
    driver.execute(PIN_SEARCH_PATH)
    connection.exec_driver_sql(f"SET LOCAL search_path TO {before}")
    connection.exec_driver_sql("UPDATE runs SET owner = NULL WHERE owner IS NOT NULL")
    job = f"ROW('runs', 'kneo.drive', 0, NULL, NULL, jsonb_build_object('run_id', id), NULL)::{SCHEMA}.procrastinate_job_to_defer_v1"
    connection.exec_driver_sql(
        f"SELECT {SCHEMA}.procrastinate_defer_jobs_v1(ARRAY[{job}]) FROM runs WHERE status = 'running'"  # noqa: S608
    )
