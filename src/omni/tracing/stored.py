"""From stored rows back to events, so that a trace read tomorrow gives the timeline it gave today. Pure.

Rows of ours carry their place on the turn's monotonic line under the key ``omni`` and are rebuilt exactly. Rows of the predecessor
do not; what they say is read as it stands, and moments they never recorded stay unknown.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from msgspec import Struct, structs

from omni.clock import Anchor
from omni.model import Ending, ReceiptStatus, Usage
from omni.ports import PayloadRow, TraceRow
from omni.tracing.events import (
    AgentRequested,
    AgentResponded,
    FirstByteSeen,
    FirstEventSeen,
    FirstTokenSeen,
    MessageSettled,
    ProcessingStarted,
    ReceiptSeen,
    RequestWritten,
    StreamCompleted,
    StreamFailed,
    StreamStarted,
    ToolCalled,
    TraceEvent,
    TurnEnded,
)
from omni.tracing.fitting import as_count
from omni.tracing.packing import TEXT_KEYS, unpack_chunks
from omni.tracing.timeline import Timeline, build_timeline

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENDINGS: tuple[Ending, ...] = (
    "completed",
    "error",
    "incomplete",
    "paused",
    "cancelled",
    "timeout",
    "send_failed",
    "interrupted",
)

_RECEIPT_STATUSES: tuple[ReceiptStatus, ...] = get_args(ReceiptStatus)

# Stages at which a turn ends in one way only, whatever its agent did before.
_ENDING_BY_STAGE: dict[str, Ending] = {
    "evolution_send": "send_failed",
    "interrupted": "interrupted",
    "cancelled": "cancelled",
    "processing": "error",
}


class StoredTrace(Struct, frozen=True, kw_only=True):
    """One trace as read from the database.

    ``is_legacy`` means that the predecessor wrote it; ``num_lost_rows`` is what the trace says of rows it does not have.
    """

    row: TraceRow
    payloads: Sequence[PayloadRow]
    events: Sequence[TraceEvent]
    timeline: Timeline
    is_legacy: bool
    num_lost_rows: int = 0

    def payload_of(self, stage: str) -> dict[str, Any] | None:
        """The last payload of a stage, without our own bookkeeping; None when the stage was not reached."""
        found = [row.payload for row in self.payloads if row.stage == stage and isinstance(row.payload, dict)]
        return {key: value for key, value in found[-1].items() if key != "omni"} if found else None


def stored_anchor(row: TraceRow) -> Anchor:
    """The start of a stored turn, with a monotonic line of its own that begins there."""
    return Anchor(wall_ns=_wall_ns(row.received_at), mono_ns=0)


def read_stored_trace(row: TraceRow, payloads: Sequence[PayloadRow], *, anchor: Anchor | None = None) -> StoredTrace:
    """The trace with its timeline. Damaged chunk rows count as dropped chunks when the stream's end says how many there were.

    ``anchor`` is the turn's start on the monotonic line the events are to be on, for a trace that is taken up again.
    """
    anchor = stored_anchor(row) if anchor is None else anchor
    # The predecessor always kept the webhook; a trace without any payload is one of ours that has only begun.
    is_legacy = bool(payloads) and not any(_is_ours(item.payload) for item in payloads)
    reader = _Reader(anchor, _closing_texts(payloads))
    for item in payloads:
        if isinstance(item.payload, dict):
            reader.take(item, item.payload)
    reader.take_row(row)
    events = sorted(reader.events, key=lambda event: event.mono_ns)
    timeline = build_timeline(row.trace_id, anchor, events, num_dropped_chunks=reader.num_dropped)
    if timeline.first_token_ns is None and reader.first_token_us is not None:
        # The first text had no stage of its own and its chunk is not kept; the stage that closed the stream says when it was.
        timeline = structs.replace(timeline, first_token_ns=reader.first_token_us * 1_000)
    return StoredTrace(
        row=row, payloads=payloads, events=events, timeline=timeline, is_legacy=is_legacy, num_lost_rows=reader.num_lost
    )


class _Reader:
    def __init__(self, anchor: Anchor, text_by_stage: dict[str, str]) -> None:
        self._anchor = anchor
        self._text_by_stage = text_by_stage
        self.events: list[TraceEvent] = []
        self.num_dropped = 0
        self.num_lost = 0
        self.first_token_us: int | None = None
        self._ending: Ending | None = None

    def take(self, row: PayloadRow, payload: dict[str, Any]) -> None:
        if row.stage == "streaming_chunks":
            self._take_chunks(row, payload)
            return
        meta = payload.get("omni")
        if isinstance(meta, dict) and isinstance(meta.get("offset_us"), int):
            self._take_moments(meta)
            self._take_ours(row, payload, meta)

    def take_row(self, row: TraceRow) -> None:
        if row.processing_started_at is not None:
            self.events.append(ProcessingStarted(self._since_start(row.processing_started_at)))
        if row.completed_at is not None:
            self.events.append(
                TurnEnded(
                    mono_ns=self._since_start(row.completed_at),
                    ending=self._ending_of(row),
                    error_message=row.error_message,
                    error_stage=row.error_stage,
                )
            )

    def _ending_of(self, row: TraceRow) -> Ending:
        if row.status == "completed":
            return "completed"
        return _ENDING_BY_STAGE.get(row.error_stage or "") or self._ending or "error"

    def _take_chunks(self, row: PayloadRow, payload: dict[str, Any]) -> None:
        if row.payload_type == "error":
            self.num_dropped = max(self.num_dropped, int(payload.get("dropped_chunks") or 0))
            self.num_lost = max(self.num_lost, int(payload.get("lost_rows") or 0))
            return
        try:
            self.events.extend(unpack_chunks(payload, self._anchor, text_by_stage=self._text_by_stage))
        except (KeyError, TypeError, ValueError):
            self.num_dropped += int(payload.get("count") or 0)

    def _take_moments(self, meta: dict[str, Any]) -> None:
        if isinstance(meta.get("first_token_us"), int):
            self.first_token_us = meta["first_token_us"]
        for key, kind in (
            ("request_us", RequestWritten),
            ("first_byte_us", FirstByteSeen),
            ("first_event_us", FirstEventSeen),
        ):
            if isinstance(meta.get(key), int):
                self.events.append(kind(self._mono(meta[key])))

    def _take_ours(self, row: PayloadRow, payload: dict[str, Any], meta: dict[str, Any]) -> None:
        at_ns = self._mono(meta["offset_us"])
        match row.stage:
            case "agent_request":
                self.events.append(AgentRequested(mono_ns=at_ns, payload=payload, is_streaming=False))
            case "streaming_request":
                self.events.append(AgentRequested(mono_ns=at_ns, payload=payload, is_streaming=True))
            case "streaming_start":
                self.events.append(StreamStarted(mono_ns=at_ns, config={}))
            case "first_token":
                self.events.append(FirstTokenSeen(mono_ns=at_ns, content=str(payload.get("first_content") or "")))
            case "streaming_complete":
                self._take_tools(meta, at_ns)
                content = str(payload.get("final_content") or "")
                self.events.append(StreamCompleted(mono_ns=at_ns, final_content=content, usage=_usage(meta)))
            case "streaming_error":
                self._take_tools(meta, at_ns)
                self._take_failure(row, payload, meta, at_ns)
            case "agent_response" if not payload.get("streaming"):
                self._take_tools(meta, at_ns)
                ending = payload.get("ending")
                self._ending = ending if ending in _ENDINGS else None
                self.events.append(AgentResponded(mono_ns=at_ns, payload=payload, status_code=row.status_code))
            case "evolution_send":
                self._take_message(row, payload, meta, at_ns)
            case "message_receipt":
                self._take_receipt(payload, meta, at_ns)
            case _:
                pass

    def _take_failure(self, row: PayloadRow, payload: dict[str, Any], meta: dict[str, Any], at_ns: int) -> None:
        ending = payload.get("ending")
        self._ending = ending if ending in _ENDINGS else "error"
        self.events.append(
            StreamFailed(
                mono_ns=at_ns,
                ending=self._ending,
                error_message=str(payload.get("error_message") or ""),
                error_type=str(payload.get("error_type") or ""),
                error_stage=str(payload.get("error_stage") or ""),
                status_code=row.status_code,
                usage=_usage(meta),
                content=self._partial_text(payload, meta),
            )
        )

    def _partial_text(self, payload: dict[str, Any], meta: dict[str, Any]) -> str | None:
        """The text kept beside the chunks; None where it was made of them and says nothing more."""
        has_all_chunks = payload.get("chunks_received") and not meta.get("dropped_chunks") and not self.num_dropped
        if payload.get("content_verified") is None and has_all_chunks:
            return None
        text = payload.get("partial_content")
        return text if isinstance(text, str) else None

    def _take_receipt(self, payload: dict[str, Any], meta: dict[str, Any], at_ns: int) -> None:
        key_id, status = payload.get("key_id"), payload.get("status")
        if not isinstance(key_id, str) or status not in _RECEIPT_STATUSES:
            return
        self.events.append(
            ReceiptSeen(
                mono_ns=at_ns,
                key_id=key_id,
                status=status,
                event_ns=self._moment(meta, "event_us"),
                event_uncertainty_ms=as_count(payload.get("event_uncertainty_ms")),
                is_wall_timed=bool(payload.get("is_wall_timed")),
            )
        )

    def _take_tools(self, meta: dict[str, Any], at_ns: int) -> None:
        errors = int(meta.get("num_tool_errors") or 0)
        for position in range(int(meta.get("num_tools") or 0)):
            self.events.append(ToolCalled(mono_ns=at_ns, phase="started", is_error=position < errors))
        self.num_dropped = max(self.num_dropped, int(meta.get("dropped_chunks") or 0))

    def _take_message(self, row: PayloadRow, payload: dict[str, Any], meta: dict[str, Any], at_ns: int) -> None:
        attempts = payload.get("attempts")  # 0 for a message that was never tried
        self.events.append(
            MessageSettled(
                mono_ns=at_ns,
                index=int(payload.get("index") or 0),
                recipient=payload.get("recipient"),
                text=str(payload.get("text") or ""),
                status=meta.get("status") or "failed",
                attempts=attempts if isinstance(attempts, int) else 1,
                queued_ns=self._moment(meta, "queued_us"),
                started_ns=self._moment(meta, "started_us"),
                accepted_ns=self._moment(meta, "accepted_us"),
                start=payload.get("start"),
                end=payload.get("end"),
                first_chunk=payload.get("first_chunk"),
                last_chunk=payload.get("last_chunk"),
                key_id=payload.get("key_id"),
                status_code=row.status_code,
                error_kind=payload.get("error_kind"),
                error=payload.get("error") or row.error_details,
                is_notice=bool(payload.get("is_notice")),
            )
        )

    def _since_start(self, wall: datetime) -> int:
        return self._anchor.mono_ns + _wall_ns(wall) - self._anchor.wall_ns

    def _moment(self, meta: dict[str, Any], key: str) -> int | None:
        value_us = meta.get(key)
        return self._mono(value_us) if isinstance(value_us, int) else None

    def _mono(self, offset_us: int) -> int:
        return self._anchor.mono_ns + offset_us * 1_000


def _is_ours(payload: Any) -> bool:
    return isinstance(payload, dict) and isinstance(payload.get("omni"), dict)


def _closing_texts(payloads: Sequence[PayloadRow]) -> dict[str, str]:
    return {
        row.stage: str(row.payload.get(TEXT_KEYS[row.stage]) or "")
        for row in payloads
        if row.stage in TEXT_KEYS and isinstance(row.payload, dict)
    }


def _usage(meta: dict[str, Any]) -> Usage | None:
    usage = meta.get("usage")
    return Usage(**usage) if isinstance(usage, dict) else None


def _wall_ns(wall: datetime | None) -> int:
    if wall is None:
        return 0
    aware = wall if wall.tzinfo is not None else wall.replace(tzinfo=UTC)
    since = aware - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
