"""The tables of the newest schema. Times are ISO-8601 texts whose order is time order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.sql.operators import OperatorType

from kneo.errors import Invalid


class TooLong(Invalid, DontWrapMixin):
    """A text is longer than its column; nothing was written."""

    default_code = "unstorable_value"

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(
            f"A value cannot be stored: it has {length} characters, and the column has {limit}.",
            hint="Use a shorter name.",
            limit=limit,
        )


class Bounded(TypeDecorator[str]):
    """A text with a maximum length on both databases. A value that is only compared may be longer."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Check the length of a text to store.

        Raises:
            TooLong: it is longer than the column.
        """
        del dialect
        if value is not None and len(value) > self.length:
            raise TooLong(len(value), self.length)
        return value

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> String:  # noqa: ANN401 - as it is declared
        """Return the type of a value that the column is compared with."""
        del op, value
        return String()


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ID = Bounded(40)
DIGEST = Bounded(71)
TIME = Bounded(40)
NAME = Bounded(200)

NEVER = "9999-12-31T23:59:59.999999+00:00"


WITHOUT_ROWID = {"without_rowid": True}
"""The mark of a table of small rows that SQLite stores in the tree of its key, without a second tree (``WITHOUT ROWID``)."""


class TimeOrNever(TypeDecorator[str]):
    """A time, or ``None`` for never, which is stored as a time after all others so that indexes sort it last."""

    impl = TIME
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str:  # noqa: ARG002 - SQLAlchemy calls it so
        return NEVER if value is None else value

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - likewise
        return None if value == NEVER else value


def _partial(where: str, *columns: str, name: str | None = None, unique: bool = False, only: str = "") -> Index:
    """Return an index of the rows that match a condition, on both databases or on ``only`` one of them.

    The condition is in the index's ``info`` until the schema is created: as an option of each dialect it would import both.
    """
    index = Index(name, *columns, unique=unique, info={"where": where, **({"only": only} if only else {})})
    if only:
        index.ddl_if(dialect=only)
    return index


def _mac() -> Column[bytes]:
    """Return the column of a row's message authentication code; see ``kneo.store.authenticated``."""
    return Column("mac", LargeBinary)


# ---- trust and the controller -------------------------------------------------------------------------------------

trust_roots = Table(
    "trust_roots",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", DIGEST, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("accepted_at", TIME, nullable=False),
    Column("revision", Text),
    _mac(),
)

sources = Table(
    "sources",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("url", Text, nullable=False),
    Column("ref", NAME, nullable=False),
    Column("accepted_commit", Bounded(64)),
    Column("accepted_at", TIME),
    Column("refused_commit", Bounded(64)),
    Column("refused_code", Bounded(60)),
    Column("refused_message", Text),
    Column("failed_at", TIME),
    Column("failed_code", Bounded(60)),
    Column("failed_message", Text),
    Column("rebuilding_since", TIME),
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", ID, primary_key=True),
    Column("environment", NAME, nullable=False),
    Column("subject", DIGEST, nullable=False),
    Column("subject_name", NAME, nullable=False),
    Column("policy_digest", DIGEST, nullable=False),
    Column("principal", NAME, nullable=False),
    Column("keyid", DIGEST, nullable=False),
    Column("decision", Bounded(20), nullable=False),
    Column("signed", Boolean, nullable=False),
    Column("origin", Bounded(20), nullable=False),
    Column("payload_digest", DIGEST, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("expires_at", TIME, nullable=False),
    Column("first_seen_at", TIME, nullable=False),
    Column("overruled_by", DIGEST),
    _mac(),
    UniqueConstraint("payload_digest", "principal"),
    Index(None, "environment", "subject"),
)

attestations = Table(
    "attestations",
    metadata,
    Column("id", ID, primary_key=True),
    Column("subject", DIGEST, nullable=False),
    Column("type", Bounded(20), nullable=False),
    Column("name", NAME, nullable=False),
    Column("suite_digest", DIGEST, nullable=False),
    Column("environment", NAME),
    Column("issued_at", TIME, nullable=False),
    Column("payload_digest", DIGEST, nullable=False, unique=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("first_seen_at", TIME, nullable=False),
    Column("revision", Text, nullable=False),
    _mac(),
    Index(None, "subject", "issued_at"),
)

holds = Table(
    "holds",
    metadata,
    Column("environment", NAME),
    Column("bundle", NAME),
    Column("digest", DIGEST),
    Column("actor", NAME, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", TIME, nullable=False),
    Column("until", TIME),
    PrimaryKeyConstraint("environment", "bundle"),
)

suspensions = Table(
    "suspensions",
    metadata,
    Column("environment", NAME, primary_key=True),
    Column("actor", NAME, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", TIME, nullable=False),
    Column("until", TIME),
)

hook_deliveries = Table(
    "hook_deliveries",
    metadata,
    Column("provider", Bounded(40)),
    Column("delivery", Bounded(200)),
    Column("received_at", TIME, nullable=False),
    PrimaryKeyConstraint("provider", "delivery"),
    Index(None, "received_at"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", ID, primary_key=True),
    Column("dedupe_key", Bounded(300), nullable=False, unique=True),
    Column("channel", Bounded(60), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("status", Bounded(20), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", TIME, nullable=False),
    Column("error", Text),
    Column("created_at", TIME, nullable=False),
    Column("finished_at", TIME),
    Column("run_id", ID),
    Column("continuation_id", ID),
    Index(None, "status", "next_at"),
    # Retention finds messages by them.
    _partial("run_id IS NOT NULL", "run_id"),
    _partial("continuation_id IS NOT NULL", "continuation_id"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("owner", ID),
    Column("fence", BigInteger, nullable=False),
    Column("until", TIME, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("id", ID, primary_key=True),
    Column("kind", Bounded(40), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("status", Bounded(20), nullable=False),
    Column("result", JSON),
    Column("created_at", TIME, nullable=False),
    Column("finished_at", TIME),
    _mac(),
    Index(None, "status", "id"),
)

# ---- registry ---------------------------------------------------------------------------------------------------

environments = Table(
    "environments",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("declaration", LargeBinary, nullable=False),
    Column("policy_digest", DIGEST, nullable=False),
    Column("revision", Text, nullable=False),
    Column("previous", LargeBinary),
    Column("policy_revision", Text),
    Column("policy_approved", Boolean),
    Column("trust_epoch", DIGEST),
    Column("updated_at", TIME, nullable=False),
    _mac(),
)

environment_files = Table(
    "environment_files",
    metadata,
    Column("environment", NAME),
    Column("policy_digest", DIGEST),
    Column("declaration", LargeBinary, nullable=False),
    Column("replaced_at", TIME, nullable=False),
    PrimaryKeyConstraint("environment", "policy_digest"),
)

pending_releases = Table(
    "pending_releases",
    metadata,
    Column("environment", NAME),
    Column("bundle", NAME),
    Column("version", NAME, nullable=False),
    Column("gate", Bounded(40), nullable=False),
    Column("reason", Bounded(60), nullable=False),
    Column("message", Text, nullable=False),
    Column("who", JSON, nullable=False),
    Column("id", ID, nullable=False, unique=True),
    Column("kind", Bounded(20), nullable=False),
    Column("digest", DIGEST),
    Column("subject", DIGEST),
    Column("policy_digest", DIGEST),
    Column("since", TIME, nullable=False),
    Column("also", JSON),
    Column("outdated_approvals", JSON),
    _mac(),
    PrimaryKeyConstraint("environment", "bundle"),
)

pending_plans = Table(
    "pending_plans",
    metadata,
    Column("id", ID, primary_key=True),
    Column("environment", NAME, nullable=False, index=True),
    Column("base", DIGEST),
    Column("content", JSON, nullable=False),
    Column("at", TIME, nullable=False),
    _mac(),
)

conditions = Table(
    "conditions",
    metadata,
    Column("object", Bounded(220)),
    Column("type", Bounded(40)),
    Column("status", Boolean, nullable=False),
    Column("reason", Bounded(60), nullable=False),
    Column("message", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("since", TIME, nullable=False),
    PrimaryKeyConstraint("object", "type"),
)

bundles = Table(
    "bundles",
    metadata,
    Column("digest", DIGEST, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("version", NAME, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("prev", DIGEST),
    Column("payload", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("spec_digest", DIGEST, nullable=False),
    Column("signers", JSON, nullable=False),
    Column("first_seen_at", TIME, nullable=False),
    Column("revision", Text, nullable=False),
    Column("envelope_digest", DIGEST),
    Column("envelope_seen_at", TIME),
    _mac(),
    # Bundles in the HMAC format have no sequence number; theirs is 0.
    _partial("seq > 0", "name", "seq", unique=True),
)

releases = Table(
    "releases",
    metadata,
    Column("environment", NAME),
    Column("bundle", NAME),
    Column("version", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("revision", Text, nullable=False),
    Column("promotion_id", ID, nullable=False),
    Column("since", TIME, nullable=False),
    Column("retired_at", TIME),
    PrimaryKeyConstraint("environment", "bundle"),
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", ID, primary_key=True),
    Column("environment", NAME, nullable=False),
    Column("bundle", NAME, nullable=False),
    Column("kind", Bounded(20), nullable=False),
    Column("from_digest", DIGEST),
    Column("to_digest", DIGEST),
    Column("version", NAME),
    Column("actor", NAME, nullable=False),
    Column("revision", Text, nullable=False),
    Column("audit_event_id", ID, nullable=False),
    Column("at", TIME, nullable=False),
    Column("reason", Text),
    Column("approvals", JSON(none_as_null=True)),
    _mac(),
    Index(None, "environment", "bundle", "id"),
)

qualified_bundles = Table(
    "qualified_bundles",
    metadata,
    Column("environment", NAME, primary_key=True),
    Column("digest", DIGEST, primary_key=True),
    Column("revision", Text, nullable=False),
    _mac(),
)

# ---- runs -------------------------------------------------------------------------------------------------------

specs = Table(
    "specs",
    metadata,
    Column("digest", DIGEST, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", TIME, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("status", Bounded(20), nullable=False),
    Column("target", Bounded(20), nullable=False),
    Column("spec_digest", DIGEST, nullable=False),
    Column("environment", NAME),
    Column("bundle", NAME),
    Column("bundle_version", NAME),
    Column("bundle_digest", DIGEST),
    Column("revision", Text),
    Column("promotion_id", ID),
    Column("agent_name", NAME, nullable=False),
    Column("workflow_name", NAME),
    Column("workflow_type", Bounded(40)),
    Column("input_text", Text, nullable=False),
    Column("output_text", Text),
    Column("error", JSON(none_as_null=True)),
    Column("state", JSON, nullable=False),
    Column("state_version", Integer, nullable=False),
    Column("visited_steps", JSON, nullable=False),
    Column("requester", NAME, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", ID),
    Column("signal_seq", BigInteger, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("updated_at", TIME, nullable=False),
    Column("started_at", TIME),
    Column("completed_at", TIME),
    Column("deadline_at", TIME),
    Column("step_count", Integer, nullable=False, server_default="0"),
    Column("checkpoint_count", Integer, nullable=False, server_default="0"),
    Column("trace_count", Integer, nullable=False, server_default="0"),
    Column("session_id", NAME),
    Column("usage", JSON, nullable=False),
    Column("resume_at", TIME),
    _mac(),
    Column("suspicion", Integer, nullable=False, server_default="0"),
    Index(None, "status", "updated_at"),
    # Partial, because each step moves the run in every index with its time.
    _partial("session_id IS NOT NULL", "session_id", "updated_at"),
    Index(None, "updated_at"),
    # These and those of bundles and workflows have the columns by which a list of some environments is filtered and counted.
    *(
        _partial("environment IS NOT NULL", "environment", at, "id", "status", name=f"ix_runs_environment_{at}")
        for at in ("created_at", "updated_at")
    ),
    _partial("deadline_at IS NOT NULL", "status", "deadline_at"),
    _partial("resume_at IS NOT NULL", "resume_at"),
    _partial("bundle_digest IS NOT NULL", "bundle_digest"),
    _partial("suspicion > 0", "suspicion"),
    _partial("status = 'running'", "environment", "owner", "id", name="ix_runs_running"),
    Index(None, "spec_digest"),
    *(
        _partial(f"{name} IS NOT NULL", name, "updated_at", "environment", name=f"ix_runs_{name}_updated_at")
        for name in ("bundle", "workflow_name")
    ),
    _partial("error IS NOT NULL", "created_at", "id", name="ix_runs_failed"),
    Index("ix_runs_requester", "requester", "created_at", "id"),
    # The order of creation with the constant filter columns, so that a count or a filtered list reads the index alone.
    Index("ix_runs_created", "created_at", "id", "environment", "bundle", "target", "workflow_name"),
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", ID),
    Column("sequence", Integer),
    Column("step_id", Text, nullable=False),
    Column("kind", Bounded(20), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("status", Bounded(20), nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("input_text", Text, nullable=False),
    Column("output_text", Text),
    Column("error", JSON(none_as_null=True)),
    Column("code_digest", DIGEST),
    Column("facts", JSON, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("completed_at", TIME, nullable=False),
    _mac(),
    PrimaryKeyConstraint("run_id", "sequence"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run_id", ID),
    Column("sequence", Integer),
    Column("id", ID, nullable=False),
    Column("type", Bounded(40), nullable=False),
    Column("step_id", Text),
    Column("state", LargeBinary, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", TIME, nullable=False),
    _mac(),
    PrimaryKeyConstraint("run_id", "sequence"),
)

journal_entries = Table(
    "journal_entries",
    metadata,
    Column("run_id", ID),
    Column("key", DIGEST),
    Column("sequence", Integer, nullable=False),
    Column("location", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("input_digest", DIGEST, nullable=False),
    Column("value", Text, nullable=False),
    Column("created_at", TIME, nullable=False),
    _mac(),
    PrimaryKeyConstraint("run_id", "key"),
)

agent_journal = Table(
    "agent_journal",
    metadata,
    Column("run_id", ID),
    Column("key", DIGEST),
    Column("conversation", Text, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", Bounded(10), nullable=False),
    Column("status", Bounded(10), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("completed_at", TIME),
    _mac(),
    PrimaryKeyConstraint("run_id", "key"),
    Index(None, "run_id", "conversation", "sequence"),
)

agent_sessions = Table(
    "agent_sessions",
    metadata,
    # Empty for sessions of runs without an environment.
    Column("environment", NAME),
    Column("requester", NAME),
    Column("session_id", NAME),
    Column("last_number", Integer, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("updated_at", TIME, nullable=False),
    PrimaryKeyConstraint("environment", "requester", "session_id"),
    Index(None, "requester", "updated_at"),
    Index(None, "updated_at"),
)

session_messages = Table(
    "session_messages",
    metadata,
    Column("environment", NAME),
    Column("requester", NAME),
    Column("session_id", NAME),
    Column("agent", Text),
    Column("number", Integer),
    Column("role", Bounded(10), nullable=False),
    # Empty where the text is sealed.
    Column("text", Text, nullable=False),
    Column("sealed", LargeBinary),
    Column("run_id", ID, nullable=False),
    Column("created_at", TIME, nullable=False),
    _mac(),
    PrimaryKeyConstraint("environment", "requester", "session_id", "agent", "number"),
)

session_summaries = Table(
    "session_summaries",
    metadata,
    Column("environment", NAME),
    Column("requester", NAME),
    Column("session_id", NAME),
    Column("agent", Text),
    Column("number", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("sealed", LargeBinary),
    Column("created_at", TIME, nullable=False),
    _mac(),
    PrimaryKeyConstraint("environment", "requester", "session_id", "agent"),
)

trace_events = Table(
    "trace_events",
    metadata,
    Column("run_id", ID),
    Column("sequence", Integer),
    Column("event_id", ID, nullable=False),
    Column("type", Bounded(60), nullable=False),
    Column("step_id", Text),
    Column("timestamp", TIME, nullable=False),
    Column("data", JSON, nullable=False),
    PrimaryKeyConstraint("run_id", "sequence"),
)

model_usage = Table(
    "model_usage",
    metadata,
    Column("environment", NAME),
    Column("day", Bounded(10)),
    Column("provider", NAME),
    Column("model", NAME),
    Column("agent", NAME),
    Column("shard", Integer, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("unpriced_requests", BigInteger, nullable=False),
    PrimaryKeyConstraint("environment", "day", "provider", "model", "agent", "shard"),
    info=WITHOUT_ROWID,
)

rate_windows = Table(
    "rate_windows",
    metadata,
    Column("environment", NAME),
    Column("provider", NAME),
    Column("minute", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    PrimaryKeyConstraint("environment", "provider"),
    info=WITHOUT_ROWID,
)

delta_readers = Table(
    "delta_readers",
    metadata,
    Column("run_id", ID, primary_key=True),
    Column("until", TIME, nullable=False),
    Index(None, "until"),
)

UNANSWERED = "resolved_at IS NULL"
"""The condition of the inbox's indexes, which cover unresolved tasks alone."""


FILTERED = (
    "status",
    "kind",
    "environment",
    "workflow_name",
    "workflow_type",
    "step_id",
    "assignee",
    "claimed_by",
    "escalation",
    "restricted",
    "due_at",
    "resolved_at",
)
"""The filter columns of the inbox."""


CHOSEN_BY = ("workflow_type", "kind", "environment", "workflow_name", "step_id", "status")
"""Filter columns with an index on PostgreSQL."""

PEOPLE = ("assignee", "claimed_by")
"""Filter columns with an index on both databases, of the rows that have a value."""


def _inbox(*columns: str, name: str | None = None, only: str = "") -> Index:
    """Return an index of unresolved tasks."""
    return _partial(UNANSWERED, *columns, name=name, only=only)


def _ordered(column: str) -> tuple[Index, Index]:
    """Return the indexes of one order of the inbox.

    PostgreSQL estimates the matches of a filter and sorts a few. SQLite scans the order and evaluates the filter within the index,
    without reading rows that are not listed.
    """
    rest = [name for name in FILTERED if name != column]
    return (
        _inbox(column, "id", only="postgresql"),
        _inbox(column, "id", *rest, name=f"ix_tasks_inbox_{column}", only="sqlite"),
    )


tasks = Table(
    "tasks",
    metadata,
    Column("id", ID, primary_key=True),
    Column("request_id", ID, nullable=False),
    Column("run_id", ID, nullable=False),
    Column("environment", NAME),
    Column("workflow_name", NAME),
    Column("workflow_type", Bounded(40)),
    Column("step_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("kind", Bounded(20), nullable=False),
    Column("status", Bounded(20), nullable=False),
    Column("version", Integer, nullable=False),
    Column("title", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("subject_digest", DIGEST, nullable=False),
    Column("options", JSON(none_as_null=True)),
    Column("default_option", Text),
    Column("decisions", JSON, nullable=False),
    Column("assignee", NAME),
    Column("timeout_seconds", Integer),
    Column("on_timeout", Bounded(80), nullable=False),
    Column("on_reject", Bounded(20), nullable=False),
    Column("deadline_at", TimeOrNever),
    Column("escalated_at", TIME),
    Column("decision", JSON(none_as_null=True)),
    Column("metadata", JSON, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("updated_at", TIME, nullable=False),
    Column("position", Bounded(20), nullable=False, server_default="step"),
    Column("step_path", Text, nullable=False, server_default=text("''")),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("requester", NAME, nullable=False, server_default=text("''")),
    Column("bundle_digest", DIGEST),
    Column("previous", Text),
    Column("answer_schema", JSON(none_as_null=True)),
    Column("multiple", Boolean, nullable=False, server_default=text("false")),
    Column("candidates", JSON(none_as_null=True)),
    Column("quorum", JSON(none_as_null=True)),
    Column("votes", JSON(none_as_null=True)),
    Column("plan", JSON(none_as_null=True)),
    Column("consequences", JSON(none_as_null=True)),
    Column("priority", Integer, nullable=False, server_default="50"),
    Column("restricted", Boolean, nullable=False, server_default=text("false")),
    Column("claimed_by", NAME),
    Column("snoozed_until", TIME),
    Column("escalation", Integer, nullable=False, server_default="0"),
    Column("due_at", TimeOrNever),
    Column("next_at", TIME),
    Column("resolved_at", TIME),
    _mac(),
    Index(None, "status", "id"),
    Index(None, "run_id", "id"),
    # The orders and filters of the inbox. On PostgreSQL the index for the order of ids begins with resolved_at, which is NULL in
    # all of its rows: otherwise the planner scans the primary key with all resolved tasks. SQLite would prefer such an index for
    # every query. Titles are searched, and may be too long for an index of PostgreSQL.
    _inbox("resolved_at", "id", only="postgresql"),
    _inbox("id", "title", *FILTERED, name="ix_tasks_inbox_id", only="sqlite"),
    *_ordered("priority"),
    *_ordered("due_at"),
    *_ordered("deadline_at"),
    *(_inbox(column, "resolved_at", "id", only="postgresql") for column in CHOSEN_BY),
    *(_partial(f"{UNANSWERED} AND {column} IS NOT NULL", column, "resolved_at", "id") for column in PEOPLE),
    _inbox("escalation", "id"),
    _inbox("restricted", "id"),
    _partial("next_at IS NOT NULL", "next_at"),
)

task_candidates = Table(
    "task_candidates",
    metadata,
    # user:ann, group:prod/editors, role:prod/reviewer, or not:ann for an excluded person; of unresolved tasks only.
    Column("candidate", Bounded(420)),
    Column("task_id", ID),
    PrimaryKeyConstraint("candidate", "task_id"),
    Index(None, "task_id"),
)

task_events = Table(
    "task_events",
    metadata,
    Column("id", ID, primary_key=True),
    Column("task_id", ID, nullable=False),
    Column("run_id", ID, nullable=False),
    Column("at", TIME, nullable=False),
    Column("type", Bounded(40), nullable=False),
    Column("actor", NAME),
    Column("data", JSON, nullable=False),
    Column("seq", BigInteger),
    Index(None, "task_id", "id"),
    Index(None, "run_id"),
    _partial("seq IS NULL", "id"),
    _partial("seq IS NOT NULL", "seq", unique=True),
)

task_feed = Table(
    "task_feed",
    metadata,
    # One row, which stays when events are deleted, so that no position is assigned twice.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
)

task_count_changes = Table(
    "task_count_changes",
    metadata,
    # Counts of unresolved tasks as changes to add up, so that writers share no row; folded from time to time.
    Column("id", ID, primary_key=True),
    Column("environment", NAME),
    Column("kind", Bounded(20), nullable=False),
    Column("status", Bounded(20), nullable=False),
    Column("escalated", Boolean, nullable=False),
    Column("amount", Integer, nullable=False),
    info=WITHOUT_ROWID,
)

# ---- set over HTTP ----------------------------------------------------------------------------------------------

project_metadata = Table(
    "project_metadata",
    metadata,
    Column("key", NAME, primary_key=True),
    Column("value", JSON, nullable=False),
    Column("updated_at", TIME, nullable=False),
    _mac(),
)

# ---- responses and proofs -----------------------------------------------------------------------------------

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("principal", NAME),
    Column("scope", Bounded(40)),
    Column("key", Bounded(256)),
    Column("request_digest", DIGEST, nullable=False),
    Column("status", Integer),
    Column("response", JSON(none_as_null=True)),
    Column("created_at", TIME, nullable=False),
    # The id of the object that the request created, and the execution that did.
    Column("subject", Text),
    Column("attempt", ID),
    PrimaryKeyConstraint("principal", "scope", "key"),
    Index(None, "created_at"),
)

task_links = Table(
    "task_links",
    metadata,
    Column("id", ID, primary_key=True),
    Column("token_hash", Bounded(64), nullable=False, unique=True),
    Column("task_id", ID, nullable=False),
    Column("run_id", ID, nullable=False),
    Column("person", NAME, nullable=False),
    Column("subject_digest", DIGEST, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("expires_at", TIME, nullable=False),
    Column("used_at", TIME),
    _mac(),
    Index(None, "task_id"),
    Index(None, "run_id"),
)

browser_sessions = Table(
    "browser_sessions",
    metadata,
    Column("token_hash", Bounded(64), primary_key=True),
    Column("person", NAME, nullable=False),
    Column("method", Bounded(20), nullable=False),
    Column("key_hash", Bounded(64)),
    Column("groups", JSON(none_as_null=True)),
    Column("created_at", TIME, nullable=False),
    Column("seen_at", TIME, nullable=False),
    _mac(),
)

sign_in_links = Table(
    "sign_in_links",
    metadata,
    Column("token_hash", Bounded(64), primary_key=True),
    Column("person", NAME, nullable=False),
    Column("key_hash", Bounded(64)),
    Column("created_at", TIME, nullable=False),
    Column("expires_at", TIME, nullable=False),
    _mac(),
)

oidc_people = Table(
    "oidc_people",
    metadata,
    Column("person_key", NAME, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("subject", Bounded(255), nullable=False),
    Column("issued_at", TIME, nullable=False),
    Column("seen_at", TIME, nullable=False),
    _mac(),
)

oidc_groups = Table(
    "oidc_groups",
    metadata,
    Column("person_key", NAME, primary_key=True),
    Column("name", NAME, primary_key=True),
    Index("ix_oidc_groups_name", "name"),
)

# Used by versions before kneo_0014 only, which work on this schema too.
oidc_sign_ins = Table(
    "oidc_sign_ins",
    metadata,
    Column("state_hash", Bounded(64), primary_key=True),
    Column("browser_hash", Bounded(64), nullable=False),
    Column("nonce", Bounded(64), nullable=False),
    Column("code_verifier", Bounded(64), nullable=False),
    Column("target", Bounded(2_000), nullable=False),
    Column("created_at", TIME, nullable=False),
)

oidc_used_states = Table(
    "oidc_used_states",
    metadata,
    Column("state_hash", Bounded(64), primary_key=True),
    Column("used_at", TIME, nullable=False),
    Index("ix_oidc_used_states_used_at", "used_at"),
)

push_subscriptions = Table(
    "push_subscriptions",
    metadata,
    Column("id", ID, primary_key=True),
    Column("browser_hash", Bounded(64), nullable=False, unique=True),
    Column("session_hash", Bounded(64), nullable=False),
    Column("person_key", NAME, nullable=False),
    Column("person", NAME, nullable=False),
    Column("key_hash", Bounded(64)),
    Column("endpoint_hash", Bounded(64), nullable=False, unique=True),
    Column("endpoint", Bounded(2_000), nullable=False),
    Column("p256dh", Bounded(100), nullable=False),
    Column("auth", Bounded(100), nullable=False),
    Column("sealed", LargeBinary),
    Column("failures", Integer, nullable=False),
    Column("created_at", TIME, nullable=False),
    Index("ix_push_subscriptions_person_key", "person_key", "id"),
    Index("ix_push_subscriptions_session_hash", "session_hash"),
)

receipts = Table(
    "receipts",
    metadata,
    Column("id", ID, primary_key=True),
    Column("task_id", ID, nullable=False, unique=True),
    Column("run_id", ID, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("digest", DIGEST, nullable=False, unique=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("statements", JSON, nullable=False),
    Column("audit_event_id", ID, nullable=False),
    Column("at", TIME, nullable=False),
    UniqueConstraint("run_id", "sequence"),
)

grants = Table(
    "grants",
    metadata,
    Column("id", ID, primary_key=True),
    Column("environment", NAME, nullable=False),
    Column("bundle", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("tool", NAME, nullable=False),
    Column("expression", Text),
    Column("limits", JSON, nullable=False),
    Column("status", Bounded(10), nullable=False),
    Column("reason", Text, nullable=False),
    Column("ended", Bounded(10)),
    Column("uses", Integer, nullable=False),
    Column("totals", JSON, nullable=False),
    Column("checks", JSON, nullable=False),
    Column("votes", JSON, nullable=False),
    Column("terms_digest", DIGEST, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("expires_at", TIME, nullable=False),
    Column("ended_at", TIME),
    Column("ended_by", NAME),
    _mac(),
    _partial("ended_at IS NULL", "environment", "digest", "tool"),
    Index(None, "environment", "bundle"),
)

grant_uses = Table(
    "grant_uses",
    metadata,
    Column("task_id", ID, primary_key=True),
    Column("grant_id", ID, nullable=False),
    Column("number", Integer, nullable=False),
    Column("run_id", ID, nullable=False),
    Column("amounts", JSON, nullable=False),
    Column("at", TIME, nullable=False),
    UniqueConstraint("grant_id", "number"),
    Index(None, "grant_id", "run_id"),
)

canaries = Table(
    "canaries",
    metadata,
    Column("id", ID, primary_key=True),
    Column("environment", NAME, nullable=False),
    Column("bundle", NAME, nullable=False),
    Column("version", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("base_digest", DIGEST, nullable=False),
    Column("revision", Text, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("plan_digest", DIGEST, nullable=False),
    Column("policy_digest", DIGEST, nullable=False),
    Column("approvals", JSON, nullable=False),
    Column("salt", Bounded(64), nullable=False),
    Column("step", Integer, nullable=False),
    # Shares in hundredths of a percent.
    Column("share", Integer, nullable=False),
    Column("counts", Boolean, nullable=False),
    Column("state", Bounded(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("blocks", Boolean, nullable=False),
    Column("promotes", Boolean, nullable=False),
    Column("began_at", TIME, nullable=False),
    Column("step_at", TIME, nullable=False),
    Column("ended_at", TIME),
    Column("result", JSON, nullable=False),
    _mac(),
    _partial("ended_at IS NULL", "environment", "bundle", unique=True),
    Index(None, "environment", "digest"),
)

canary_runs = Table(
    "canary_runs",
    metadata,
    Column("canary_id", ID),
    Column("run_id", ID),
    Column("candidate", Boolean, nullable=False),
    Column("share", Integer, nullable=False),
    # The age in seconds at which the run became bad, by metric.
    Column("bad", JSON, nullable=False),
    Column("settled", Boolean, nullable=False),
    Column("started_at", TIME, nullable=False),
    PrimaryKeyConstraint("canary_id", "run_id"),
    _partial("NOT settled", "canary_id", "run_id", name="ix_canary_runs_open"),
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("id", ID, primary_key=True),
    Column("at", TIME, nullable=False),
    Column("event_type", Bounded(60), nullable=False),
    Column("actor", NAME),
    Column("run_id", ID),
    Column("continuation_id", ID),
    Column("environment", NAME),
    Column("metadata", Text, nullable=False),
    _mac(),
    Index(None, "event_type", "id"),
    Index(None, "run_id", "id"),
    _partial(
        "environment IS NOT NULL",
        *("environment", "id", "event_type", "actor"),
        name="ix_audit_events_environment_id",
    ),
    _partial("actor IS NOT NULL", "actor", "id"),
)

imported_audit_events = Table(
    "imported_audit_events",
    metadata,
    # The audit log of another platform as it was found; outside the chain, which has an event with its digest.
    Column("source", Bounded(16)),
    Column("id", ID),
    Column("at", TIME, nullable=False),
    Column("event_type", Bounded(60), nullable=False),
    Column("actor", NAME),
    Column("run_id", ID),
    Column("payload", Text, nullable=False),
    PrimaryKeyConstraint("source", "id"),
    Index(None, "at", "id"),
    _partial("run_id IS NOT NULL", "run_id", "at"),
)

audit_pending = Table(
    "audit_pending",
    metadata,
    Column("event_id", ID, primary_key=True),
    # The event has no canonical form, so it was changed before sealing; it is not tried again.
    Column("unsealable", Boolean, nullable=False, server_default=text("false")),
    info=WITHOUT_ROWID,
)

audit_chain = Table(
    "audit_chain",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", ID, nullable=False, unique=True),
    Column("leaf", Bounded(64), nullable=False),
    Column("head", Bounded(64), nullable=False),
)

audit_nodes = Table(
    "audit_nodes",
    metadata,
    Column("level", Integer, autoincrement=False),
    Column("position", BigInteger, autoincrement=False),
    Column("hash", Bounded(64), nullable=False),
    PrimaryKeyConstraint("level", "position"),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("root", Bounded(64), nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", TIME, nullable=False),
)
