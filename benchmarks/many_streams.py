"""Two hundred answers at once in one Omni process: does any fail, does the loop stall, does a webhook wait, what does a chunk cost?

`omni serve` runs as its own process; the agent and Evolution are another one, on the same machine. All webhooks of a level are posted at
once, each from a chat of its own; each starts an answer of 120 chunks at 20 a second, with a blank line now and then. While
they stream, single webhooks from further chats measure how fast an acknowledgement is under that load; each starts a short turn too.

Wall times are those of a shared machine. Beside them stands what tells its part from Omni's: how late the agent itself was, and for
how much of the run Omni's loop was ready and had to wait for a core.
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter_ns

import uvloop

from benchmarks.support_load import Turn, post_one_by_one, post_webhooks, read_turns, wait_until_idle
from benchmarks.support_plan import StreamPlan
from benchmarks.support_processes import Server, add_instance, omni, world

Row = tuple[str, float, str, float | None]

LEVELS = (50, 200)
NUM_CHUNKS = 120
NUM_SINGLES = 100
SINGLE_EVERY_S = 0.033
# All answers have begun after the first; in the second nothing but streaming goes on; then come the single webhooks, the last
# of them before the first answer ends.
SETTLE_S = 1.4
STREAM_ALONE_S = 1.0
DEADLINE_S = 90.0
# 1,200 readings are kept, so this makes them those of the last six seconds: from the webhooks to the first answer's end.
LOOP_PROBE_MS = 5

LAG_BUDGET_MS = 20.0
TAIL_BUDGET_MS = 1_000.0
ACK_BUDGET_MS = 50.0


def measure() -> list[Row]:
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        world() as around,
        omni(Path(folder), loop_probe_ms=str(LOOP_PROBE_MS)) as server,
    ):
        add_instance(server, around)
        rows.append(("memory before any turn", server.memory_mb(), "MB", None))
        uvloop.run(_warm_up(server))
        for level in LEVELS:
            rows += uvloop.run(_measure_level(server, around, level))
        rows.append(("memory after all turns", server.memory_mb(), "MB", None))
        rows.append(("memory at its highest", server.memory_mb("VmHWM"), "MB", None))
    return rows


async def _warm_up(server: Server) -> None:
    """What every process pays once: connections, first imports, first statements."""
    await post_webhooks(server, [StreamPlan(number=number, num_chunks=20, first_ms=20) for number in range(10)])
    await wait_until_idle(server, deadline_s=DEADLINE_S)


async def _measure_level(server: Server, around: Server, level: int) -> list[Row]:
    first = level * 1_000
    plans = [
        StreamPlan(number=first + index, num_chunks=NUM_CHUNKS, first_ms=200 + 613 * index % 1_000)
        for index in range(level)
    ]
    singles = [
        StreamPlan(number=first + 500 + index, num_chunks=3, first_ms=50, chunks_per_s=20)
        for index in range(NUM_SINGLES)
    ]
    before = server.usage()
    burst_ns = await post_webhooks(server, plans)
    await asyncio.sleep(SETTLE_S)
    alone_from_ns, alone_before = perf_counter_ns(), server.usage()
    await asyncio.sleep(STREAM_ALONE_S)
    alone_to_ns, alone = perf_counter_ns(), server.usage() - alone_before
    singles_ns = await post_one_by_one(server, singles, every_s=SINGLE_EVERY_S)
    health = await asyncio.to_thread(server.call, "GET", "/health")
    await wait_until_idle(server, deadline_s=DEADLINE_S)
    used = server.usage() - before
    turns = await asyncio.to_thread(read_turns, server, around, plans + singles)
    for turn in turns:
        for fault in turn.faults:
            print(f"  chat {turn.plan.number}: {fault}", file=sys.stderr)
    num_alone = sum(alone_from_ns <= at_ns < alone_to_ns for turn in turns for at_ns in turn.written_ns)
    rows = list(_rows(level, turns, health, burst_ns, singles_ns))
    num_chunks = sum(len(turn.written_ns) for turn in turns)
    for what, usage, num in (("turns and all", used, num_chunks), ("streaming alone", alone, num_alone)):
        each = f"{level} streams: CPU per chunk, {what}"
        rows.append((f"{each}, loop's thread", usage.loop_ns / num / 1e3, "us", None))
        rows.append((f"{each}, other threads", usage.others_ns / num / 1e3, "us", None))
    rows.append((f"{level} streams: Omni's loop was ready and had no core", used.loop_waited_ns / 1e6, "ms", None))
    return rows


def _rows(level: int, turns: list[Turn], health: dict, burst_ns: list[int], singles_ns: list[int]) -> Iterator[Row]:
    lag = health["loop_lag_ms"]
    lost = health["trace_events_shed"] + health["trace_rows_lost"]
    tails = [turn.tail_ns for turn in turns if not turn.faults and turn.plan.num_chunks == NUM_CHUNKS]
    delays = [delay for turn in turns for delay in turn.chunk_delays_ns]
    late = [late for turn in turns for late in turn.late_ns]
    for what, value, unit, budget in (
        (f"turns that failed or whose text is not whole, of {len(turns)}", _num_faulty(turns), "turns", 0),
        ("trace records shed and rows lost", lost, "records", 0),
        ("event-loop lag p50", lag["p50"], "ms", None),
        ("event-loop lag p99", lag["p99"], "ms", LAG_BUDGET_MS),
        ("event-loop lag max", lag["max"], "ms", None),
        ("agent's write of a chunk to Omni's stamp on it p50", _ms(delays, 50), "ms", None),
        ("agent's write of a chunk to Omni's stamp on it p99", _ms(delays, 99), "ms", None),
        ("agent's end to turn's end, pacing taken off, p50", _ms(tails, 50), "ms", None),
        ("agent's end to turn's end, pacing taken off, max", _ms(tails, 100), "ms", TAIL_BUDGET_MS),
        ("webhook acknowledged while they stream p50", _ms(singles_ns, 50), "ms", None),
        ("webhook acknowledged while they stream p99", _ms(singles_ns, 99), "ms", ACK_BUDGET_MS),
        # All in the same instant is a worse case than 50 in flight; the budget is for the latter, the figures are shown for both.
        ("webhook acknowledged, all posted at once p50", _ms(burst_ns, 50), "ms", None),
        ("webhook acknowledged, all posted at once p99", _ms(burst_ns, 99), "ms", None),
        ("the agent's own lateness p99", _ms(late, 99), "ms", None),
    ):
        yield f"{level} streams: {what}", value, unit, budget


def _num_faulty(turns: list[Turn]) -> int:
    return sum(bool(turn.faults) for turn in turns)


def _ms(values_ns: Sequence[int], percent: int) -> float:
    """A percentile in milliseconds; infinite when there is nothing to take it of, which is over every budget."""
    ordered = sorted(values_ns)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] / 1e6 if ordered else float("inf")
