"""Receipts of decisions; they can be added to, never changed or removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SAME = (
    "id = NEW.id OR task_id = NEW.task_id OR digest = NEW.digest OR (run_id = NEW.run_id AND sequence = NEW.sequence)"
)


def upgrade() -> None:
    op.create_table(
        "receipts",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("statements", sa.JSON(), nullable=False),
        sa.Column("audit_event_id", sa.String(40), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_receipts"),
        sa.UniqueConstraint("task_id", name="uq_receipts_task_id"),
        sa.UniqueConstraint("digest", name="uq_receipts_digest"),
        sa.UniqueConstraint("run_id", "sequence", name="uq_receipts_run_id_sequence"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION kneo_receipts_stay() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'receipts are append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER receipts_append_only BEFORE UPDATE OR DELETE ON receipts "
            "FOR EACH ROW EXECUTE FUNCTION kneo_receipts_stay()"
        )
        op.execute(
            "CREATE TRIGGER receipts_no_truncate BEFORE TRUNCATE ON receipts "
            "FOR EACH STATEMENT EXECUTE FUNCTION kneo_receipts_stay()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER receipts_no_{change.lower()} BEFORE {change} ON receipts "
            "BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END"
        )
    # SQLite's INSERT OR REPLACE removes the row in its way without asking the trigger for DELETE.
    op.execute(
        "CREATE TRIGGER receipts_no_replace BEFORE INSERT ON receipts "  # noqa: S608 - words of this file
        f"WHEN EXISTS (SELECT 1 FROM receipts WHERE {SAME}) BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END"
    )
