"""Opening traces and reading them back.

``Tracer`` is the real part: it owns nothing but references to a recorder, a clock and a reader. ``TraceService`` and
``create_streaming_trace_context`` are the public names older callers know; they use the process's own Tracer, which ``app`` provides
on first use, so a plain script needs no set-up.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from msgspec import Struct

from omni.clock import Anchor, Clock, take_anchor, wall_datetime
from omni.errors import StoreError
from omni.model import InboundMessage, MessageOutcome
from omni.ports import PayloadRow, TraceFilter, TraceReader, TraceRow
from omni.tracing.document import streaming_document
from omni.tracing.events import ReceiptSeen, TraceOpened
from omni.tracing.fitting import as_payload
from omni.tracing.journal import TraceJournal
from omni.tracing.recorder import Recorder
from omni.tracing.stored import StoredTrace, read_stored_trace
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.trace_context import TraceContext

_MEDIA_TYPES = {
    "imageMessage": "image",
    "videoMessage": "video",
    "audioMessage": "audio",
    "documentMessage": "document",
    "documentWithCaptionMessage": "document",
    "stickerMessage": "sticker",
}


class Tracer:
    """Opens traces on a recorder; reads them from a store. Opening is safe from any thread and never blocks.

    Without a recorder (tracing switched off) contexts work all the same and keep their figures in memory only.
    """

    def __init__(self, *, clock: Clock, recorder: Recorder | None, reader: TraceReader | None) -> None:
        self._clock = clock
        self.recorder = recorder
        self._reader = reader

    @property
    def reader(self) -> TraceReader:
        """Where traces are read back. Raises StoreError when the tracer was made without one."""
        if self._reader is None:
            raise StoreError("this tracer has no store to read from")
        return self._reader

    def open_turn(
        self,
        message: InboundMessage,
        *,
        is_streaming: bool,
        received_ns: int | None = None,
        received_at: datetime | None = None,
        trace_id: str | None = None,
        taken_up_from: str | None = None,
    ) -> TraceContext:
        """A new trace for an inbound message, opened at ``received_ns`` (monotonic) or now.

        A message that an earlier process received is opened at ``received_at``, counted by the wall clock; ``taken_up_from``
        is the trace that process had opened for it.
        """
        columns = {
            "instance_name": message.instance_name,
            "whatsapp_message_id": message.message_id,
            "sender_phone": message.sender_phone,
            "sender_name": message.sender_name,
            "sender_jid": message.reply_to,
            "message_type": message.message_type,
            "has_media": message.has_media,
            "has_quoted_message": message.has_quoted_message,
            "message_length": len(message.text),
        }
        webhook = message.raw or None
        if taken_up_from is not None:
            webhook = {"taken_up_from": taken_up_from, "text": message.text}
        if received_at is not None:
            received_ns = self._anchor_at(received_at).mono_ns
        return self._open(
            columns, webhook=webhook, is_streaming=is_streaming, received_ns=received_ns, trace_id=trace_id
        )

    def reopen(self, row: TraceRow, payloads: Sequence[PayloadRow]) -> "ReopenedTrace":
        """A stored trace that can be logged to again: what is stored stays, what is logged now comes behind it.

        Moments of now stand on the turn's line by the wall clock, because the process that opened it is gone. Safe from any thread.
        """
        anchor = self._anchor_at(row.received_at or self.now())
        stored = read_stored_trace(row, payloads, anchor=anchor)
        timeline = stored.timeline
        journal = TraceJournal(
            row.trace_id,
            anchor,
            self.recorder,
            stored_events=stored.events,
            has_segments=bool(timeline.chunks) and timeline.agent_end_ns is None,
            num_shed=timeline.num_dropped_chunks,
            num_lost=stored.num_lost_rows,
        )
        kind = StreamingTraceContext if timeline.is_streaming else TraceContext
        return ReopenedTrace(context=kind(row.trace_id, journal=journal, clock=self._clock), stored=stored)

    def log_receipt(self, trace_id: str, turn: Anchor, receipt: ReceiptSeen) -> None:
        """Put a receipt on a trace, open or closed; ``turn`` is the turn's start. Never blocks, never raises."""
        TraceJournal(trace_id, turn, self.recorder).append(receipt)

    def open_from_webhook(
        self, message_data: Mapping[str, Any], instance_name: str, *, is_streaming: bool
    ) -> TraceContext:
        """A new trace from a webhook body in Evolution's shape, for callers that have not parsed it."""
        return self._open(
            _columns_of(message_data, instance_name), webhook=as_payload(message_data), is_streaming=is_streaming
        )

    def open_columns(self, columns: dict[str, Any], *, is_streaming: bool) -> TraceContext:
        """A new trace whose row begins with ``columns``, for callers without a message or a webhook body."""
        return self._open(columns, webhook=None, is_streaming=is_streaming)

    def now(self) -> datetime:
        """The wall time, UTC."""
        return wall_datetime(self._clock.wall_ns())

    def flush(self, *, deadline_s: float = 5.0) -> bool:
        """Wait until all that was logged is stored. Blocks; False when it took longer than ``deadline_s``."""
        return True if self.recorder is None else self.recorder.flush(deadline_s=deadline_s)

    def record_outbound(
        self, *, instance_name: str, recipient: str, outcomes: Sequence[MessageOutcome], message_type: str = "text"
    ) -> TraceContext:
        """A trace of messages that were sent without a question, with what became of each."""
        context = self.open_outbound(
            instance_name=instance_name,
            recipient=recipient,
            num_chars=sum(len(outcome.message.text) for outcome in outcomes),
            message_type=message_type,
            begun_ns=min((outcome.queued_ns for outcome in outcomes), default=None),
        )
        self.close_outbound(context, outcomes)
        return context

    def open_outbound(
        self,
        *,
        instance_name: str,
        recipient: str,
        num_chars: int,
        message_type: str = "text",
        trace_id: str | None = None,
        begun_ns: int | None = None,
    ) -> TraceContext:
        """A new trace of messages that answer nobody, opened at ``begun_ns`` (monotonic) or now."""
        columns = {
            "instance_name": instance_name,
            "sender_phone": _digits(recipient),
            "sender_jid": recipient,
            "message_type": message_type,
            "message_length": num_chars,
        }
        return self._open(columns, webhook=None, is_streaming=False, received_ns=begun_ns, trace_id=trace_id)

    def close_outbound(self, context: TraceContext, outcomes: Sequence[MessageOutcome]) -> None:
        """Put what became of such messages on their trace and close it."""
        for outcome in outcomes:
            context.log_message(outcome)
        failed = next(
            (outcome for outcome in outcomes if outcome.status not in ("accepted", "delivered", "read")), None
        )
        if failed is None:
            context.end_turn("completed")
        else:
            context.end_turn("send_failed", error_message=failed.error, error_stage="evolution_send")

    def _anchor_at(self, wall: datetime) -> Anchor:
        """The anchor of a turn that began at a wall time; monotonic readings of this process fit behind it."""
        now = take_anchor(self._clock)
        wall_ns = (wall - _EPOCH) // timedelta(microseconds=1) * 1_000
        # A clock that was set back must not put the beginning behind us.
        return Anchor(wall_ns=wall_ns, mono_ns=now.mono_ns - max(now.wall_ns - wall_ns, 0))

    def _open(
        self,
        columns: dict[str, Any],
        *,
        webhook: dict[str, Any] | None,
        is_streaming: bool,
        received_ns: int | None = None,
        trace_id: str | None = None,
    ) -> TraceContext:
        trace_id = trace_id or str(uuid4())
        anchor = take_anchor(self._clock)
        if received_ns is not None:
            # The turn began when the webhook arrived, a moment before its trace.
            anchor = type(anchor)(wall_ns=anchor.wall_ns - (anchor.mono_ns - received_ns), mono_ns=received_ns)
        journal = TraceJournal(trace_id, anchor, self.recorder)
        journal.append(TraceOpened(mono_ns=anchor.mono_ns, columns=columns, webhook=webhook))
        kind = StreamingTraceContext if is_streaming else TraceContext
        return kind(trace_id, journal=journal, clock=self._clock)


class ReopenedTrace(Struct, frozen=True, kw_only=True):
    """A trace taken up again: ``context`` to log to, ``stored`` what was there."""

    context: TraceContext
    stored: StoredTrace


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_provider: Callable[[], Tracer] | None = None


def provide_tracer(provider: Callable[[], Tracer]) -> None:
    """Say where the process's own Tracer comes from; ``app`` calls this."""
    global _provider  # noqa: PLW0603 - the public names of the predecessor are process-wide
    _provider = provider


def default_tracer() -> Tracer:
    """The process's own Tracer. Raises StoreError when nobody provided one."""
    if _provider is None:
        raise StoreError("no tracer is provided; import the public names from the package omni")
    return _provider()


def create_streaming_trace_context(
    instance_name: str,
    whatsapp_message_id: str | None = None,
    sender_phone: str | None = None,
    sender_name: str | None = None,
    sender_jid: str | None = None,
    message_type: str = "text",
    **extra: Any,
) -> StreamingTraceContext:
    """Open a streaming trace and return its context. Never blocks, except to open the store on first use.

    What is not known is left out. ``extra`` may hold ``message_text``, ``session_name`` and the flags ``has_media`` and
    ``has_quoted_message``; further keywords are passed over.
    """
    columns = {
        "instance_name": instance_name,
        "whatsapp_message_id": whatsapp_message_id,
        "sender_phone": sender_phone,
        "sender_name": sender_name,
        "sender_jid": sender_jid,
        "message_type": message_type,
        "has_media": bool(extra.get("has_media")),
        "has_quoted_message": bool(extra.get("has_quoted_message")),
        "message_length": len(str(extra.get("message_text") or "")),
    }
    context = default_tracer().open_columns(columns, is_streaming=True)
    context.update_session_info(session_name=extra.get("session_name"))
    return StreamingTraceContext.upgrade(context)


class TraceService:
    """Traces under the names older callers know. ``db_session`` is accepted everywhere and ignored.

    Reading methods block; they raise StoreError when the database does.
    """

    @staticmethod
    def create_trace(message_data: dict[str, Any], instance_name: str, db_session: object = None) -> TraceContext:  # noqa: ARG004
        """Open a trace for a webhook body and return its context."""
        return default_tracer().open_from_webhook(message_data, instance_name, is_streaming=False)

    @staticmethod
    def create_streaming_trace(
        message_data: dict[str, Any],
        instance_name: str,
        db_session: object = None,  # noqa: ARG004
    ) -> StreamingTraceContext:
        """Open a trace for a webhook body whose answer will be streamed."""
        context = default_tracer().open_from_webhook(message_data, instance_name, is_streaming=True)
        return StreamingTraceContext.upgrade(context)

    @staticmethod
    def get_trace(trace_id: str, db_session: object = None) -> TraceRow | None:  # noqa: ARG004
        """The trace's row, or None."""
        tracer = default_tracer()
        tracer.flush()
        return tracer.reader.get_trace(trace_id)

    @staticmethod
    def get_trace_payloads(trace_id: str, db_session: object = None) -> list[PayloadRow]:  # noqa: ARG004
        """The trace's payload rows in the order they were written, decoded."""
        tracer = default_tracer()
        tracer.flush()
        return tracer.reader.get_payloads(trace_id)

    @staticmethod
    def get_traces_by_phone(phone: str, limit: int = 50, db_session: object = None) -> list[TraceRow]:  # noqa: ARG004
        """The newest traces of a phone number."""
        tracer = default_tracer()
        tracer.flush()
        return tracer.reader.list_traces(TraceFilter(phone=phone, limit=limit))

    @staticmethod
    def get_streaming_document(trace_id: str) -> dict[str, Any] | None:
        """The streaming document of a trace, or None when there is no such trace."""
        row = TraceService.get_trace(trace_id)
        if row is None:
            return None
        return streaming_document(read_stored_trace(row, default_tracer().reader.get_payloads(trace_id)))

    @staticmethod
    def cleanup_old_traces(days_old: int = 30, db_session: object = None) -> int:  # noqa: ARG004
        """Remove traces received more than ``days_old`` days ago with all their payloads; how many went."""
        tracer = default_tracer()
        tracer.flush()
        return tracer.reader.delete_older_than(tracer.now() - timedelta(days=days_old))

    @staticmethod
    def record_outbound_message(
        instance_name: str, recipient: str, outcomes: Sequence[MessageOutcome], message_type: str = "text"
    ) -> TraceContext:
        """Record messages that were sent without a question, with what became of each."""
        return default_tracer().record_outbound(
            instance_name=instance_name, recipient=recipient, outcomes=outcomes, message_type=message_type
        )


def _columns_of(message_data: Mapping[str, Any], instance_name: str) -> dict[str, Any]:
    data = _mapping(_mapping(message_data).get("data"))
    key = _mapping(data.get("key"))
    message = _mapping(data.get("message"))
    jid = str(key.get("remoteJid") or "")
    media = next((name for name in _MEDIA_TYPES if name in message), None)
    text = message.get("conversation") or _mapping(message.get("extendedTextMessage")).get("text")
    has_text = isinstance(text, str)
    return {
        "instance_name": instance_name,
        "whatsapp_message_id": key.get("id"),
        "sender_phone": _digits(jid),
        "sender_name": data.get("pushName"),
        "sender_jid": jid or None,
        "message_type": "text" if has_text else _MEDIA_TYPES.get(media or "", "unknown"),
        "has_media": media is not None,
        "has_quoted_message": "quotedMessage" in _mapping(data.get("contextInfo")),
        "message_length": len(text) if isinstance(text, str) else 0,
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _digits(jid: str) -> str:
    """The part left of the ``@`` without a device suffix; numbers are kept as they are, no country code is guessed."""
    return jid.split("@", 1)[0].split(":", 1)[0]
