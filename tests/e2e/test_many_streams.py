"""Two hundred answers at once in one process, each whole and in order, and an event loop that never stands still.

The predecessor stopped for a minute with twenty. `omni serve` is a real process here, and so is the world around it; the benchmark
`many_streams` holds the real budgets, these bounds only catch what is badly wrong on any machine.
"""

import asyncio

import pytest
from benchmarks.support_load import post_webhooks, read_turns, wait_until_idle
from benchmarks.support_plan import StreamPlan
from benchmarks.support_processes import add_instance, omni, world

NUM_STREAMS = 200
NUM_CHUNKS = 50
CHUNKS_PER_S = 20.0
LAG_BOUND_MS = 100.0
ACK_BOUND_MS = 3_000.0
TAIL_BOUND_MS = 3_000.0


@pytest.mark.slow
async def test_two_hundred_streams_at_once_are_answered_whole_and_stall_nothing(tmp_path):
    """One slow piece of code on the event loop would hold up every chat; one mixed-up buffer would send text to a stranger."""
    plans = [
        StreamPlan(number=number, num_chunks=NUM_CHUNKS, chunks_per_s=CHUNKS_PER_S, first_ms=100 + number % 7 * 50)
        for number in range(NUM_STREAMS)
    ]
    with world() as around, omni(tmp_path, loop_probe_ms="5") as server:
        add_instance(server, around)
        acknowledged_ns = await post_webhooks(server, plans)
        await wait_until_idle(server, deadline_s=30)
        health = server.call("GET", "/health")
        turns = await asyncio.to_thread(read_turns, server, around, plans)

    assert {turn.plan.number: turn.faults for turn in turns if turn.faults} == {}
    assert sum(len(turn.chunk_delays_ns) for turn in turns) == NUM_STREAMS * NUM_CHUNKS
    assert (health["trace_events_shed"], health["trace_rows_lost"]) == (0, 0)
    assert health["loop_lag_ms"]["p99"] < LAG_BOUND_MS
    assert max(acknowledged_ns) / 1e6 < ACK_BOUND_MS
    assert max(turn.tail_ns for turn in turns) / 1e6 < TAIL_BOUND_MS
