"""What gates need to know, what is told to people, and a Merkle tree over the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

APPEND_ONLY = {"audit_nodes": "level = NEW.level AND position = NEW.position", "audit_checkpoints": "size = NEW.size"}


def upgrade() -> None:
    _trust_and_source()
    _registry()
    _words_to_people()
    _audit()


def _trust_and_source() -> None:
    op.add_column("trust_roots", sa.Column("revision", sa.Text(), nullable=True))
    op.create_table(
        "sources",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("ref", sa.String(length=200), nullable=False),
        sa.Column("accepted_commit", sa.String(length=64), nullable=True),
        sa.Column("accepted_at", sa.String(length=40), nullable=True),
        sa.Column("refused_commit", sa.String(length=64), nullable=True),
        sa.Column("refused_code", sa.String(length=60), nullable=True),
        sa.Column("refused_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sources")),
    )
    op.create_table(
        "hook_deliveries",
        sa.Column("provider", sa.String(length=40), nullable=False),
        sa.Column("delivery", sa.String(length=200), nullable=False),
        sa.Column("received_at", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("provider", "delivery", name=op.f("pk_hook_deliveries")),
    )
    op.create_index(op.f("ix_hook_deliveries_received_at"), "hook_deliveries", ["received_at"], unique=False)


def _registry() -> None:
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("environment", sa.String(length=200), nullable=False),
        sa.Column("subject", sa.String(length=71), nullable=False),
        sa.Column("subject_name", sa.String(length=200), nullable=False),
        sa.Column("policy_digest", sa.String(length=71), nullable=False),
        sa.Column("principal", sa.String(length=200), nullable=False),
        sa.Column("keyid", sa.String(length=71), nullable=False),
        sa.Column("decision", sa.String(length=20), nullable=False),
        sa.Column("signed", sa.Boolean(), nullable=False),
        sa.Column("origin", sa.String(length=20), nullable=False),
        sa.Column("payload_digest", sa.String(length=71), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.String(length=40), nullable=False),
        sa.Column("first_seen_at", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sa.UniqueConstraint("payload_digest", "principal", name=op.f("uq_approvals_payload_digest_principal")),
    )
    op.create_index(op.f("ix_approvals_environment_subject"), "approvals", ["environment", "subject"], unique=False)
    op.create_table(
        "holds",
        sa.Column("environment", sa.String(length=200), nullable=False),
        sa.Column("bundle", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.String(length=40), nullable=False),
        sa.Column("until", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("environment", "bundle", name=op.f("pk_holds")),
    )
    op.create_table(
        "suspensions",
        sa.Column("environment", sa.String(length=200), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.String(length=40), nullable=False),
        sa.Column("until", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("environment", name=op.f("pk_suspensions")),
    )
    op.add_column("environments", sa.Column("previous", sa.LargeBinary(), nullable=True))
    op.add_column("environments", sa.Column("policy_revision", sa.Text(), nullable=True))
    op.add_column("environments", sa.Column("trust_epoch", sa.String(length=71), nullable=True))
    op.add_column("promotions", sa.Column("reason", sa.Text(), nullable=True))
    op.add_column("promotions", sa.Column("approvals", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("bundles", schema=None) as batch_op:
        batch_op.add_column(sa.Column("envelope_digest", sa.String(length=71), nullable=True))
        batch_op.add_column(sa.Column("envelope_seen_at", sa.String(length=40), nullable=True))
        batch_op.drop_constraint("uq_bundles_name_seq", type_="unique")
    sequenced = sa.text("seq > 0")
    op.create_index(
        op.f("ix_bundles_name_seq"),
        "bundles",
        ["name", "seq"],
        unique=True,
        sqlite_where=sequenced,
        postgresql_where=sequenced,
    )
    # What waits is worked out again by the next pass, with more to say about it.
    op.drop_table("pending_releases")
    op.create_table(
        "pending_releases",
        sa.Column("environment", sa.String(length=200), nullable=False),
        sa.Column("bundle", sa.String(length=200), nullable=False),
        sa.Column("version", sa.String(length=200), nullable=False),
        sa.Column("gate", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.String(length=60), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("who", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("subject", sa.String(length=71), nullable=True),
        sa.Column("policy_digest", sa.String(length=71), nullable=True),
        sa.Column("since", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("environment", "bundle", name=op.f("pk_pending_releases")),
        sa.UniqueConstraint("id", name=op.f("uq_pending_releases_id")),
    )


def _words_to_people() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("dedupe_key", sa.String(length=300), nullable=False),
        sa.Column("channel", sa.String(length=60), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.String(length=40), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.Column("finished_at", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("dedupe_key", name=op.f("uq_outbox_dedupe_key")),
    )
    op.create_index(op.f("ix_outbox_status_next_at"), "outbox", ["status", "next_at"], unique=False)


def _audit() -> None:
    op.create_table(
        "audit_nodes",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("level", "position", name=op.f("pk_audit_nodes")),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.String(length=64), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_audit_checkpoints")),
    )
    if op.get_bind().dialect.name == "postgresql":
        for table in APPEND_ONLY:
            op.execute(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION kneo_append_only()"
            )
            op.execute(
                f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION kneo_append_only()"
            )
        return
    for table, same in APPEND_ONLY.items():
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - words of this file
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
