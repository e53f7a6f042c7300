"""What can happen on a trace, each as one small frozen event.

A context appends these and returns; nothing is computed, encoded or written when they are made. ``mono_ns`` is always a
reading of the monotonic clock, taken where the thing happened (a chunk: when the socket read returned). Everything Omni
says about a turn is derived from a trace's events by ``timeline.build_timeline``.
"""

from typing import Any, Literal

from msgspec import Struct

from omni.model import Ending, MessageStatus, ReceiptStatus, SendErrorKind, UpstreamCancel, Usage
from omni.ports import PayloadType


class TraceOpened(Struct, frozen=True, kw_only=True):
    """The turn began: a webhook was received, or a caller of the library opened a trace."""

    mono_ns: int
    columns: dict[str, Any]
    webhook: dict[str, Any] | None = None


class ProcessingStarted(Struct, frozen=True):
    """The turn left its chat's queue and is being answered."""

    mono_ns: int


class StageLogged(Struct, frozen=True, kw_only=True):
    """A caller logged a payload for a stage of its own choosing."""

    mono_ns: int
    stage: str
    payload_type: PayloadType
    payload: dict[str, Any]
    status_code: int | None = None
    error_details: str | None = None


class ColumnsChanged(Struct, frozen=True, kw_only=True):
    """A caller set columns of the trace's row (status, session, anything legacy callers pass)."""

    mono_ns: int
    columns: dict[str, Any]


class AgentRequested(Struct, frozen=True, kw_only=True):
    """The request is about to be written; ``payload`` is what the agent is told."""

    mono_ns: int
    payload: dict[str, Any]
    is_streaming: bool


class RequestWritten(Struct, frozen=True):
    """The request's last byte went to the socket: the zero of every latency of the agent."""

    mono_ns: int


class StreamStarted(Struct, frozen=True, kw_only=True):
    """The answer is going to be streamed; ``config`` says from where and to whom."""

    mono_ns: int
    config: dict[str, Any]


class FirstByteSeen(Struct, frozen=True):
    """The first byte of the answer arrived."""

    mono_ns: int


class FirstEventSeen(Struct, frozen=True):
    """The first event of any kind arrived."""

    mono_ns: int


class FirstTokenSeen(Struct, frozen=True, kw_only=True):
    """The first visible text arrived."""

    mono_ns: int
    content: str
    event_data: dict[str, Any] | None = None


class ChunkReceived(Struct, frozen=True, gc=False):
    """One piece of the answer. ``index`` counts from 0; ``event_type`` is the server's name for the event."""

    mono_ns: int
    index: int
    text: str
    event_type: str | None = None


class ToolCalled(Struct, frozen=True, kw_only=True):
    """A tool started or ended."""

    mono_ns: int
    phase: Literal["started", "completed"]
    name: str | None = None
    is_error: bool = False


class StreamCompleted(Struct, frozen=True, kw_only=True):
    """The root run ended well; ``final_content`` is the whole answer."""

    mono_ns: int
    final_content: str
    completion_data: dict[str, Any] | None = None
    usage: Usage | None = None


class StreamFailed(Struct, frozen=True, kw_only=True):
    """The stream ended in any other way. ``content`` is the text that arrived until then, None when only the chunks tell.

    ``upstream_cancel`` says what became of telling the agent server to stop the run, None when there was no run to stop.
    """

    mono_ns: int
    ending: Ending
    error_message: str
    error_type: str
    error_stage: str
    status_code: int | None = None
    detail: str | None = None
    usage: Usage | None = None
    content: str | None = None
    upstream_cancel: UpstreamCancel | None = None


class AgentResponded(Struct, frozen=True, kw_only=True):
    """A whole answer arrived at once, from an agent that was not asked to stream."""

    mono_ns: int
    payload: dict[str, Any]
    processing_time_ms: int | None = None
    status_code: int | None = 200


class MessageSettled(Struct, frozen=True, kw_only=True):
    """What became of one outgoing message. Times are monotonic nanoseconds; chunk indexes None for a notice.

    ``start`` and ``end`` are the code-point range of the answer it stands for, None where nobody kept it.
    """

    mono_ns: int
    index: int
    recipient: str | None
    text: str
    status: MessageStatus
    attempts: int = 1
    queued_ns: int | None = None
    started_ns: int | None = None
    accepted_ns: int | None = None
    start: int | None = None
    end: int | None = None
    first_chunk: int | None = None
    last_chunk: int | None = None
    key_id: str | None = None
    status_code: int | None = None
    error_kind: SendErrorKind | None = None
    error: str | None = None
    is_notice: bool = False
    payload: dict[str, Any] | None = None


class ReceiptSeen(Struct, frozen=True, kw_only=True):
    """WhatsApp's word on a message of the turn arrived. It joins by ``key_id``, at any time, in any order, any number of times.

    ``event_ns`` is the moment the event itself names, moved to our clock (a monotonic reading), None when it names none;
    ``event_uncertainty_ms`` how wrong that may be. ``is_wall_timed`` says that ``mono_ns`` was counted by the wall clock because the
    message was sent by another process.
    """

    mono_ns: int
    key_id: str
    status: ReceiptStatus
    event_ns: int | None = None
    event_uncertainty_ms: int | None = None
    is_wall_timed: bool = False


class TurnEnded(Struct, frozen=True, kw_only=True):
    """Everything about the turn is known: the agent is done and every message has its outcome."""

    mono_ns: int
    ending: Ending
    error_message: str | None = None
    error_stage: str | None = None


TraceEvent = (
    TraceOpened
    | ProcessingStarted
    | StageLogged
    | ColumnsChanged
    | AgentRequested
    | RequestWritten
    | StreamStarted
    | FirstByteSeen
    | FirstEventSeen
    | FirstTokenSeen
    | ChunkReceived
    | ToolCalled
    | StreamCompleted
    | StreamFailed
    | AgentResponded
    | MessageSettled
    | ReceiptSeen
    | TurnEnded
)
