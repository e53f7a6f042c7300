"""Closes traces whose process died: what was stored until then, what the outbox knows beyond it, and the ending ``interrupted``.

Works on a reopened trace, through the same events as a running turn, so that the closed trace has the same rows and figures as any other.
Moments after the death are not made up: the agent's end is the last moment on record, and so is the turn's when nobody goes on with it.
"""

from collections.abc import Iterable, Sequence

from msgspec import structs

from omni.clock import Anchor
from omni.model import MessageOutcome, MessageStatus, OutboundMessage
from omni.records import OutboxRecord
from omni.tracing.events import ChunkReceived
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

    Without ``is_resumed`` nobody will send what is left of the text: it is put on record as not sent, and the turn ends at its last
    moment on record. Safe from any thread.
    """
    trace, before = reopened.context, reopened.stored.timeline
    rows = _counted_on(trace.trace_id, outbox)
    trace.await_delivery()
    if before.agent_end_ns is None and reopened.stored.row.whatsapp_message_id is not None:
        _end_agents_part(trace, before, rows)
    log_known_messages(trace, rows)
    if not is_resumed:
        _log_unsent_rest(trace)
    trace.end_turn(
        "interrupted",
        error_message=note,
        error_stage="interrupted",
        at_ns=None if is_resumed else trace.anchor.mono_ns + _last_moment_ns(trace.timeline),
    )


def log_known_messages(trace: TraceContext, outbox: Iterable[OutboxRecord]) -> None:
    """Put the messages with a final state on record that the trace does not have yet."""
    timeline = trace.timeline
    known = {message.index for message in timeline.messages}
    for row in sorted(outbox, key=lambda row: row.index):
        if row.index not in known and row.state in _FINAL:
            trace.log_message(_outcome_of(row, trace.anchor, timeline), is_notice=row.is_notice)


def _counted_on(trace_id: str, outbox: Iterable[OutboxRecord]) -> list[OutboxRecord]:
    """The answer's messages and, counted on behind them as a running turn counts them, what was said beside it: a farewell."""
    in_order = sorted(outbox, key=lambda row: (row.answer_id != trace_id, row.answer_id, row.index))
    answer = [row for row in in_order if row.answer_id == trace_id]
    first_index = max((row.index + 1 for row in answer), default=0)
    end = max((row.end for row in answer), default=0)
    beside = [
        structs.replace(row, index=first_index + place, start=end, end=end)
        for place, row in enumerate(in_order[len(answer) :])
    ]
    return [*answer, *beside]


def _end_agents_part(trace: TraceContext, timeline: Timeline, outbox: Sequence[OutboxRecord]) -> None:
    """End the agent's part where its last sign stands; nothing when no agent was asked as far as anybody knows."""
    at_ns = trace.anchor.mono_ns + _last_sign_ns(timeline, trace.anchor, outbox)
    chunk = missing_chunk(timeline.chunks, outbox, at_ns=at_ns)
    if not timeline.is_streaming and timeline.request_ns is not None:
        _end_whole_answer(trace, chunk, at_ns=at_ns)
    elif timeline.is_streaming or chunk is not None:
        # Text of a request that is not on record: its messages came first, as they do in a stream only.
        _end_stream(StreamingTraceContext.upgrade(trace), chunk, at_ns=at_ns)


def _end_stream(trace: StreamingTraceContext, chunk: ChunkReceived | None, *, at_ns: int) -> None:
    if chunk is not None:
        trace.log_streaming_chunk(chunk.text, chunk.index, event_type=chunk.event_type, at_ns=at_ns)
    trace.log_streaming_error(DIED, "interrupted", ending="interrupted", error_type="process_died", at_ns=at_ns)


def _end_whole_answer(trace: TraceContext, chunk: ChunkReceived | None, *, at_ns: int) -> None:
    response = {
        "message": "" if chunk is None else chunk.text,
        "streaming": False,
        "success": False,
        "ending": "interrupted",
        "error": DIED,
        "detail": None,
        "upstream_cancel": None,
    }
    trace.log_agent_response(response, status_code=None, at_ns=at_ns)


def _last_sign_ns(timeline: Timeline, anchor: Anchor, outbox: Iterable[OutboxRecord]) -> int:
    """The last moment, from the turn's start, at which the agent is known to have been asked or to have said something."""
    seen_ns = (timeline.last_chunk_ns, timeline.first_token_ns, timeline.first_byte_ns, timeline.request_ns)
    # A message whose chunks were not stored: it was queued when all of its text had come.
    beyond = (row for row in outbox if not row.is_notice and row.end > len(timeline.content))
    queued_ns = [anchor.offset_ns(anchor.mono_at(row.queued_at)) for row in beyond]
    return max(moment for moment in (*seen_ns, *queued_ns, 0) if moment is not None)


def _last_moment_ns(timeline: Timeline) -> int:
    moments_ns = (timeline.processing_ns, timeline.request_ns, timeline.agent_end_ns)
    told_ns = [timeline.anchor.offset_ns(message.mono_ns) for message in timeline.messages]
    return max(moment for moment in (*moments_ns, *told_ns, 0) if moment is not None)


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
    at_ns = trace.anchor.mono_ns + _last_moment_ns(timeline)
    trace.log_message(
        MessageOutcome(message=message, status="not_sent", attempts=0, queued_ns=at_ns, ended_ns=at_ns, error=DIED),
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
        ended_ns=anchor.mono_at(row.ended_at or row.started_at or row.queued_at),
        key_id=row.key_id,
        status_code=row.status_code,
        error_kind=row.error_kind,
        error=row.error,
    )
