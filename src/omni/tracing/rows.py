"""From a trace's events to the rows that are stored: pure, and run only in the recorder's thread.

Stages, payload types and keys are the predecessor's, so that its readers understand ours; what is new stands beside them.
Under the key ``omni`` each payload carries where it stands on the turn's monotonic line, in whole microseconds, which is what lets
``stored.py`` rebuild the same events, and from them the same timeline.

Chunks of a running stream are stored in segments a few times a second, so that a process that dies leaves what had arrived; at the
stream's end one packed row replaces the segments. While the store has no room for chunks, the packed row says only how many there were.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from omni.clock import Anchor
from omni.model import Usage
from omni.ports import DropPayloads, InsertPayload, InsertTrace, PayloadType, UpdateTrace, WriteOp
from omni.settings import Settings
from omni.tracing.events import (
    AgentRequested,
    AgentResponded,
    ChunkReceived,
    ColumnsChanged,
    FirstTokenSeen,
    MessageSettled,
    ProcessingStarted,
    ReceiptSeen,
    StageLogged,
    StreamCompleted,
    StreamFailed,
    StreamStarted,
    TraceEvent,
    TraceOpened,
    TurnEnded,
)
from omni.tracing.fitting import as_count, as_text, fitting_columns
from omni.tracing.losses import CHUNKS_STAGE, NOT_KEPT, LossCount, loss_payload
from omni.tracing.packing import pack_chunks
from omni.tracing.redact import Redactor
from omni.tracing.stage_payloads import (
    complete_payload,
    error_payload,
    first_token_payload,
    message_payload,
    moments_meta,
    receipt_payload,
    reported_columns,
    streamed_response_payload,
)
from omni.tracing.timeline import Timeline, build_timeline

# The statuses of a message that Evolution took.
_OUT = ("accepted", "delivered", "read")


class RowPlanner:
    """Turns one trace's events into write operations, remembering how far it came. Used by the writer thread only.

    ``stored_events`` begin the journal of a trace that is taken up again and are not planned; ``has_segments`` says whether its
    chunks are stored as segments. A trace without a new ``TraceOpened`` has its row already, and gets new values for it.
    """

    __slots__ = (
        "_anchor",
        "_columns",
        "_events",
        "_has_segments",
        "_header",
        "_is_header_due",
        "_is_packed",
        "_keeps_chunks",
        "_losses",
        "_ops",
        "_pending",
        "_redactor",
        "_reported",
        "_segment_ns",
        "_sends_ok",
        "_trace_id",
        "_upto",
        "num_read",
        "num_shed",
    )

    def __init__(
        self,
        trace_id: str,
        anchor: Anchor,
        *,
        settings: Settings,
        losses: LossCount | None = None,
        stored_events: Sequence[TraceEvent] = (),
        has_segments: bool = False,
    ) -> None:
        self._trace_id = trace_id
        self._anchor = anchor
        # A chunk that would be too old at the writer's next look is stored at this one.
        self._segment_ns = max(settings.trace_segment_ms - settings.trace_flush_ms, 0) * 1_000_000
        self._redactor = Redactor(
            max_chars=settings.trace_max_payload_size, keeps_sensitive=settings.trace_include_sensitive
        )
        self._pending: list[ChunkReceived] = []
        self._has_segments = has_segments
        self._is_packed = not has_segments and any(isinstance(event, ChunkReceived) for event in stored_events)
        self._losses = LossCount(trace_id) if losses is None else losses
        self._losses.is_open = self._losses.is_open or bool(stored_events)
        self._reported = (0, 0)
        self._sends_ok = all(event.status in _OUT for event in stored_events if isinstance(event, MessageSettled))
        # All columns so far, for when the trace's row has to be offered again; its losses name the same mapping.
        self._header: dict[str, Any] | None = None
        self._is_header_due = False
        self._keeps_chunks = True
        self._ops: list[WriteOp] = []
        self._columns: dict[str, Any] = {}
        self._events: Sequence[TraceEvent] = ()
        self._upto = 0
        self.num_read = len(stored_events)
        self.num_shed = 0

    @property
    def is_holding(self) -> bool:
        """Whether chunks wait to be stored with a later segment."""
        return bool(self._pending)

    def is_segment_due(self, now_ns: int) -> bool:
        """Whether the chunks that wait have waited long enough. They have been planned once, so there are some."""
        return now_ns - self._pending[0].mono_ns >= self._segment_ns

    def skip_to(self, num_read: int) -> None:
        """Pass over events that could not be planned."""
        self.num_read = num_read
        self._pending = []
        self._ops = []

    def plan(
        self,
        events: Sequence[TraceEvent],
        *,
        now_ns: int,
        flush_now: bool,
        keeps_segments: bool = True,
        keeps_chunks: bool = True,
    ) -> list[WriteOp]:
        """Operations for everything not planned before. ``events`` is the whole journal; its length is read once.

        Without ``keeps_segments`` chunks of a running stream wait for its end; without ``keeps_chunks`` a stream that ends leaves their
        number only, which ``num_shed`` says until the next call. An event that makes it raise has been passed over; called again, it
        goes on behind that one and nothing else is lost.
        """
        self._events, self._keeps_chunks, self.num_shed = events, keeps_chunks, 0
        ops = self._ops
        position = self.num_read - 1
        try:
            for position in range(self.num_read, len(events)):
                event = events[position]
                if type(event) is ChunkReceived:
                    self._pending.append(event)
                else:
                    self._upto = position + 1
                    self._plan_event(event, ops)
        finally:
            self.num_read = position + 1
            self._events = ()
        if self._pending and keeps_segments and (flush_now or self.is_segment_due(now_ns)):
            packed = pack_chunks(self._pending, self._anchor, is_segment=True)
            ops.append(self._chunks_row(packed, self._pending[-1]))
            self._has_segments = True
            self._pending = []
        planned = self._with_columns(ops)
        self._ops, self._columns = [], {}
        return planned

    def _plan_event(self, event: TraceEvent, ops: list[WriteOp]) -> None:
        match event:
            case TraceOpened():
                self._plan_opened(event, ops)
            case ProcessingStarted():
                self._columns.update(status="processing", processing_started_at=self._anchor.at(event.mono_ns))
            case AgentRequested():
                self._plan_request(event, ops)
            case StreamStarted():
                payload = {"streaming_started": True, "stream_config": event.config, "timestamp": self._iso(event)}
                ops.append(self._row(event, "streaming_start", payload, "stream_event"))
            case FirstTokenSeen():
                timeline = self._timeline()
                payload = first_token_payload(event, timeline, at=self._iso(event))
                ops.append(self._row(event, "first_token", payload, "stream_event", moments=timeline))
            case StreamCompleted():
                self._plan_completed(event, self._timeline(), ops)
            case StreamFailed():
                self._plan_failed(event, self._timeline(), ops)
            case AgentResponded():
                self._plan_response(event, self._timeline(), ops)
            case MessageSettled():
                self._plan_message(event, ops)
            case ReceiptSeen():
                event_at = None if event.event_ns is None else self._anchor.at(event.event_ns).isoformat()
                payload = receipt_payload(event, event_at=event_at)
                meta = {"event_us": self._us(event.event_ns)}
                ops.append(self._row(event, "message_receipt", payload, "webhook", extra_meta=meta))
            case TurnEnded():
                self._plan_ended(event, self._timeline(), ops)
            case ColumnsChanged():
                self._columns.update(event.columns)
            case StageLogged():
                payload = self._redactor.clean(event.payload)
                ops.append(
                    self._row(event, event.stage, payload, event.payload_type, event.status_code, event.error_details)
                )
            case _:
                pass  # moments inside a stream: they stand in the payload of the stream's end

    def _plan_opened(self, event: TraceOpened, ops: list[WriteOp]) -> None:
        columns = {
            "status": "received",
            "received_at": self._anchor.at(event.mono_ns),
            **fitting_columns(event.columns),
        }
        self._header, self._is_header_due = columns, True
        self._losses.header, self._losses.is_open = columns, True
        if event.webhook is not None:
            flags = self._redactor.media_flags(event.webhook)
            ops.append(
                InsertPayload(
                    trace_id=self._trace_id,
                    stage="webhook_received",
                    payload_type="webhook",
                    payload={**self._redactor.clean(event.webhook), "omni": {"offset_us": 0}},
                    timestamp=self._anchor.at(event.mono_ns),
                    contains_media=flags.contains_media,
                    contains_base64=flags.contains_base64,
                )
            )

    def _plan_request(self, event: AgentRequested, ops: list[WriteOp]) -> None:
        payload = self._redactor.clean(event.payload)
        ops.append(self._row(event, "agent_request", payload, "request"))
        if event.is_streaming:
            mode = {"stream_mode": True, "trace_type": "streaming", "request_timestamp": self._iso(event)}
            ops.append(self._row(event, "streaming_request", {**payload, **mode}, "request"))
        self._columns.update(status="agent_called", agent_request_at=self._anchor.at(event.mono_ns))

    def _plan_completed(self, event: StreamCompleted, timeline: Timeline, ops: list[WriteOp]) -> None:
        self._pack_stream(timeline, ops, "streaming_complete" if timeline.is_content_verified else None)
        complete = complete_payload(event, timeline, at=self._iso(event))
        response = streamed_response_payload(event, timeline)
        ops.append(self._row(event, "streaming_complete", complete, "stream_event", moments=timeline))
        ops.append(self._row(event, "agent_response", response, "response", 200))
        self._columns.update(self._agent_columns(timeline, is_success=True))

    def _plan_failed(self, event: StreamFailed, timeline: Timeline, ops: list[WriteOp]) -> None:
        self._pack_stream(timeline, ops, "streaming_error" if timeline.is_text_of_chunks else None)
        payload = error_payload(event, timeline, at=self._iso(event))
        ops.append(
            self._row(
                event, "streaming_error", payload, "error", event.status_code, event.error_message, moments=timeline
            )
        )
        self._columns.update(self._agent_columns(timeline, is_success=False))

    def _plan_response(self, event: AgentResponded, timeline: Timeline, ops: list[WriteOp]) -> None:
        is_success = bool(event.payload.get("success", True))
        ops.append(self._row(event, "agent_response", event.payload, "response", event.status_code, moments=timeline))
        columns = self._agent_columns(timeline, is_success=is_success)
        if event.processing_time_ms is not None:
            columns["agent_processing_time_ms"] = event.processing_time_ms
        columns.update(reported_columns(event.payload))
        self._columns.update(columns)

    def _plan_message(self, event: MessageSettled, ops: list[WriteOp]) -> None:
        payload = event.payload or message_payload(event)
        self._sends_ok = self._sends_ok and event.status in _OUT
        meta = {
            "queued_us": self._us(event.queued_ns),
            "started_us": self._us(event.started_ns),
            "accepted_us": self._us(event.accepted_ns),
            "status": event.status,
        }
        ops.append(
            self._row(event, "evolution_send", payload, "request", event.status_code, event.error, extra_meta=meta)
        )
        self._columns["evolution_success"] = self._sends_ok
        if event.status != "not_sent":
            self._columns.update(
                evolution_send_at=self._anchor.at(event.mono_ns), evolution_response_code=event.status_code
            )

    def _plan_ended(self, event: TurnEnded, timeline: Timeline, ops: list[WriteOp]) -> None:
        if self._pending or self._has_segments:  # a turn can end without its stream having been closed by its owner
            self._pack_stream(timeline, ops, None)
        if self._loss_totals != self._reported:
            ops.append(self._row(event, CHUNKS_STAGE, self._told_losses(), "error", None, NOT_KEPT))
        self._losses.is_open = False
        self._columns.update(
            status="completed" if event.ending == "completed" else "failed",
            completed_at=self._anchor.at(event.mono_ns),
            total_processing_time_ms=timeline.turn_total_ms,
            error_message=event.error_message,
            error_stage=event.error_stage,
        )

    def _pack_stream(self, timeline: Timeline, ops: list[WriteOp], text_stage: str | None) -> None:
        if self._has_segments or self._is_packed:
            ops.append(DropPayloads(self._trace_id, CHUNKS_STAGE))
        self._has_segments, self._is_packed = False, bool(timeline.chunks)
        if timeline.chunks and self._keeps_chunks:
            packed = pack_chunks(timeline.chunks, self._anchor, text_stage=text_stage)
            ops.append(self._chunks_row(packed, timeline.chunks[-1]))
        elif timeline.chunks:
            self.num_shed += max(len(timeline.chunks) - self._losses.num_unkept, 0)
            ops.append(self._row(timeline.chunks[-1], CHUNKS_STAGE, self._told_losses(), "error", None, NOT_KEPT))
        self._pending = []

    @property
    def _loss_totals(self) -> tuple[int, int]:
        return self._losses.num_shed + self.num_shed, self._losses.num_lost

    def _told_losses(self) -> dict[str, Any]:
        self._reported = num_shed, num_lost = self._loss_totals
        return loss_payload(num_shed=num_shed, num_lost=num_lost)

    def _chunks_row(self, packed: dict[str, Any], last: ChunkReceived) -> InsertPayload:
        return InsertPayload(
            trace_id=self._trace_id,
            stage=CHUNKS_STAGE,
            payload_type="stream_event",
            payload=packed,
            timestamp=self._anchor.at(last.mono_ns),
        )

    def _agent_columns(self, timeline: Timeline, *, is_success: bool) -> dict[str, Any]:
        usage = timeline.usage or Usage()
        end_ns = timeline.agent_end_ns
        return {
            "status": "processing",
            "agent_response_at": None if end_ns is None else self._anchor.at(self._anchor.mono_ns + end_ns),
            "agent_processing_time_ms": timeline.total_streaming_time_ms,
            "agent_response_success": is_success,
            "agent_response_length": timeline.total_content_length,
            "agent_tools_used": timeline.num_tools,
            "agent_request_tokens": usage.input_tokens,
            "agent_response_tokens": usage.output_tokens,
        }

    def _timeline(self) -> Timeline:
        so_far = islice(self._events, self._upto)
        return build_timeline(self._trace_id, self._anchor, so_far, num_dropped_chunks=self._losses.num_unrecorded)

    def _with_columns(self, ops: list[WriteOp]) -> list[WriteOp]:
        columns = fitting_columns(self._columns)
        if self._header is not None:
            self._header.update(columns)
            if self._is_header_due:
                self._is_header_due = False
                return [InsertTrace(self._trace_id, dict(self._header)), *ops]
        if columns:
            ops.append(UpdateTrace(self._trace_id, columns))
        return ops

    def _row(
        self,
        event: TraceEvent,
        stage: str,
        payload: dict[str, Any],
        payload_type: PayloadType,
        status_code: int | None = None,
        error_details: str | None = None,
        *,
        moments: Timeline | None = None,
        extra_meta: dict[str, Any] | None = None,
    ) -> InsertPayload:
        meta: dict[str, Any] = {"offset_us": self._us(event.mono_ns)}
        if moments is not None:
            meta.update(moments_meta(moments))
        if extra_meta is not None:
            meta.update(extra_meta)
        return InsertPayload(
            trace_id=self._trace_id,
            stage=as_text(stage) or "unknown",
            payload_type=payload_type,
            payload={**payload, "omni": meta},
            timestamp=self._anchor.at(event.mono_ns),
            status_code=as_count(status_code),
            error_details=as_text(error_details),
        )

    def _us(self, mono_ns: int | None) -> int | None:
        return None if mono_ns is None else self._anchor.offset_ns(mono_ns) // 1_000

    def _iso(self, event: TraceEvent) -> str:
        return self._anchor.at(event.mono_ns).isoformat()
