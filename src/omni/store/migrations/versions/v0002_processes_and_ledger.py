"""Server processes, their open traces, and the ledger of messages in, messages out and receipts. Nothing that exists is touched."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: tuple[str, ...] | None = None
depends_on: tuple[str, ...] | None = None


def upgrade() -> None:
    """Create the five tables and their indexes."""
    _create_processes()
    _create_inbox()
    _create_outbox()
    _create_receipts()


def _create_processes() -> None:
    op.create_table(
        "omni_processes",
        sa.Column("process_id", sa.String, primary_key=True),
        sa.Column("host", sa.String),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("heartbeat_at", sa.DateTime, nullable=False),
        sa.Column("last_batch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("stopped_at", sa.DateTime),
    )
    op.create_table(
        "omni_open_traces",
        sa.Column("trace_id", sa.String, primary_key=True),
        sa.Column("process_id", sa.String, nullable=False),
        sqlite_with_rowid=False,
    )


def _create_inbox() -> None:
    op.create_table(
        "omni_inbox",
        sa.Column("instance_name", sa.String, primary_key=True),
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("chat_key", sa.String, nullable=False),
        sa.Column("trace_id", sa.String, nullable=False),
        sa.Column("process_id", sa.String),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("num_takes", sa.Integer, nullable=False),
        sa.Column("received_at", sa.DateTime, nullable=False),
        sa.Column("message_json", sa.Text),
    )
    op.create_index("ix_omni_inbox_received_at", "omni_inbox", ["received_at"])
    _create_partial_index("ix_omni_inbox_open", "omni_inbox", ["process_id"], only="state <> 'done'")


def _create_outbox() -> None:
    op.create_table(
        "omni_outbox",
        sa.Column("message_uid", sa.String, primary_key=True),
        sa.Column("answer_id", sa.String, nullable=False),
        sa.Column("trace_id", sa.String),
        sa.Column("process_id", sa.String),
        sa.Column("instance_name", sa.String, nullable=False),
        sa.Column("chat_key", sa.String, nullable=False),
        sa.Column("recipient", sa.String, nullable=False),
        sa.Column("message_index", sa.Integer, nullable=False),
        sa.Column("text", sa.Text),
        sa.Column("text_sha256", sa.String, nullable=False),
        sa.Column("range_start", sa.Integer, nullable=False),
        sa.Column("range_end", sa.Integer, nullable=False),
        sa.Column("first_chunk", sa.Integer),
        sa.Column("last_chunk", sa.Integer),
        sa.Column("is_notice", sa.Boolean, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("queued_at", sa.DateTime, nullable=False),
        sa.Column("started_at", sa.DateTime),
        sa.Column("ended_at", sa.DateTime),
        sa.Column("key_id", sa.String),
        sa.Column("status_code", sa.Integer),
        sa.Column("error_kind", sa.String),
        sa.Column("error", sa.Text),
    )
    op.create_index("ix_omni_outbox_trace_id", "omni_outbox", ["trace_id"])
    op.create_index("ix_omni_outbox_answer_id", "omni_outbox", ["answer_id", "message_index"])
    op.create_index("ix_omni_outbox_queued_at", "omni_outbox", ["queued_at"])
    _create_partial_index("ix_omni_outbox_open", "omni_outbox", ["process_id"], only="state IN ('queued', 'sending')")
    _create_partial_index("ix_omni_outbox_key", "omni_outbox", ["instance_name", "key_id"], only="key_id IS NOT NULL")


def _create_receipts() -> None:
    op.create_table(
        "omni_receipts",
        sa.Column("instance_name", sa.String, primary_key=True),
        sa.Column("key_id", sa.String, primary_key=True),
        sa.Column("status", sa.String, primary_key=True),
        sa.Column("received_at", sa.DateTime, nullable=False),
        sa.Column("event_at", sa.DateTime),
        sa.Column("event_uncertainty_ms", sa.Integer),
        sa.Column("trace_id", sa.String),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_index("ix_omni_receipts_received_at", "omni_receipts", ["received_at"])
    _create_partial_index("ix_omni_receipts_unjoined", "omni_receipts", ["received_at"], only="trace_id IS NULL")


def _create_partial_index(name: str, table: str, columns: list[str], *, only: str) -> None:
    condition = sa.text(only)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
