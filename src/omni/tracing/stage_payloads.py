"""What the stages of a streamed answer say: the predecessor's keys, filled from the timeline. Pure.

docs/reference/stages.md lists them. Figures stand in several stages because readers of the predecessor look for them there; they are equal
because all are read from one Timeline.
"""

from typing import Any

from msgspec import structs

from omni.tracing.events import FirstTokenSeen, MessageSettled, ReceiptSeen, StreamCompleted, StreamFailed
from omni.tracing.timeline import Timeline

FIRST_CONTENT_CHARS = 200
"""Characters of the first content kept in its own stage, as the predecessor kept them; the chunks have it whole."""


def first_token_payload(event: FirstTokenSeen, timeline: Timeline, *, at: str) -> dict[str, Any]:
    """The stage ``first_token``; ``at`` is its wall time."""
    return {
        "first_token_received": True,
        "first_content": event.content[:FIRST_CONTENT_CHARS],
        "first_token_latency_ms": timeline.first_token_latency_ms,
        "timestamp": at,
        "event_data": event.event_data or {},
    }


def complete_payload(event: StreamCompleted, timeline: Timeline, *, at: str) -> dict[str, Any]:
    """The stage ``streaming_complete``."""
    return {
        "streaming_completed": True,
        "final_content": event.final_content,
        **_metrics(timeline),
        "total_content_length": timeline.total_content_length,
        "completion_timestamp": at,
        "streaming_events_count": timeline.total_chunks,
        "content_verified": timeline.is_content_verified,
        "completion_data": event.completion_data or {},
    }


def streamed_response_payload(event: StreamCompleted, timeline: Timeline) -> dict[str, Any]:
    """The stage ``agent_response`` of a streamed answer."""
    return {"message": event.final_content, "success": True, "streaming": True, "metrics": _metrics(timeline)}


def error_payload(event: StreamFailed, timeline: Timeline, *, at: str) -> dict[str, Any]:
    """The stage ``streaming_error``, with everything received until then."""
    return {
        "streaming_error": True,
        "error_message": event.error_message,
        "error_type": event.error_type,
        "error_stage": event.error_stage,
        "ending": event.ending,
        "detail": event.detail,
        "timestamp": at,
        "partial_content": timeline.content or None,
        "content_verified": timeline.is_content_verified,
        "chunks_received": timeline.total_chunks,
        "upstream_cancel": event.upstream_cancel,
        "first_token_latency_ms": timeline.first_token_latency_ms,
        "total_streaming_time_ms": timeline.total_streaming_time_ms,
    }


def message_payload(event: MessageSettled) -> dict[str, Any]:
    """The stage ``evolution_send``: one message and what became of it."""
    return {
        "recipient": event.recipient,
        "text": event.text,
        "has_quoted_message": False,
        "index": event.index,
        "start": event.start,
        "end": event.end,
        "first_chunk": event.first_chunk,
        "last_chunk": event.last_chunk,
        "key_id": event.key_id,
        "status": event.status,
        "attempts": event.attempts,
        "is_notice": event.is_notice,
        "error_kind": event.error_kind,
        "error": event.error,
    }


def receipt_payload(event: ReceiptSeen, *, event_at: str | None) -> dict[str, Any]:
    """The stage ``message_receipt``: WhatsApp's word on one message; ``event_at`` is the event's own wall time by our clock."""
    return {
        "key_id": event.key_id,
        "status": event.status,
        "event_at": event_at,
        "event_uncertainty_ms": event.event_uncertainty_ms,
        "is_wall_timed": event.is_wall_timed,
    }


def moments_meta(timeline: Timeline) -> dict[str, Any]:
    """The moments inside a stream that have no stage of their own, in microseconds from the turn's start."""
    return {
        "request_us": _whole_us(timeline.request_ns),
        "first_byte_us": _whole_us(timeline.first_byte_ns),
        "first_event_us": _whole_us(timeline.first_event_ns),
        "first_token_us": _whole_us(timeline.first_token_ns),
        "num_tools": timeline.num_tools,
        "num_tool_errors": timeline.num_tool_errors,
        "dropped_chunks": timeline.num_dropped_chunks,
        "usage": None if timeline.usage is None else structs.asdict(timeline.usage),
    }


def reported_columns(payload: dict[str, Any]) -> dict[str, Any]:
    """Columns from the answer of an agent whose client speaks the predecessor's words."""
    columns: dict[str, Any] = {}
    usage = payload.get("usage")
    if isinstance(usage, dict):
        columns["agent_request_tokens"] = usage.get("request_tokens", usage.get("input_tokens"))
        columns["agent_response_tokens"] = usage.get("response_tokens", usage.get("output_tokens"))
    tools = payload.get("tool_calls")
    if isinstance(tools, list):
        columns["agent_tools_used"] = len(tools)
    if payload.get("session_id") is not None:
        columns["agent_session_id"] = payload["session_id"]
    return columns


def _metrics(timeline: Timeline) -> dict[str, Any]:
    return {
        "total_streaming_time_ms": timeline.total_streaming_time_ms,
        "first_token_latency_ms": timeline.first_token_latency_ms,
        "first_to_final_ms": timeline.first_to_final_ms,
        "total_chunks": timeline.total_chunks,
    }


def _whole_us(duration_ns: int | None) -> int | None:
    return None if duration_ns is None else duration_ns // 1_000
