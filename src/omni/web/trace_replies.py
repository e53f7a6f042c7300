"""How stored traces and payloads are shown by the REST API: the fields older clients know, in the types they know."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from omni.ports import PayloadRow, TraceRow
from omni.web.times import iso_utc

_UTC = "ISO 8601, UTC, without offset."


class TraceReply(BaseModel):
    """One trace: what came in, how far it got and how it ended."""

    model_config = ConfigDict(extra="forbid")

    trace_id: str
    instance_name: str | None
    whatsapp_message_id: str | None
    sender_phone: str | None = Field(description="Digits of the sender's address.")
    sender_name: str | None
    message_type: str | None = Field(description="`text`, `image`, `video`, `audio`, `document` and the like.")
    has_media: bool | None
    has_quoted_message: bool | None
    session_name: str | None
    agent_session_id: str | None
    status: str | None = Field(description="`received`, `processing`, `agent_called`, `completed` or `failed`.")
    error_message: str | None
    error_stage: str | None
    received_at: str | None = Field(description=_UTC)
    completed_at: str | None = Field(description=f"{_UTC} Null while the turn runs.")
    agent_processing_time_ms: int | None = Field(description="Milliseconds the agent took; null when unknown.")
    total_processing_time_ms: int | None = Field(description="Milliseconds of the whole turn; null when unknown.")
    agent_response_success: bool | None
    evolution_success: bool | None = Field(description="Whether Evolution accepted every message of the answer.")


class PayloadReply(BaseModel):
    """One stage of a trace."""

    model_config = ConfigDict(extra="forbid")

    id: int
    trace_id: str
    stage: str
    payload_type: str | None = Field(description="`webhook`, `request`, `response`, `stream_event` or `error`.")
    timestamp: str | None = Field(description=_UTC)
    status_code: int | None
    error_details: str | None
    payload_size_original: int | None = Field(description="Characters of JSON before packing.")
    payload_size_compressed: int | None = Field(description="Bytes after packing.")
    compression_ratio: float | None = Field(description="Packed size by original size; null without a payload.")
    contains_media: bool | None
    contains_base64: bool | None
    payload: Any = Field(description="The payload itself when `include_payload` asks for it, else null.")


class StreamingDocument(BaseModel):
    """The whole story of one streamed answer. What the trace does not hold is null; milliseconds say so in their names."""

    model_config = ConfigDict(extra="allow")

    streaming_request: dict[str, Any] | None = Field(None, description="What the agent was asked.")
    first_token: dict[str, Any] | None = Field(None, description="The first visible text and its latency.")
    streaming_chunks: list[dict[str, Any]] = Field([], description="Every chunk of the answer, in order.")
    streaming_complete: dict[str, Any] | None = Field(None, description="The complete answer and its figures.")
    agent_response: dict[str, Any] | None = Field(None, description="The answer as every kind of agent reports it.")
    delivery: dict[str, Any] | None = Field(None, description="The messages sent and their receipts.")
    timeline: dict[str, Any] | None = Field(None, description="Every figure of the turn, from one computation.")


class SummaryReply(BaseModel):
    """Counts and averages over a window. Averages are milliseconds, null without data."""

    model_config = ConfigDict(extra="forbid")

    total_messages: int
    successful_messages: int
    failed_messages: int
    success_rate: float | None = Field(description="As computed from the two counts above; null without any.")
    avg_processing_time_ms: float | None
    avg_agent_time_ms: float | None
    message_types: dict[str, int]
    error_stages: dict[str, int]
    instances: dict[str, int]


class CleanupReply(BaseModel):
    """What a cleanup removed, or would remove."""

    model_config = ConfigDict(extra="forbid")

    status: str = Field(description="`dry_run` when only counted, `success` when removed.")
    traces_to_delete: int | None = Field(None, description="Only in a dry run.")
    traces_deleted: int | None = Field(None, description="Only when removed.")
    cutoff_date: str = Field(description=f"Traces received before this moment are meant. {_UTC}")
    message: str


def show_trace(row: TraceRow) -> dict[str, Any]:
    """The fields of TraceReply for one row."""
    reply = {name: getattr(row, name) for name in TraceReply.model_fields}
    return reply | {"received_at": iso_utc(row.received_at), "completed_at": iso_utc(row.completed_at)}


def show_payload(row: PayloadRow, *, has_payload: bool) -> dict[str, Any]:
    """The fields of PayloadReply for one row; the payload itself only when ``has_payload``."""
    reply = {name: getattr(row, name) for name in PayloadReply.model_fields if name != "compression_ratio"}
    return reply | {
        "timestamp": iso_utc(row.timestamp),
        "compression_ratio": _ratio(row.payload_size_compressed, row.payload_size_original),
        "payload": row.payload if has_payload else None,
    }


def _ratio(packed: int | None, original: int | None) -> float | None:
    return round(packed / original, 2) if packed is not None and original else None
