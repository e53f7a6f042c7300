"""Closes traces whose process died: what was stored until then, what the outbox knows beyond it, and the ending ``interrupted``.

Works on a reopened trace, through the same events as a running turn, so that the closed trace has the same rows and figures as any other.
Moments after the death are not made up: the stream's end is the last moment on record.
"""

from collections.abc import Iterable, Sequence

from omni.clock import Anchor
from omni.model import MessageOutcome, MessageStatus, OutboundMessage
from omni.records import OutboxRecord
from omni.tracing.lost_text import chunk_range, missing_chunk
from omni.tracing.service import ReopenedTrace
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.timeline import Timeline
from omni.tracing.trace_context import TraceContext

DIED = "Omni died before this turn was done"

_FINAL: dict[str, MessageStatus] = {"accepted": "accepted", "failed": "failed", "not_sent": "not_sent"}


def close_interrupted(
    reopened: ReopenedTrace, outbox: Sequence[OutboxRecord], *, note: str = DIED, is_resumed: bool = False
) -> None:
    """Close one trace that its process left open; ``outbox`` holds the answer's messages as the ledger knows them.

    Without ``is_resumed`` nobody will send what is left of the text, and it is put on record as not sent. Safe from any thread.
    """
    trace, timeline = reopened.context, reopened.stored.timeline
    trace.await_delivery()
    if isinstance(trace, StreamingTraceContext) and timeline.agent_end_ns is None:
        _end_stream(trace, timeline, outbox)
    log_known_messages(trace, outbox)
    if not is_resumed:
        _log_unsent_rest(trace)
    trace.end_turn("interrupted", error_message=note, error_stage="interrupted")


def log_known_messages(trace: TraceContext, outbox: Iterable[OutboxRecord]) -> None:
    """Put the messages with a final state on record that the trace does not have yet."""
    timeline = trace.timeline
    known = {message.index for message in timeline.messages}
    for row in sorted(outbox, key=lambda row: row.index):
        if row.index not in known and row.state in _FINAL:
            trace.log_message(_outcome_of(row, trace.anchor, timeline), is_notice=row.is_notice)


def _end_stream(trace: StreamingTraceContext, timeline: Timeline, outbox: Sequence[OutboxRecord]) -> None:
    seen_ns = (timeline.last_chunk_ns, timeline.first_token_ns, timeline.first_byte_ns, timeline.request_ns, 0)
    at_ns = trace.anchor.mono_ns + next(moment for moment in seen_ns if moment is not None)
    chunk = missing_chunk(timeline.chunks, outbox, at_ns=at_ns)
    if chunk is not None:
        trace.log_streaming_chunk(chunk.text, chunk.index, event_type=chunk.event_type, at_ns=at_ns)
    trace.log_streaming_error(DIED, "interrupted", ending="interrupted", error_type="process_died", at_ns=at_ns)


def _log_unsent_rest(trace: TraceContext) -> None:
    timeline = trace.timeline
    covered = max((message.end or 0 for message in timeline.messages), default=0)
    rest = timeline.content[covered:]
    if not rest.strip():
        return
    start, end = covered, len(timeline.content)
    first_chunk, last_chunk = chunk_range(timeline.chunks, start, end)
    message = OutboundMessage(
        index=max((message.index + 1 for message in timeline.messages), default=0),
        recipient="",
        text=rest.strip(),
        start=start,
        end=end,
        first_chunk=first_chunk,
        last_chunk=last_chunk,
    )
    queued_ns = trace.anchor.mono_ns + (timeline.last_chunk_ns or 0)
    trace.log_message(
        MessageOutcome(message=message, status="not_sent", attempts=0, queued_ns=queued_ns, error=DIED),
        is_notice=False,
    )


def _outcome_of(row: OutboxRecord, anchor: Anchor, timeline: Timeline) -> MessageOutcome:
    first_chunk, last_chunk = (None, None) if row.is_notice else chunk_range(timeline.chunks, row.start, row.end)
    message = OutboundMessage(
        index=row.index,
        recipient=row.recipient,
        text=row.text or "",
        start=row.start,
        end=row.end,
        first_chunk=first_chunk,
        last_chunk=last_chunk,
    )
    return MessageOutcome(
        message=message,
        status=_FINAL[row.state],
        attempts=row.attempts,
        queued_ns=anchor.mono_at(row.queued_at),
        started_ns=None if row.started_at is None else anchor.mono_at(row.started_at),
        ended_ns=None if row.ended_at is None else anchor.mono_at(row.ended_at),
        key_id=row.key_id,
        status_code=row.status_code,
        error_kind=row.error_kind,
        error=row.error,
    )
