"""Compares a streaming document whole: everything that is not a time literally, and the times by their order and their sums.

``told`` replaces each known time by ``MS`` or ``TIME`` and each made-up id by ``ID``; what is null stays null, so that a figure that is
unknown cannot pass for one that is known. ``check_times`` then says what must be true of the times themselves.
"""

import re
from datetime import datetime
from itertools import pairwise
from typing import Any

MS, TIME, ID = "<ms>", "<time>", "<id>"

_TIMES = frozenset({"received_at", "timestamp", "request_timestamp", "completion_timestamp"})
_IDS = frozenset({"trace_id", "key_id"})

_ROUNDING_MS = 0.01
"""What a sum of five figures with three decimals may be off by."""


def told(value: Any) -> Any:
    """The document without what differs from run to run."""
    if isinstance(value, list):
        return [told(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _told_field(name, inner) for name, inner in value.items()}


def _told_field(name: str, value: Any) -> Any:
    if value is None or isinstance(value, dict | list):
        return told(value)
    if name.endswith("_ms"):
        assert isinstance(value, int | float), (name, value)
        return MS
    if name in _TIMES:
        datetime.fromisoformat(value)
        return TIME
    if name in _IDS:
        assert value, name
        return ID
    return re.sub(r"\b\d+ ms\b", MS, value) if name == "headline" else value


def check_times(document: dict[str, Any], *, at_least_ms: float, at_most_ms: float) -> None:
    """What must hold of every ended turn: moments in order, figures that agree, stages that add up to a plausible total."""
    timeline, delivery = document["timeline"], document["delivery"]
    moments = [timeline[f"{name}_ms"] for name in _MOMENTS]
    _assert_ascending([0.0, *moments])
    chunk_times = [chunk["offset_ms"] for chunk in document["streaming_chunks"]]
    _assert_ascending([timeline["first_byte_ms"], *chunk_times, timeline["stream_end_ms"]])
    for message in delivery["messages"]:
        _assert_ascending(
            [message["queued_ms"], message["started_ms"], message["accepted_ms"], timeline["completed_ms"]]
        )
    for earlier, later in pairwise(delivery["messages"]):
        _assert_ascending([earlier["accepted_ms"], later["started_ms"]])
    stages = timeline["stages"]
    parts = [stages[name] for name in _STAGES]
    assert all(part >= 0 for part in parts), stages
    assert abs(sum(parts) - stages["turn_total_ms"]) < _ROUNDING_MS, stages
    assert stages["turn_total_ms"] == timeline["completed_ms"]
    assert at_least_ms <= timeline["total_streaming_time_ms"] <= at_most_ms, timeline
    _check_figures_agree(document)


def _check_figures_agree(document: dict[str, Any]) -> None:
    """One timeline feeds every number, so the same figure is the same wherever it stands."""
    timeline = document["timeline"]
    figures = {
        name: timeline[name] for name in ("first_token_latency_ms", "total_streaming_time_ms", "first_to_final_ms")
    }
    if figures["first_token_latency_ms"] is not None:
        assert figures["first_to_final_ms"] == (figures["total_streaming_time_ms"] - figures["first_token_latency_ms"])
    for stage in ("streaming_complete", "streaming_error", "first_token", "agent_response"):
        payload = document[stage] or {}
        shown = {**payload, **payload.get("metrics", {})}
        assert {name: shown[name] for name in figures if name in shown}.items() <= figures.items(), stage
    _assert_ascending([timeline["request_ms"], timeline["stream_end_ms"]])
    took_ms = timeline["stream_end_ms"] - timeline["request_ms"]
    assert abs(took_ms - timeline["total_streaming_time_ms"]) <= 0.5 + _ROUNDING_MS, timeline


_MOMENTS = (
    "processing",
    "request",
    "first_byte",
    "first_event",
    "first_token",
    "last_chunk",
    "stream_end",
    "completed",
)
_STAGES = ("queue_ms", "agent_wait_ms", "stream_ms", "delivery_tail_ms", "unaccounted_ms")


def _assert_ascending(moments: list[float | None]) -> None:
    known = [moment for moment in moments if moment is not None]
    assert all(earlier <= later for earlier, later in pairwise(known)), moments


def chunk(index: int, content: str, event_type: str) -> dict[str, Any]:
    """One of ``streaming_chunks``."""
    return {
        "chunk_index": index,
        "content": content,
        "size": len(content),
        "offset_ms": MS,
        "event_type": event_type,
    }


def bubble(index: int, text: str, chunks: tuple[int, int] | None, **changes: Any) -> dict[str, Any]:
    """One of ``delivery.messages``: accepted at the first attempt unless ``changes`` say otherwise. No chunks: a notice."""
    return {
        "index": index,
        "text": text,
        "key_id": ID,
        "first_chunk": None if chunks is None else chunks[0],
        "last_chunk": None if chunks is None else chunks[1],
        "queued_ms": MS,
        "started_ms": MS,
        "accepted_ms": MS,
        "delivered_ms": None,
        "read_ms": None,
        "delivered_event_ms": None,
        "read_event_ms": None,
        "event_uncertainty_ms": None,
        "receipts": [],
        "is_deleted": False,
        "status": "accepted",
        "attempts": 1,
        "status_code": 201,
        "error": None,
        "is_notice": chunks is None,
        **changes,
    }


def delivery(*messages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """``delivery`` when every message was accepted and no receipt has come."""
    return {
        "messages": list(messages),
        "sent": len(messages),
        "accepted": len(messages),
        "delivered": 0,
        "read": 0,
        "unknown": len(messages),
        "failed": 0,
        "success_percent": None,
        "tail_lag_ms": MS,
        **changes,
    }


def timeline(**figures: Any) -> dict[str, Any]:
    """``timeline`` of a stream whose every moment was seen, with ``figures`` that are not times."""
    moments = {f"{name}_ms": MS for name in _MOMENTS}
    return {
        **moments,
        "received_at": TIME,
        "is_streaming": True,
        "first_message_ms": MS,
        "first_byte_latency_ms": MS,
        "first_event_latency_ms": MS,
        "first_token_latency_ms": MS,
        "total_streaming_time_ms": MS,
        "first_to_final_ms": MS,
        "longest_gap_ms": MS,
        "dropped_chunks": 0,
        "num_tools": 0,
        "num_tool_errors": 0,
        "usage": None,
        "stages": {**dict.fromkeys(_STAGES, MS), "turn_total_ms": MS},
        **figures,
    }
