"""The streaming document: one trace as ``GET /api/v1/traces/{trace_id}/streaming`` answers it. Pure.

It reads the trace's Timeline and nothing else for its figures; stage payloads are shown as stored. All ``*_ms`` count from the
turn's start unless their name says latency or time; what is unknown is null.
"""

from typing import Any

from msgspec import structs

from omni.clock import exact_ms
from omni.ports import TraceRow
from omni.tracing.events import MessageSettled
from omni.tracing.receipts import MessageReceipts
from omni.tracing.stored import StoredTrace
from omni.tracing.summary import headline
from omni.tracing.timeline import Timeline


def streaming_document(trace: StoredTrace) -> dict[str, Any]:
    """The whole document for a trace of ours or of the predecessor."""
    row, timeline = trace.row, trace.timeline
    return {
        "trace_id": row.trace_id,
        "instance_name": row.instance_name,
        "status": row.status,
        "ending": timeline.ending,
        "error_stage": timeline.error_stage or row.error_stage,
        "error_message": timeline.error_message or row.error_message,
        "received_at": None if row.received_at is None else row.received_at.isoformat(),
        "headline": _legacy_headline(trace) if trace.is_legacy else headline(timeline),
        "agent_request": trace.payload_of("agent_request"),
        "streaming_request": trace.payload_of("streaming_request"),
        "first_token": trace.payload_of("first_token"),
        "streaming_chunks": _legacy_chunks(trace) if trace.is_legacy else _chunks(timeline),
        "streaming_complete": trace.payload_of("streaming_complete"),
        "streaming_error": trace.payload_of("streaming_error"),
        "agent_response": trace.payload_of("agent_response"),
        "delivery": delivery_document(timeline),
        "timeline": _legacy_timeline(trace) if trace.is_legacy else timeline_document(timeline),
    }


def timeline_document(timeline: Timeline) -> dict[str, Any]:
    """The timeline's figures as JSON."""
    stages = timeline.stages
    usage = timeline.usage
    return {
        "received_at": timeline.anchor.at(timeline.anchor.mono_ns).isoformat(),
        "is_streaming": timeline.is_streaming,
        "processing_ms": exact_ms(timeline.processing_ns),
        "request_ms": exact_ms(timeline.request_ns),
        "first_byte_ms": exact_ms(timeline.first_byte_ns),
        "first_event_ms": exact_ms(timeline.first_event_ns),
        "first_token_ms": exact_ms(timeline.first_token_ns),
        "last_chunk_ms": exact_ms(timeline.last_chunk_ns),
        "stream_end_ms": exact_ms(timeline.agent_end_ns),
        "first_message_ms": exact_ms(timeline.first_message_ns),
        "completed_ms": exact_ms(timeline.completed_ns),
        "first_byte_latency_ms": timeline.first_byte_latency_ms,
        "first_event_latency_ms": timeline.first_event_latency_ms,
        "first_token_latency_ms": timeline.first_token_latency_ms,
        "total_streaming_time_ms": timeline.total_streaming_time_ms,
        "first_to_final_ms": timeline.first_to_final_ms,
        "longest_gap_ms": timeline.longest_gap_ms,
        "total_chunks": timeline.total_chunks,
        "dropped_chunks": timeline.num_dropped_chunks,
        "total_content_length": timeline.total_content_length,
        "content_verified": timeline.is_content_verified,
        "num_tools": timeline.num_tools,
        "num_tool_errors": timeline.num_tool_errors,
        "usage": None if usage is None else structs.asdict(usage),
        "ending": timeline.ending,
        "stages": {
            "queue_ms": stages.queue_ms,
            "agent_wait_ms": stages.agent_wait_ms,
            "stream_ms": stages.stream_ms,
            "delivery_tail_ms": stages.delivery_tail_ms,
            "unaccounted_ms": stages.unaccounted_ms,
            "turn_total_ms": stages.turn_total_ms,
        },
    }


def delivery_document(timeline: Timeline) -> dict[str, Any]:
    """Every message and what is known of it. "Accepted" is Evolution's 201, the rest comes from receipts; without them it is unknown."""
    known = timeline.num_delivered + timeline.num_failed
    return {
        "messages": [
            _message(message, told, timeline)
            for message, told in zip(timeline.messages, timeline.receipts, strict=True)
        ],
        "sent": len(timeline.messages),
        "accepted": timeline.num_accepted,
        "delivered": timeline.num_delivered,
        "read": timeline.num_read,
        "unknown": timeline.num_unknown,
        "failed": timeline.num_failed,
        # Of the messages whose fate is known; None while that is none of them.
        "success_percent": round(100 * timeline.num_delivered / known, 1) if known else None,
        "tail_lag_ms": timeline.tail_lag_ms,
    }


def _message(message: MessageSettled, told: MessageReceipts, timeline: Timeline) -> dict[str, Any]:
    at = timeline.anchor.offset_ns
    return {
        "index": message.index,
        "text": message.text,
        "key_id": message.key_id,
        "first_chunk": message.first_chunk,
        "last_chunk": message.last_chunk,
        "queued_ms": None if message.queued_ns is None else exact_ms(at(message.queued_ns)),
        "started_ms": None if message.started_ns is None else exact_ms(at(message.started_ns)),
        "accepted_ms": None if message.accepted_ns is None else exact_ms(at(message.accepted_ns)),
        "delivered_ms": exact_ms(told.delivered_ns),
        "read_ms": exact_ms(told.read_ns),
        "delivered_event_ms": exact_ms(told.delivered_event_ns),
        "read_event_ms": exact_ms(told.read_event_ns),
        "event_uncertainty_ms": told.event_uncertainty_ms,
        "receipts": list(told.statuses),
        "status": message.status,
        "is_deleted": told.is_deleted,
        "attempts": message.attempts,
        "status_code": message.status_code,
        "error": message.error,
        "is_notice": message.is_notice,
    }


def _chunks(timeline: Timeline) -> list[dict[str, Any]]:
    at = timeline.anchor.offset_ns
    return [
        {
            "chunk_index": chunk.index,
            "content": chunk.text,
            "size": len(chunk.text),
            "offset_ms": exact_ms(at(chunk.mono_ns)),
            "event_type": chunk.event_type,
        }
        for chunk in timeline.chunks
    ]


def _legacy_chunks(trace: StoredTrace) -> list[dict[str, Any]]:
    """The predecessor kept every tenth chunk, and of it 100 characters; that is said, not repaired."""
    return [
        {
            "chunk_index": row.payload.get("chunk_index"),
            "content": row.payload.get("content_preview"),
            "size": row.payload.get("chunk_size"),
            "offset_ms": None,
            "event_type": None,
            "is_preview": True,
        }
        for row in trace.payloads
        if row.stage == "streaming_chunk" and isinstance(row.payload, dict)
    ]


def _legacy_timeline(trace: StoredTrace) -> dict[str, Any]:
    """Only what the predecessor measured itself; its figures keep its definitions."""
    row: TraceRow = trace.row
    document = dict.fromkeys(timeline_document(trace.timeline))
    complete = trace.payload_of("streaming_complete") or {}
    first = trace.payload_of("first_token") or {}
    total_ms = row.total_processing_time_ms
    document.update(
        received_at=None if row.received_at is None else row.received_at.isoformat(),
        is_streaming=trace.payload_of("streaming_request") is not None,
        first_token_latency_ms=first.get("first_token_latency_ms"),
        total_streaming_time_ms=complete.get("total_streaming_time_ms"),
        first_to_final_ms=complete.get("first_to_final_ms"),
        total_chunks=complete.get("total_chunks"),
        total_content_length=complete.get("total_content_length", row.agent_response_length),
        num_tools=row.agent_tools_used,
        ending=trace.timeline.ending,
        completed_ms=None if total_ms is None else float(total_ms),
        stages=dict.fromkeys(
            ("queue_ms", "agent_wait_ms", "stream_ms", "delivery_tail_ms", "unaccounted_ms", "turn_total_ms")
        ),
    )
    return document


def _legacy_headline(trace: StoredTrace) -> str:
    row = trace.row
    length = "an unknown number of" if row.agent_response_length is None else str(row.agent_response_length)
    took = "an unknown time" if row.agent_processing_time_ms is None else f"{row.agent_processing_time_ms} ms"
    return f"written by the predecessor: {row.status}, {length} characters, agent time {took} by its own measure"
