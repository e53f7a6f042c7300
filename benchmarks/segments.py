"""How old is a chunk of a running stream before another process can read it, and what do segments cost?

Streams of 20 chunks a second run in real time on one event loop, their traces are written to a SQLite file. A chunk's age is counted from
its own time to the return of the commit that holds it: from then on any process reads it, whatever becomes of this one. CPU is that of
the whole process less what the same streams cost when segments come once a minute, so it is the price of being readable early.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from omni.clock import SystemClock
from omni.model import InboundMessage
from omni.ports import InsertPayload, WriteOp
from omni.settings import Settings
from omni.store.database import Database
from omni.store.writes import SqlTraceSink
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer
from omni.tracing.streaming_trace_context import StreamingTraceContext

Row = tuple[str, float, str, float | None]

LEVELS = (1, 50, 200)
CHUNKS_PER_S = 20
RUN_S = 5.0
AGE_BUDGET_MS = 250.0
RARELY_MS = 60_000


class TimingSink:
    """Stores through the real sink and notes how old the oldest chunk of each segment was when that was done."""

    def __init__(self, database: Database) -> None:
        self._sink = SqlTraceSink(database)
        self.starts_ns: dict[str, int] = {}
        self.ages_ms: list[float] = []
        self.write_ms: list[float] = []

    def note_start(self, trace: StreamingTraceContext) -> None:
        self.starts_ns[trace.trace_id] = trace.anchor.mono_ns

    def write(self, ops: Sequence[WriteOp]) -> None:
        began_ns = SystemClock.mono_ns()
        self._sink.write(ops)
        done_ns = SystemClock.mono_ns()
        self.write_ms.append((done_ns - began_ns) / 1e6)
        for op in ops:
            if isinstance(op, InsertPayload) and op.payload.get("is_segment"):
                oldest_ns = self.starts_ns[op.trace_id] + op.payload["first_offset_us"] * 1_000
                self.ages_ms.append((done_ns - oldest_ns) / 1e6)


def measure() -> list[Row]:
    rows: list[Row] = []
    for level in LEVELS:
        sink, cpu_s, num_chunks = _run(level, Settings(_env_file=None))
        _, rare_cpu_s, _ = _run(level, Settings(_env_file=None, trace_segment_ms=RARELY_MS))
        ages, writes = sorted(sink.ages_ms), sorted(sink.write_ms)
        name = f"{level} streams of {CHUNKS_PER_S} chunks/s"
        rows += [
            (f"{name}: age of a chunk when it is readable, p50", ages[len(ages) // 2], "ms", None),
            (f"{name}: age of a chunk when it is readable, max", ages[-1], "ms", AGE_BUDGET_MS),
            (f"{name}: one transaction, p50", writes[len(writes) // 2], "ms", None),
            (f"{name}: one transaction, max", writes[-1], "ms", None),
            (f"{name}: segments", len(ages) / RUN_S, "segments/s", None),
            (f"{name}: CPU per chunk for segments", (cpu_s - rare_cpu_s) / num_chunks * 1e6, "us", None),
            (f"{name}: CPU per segment", (cpu_s - rare_cpu_s) / len(ages) * 1e6, "us", None),
        ]
    return rows


def _run(level: int, settings: Settings) -> tuple[TimingSink, float, int]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(f"sqlite:///{Path(folder) / 'bench.db'}")
        sink, clock = TimingSink(database), SystemClock()
        recorder = Recorder(sink, clock=clock, settings=settings)
        recorder.start()
        tracer = Tracer(clock=clock, recorder=recorder, reader=None)
        began = time.process_time()
        num_chunks = asyncio.run(_stream_all(tracer, sink, level))
        cpu_s = time.process_time() - began
        recorder.stop(deadline_s=60)
        database.close()
    return sink, cpu_s, num_chunks


async def _stream_all(tracer: Tracer, sink: TimingSink, level: int) -> int:
    return sum(await asyncio.gather(*[stream(tracer, number / level, sink.note_start) for number in range(level)]))


async def stream(
    tracer: Tracer, phase: float, on_start: Callable[[StreamingTraceContext], None] = lambda _: None
) -> int:
    """One paced stream, begun a part ``phase`` of a chunk's time later; how many chunks it had."""
    await asyncio.sleep(phase / CHUNKS_PER_S)
    trace = StreamingTraceContext.upgrade(tracer.open_turn(_message(), is_streaming=True))
    on_start(trace)
    trace.log_agent_request({"message": "oi"})
    num_chunks = int(RUN_S * CHUNKS_PER_S)
    for index in range(num_chunks):
        trace.log_streaming_chunk(" word", index, event_type="RunContent")
        await asyncio.sleep(1 / CHUNKS_PER_S)
    return num_chunks


def _message() -> InboundMessage:
    return InboundMessage(
        instance_name="bench",
        message_id="BENCH",
        chat_key="5511999990001@s.whatsapp.net",
        reply_to="5511999990001@s.whatsapp.net",
        sender_phone="5511999990001",
        sender_name="Bench",
        text="oi",
        message_type="text",
    )


if __name__ == "__main__":
    for what, value, unit, budget in measure():
        print(f"{what:75} {value:10.2f} {unit}" + ("" if budget is None else f"  (budget {budget:g})"))
