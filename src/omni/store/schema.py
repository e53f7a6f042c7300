"""The tables: the predecessor's, as its newer state left them, and our own beside them.

Predecessor tables are never altered. A database of either of its states opens as it is; a new database gets the newer state,
column for column and index for index. Our own tables start with ``omni_`` and can be dropped without touching theirs.
Modules that read or write get their columns from here.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    func,
    text,
)

SCHEMA_REVISION = "0002"
"""The migration a database must have seen to be used by this version."""
VERSION_TABLE = "omni_schema_version"
"""Our migration bookkeeping; the predecessor's ``alembic_version`` stays as it is."""


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC in Python, naive UTC in the database, as the predecessor stored it.

    A naive datetime handed in is taken as UTC.
    """

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Drop the zone after moving to UTC."""
        del dialect
        return None if value is None else naive_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Say that it is UTC."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


def naive_utc(moment: datetime) -> datetime:
    """A moment as the tables hold it: UTC without a zone. A naive one is taken as UTC already."""
    if moment.tzinfo is None:
        return moment
    return moment.astimezone(UTC).replace(tzinfo=None)


legacy_metadata = MetaData()
"""The predecessor's tables in its newer state."""
own_metadata = MetaData()
"""What we add."""

instance_configs = Table(
    "instance_configs",
    legacy_metadata,
    Column("id", Integer, primary_key=True, index=True),
    Column("name", String, nullable=False, unique=True, index=True),
    Column("channel_type", String, nullable=False),
    Column("evolution_url", String),
    Column("evolution_key", String),
    Column("whatsapp_instance", String),
    Column("session_id_prefix", String),
    Column("webhook_base64", Boolean, nullable=False),
    Column("agent_api_url", String, nullable=False),
    Column("agent_api_key", String, nullable=False),
    Column("default_agent", String, nullable=False),
    Column("agent_timeout", Integer),
    Column("automagik_instance_id", String),
    Column("automagik_instance_name", String),
    Column("is_default", Boolean, index=True),
    Column("is_active", Boolean, index=True),
    Column("created_at", UtcDateTime),
    Column("updated_at", UtcDateTime),
    Column("agent_instance_type", String, nullable=False, server_default="automagik"),
    Column("agent_id", String, server_default="default"),
    Column("agent_type", String, nullable=False, server_default="agent"),
    Column("agent_stream_mode", Boolean, nullable=False, server_default="0"),
    Column("profile_name", String),
    Column("profile_pic_url", String),
    Column("owner_jid", String),
    Column("discord_bot_token", String(255)),
    Column("discord_client_id", String(255), index=True),
    Column("discord_guild_id", String(255), index=True),
    Column("discord_default_channel_id", String(255)),
    Column("discord_voice_enabled", Boolean),
    Column("discord_slash_commands_enabled", Boolean),
    Column("discord_webhook_url", String(500)),
    Column("discord_permissions", Integer),
    Column("enable_auto_split", Boolean, nullable=False, server_default="1"),
)

users = Table(
    "users",
    legacy_metadata,
    Column("id", String, primary_key=True, index=True),
    Column("phone_number", String, nullable=False, index=True),
    Column("whatsapp_jid", String, nullable=False, index=True),
    Column("instance_name", String, ForeignKey("instance_configs.name"), nullable=False, index=True),
    Column("display_name", String),
    Column("last_session_name_interaction", String, index=True),
    Column("last_agent_user_id", String),
    Column("last_seen_at", UtcDateTime, index=True),
    Column("message_count", Integer),
    Column("created_at", UtcDateTime),
    Column("updated_at", UtcDateTime),
)

user_external_ids = Table(
    "user_external_ids",
    legacy_metadata,
    Column("id", Integer, primary_key=True, index=True),
    Column("user_id", String, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("provider", String, nullable=False, index=True),
    Column("external_id", String, nullable=False, index=True),
    Column("instance_name", String, ForeignKey("instance_configs.name"), index=True),
    Column("created_at", UtcDateTime, nullable=False, server_default=text("(CURRENT_TIMESTAMP)")),
    Column("updated_at", UtcDateTime, nullable=False, server_default=text("(CURRENT_TIMESTAMP)")),
    UniqueConstraint("provider", "external_id", "instance_name", name="uq_user_external_provider_instance"),
)

access_rules = Table(
    "access_rules",
    legacy_metadata,
    Column("id", Integer, primary_key=True),
    Column("instance_name", String(255), ForeignKey("instance_configs.name", ondelete="CASCADE"), index=True),
    Column("phone_number", String(255), nullable=False, index=True),
    Column("rule_type", String(10), nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False, server_default=func.current_timestamp()),
    Column("updated_at", UtcDateTime, nullable=False, server_default=func.current_timestamp()),
    UniqueConstraint("instance_name", "phone_number", "rule_type", name="uq_access_rules_scope_phone_rule"),
    CheckConstraint("rule_type IN ('allow', 'block')", name="ck_access_rules_rule_type"),
)

message_traces = Table(
    "message_traces",
    legacy_metadata,
    Column("trace_id", String, primary_key=True, index=True),
    Column("instance_name", String, ForeignKey("instance_configs.name"), index=True),
    Column("whatsapp_message_id", String, index=True),
    Column("sender_phone", String, index=True),
    Column("sender_name", String),
    Column("sender_jid", String),
    Column("message_type", String),
    Column("has_media", Boolean),
    Column("has_quoted_message", Boolean),
    Column("message_length", Integer),
    Column("session_name", String, index=True),
    Column("agent_session_id", String),
    Column("received_at", UtcDateTime, index=True),
    Column("processing_started_at", UtcDateTime),
    Column("agent_request_at", UtcDateTime),
    Column("agent_response_at", UtcDateTime),
    Column("evolution_send_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("status", String, index=True),
    Column("error_message", Text),
    Column("error_stage", String),
    Column("agent_processing_time_ms", Integer),
    Column("total_processing_time_ms", Integer),
    Column("agent_request_tokens", Integer),
    Column("agent_response_tokens", Integer),
    Column("agent_response_success", Boolean),
    Column("agent_response_length", Integer),
    Column("agent_tools_used", Integer),
    Column("evolution_response_code", Integer),
    Column("evolution_success", Boolean),
)

trace_payloads = Table(
    "trace_payloads",
    legacy_metadata,
    Column("id", Integer, primary_key=True),
    Column("trace_id", String, ForeignKey("message_traces.trace_id"), index=True),
    Column("stage", String, index=True),
    Column("payload_type", String),
    Column("payload_compressed", Text),
    Column("payload_size_original", Integer),
    Column("payload_size_compressed", Integer),
    Column("timestamp", UtcDateTime, index=True),
    Column("status_code", Integer),
    Column("error_details", Text),
    Column("contains_media", Boolean),
    Column("contains_base64", Boolean),
)

# Nothing reads or writes it, here or at the predecessor; it is there so that a new database is the predecessor's in full.
telemetry_traces = Table(
    "telemetry_traces",
    legacy_metadata,
    Column("id", String, primary_key=True, index=True),
    Column("timestamp", UtcDateTime, nullable=False, index=True),
    Column("trace_type", String, nullable=False, index=True),
    Column("operation_type", String, nullable=False, index=True),
    Column("instance_name", String, index=True),
    Column("user_id", String, index=True),
    Column("session_id", String, index=True),
    Column("agent_name", String, index=True),
    Column("request_payload", Text),
    Column("response_payload", Text),
    Column("error_message", Text),
    Column("duration_ms", Float),
    Column("metadata", Text),
)

omni_instance_settings = Table(
    "omni_instance_settings",
    own_metadata,
    Column("instance_name", String, primary_key=True),
    Column("settings_json", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

omni_processes = Table(
    "omni_processes",
    own_metadata,
    Column("process_id", String, primary_key=True),
    Column("host", String),
    Column("started_at", UtcDateTime, nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),
    Column("last_batch", Integer, nullable=False, server_default="0"),
    Column("stopped_at", UtcDateTime),
)
"""Server processes. ``last_batch`` is the number of the last batch of trace records that was stored for one."""

omni_open_traces = Table(
    "omni_open_traces",
    own_metadata,
    Column("trace_id", String, primary_key=True),
    Column("process_id", String, nullable=False),
    # Written twice for every trace, so it is as small as can be: one page to change, and no index beside the key. Only what is open at
    # the moment is in it, which is quickly looked through.
    sqlite_with_rowid=False,
)
"""Traces a process has begun and nobody has closed yet."""

omni_inbox = Table(
    "omni_inbox",
    own_metadata,
    Column("instance_name", String, primary_key=True),
    Column("message_id", String, primary_key=True),
    Column("chat_key", String, nullable=False),
    Column("trace_id", String, nullable=False),
    Column("process_id", String),
    Column("state", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("num_takes", Integer, nullable=False),
    Column("received_at", UtcDateTime, nullable=False, index=True),
    Column("message_json", Text),
)
"""Inbound messages; ``message_json`` goes when one is done."""

omni_outbox = Table(
    "omni_outbox",
    own_metadata,
    Column("message_uid", String, primary_key=True),
    Column("answer_id", String, nullable=False),
    Column("trace_id", String, index=True),
    Column("process_id", String),
    Column("instance_name", String, nullable=False),
    Column("chat_key", String, nullable=False),
    Column("recipient", String, nullable=False),
    Column("message_index", Integer, nullable=False),
    Column("text", Text),
    Column("text_sha256", String, nullable=False),
    Column("range_start", Integer, nullable=False),
    Column("range_end", Integer, nullable=False),
    Column("first_chunk", Integer),
    Column("last_chunk", Integer),
    Column("is_notice", Boolean, nullable=False),
    Column("state", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("queued_at", UtcDateTime, nullable=False, index=True),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("key_id", String),
    Column("status_code", Integer),
    Column("error_kind", String),
    Column("error", Text),
    Index("ix_omni_outbox_answer_id", "answer_id", "message_index"),
)
"""Outgoing messages; ``range_start`` and ``range_end`` are OutboxRecord's ``start`` and ``end``, which SQL keeps for itself."""

omni_receipts = Table(
    "omni_receipts",
    own_metadata,
    Column("instance_name", String, primary_key=True),
    Column("key_id", String, primary_key=True),
    Column("status", String, primary_key=True),
    Column("received_at", UtcDateTime, nullable=False, index=True),
    Column("event_at", UtcDateTime),
    Column("event_uncertainty_ms", Integer),
    Column("trace_id", String),
    Column("version", Integer, nullable=False),
)
"""What WhatsApp said of messages sent earlier."""

INBOX_IS_OPEN, INBOX_IS_DONE = "state <> 'done'", "state = 'done'"
OUTBOX_IS_OPEN, OUTBOX_IS_SETTLED = "state IN ('queued', 'sending')", "state NOT IN ('queued', 'sending')"
"""Open rows are what recovery looks for: few among many, so their indexes hold nothing else."""
RECEIPT_IS_UNJOINED = "trace_id IS NULL"


def _partial_index(name: str, *columns: Column[Any], only: str) -> Index:
    condition = text(only)
    return Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


_partial_index("ix_omni_inbox_open", omni_inbox.c.process_id, only=INBOX_IS_OPEN)
_partial_index("ix_omni_outbox_open", omni_outbox.c.process_id, only=OUTBOX_IS_OPEN)
_partial_index("ix_omni_outbox_key", omni_outbox.c.instance_name, omni_outbox.c.key_id, only="key_id IS NOT NULL")
_partial_index("ix_omni_receipts_unjoined", omni_receipts.c.received_at, only=RECEIPT_IS_UNJOINED)

TRACE_TABLES = (instance_configs, users, message_traces, trace_payloads)
"""What both states of the predecessor have. The other legacy tables belong to its newer state only."""
