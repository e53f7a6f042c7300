"""What a durable record costs: how long a put takes with 50 in flight, and what three puts for each outgoing message cost.

A real SQLite file, written at the same time by the recorder of 50 streams at 20 chunks a second. Every put is its own task that waits
for its record to be durable, as a webhook does. Then the same while another process holds the database: after the first put, which
waits for as long as a write may wait, all go to the spool.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from msgspec import structs

from benchmarks.segments import stream
from omni.clock import SystemClock
from omni.model import InboundMessage
from omni.ports import LedgerOp, PutInbound, PutOutbound
from omni.records import InboxRecord, OutboxRecord
from omni.settings import Settings
from omni.store.database import Database
from omni.store.ledger import LedgerWriter
from omni.store.ledger_writes import SqlLedgerSink
from omni.store.spool import Spool
from omni.store.spooling import SpooledLedgerSink, SpooledTraceSink, StoreGate
from omni.store.writes import SqlTraceSink
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer

Row = tuple[str, float, str, float | None]

IN_FLIGHT = 50
NUM_PUTS = 20_000
NUM_MESSAGES = 1_000
NUM_STREAMS = 50
PUT_BUDGET_MS = 15.0
PROCESS_ID = "00000000-0000-4000-8000-000000000000"
AT = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


class Parts:
    """Recorder and ledger with a spool between them and a SQLite file, as a server has them."""

    def __init__(self, folder: Path) -> None:
        settings, clock = Settings(_env_file=None), SystemClock()
        self.path = folder / "bench.db"
        self.database = Database.open(f"sqlite:///{self.path}")
        self.spool = Spool(folder / "spool.db", max_bytes=settings.spool_max_mb * 1_000_000)
        wait_ms = settings.database_wait_ms
        self.gate = StoreGate(
            self.spool,
            traces=SqlTraceSink(self.database, process_id=PROCESS_ID, wait_ms=wait_ms),
            ledger=SqlLedgerSink(self.database, process_id=PROCESS_ID, wait_ms=wait_ms),
            probe=self._probe,
            clock=clock,
        )
        self.recorder = Recorder(SpooledTraceSink(self.gate), clock=clock, settings=settings, tiers=self.gate)
        self.ledger = LedgerWriter(SpooledLedgerSink(self.gate), clock=clock, settings=settings)
        self.tracer = Tracer(clock=clock, recorder=self.recorder, reader=None)

    def _probe(self) -> None:
        with self.database.writing("probing", wait_ms=1_000):
            pass


@contextmanager
def running_parts() -> Iterator[Parts]:
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder))
        parts.gate.start()
        parts.recorder.start()
        parts.ledger.start()
        try:
            yield parts
        finally:
            is_drained = [parts.recorder.stop(), parts.ledger.stop(), parts.gate.stop(deadline_s=30)]
            num_stored = _count_inbox(parts.path)
            parts.database.close()
        if not all(is_drained) or num_stored != NUM_PUTS:
            raise RuntimeError(f"{num_stored} of {NUM_PUTS} records were stored")


def measure() -> list[Row]:
    rows: list[Row] = []
    for name, with_streams in (("idle recorder", False), (f"{NUM_STREAMS} streams recorded", True)):
        with running_parts() as parts:
            latencies, cpu_us = uvloop.run(_measure_puts(parts, with_streams=with_streams))
        rows += _latency_rows(f"put, {IN_FLIGHT} in flight, {name}", latencies)
        if not with_streams:
            rows.append((f"put, {IN_FLIGHT} in flight, {name}: CPU all in", cpu_us, "us", None))
    with running_parts() as parts:
        latencies = uvloop.run(_measure_held(parts))
    rows += _latency_rows(f"put, {IN_FLIGHT} in flight, database held, to the spool", latencies)
    with running_parts() as parts:
        rows += uvloop.run(_measure_outbox(parts))
    return rows


def _latency_rows(name: str, latencies_ms: Sequence[float]) -> list[Row]:
    ordered = sorted(latencies_ms)
    return [
        (f"{name}: p50", ordered[len(ordered) // 2], "ms", None),
        (f"{name}: p99", ordered[len(ordered) * 99 // 100], "ms", PUT_BUDGET_MS),
        (f"{name}: max", ordered[-1], "ms", None),
    ]


async def _measure_puts(parts: Parts, *, with_streams: bool) -> tuple[list[float], float]:
    streams = [
        asyncio.create_task(stream(parts.tracer, number / NUM_STREAMS))
        for number in range(NUM_STREAMS if with_streams else 0)
    ]
    if streams:
        await asyncio.sleep(0.5)
    await parts.ledger.put(_inbound(0))  # opens the connection
    began = time.process_time()
    latencies = await _put_all(parts.ledger, _inbound, NUM_PUTS)
    cpu_us = (time.process_time() - began) / NUM_PUTS * 1e6
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    return latencies, cpu_us


async def _measure_held(parts: Parts) -> list[float]:
    holder = sqlite3.connect(parts.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    await parts.ledger.put(_inbound(0))
    latencies = await _put_all(parts.ledger, _inbound, NUM_PUTS)
    if parts.gate.is_database_up:
        raise RuntimeError("the database was not held")
    holder.execute("ROLLBACK")
    holder.close()
    return latencies


async def _measure_outbox(parts: Parts) -> list[Row]:
    """One message after the other, as a chat's lane sends them: two puts are waited for, the verdict is posted."""
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(NUM_MESSAGES):
        record = _outbound(number)
        await parts.ledger.put(PutOutbound(record))
        await parts.ledger.put(PutOutbound(structs.replace(record, state="sending", version=2, started_at=AT)))
        done = structs.replace(record, state="accepted", version=3, ended_at=AT, key_id=f"3EB0{number}", text=None)
        parts.ledger.post(PutOutbound(done))
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    await _put_all(parts.ledger, _inbound, NUM_PUTS)
    return [
        ("outbox, three puts per message, one message at a time: wall", took_s / NUM_MESSAGES * 1e3, "ms", None),
        ("outbox, three puts per message, one message at a time: CPU", cpu_s / NUM_MESSAGES * 1e6, "us", None),
    ]


async def _put_all(ledger: LedgerWriter, make: Callable[[int], LedgerOp], num_puts: int) -> list[float]:
    numbers = iter(range(num_puts))
    latencies: list[float] = []

    async def keep_putting() -> None:
        for number in numbers:
            began = time.perf_counter_ns()
            await ledger.put(make(number))
            latencies.append((time.perf_counter_ns() - began) / 1e6)

    await asyncio.gather(*[keep_putting() for _ in range(IN_FLIGHT)])
    return latencies


def _inbound(number: int) -> LedgerOp:
    message = InboundMessage(
        instance_name="bench",
        message_id=f"3EB0{number:018X}",
        chat_key="5511999990001@s.whatsapp.net",
        reply_to="5511999990001@s.whatsapp.net",
        sender_phone="5511999990001",
        sender_name="Bench",
        text="How long does delivery take? " * 4,
        message_type="text",
        raw={"event": "messages.upsert", "data": {"key": {"id": f"{number}", "fromMe": False}, "pushName": "Bench"}},
    )
    return PutInbound(
        InboxRecord(
            instance_name="bench",
            message_id=message.message_id,
            chat_key=message.chat_key,
            trace_id=f"{number:08d}-0000-4000-8000-000000000000",
            received_at=AT,
            message=message,
        )
    )


def _outbound(number: int) -> OutboxRecord:
    return OutboxRecord(
        message_uid=f"uid-{number}",
        answer_id="answer",
        trace_id="trace",
        instance_name="bench",
        chat_key="5511999990001@s.whatsapp.net",
        recipient="5511999990001@s.whatsapp.net",
        index=number,
        text="It takes two days. " * 10,
        text_sha256="0" * 64,
        queued_at=AT,
    )


def _count_inbox(path: Path) -> int:
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT count(*) FROM omni_inbox").fetchone()
    connection.close()
    return int(count)


if __name__ == "__main__":
    for what, value, unit, budget in measure():
        print(f"{what:75} {value:10.2f} {unit}" + ("" if budget is None else f"  (budget {budget:g})"))
