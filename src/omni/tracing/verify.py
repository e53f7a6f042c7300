"""Checks that a stored trace says of itself what follows from its parts: ``omni traces verify``. Pure.

Every figure is derived anew from the smallest things that are stored: the answer from its chunks, the messages from the answer, the
columns of the row from the timeline. What does not agree is named, without anybody's text. It refuses to judge what it cannot: traces
of the predecessor kept too little, and of an open trace only what must hold at every moment is looked at.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from msgspec import Struct

from omni.model import Usage
from omni.ports import PayloadRow, TraceRow
from omni.tracing.disagreements import Disagreement, Findings
from omni.tracing.fitting import as_count
from omni.tracing.stored import StoredTrace, read_stored_trace
from omni.tracing.verify_messages import StoredMessage, check_messages, read_messages
from omni.tracing.verify_stream import (
    Closing,
    Losses,
    check_stream,
    num_dropped,
    read_closing,
    read_losses,
    read_stream,
)

TraceState = Literal["closed", "open", "legacy"]

_CLOSED_STATUSES = ("completed", "failed")
_REQUEST_STAGES = ("agent_request",)
_RECEIPTS_STAGE = "message_receipt"


class TraceReport(Struct, frozen=True, kw_only=True):
    """What became of checking one trace. ``losses`` is what the trace itself says was not kept; that is no disagreement."""

    trace_id: str
    state: TraceState
    disagreements: Sequence[Disagreement]
    losses: Losses = Losses()


def check_trace(row: TraceRow, payloads: Sequence[PayloadRow]) -> TraceReport:
    """The report on a trace as its rows were read. Never raises for what stands in them."""
    try:
        stored = read_stored_trace(row, payloads)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as exc:
        findings = Findings()
        _check_payloads(payloads, findings, is_legacy=False)
        findings.add("payload_damaged", "trace", stored=type(exc).__name__, derived="payloads that can be read")
        return TraceReport(trace_id=row.trace_id, state=_state_of_row(row), disagreements=findings.found)
    return TraceReport(
        trace_id=row.trace_id,
        state=trace_state(stored),
        disagreements=verify_trace(stored),
        losses=read_losses(payloads),
    )


def trace_state(stored: StoredTrace) -> TraceState:
    """``legacy`` for a trace the predecessor wrote, else whether its turn has ended."""
    return "legacy" if stored.is_legacy else _state_of_row(stored.row)


def verify_trace(stored: StoredTrace) -> list[Disagreement]:
    """Everything about a trace that does not follow from its parts, empty when it agrees with itself."""
    findings = Findings()
    _check_payloads(stored.payloads, findings, is_legacy=stored.is_legacy)
    if stored.is_legacy:
        return findings.found
    payloads = stored.payloads
    is_open = _state_of_row(stored.row) == "open"
    closing, losses = read_closing(payloads, findings), read_losses(payloads)
    stream = read_stream(payloads, closing, losses, findings)
    messages = read_messages(payloads, findings)
    check_stream(stream, closing, losses, findings, is_open=is_open)
    # Where chunks are missing it was said before, by us or by the trace itself.
    is_stream_whole = not findings.found and not num_dropped(closing, losses)
    check_messages(messages, _content_of(closing), stream, losses, findings, is_open=is_open)
    if not is_open and not losses.lost_rows:  # before the end a receipt may be ahead of its message
        _check_receipts(stored, messages, findings)
    _check_stage_figures(stored, closing, losses, findings, is_stream_whole=is_stream_whole)
    _check_status(stored, closing, messages, findings)
    if not is_open:
        _check_columns(stored, closing, messages, losses, findings)
    return findings.found


def _state_of_row(row: TraceRow) -> TraceState:
    return "open" if row.completed_at is None else "closed"


def _content_of(closing: Closing | None) -> str | None:
    return None if closing is None else closing.text


def _check_payloads(payloads: Sequence[PayloadRow], findings: Findings, *, is_legacy: bool) -> None:
    for row in payloads:
        if isinstance(row.payload, dict):
            continue
        has_problem = "payload unreadable" in (row.error_details or "")
        # The predecessor may have stored no payload, or another kind of value; ours are objects, always.
        if has_problem or not is_legacy:
            stored = "unreadable" if has_problem else type(row.payload).__name__
            findings.add("payload_damaged", f"{row.stage} (row {row.id})", stored=stored, derived="an object")


def _check_receipts(stored: StoredTrace, messages: Sequence[StoredMessage], findings: Findings) -> None:
    known = {one.row.payload.get("key_id") for one in messages}
    for row in stored.payloads:
        if row.stage == _RECEIPTS_STAGE and isinstance(row.payload, dict) and row.payload.get("key_id") not in known:
            findings.add("receipt", f"{row.stage} (row {row.id})", stored="a key", derived="the key of a message")


def _check_stage_figures(
    stored: StoredTrace, closing: Closing | None, losses: Losses, findings: Findings, *, is_stream_whole: bool
) -> None:
    timeline = stored.timeline
    moments: dict[str, Any] = {"total_streaming_time_ms": timeline.total_streaming_time_ms}
    # Where the first token has no stage the first chunk tells its moment, and when that is gone too nobody does.
    if is_stream_whole or any(row.stage == "first_token" for row in stored.payloads):
        moments["first_token_latency_ms"] = timeline.first_token_latency_ms
        moments["first_to_final_ms"] = timeline.first_to_final_ms
    for row in stored.payloads:
        payload = row.payload
        if not isinstance(payload, dict):
            continue
        if row.stage == "first_token" and str(payload.get("first_content") or "").strip():
            _compare_all(row.stage, payload, {"first_token_latency_ms": timeline.first_token_latency_ms}, findings)
        elif row.stage == "agent_response" and payload.get("streaming") and (closing or not losses.lost_rows):
            _check_streamed_response(payload, moments, closing, findings)
    if closing is None or not closing.is_stream:
        return
    figures = dict(moments)
    if closing.stage == "streaming_error":
        figures.pop("first_to_final_ms", None)
    else:
        figures["streaming_events_count"] = closing.payload.get("total_chunks")
        if closing.text is not None:
            figures["total_content_length"] = len(closing.text)
        if is_stream_whole:
            figures["content_verified"] = timeline.is_content_verified
    _compare_all(closing.stage, closing.payload, figures, findings)


def _check_streamed_response(
    payload: Mapping[str, Any], moments: Mapping[str, Any], closing: Closing | None, findings: Findings
) -> None:
    stage = "agent_response"
    if closing is None:
        findings.add("stage_missing", stage, stored="a streamed answer", derived="a stage that closes the stream")
        return
    message, metrics = payload.get("message"), payload.get("metrics")
    if closing.text is not None and message != closing.text:
        length = len(message) if isinstance(message, str) else None
        findings.add("content", f"{stage}.message", stored=length, derived=len(closing.text))
    figures = {**moments, "total_chunks": closing.payload.get("total_chunks")}
    _compare_all(f"{stage}.metrics", metrics if isinstance(metrics, dict) else {}, figures, findings)


def _check_status(
    stored: StoredTrace, closing: Closing | None, messages: Sequence[StoredMessage], findings: Findings
) -> None:
    row = stored.row
    is_closed = row.completed_at is not None
    if (row.status in _CLOSED_STATUSES) != is_closed:
        findings.add("ending", "status", stored=row.status, derived="closed" if is_closed else "open")
        return
    if not is_closed:
        return
    ending = stored.timeline.ending
    placed = [one for one in messages if one.index is not None]
    is_all_accepted = all(one.is_accepted for one in placed)
    if row.status == "completed":
        findings.compare("ending", "error_stage", stored=row.error_stage, derived=None)
        if row.error_message is not None:
            findings.add("ending", "error_message", stored="a cause", derived=None)
        if closing is not None and closing.stage == "streaming_error":
            findings.add("ending", "status", stored=row.status, derived=closing.payload.get("ending"))
        if not is_all_accepted:
            findings.add("ending", "status", stored=row.status, derived="a message was not accepted")
    elif row.error_stage == "evolution_send" and placed and is_all_accepted:
        findings.add("ending", "error_stage", stored=row.error_stage, derived="every message was accepted")
    elif closing is not None and closing.stage == "streaming_error":
        told, stage = closing.payload.get("ending"), closing.payload.get("error_stage")
        # A turn may end later, and at another stage, than its stream did; where it ended with the stream both say the same.
        if told == "completed" or (stage == row.error_stage and told != ending):
            findings.add("ending", "streaming_error.ending", stored=told, derived=ending)


def _check_columns(
    stored: StoredTrace,
    closing: Closing | None,
    messages: Sequence[StoredMessage],
    losses: Losses,
    findings: Findings,
) -> None:
    timeline = stored.timeline
    expected: dict[str, Any] = {"total_processing_time_ms": timeline.turn_total_ms}
    expected |= _request_columns(stored, losses)
    expected |= _agent_columns(stored, closing, losses)
    expected |= _message_columns(stored, messages, losses)
    for column, derived in expected.items():
        findings.compare("figure", column, stored=getattr(stored.row, column), derived=derived)


def _request_columns(stored: StoredTrace, losses: Losses) -> dict[str, Any]:
    offsets = [_offset_us(row) for row in stored.payloads if row.stage in _REQUEST_STAGES]
    if not offsets and losses.lost_rows:
        return {}
    return {"agent_request_at": _moment(stored.row, offsets[-1]) if offsets else None}


def _agent_columns(stored: StoredTrace, closing: Closing | None, losses: Losses) -> dict[str, Any]:
    timeline = stored.timeline
    if closing is None:
        names = ("agent_response_at", "agent_response_success", "agent_response_length")
        return {} if losses.lost_rows else dict.fromkeys(names)
    columns: dict[str, Any] = {
        "agent_response_at": _moment(
            stored.row, None if timeline.agent_end_ns is None else timeline.agent_end_ns // 1_000
        ),
        "agent_response_success": closing.stage == "streaming_complete",
    }
    if closing.text is not None:
        columns["agent_response_length"] = len(closing.text)
    if not closing.is_stream:
        # Time, tokens and tools of a whole answer may be what the agent's client said of them.
        del columns["agent_response_success"]
        return columns
    usage = timeline.usage or Usage()
    return columns | {
        "agent_processing_time_ms": timeline.total_streaming_time_ms,
        "agent_tools_used": timeline.num_tools,
        "agent_request_tokens": as_count(usage.input_tokens),
        "agent_response_tokens": as_count(usage.output_tokens),
    }


def _message_columns(stored: StoredTrace, messages: Sequence[StoredMessage], losses: Losses) -> dict[str, Any]:
    if losses.lost_rows:
        return {}
    tried = [one.row for one in messages if one.status != "not_sent"]
    last = tried[-1] if tried else None
    return {
        "evolution_success": all(one.is_accepted for one in messages) if messages else None,
        "evolution_send_at": None if last is None else _moment(stored.row, _offset_us(last)),
        "evolution_response_code": None if last is None else last.status_code,
    }


def _compare_all(stage: str, payload: Mapping[str, Any], figures: Mapping[str, Any], findings: Findings) -> None:
    for name, derived in figures.items():
        findings.compare("figure", f"{stage}.{name}", stored=payload.get(name), derived=derived)


def _offset_us(row: PayloadRow) -> int | None:
    meta = row.payload.get("omni") if isinstance(row.payload, dict) else None
    offset = meta.get("offset_us") if isinstance(meta, dict) else None
    return offset if isinstance(offset, int) else None


def _moment(row: TraceRow, offset_us: int | None) -> datetime | None:
    if row.received_at is None or offset_us is None:
        return None
    return row.received_at + timedelta(microseconds=offset_us)
