"""Turns told to a trace the way the gateway tells them, for tests of what reads traces back: real chunks, real splitter, real ranges."""

from collections.abc import Callable, Sequence
from itertools import accumulate

from omni.channels.whatsapp.splitter import ParagraphSplitter, Piece
from omni.model import Ending, InboundMessage, MessageOutcome, MessageStatus, OutboundMessage, Usage
from omni.testing import FakeClock
from omni.tracing.service import Tracer
from omni.tracing.streaming_trace_context import StreamingTraceContext

RECIPIENT = "5511999990001"
CHUNKS = ("Bom dia! ", "Seu pedido ", "saiu.\n\n", "", "Chega hoje. 🚚\n\n  - às 16h\n", "  - às 18h\n\n")
"""Three messages, one with indentation, and white space at the end that no message carries."""

Delivered = Callable[[int], MessageStatus]


def pieces_of(chunks: Sequence[str], *, max_chars: int = 4096) -> list[Piece]:
    """The messages the splitter makes of these chunks."""
    splitter = ParagraphSplitter(max_chars)
    return [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.finish()


def chunk_range(chunks: Sequence[str], start: int, end: int) -> tuple[int, int]:
    """The first and the last chunk with a part in the characters, counted the slow way."""
    ends = list(accumulate(len(chunk) for chunk in chunks))
    spans = [(stop - len(chunk), stop) for chunk, stop in zip(chunks, ends, strict=True)]
    touched = [index for index, (begin, stop) in enumerate(spans) if begin < end and stop > start and begin < stop]
    return touched[0], touched[-1]


def open_turn(tracer: Tracer, *, message_id: str = "3EB0C0") -> StreamingTraceContext:
    """A streamed turn that was just received."""
    message = InboundMessage(
        instance_name="shop",
        message_id=message_id,
        chat_key=f"{RECIPIENT}@s.whatsapp.net",
        reply_to=f"{RECIPIENT}@s.whatsapp.net",
        sender_phone=RECIPIENT,
        sender_name="Maria",
        text="Cadê meu pedido?",
        message_type="text",
        raw={"event": "messages.upsert"},
    )
    return StreamingTraceContext.upgrade(tracer.open_turn(message, is_streaming=True))


def tell_stream(trace: StreamingTraceContext, clock: FakeClock, chunks: Sequence[str] = CHUNKS) -> None:
    """The question and every chunk, 30 ms apart; the agent has not ended."""
    trace.await_delivery()
    trace.log_processing_start()
    clock.advance_ms(5)
    trace.log_agent_request({"message": "Cadê meu pedido?", "session_id": "s"})
    trace.mark_request_written(clock.mono_ns())
    trace.log_streaming_start({"agent_id": "genie"})
    clock.advance_ms(150)
    has_token = False
    for index, chunk in enumerate(chunks):
        if not has_token and chunk.strip():
            has_token = True
            trace.log_first_token(chunk, {"event_type": "RunContent"}, at_ns=clock.mono_ns())
        trace.log_streaming_chunk(chunk, index, event_type="RunContent", at_ns=clock.mono_ns())
        clock.advance_ms(30)


def tell_messages(
    trace: StreamingTraceContext,
    clock: FakeClock,
    chunks: Sequence[str] = CHUNKS,
    *,
    status_of: Delivered = lambda _: "accepted",
    max_chars: int = 4096,
) -> int:
    """Every message of the answer with its outcome; how many there were."""
    pieces = pieces_of(chunks, max_chars=max_chars)
    for index, piece in enumerate(pieces):
        tell_piece(trace, clock, chunks, index, piece, status=status_of(index))
    return len(pieces)


def tell_piece(
    trace: StreamingTraceContext,
    clock: FakeClock,
    chunks: Sequence[str],
    index: int,
    piece: Piece,
    *,
    status: MessageStatus = "accepted",
) -> None:
    """One message of the answer with its outcome."""
    first_chunk, last_chunk = chunk_range(chunks, piece.start, piece.end)
    message = OutboundMessage(
        index=index,
        recipient=RECIPIENT,
        text=piece.text,
        start=piece.start,
        end=piece.end,
        first_chunk=first_chunk,
        last_chunk=last_chunk,
    )
    _log(trace, clock, message, status)


def tell_notice(trace: StreamingTraceContext, clock: FakeClock, *, index: int, end: int) -> None:
    """The one polite notice behind what arrived."""
    message = OutboundMessage(index=index, recipient=RECIPIENT, text="Something went wrong.", start=end, end=end)
    _log(trace, clock, message, "accepted", is_notice=True)


def tell_answer(
    trace: StreamingTraceContext,
    clock: FakeClock,
    chunks: Sequence[str] = CHUNKS,
    *,
    status_of: Delivered = lambda _: "accepted",
    max_chars: int = 4096,
) -> None:
    """A whole answered turn; ``send_failed`` when a message was not accepted."""
    tell_stream(trace, clock, chunks)
    trace.log_tool_call("stock", at_ns=clock.mono_ns())
    usage = Usage(input_tokens=9, output_tokens=4, total_tokens=13)
    trace.log_streaming_complete("".join(chunks), usage=usage, at_ns=clock.mono_ns())
    num_messages = tell_messages(trace, clock, chunks, status_of=status_of, max_chars=max_chars)
    if all(status_of(index) == "accepted" for index in range(num_messages)):
        trace.end_turn("completed")
    else:
        trace.end_turn("send_failed", error_message="Evolution answered 400", error_stage="evolution_send")


def tell_broken_answer(
    trace: StreamingTraceContext, clock: FakeClock, chunks: Sequence[str] = CHUNKS, *, ending: Ending = "error"
) -> None:
    """A turn whose stream broke: what arrived is delivered, one notice follows."""
    tell_stream(trace, clock, chunks)
    cause = "the agent reported an error"
    trace.log_streaming_error(cause, "streaming_error", ending=ending, at_ns=clock.mono_ns())
    num_messages = tell_messages(trace, clock, chunks)
    tell_notice(trace, clock, index=num_messages, end=len("".join(chunks)))
    trace.end_turn(ending, error_message=cause, error_stage="streaming_error")


def _log(
    trace: StreamingTraceContext,
    clock: FakeClock,
    message: OutboundMessage,
    status: MessageStatus,
    *,
    is_notice: bool = False,
) -> None:
    queued_ns = clock.mono_ns()
    clock.advance_ms(40)
    is_tried = status != "not_sent"
    outcome = MessageOutcome(
        message=message,
        status=status,
        attempts=1 if is_tried else 0,
        queued_ns=queued_ns,
        started_ns=queued_ns if is_tried else None,
        ended_ns=clock.mono_ns(),
        key_id=f"3EB0{message.index:04}" if status == "accepted" else None,
        status_code={"accepted": 201, "failed": 400}.get(status),
        error=None if status == "accepted" else "Evolution answered 400",
    )
    trace.log_message(outcome, is_notice=is_notice)
