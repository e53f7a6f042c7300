"""The one place where a trace's events become figures. Pure: events in, a ``Timeline`` out.

The summary, the REST document, the row in the database, the terminal's picture and the log line all read a Timeline, so no
two of them can disagree. Times are nanoseconds from the turn's start by the monotonic clock; a moment that was not seen is
None, and whatever would be computed from it is None too.

Definitions (docs/reference/metrics.md has them in words):

    first token latency = first visible text - request written
    total streaming time = root run's terminal event - request written
    first to final = total streaming time - first token latency
    queue + agent wait + stream + delivery tail + unaccounted = turn total

A turn may be closed more than once (when its process died and what was left of it was sent later): the last closing counts. Receipts come
after that, for days; they change the messages and no figure of the turn (see ``receipts``).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from msgspec import Struct

from omni.clock import Anchor, exact_ms, whole_ms
from omni.model import Ending, Usage
from omni.tracing.events import (
    AgentRequested,
    AgentResponded,
    ChunkReceived,
    ColumnsChanged,
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
from omni.tracing.receipts import MessageReceipts, join_receipts
from omni.tracing.stage_times import StageTimes, stage_times


class Timeline(Struct, frozen=True, kw_only=True):
    """All that is known about one turn. ``*_ns`` are nanoseconds from the turn's start, None when not seen.

    ``messages`` have the status their receipts give them; ``receipts`` are what WhatsApp said of each, in the same order.
    """

    trace_id: str
    anchor: Anchor
    is_streaming: bool = False
    processing_ns: int | None = None
    request_ns: int | None = None
    first_byte_ns: int | None = None
    first_event_ns: int | None = None
    first_token_ns: int | None = None
    first_content: str | None = None
    last_chunk_ns: int | None = None
    agent_end_ns: int | None = None
    first_message_ns: int | None = None
    last_outcome_ns: int | None = None
    completed_ns: int | None = None
    ending: Ending | None = None
    error_stage: str | None = None
    error_message: str | None = None
    error_type: str | None = None
    chunks: tuple[ChunkReceived, ...] = ()
    num_dropped_chunks: int = 0
    content: str = ""
    is_content_verified: bool | None = None
    num_tools: int = 0
    num_tool_errors: int = 0
    usage: Usage | None = None
    messages: tuple[MessageSettled, ...] = ()
    receipts: tuple[MessageReceipts, ...] = ()

    @property
    def total_chunks(self) -> int:
        """Chunks received, those whose record was shed included."""
        return len(self.chunks) + self.num_dropped_chunks

    @property
    def total_content_length(self) -> int:
        """Characters (code points) of the answer."""
        return len(self.content)

    @property
    def is_text_of_chunks(self) -> bool:
        """Whether the chunks that were kept join to the very content, so that it need not be stored twice."""
        return self.content == "".join([chunk.text for chunk in self.chunks])

    @property
    def first_byte_latency_ms(self) -> float | None:
        """Milliseconds from the request to the first byte of the answer."""
        return exact_ms(_minus(self.first_byte_ns, self.request_ns))

    @property
    def first_event_latency_ms(self) -> float | None:
        """Milliseconds from the request to the first event of any kind."""
        return exact_ms(_minus(self.first_event_ns, self.request_ns))

    @property
    def first_token_latency_ms(self) -> int | None:
        """Whole milliseconds from the request to the first visible text. None when no text came."""
        return whole_ms(_minus(self.first_token_ns, self.request_ns))

    @property
    def total_streaming_time_ms(self) -> int | None:
        """Whole milliseconds from the request to the agent's end. None while open."""
        return whole_ms(_minus(self.agent_end_ns, self.request_ns))

    @property
    def first_to_final_ms(self) -> int | None:
        """Whole milliseconds between the two figures above, by subtraction, so that the three always add up."""
        return _minus(self.total_streaming_time_ms, self.first_token_latency_ms)

    @property
    def turn_total_ms(self) -> int | None:
        """Whole milliseconds from the turn's start until everything about it was known. None while open."""
        return whole_ms(self.completed_ns)

    @property
    def longest_gap_ms(self) -> float | None:
        """The longest silence between two chunks in milliseconds; None with fewer than two."""
        if len(self.chunks) < 2:
            return None
        times = [self.anchor.offset_ns(chunk.mono_ns) for chunk in self.chunks]
        return exact_ms(max(later - earlier for earlier, later in pairwise(times)))

    @property
    def stages(self) -> StageTimes:
        """Where the turn's time went."""
        return stage_times(
            request_ns=self.request_ns,
            first_token_ns=self.first_token_ns,
            agent_end_ns=self.agent_end_ns,
            last_outcome_ns=self.last_outcome_ns,
            completed_ns=self.completed_ns,
        )

    @property
    def num_accepted(self) -> int:
        """Messages Evolution accepted, those WhatsApp reported an error of later included."""
        return sum(
            message.status in _OUT or (message.status == "failed" and message.accepted_ns is not None)
            for message in self.messages
        )

    @property
    def num_delivered(self) -> int:
        """Messages that reached the user's phone by WhatsApp's word; those that were read are among them."""
        return sum(message.status in ("delivered", "read") for message in self.messages)

    @property
    def num_read(self) -> int:
        """Messages that were read by WhatsApp's word."""
        return sum(message.status == "read" for message in self.messages)

    @property
    def num_unknown(self) -> int:
        """Accepted messages of which WhatsApp said neither that they were delivered nor that they failed."""
        return sum(message.status == "accepted" for message in self.messages)

    @property
    def num_failed(self) -> int:
        """Messages that failed, here or at WhatsApp, or were not sent because an earlier one failed."""
        return sum(message.status in ("failed", "not_sent") for message in self.messages)

    @property
    def last_read_ns(self) -> int | None:
        """When the last of the messages that were read was; None while no receipt says so."""
        return max((told.read_ns for told in self.receipts if told.read_ns is not None), default=None)

    @property
    def tail_lag_ms(self) -> float | None:
        """Milliseconds from the last chunk to the last accepted message; None without either, and while the turn is open."""
        accepted = [message.accepted_ns for message in self.messages if message.accepted_ns is not None]
        if not accepted or self.last_chunk_ns is None or self.completed_ns is None:
            return None
        # The last message may be out before the last chunk, when that one brings nothing to show.
        return exact_ms(max(self.anchor.offset_ns(max(accepted)) - self.last_chunk_ns, 0))


def build_timeline(
    trace_id: str, anchor: Anchor, events: Iterable[TraceEvent], *, num_dropped_chunks: int = 0
) -> Timeline:
    """The Timeline of a trace from its events in the order they were appended. Linear in their number."""
    chunks: list[ChunkReceived] = []
    story = _Story()
    for event in events:
        if type(event) is ChunkReceived:  # first, because there are thousands of them
            chunks.append(event)
        else:
            story.take(event)
    at = anchor.offset_ns
    first_text = story.first_token or next((chunk for chunk in chunks if chunk.text.strip()), None)
    joined = "".join([chunk.text for chunk in chunks])
    final = story.final_content
    can_verify = bool(chunks) and final is not None and not num_dropped_chunks
    # By their place in the answer: recovery learns of some after later ones.
    in_order = sorted(story.messages, key=lambda message: message.index)
    messages, receipts = join_receipts(in_order, story.receipts, anchor)
    accepted = [at(message.accepted_ns) for message in story.messages if message.accepted_ns is not None]
    verdict = _verdict(story)
    moment = {kind: at(mono_ns) for kind, mono_ns in story.moments.items()}
    return Timeline(
        trace_id=trace_id,
        anchor=anchor,
        is_streaming=story.is_streaming,
        processing_ns=moment.get(ProcessingStarted),
        request_ns=moment.get(RequestWritten, moment.get(AgentRequested)),
        first_byte_ns=moment.get(FirstByteSeen),
        first_event_ns=moment.get(FirstEventSeen),
        first_token_ns=None if first_text is None else at(first_text.mono_ns),
        first_content=_text_of(first_text),
        last_chunk_ns=at(chunks[-1].mono_ns) if chunks else None,
        agent_end_ns=None if story.end is None else at(story.end.mono_ns),
        first_message_ns=min(accepted) if accepted else None,
        last_outcome_ns=max((at(message.mono_ns) for message in messages), default=None),
        completed_ns=None if story.turn_end is None else at(story.turn_end.mono_ns),
        ending=verdict.ending,
        error_stage=verdict.error_stage,
        error_message=verdict.error_message,
        error_type=story.end.error_type if isinstance(story.end, StreamFailed) else None,
        chunks=tuple(chunks),
        num_dropped_chunks=num_dropped_chunks,
        content=joined if final is None else final,
        is_content_verified=joined == final if can_verify else None,
        num_tools=story.num_tools,
        num_tool_errors=story.num_tool_errors,
        usage=_usage_of(story.end),
        messages=messages,
        receipts=receipts,
    )


# The statuses of a message that Evolution took, by its answer or by WhatsApp's word.
_OUT = ("accepted", "delivered", "read")
# Moments of which the first counts; a request that is written again (a changed prefix) starts the count anew.
_FIRST_COUNTS = (ProcessingStarted, FirstByteSeen, FirstEventSeen, StreamStarted)
_LAST_COUNTS = (AgentRequested, RequestWritten)


class _Story:
    """What the events other than chunks say."""

    def __init__(self) -> None:
        self.moments: dict[type, int] = {}
        self.first_token: FirstTokenSeen | None = None
        self.end: StreamCompleted | StreamFailed | AgentResponded | None = None
        self.turn_end: TurnEnded | None = None
        self.messages: list[MessageSettled] = []
        self.receipts: list[ReceiptSeen] = []
        self.columns: dict[str, Any] = {}
        self.is_streaming = False
        self.final_content: str | None = None
        self.num_tools = 0
        self.num_tool_errors = 0

    def take(self, event: TraceEvent) -> None:
        if isinstance(event, _FIRST_COUNTS):
            self.moments.setdefault(type(event), event.mono_ns)
        elif isinstance(event, _LAST_COUNTS):
            self.moments[type(event)] = event.mono_ns
        if isinstance(event, StreamStarted) or (isinstance(event, AgentRequested) and event.is_streaming):
            self.is_streaming = True
        match event:
            case FirstTokenSeen() if event.content.strip() and self.first_token is None:
                self.first_token = event
            case ToolCalled():
                self.num_tools += event.phase == "started"
                self.num_tool_errors += event.is_error
            case StreamCompleted() | StreamFailed() | AgentResponded():
                self._take_end(event)
            case MessageSettled():
                self.messages.append(event)
            case ReceiptSeen():
                self.receipts.append(event)
            case ColumnsChanged():
                self.columns.update(event.columns)
            case TurnEnded():
                self.turn_end = event
            case _:
                pass

    def _take_end(self, event: StreamCompleted | StreamFailed | AgentResponded) -> None:
        if self.end is not None:
            return
        self.end = event
        if isinstance(event, StreamCompleted):
            self.final_content = event.final_content
        elif isinstance(event, AgentResponded):
            self.final_content = str(event.payload.get("message") or "")
        else:
            self.final_content = event.content


def _text_of(first_text: FirstTokenSeen | ChunkReceived | None) -> str | None:
    if first_text is None:
        return None
    return first_text.text if isinstance(first_text, ChunkReceived) else first_text.content


def _usage_of(end: StreamCompleted | StreamFailed | AgentResponded | None) -> Usage | None:
    if not isinstance(end, AgentResponded):
        return None if end is None else end.usage
    told = end.payload.get("usage")
    if not isinstance(told, dict):
        return None
    # A whole answer's usage stands in its payload, in our words or in the predecessor's.
    return Usage(
        input_tokens=told.get("input_tokens", told.get("request_tokens")),
        output_tokens=told.get("output_tokens", told.get("response_tokens")),
        total_tokens=told.get("total_tokens"),
    )


class _Verdict(Struct, frozen=True):
    ending: Ending | None = None
    error_stage: str | None = None
    error_message: str | None = None


def _verdict(story: _Story) -> _Verdict:
    if story.turn_end is not None:
        return _Verdict(story.turn_end.ending, story.turn_end.error_stage, story.turn_end.error_message)
    if isinstance(story.end, StreamFailed):
        return _Verdict(story.end.ending, story.end.error_stage, story.end.error_message)
    return _Verdict()


def _minus(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier
