"""A process that is killed in the middle of many answers: opens traces through Omni's own parts, stores their chunks in segments, waits.

What it leaves in the database is what a real one leaves, because the same recorder wrote it. It says so on standard output and then does
nothing until it is killed; it never closes a trace.

    python -m benchmarks.support_left_open NUM_TRACES       settings from the environment
"""

import signal
import sys

from omni.model import InboundMessage
from omni.runtime import Runtime
from omni.settings import load_settings
from omni.tracing.streaming_trace_context import StreamingTraceContext

READY = "left open"

# Stored in two segments; the rest of each answer never came.
_CHUNKS = [f" palavra {index}" if index % 30 else ".\n\n" for index in range(1, 61)]
TEXT = "".join(_CHUNKS)
"""What each trace had received, and stored, when its process died."""

_FLUSH_EVERY = 500
_FLUSH_DEADLINE_S = 60.0


def leave_open(runtime: Runtime, num_traces: int) -> None:
    """Open traces, each with a question, a first token and two segments of chunks, all stored."""
    half = len(_CHUNKS) // 2
    for start in range(0, num_traces, _FLUSH_EVERY):
        traces = [_begin(runtime, number) for number in range(start, min(start + _FLUSH_EVERY, num_traces))]
        for chunks in (range(half), range(half, len(_CHUNKS))):
            for trace in traces:
                for index in chunks:
                    trace.log_streaming_chunk(_CHUNKS[index], index, event_type="RunContent")
            if not runtime.tracer.flush(deadline_s=_FLUSH_DEADLINE_S):
                raise RuntimeError("the traces could not be stored in time")


def _begin(runtime: Runtime, number: int) -> StreamingTraceContext:
    phone = f"55119{number:08d}"
    message = InboundMessage(
        instance_name="bench",
        message_id=f"LEFT{number}",
        chat_key=f"{phone}@s.whatsapp.net",
        reply_to=f"{phone}@s.whatsapp.net",
        sender_phone=phone,
        sender_name="Bench",
        text="Cadê o pedido?",
        message_type="text",
        raw={"event": "messages.upsert", "data": {"key": {"id": f"LEFT{number}"}}},
    )
    trace = StreamingTraceContext.upgrade(runtime.tracer.open_turn(message, is_streaming=True))
    trace.await_delivery()
    trace.log_processing_start()
    trace.log_agent_request({"message": message.text, "session_id": f"s{number}"}, is_streaming=True)
    trace.log_streaming_start({"agent_id": "bench"})
    trace.log_first_token(_CHUNKS[0])
    return trace


if __name__ == "__main__":
    opened = Runtime(load_settings())
    leave_open(opened, int(sys.argv[1]))
    print(READY, flush=True)
    signal.pause()
