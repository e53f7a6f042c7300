"""Claim by claim what a long outage may cost: nothing while the spool has room, then bodies of chunks, never a header or an ending.

What was not kept is told by the traces, by ``/metrics`` and by the log, in the same numbers.
"""

import asyncio
import random
import string
import sys
from time import perf_counter_ns

import pytest
from msgspec import structs
from tests.faults.books import Books, KeptTrace
from tests.faults.checker import judge
from tests.faults.conftest import IS_SOAK, TIMEOUT_S
from tests.faults.databases import locked_sqlite, postgres
from tests.faults.outages import (
    FLOWS_WITHIN_S,
    MEDIAN_MAY_GROW_MS,
    MEMORY_MAY_GROW_MB,
    WORST_MAY_GROW_MS,
    delays_of,
    median,
)
from tests.faults.plans import Mark, RunPlan, TurnPlan, plan_run
from tests.faults.tellings import Told, metrics_of, told_by_log, told_by_metrics, told_by_traces
from tests.faults.world import open_world

from omni.clock import NS_PER_S

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

NUM_CHATS, BETWEEN_CHATS_S = 30, 0.1
NUM_PARAGRAPHS, PARAGRAPH_CHARS, PIECE_CHARS = 16, 3_900, 100
"""Some 60,000 characters nothing can pack, in 600 chunks: with its outbox more than a quarter of a megabyte in the spool."""

LONG_OUTAGE_S = 600.0
LONG_CHATS, LONG_WAIT_S = 120, 12.0
"""Ten turns a second, with their receipts a hundred webhooks."""


async def test_a_spool_that_is_too_small_costs_chunks_and_nothing_else_and_all_counts_agree(
    tmp_path, seed: int
) -> None:
    """Eight megabytes for answers that need more: who reads the traces afterwards misses where chunks were cut, and is told so."""
    plan = _large_answers(seed)
    async with open_world(tmp_path, seed=seed, spool_max_mb="8", message_spacing_ms="0") as world:
        run = world.begin(plan)
        idle_mb = world.server.memory_mb("VmRSS")
        async with locked_sqlite(tmp_path / "data" / "automagik-omni.db"):
            run.write_all()
            # Who writes when the spool is full to the brim is not taken, and comes again.
            await world.until(
                lambda: len(run.posted) == NUM_CHATS and run.num_sent == run.num_acknowledged * NUM_PARAGRAPHS,
                within_s=60.0,
                what="all that was taken sent",
            )
            spooled = await metrics_of(world)
        await run.settled()
        metrics = await told_by_metrics(world)
        grown_mb = world.server.memory_mb("VmHWM") - idle_mb
        disagreements = await world.disagreements()
        exit_code = await world.server.stop()
        kept = await run.kept()

    told = told_by_traces(world)
    shed = [trace for trace in kept.traces if trace.num_dropped]
    sys.stdout.write(
        f"{len(shed)} of {len(kept.traces)} traces without their chunks: {told}; "
        f"spool {spooled['omni_spool_bytes'] / 1e6:.1f} MB, memory +{grown_mb:.0f} MB\n"
    )
    assert told == metrics == told_by_log(world)
    assert told == Told(sum(trace.num_dropped for trace in kept.traces), 0)
    assert 0 < len(shed) < NUM_CHATS
    books = Books(
        plan=plan,
        posted=run.posted,
        asked=run.asked,
        accepted=run.accepted,
        kept=structs.replace(kept, traces=tuple(_with_its_chunks(plan, trace) for trace in kept.traces)),
        disagreements=disagreements,
    )
    account = judge(books)
    sys.stdout.write(account.table() + "\n")
    assert account.faults == ()
    assert account.counts["traces completed"] == account.counts["answered whole"] == NUM_CHATS
    assert grown_mb < MEMORY_MAY_GROW_MB
    assert exit_code == 0


@pytest.mark.skipif(not IS_SOAK, reason="lasts longer than ten minutes: make soak")
async def test_postgresql_may_be_away_for_ten_minutes(tmp_path, seed: int) -> None:
    """Ten turns a second meanwhile: answers as quick as before, memory bounded, and everything stored in the end."""
    plan = plan_run(
        0,
        seed=seed,
        num_chats=LONG_CHATS,
        num_messages=int((LONG_OUTAGE_S + 45.0) / LONG_WAIT_S),
        gap_s=0.025,
        wait_s=LONG_WAIT_S,
    )
    with postgres() as server:
        url = server.new_url()
        async with open_world(tmp_path, seed=seed, database_url=url, send_timeout_ms="10000") as world:
            run = world.begin(plan)
            # It looks all its rows through at every receipt, and nobody asks for them here.
            world.evolution.instances[world.instance].rows.keeps = False
            idle_mb = world.server.memory_mb("VmRSS")
            run.write_all()
            await world.until(
                lambda: run.num_sent >= 3 * LONG_CHATS, within_s=FLOWS_WITHIN_S * 2, what="first messages"
            )
            async with server.stopped():
                began_ns = perf_counter_ns()
                until_ns = began_ns + int(LONG_OUTAGE_S * NS_PER_S)
                await world.until(
                    lambda: perf_counter_ns() >= until_ns, within_s=LONG_OUTAGE_S * 2, what="the end of the outage"
                )
                ended_ns = perf_counter_ns()
                spooled = await metrics_of(world)
            back_ns = perf_counter_ns()
            async with asyncio.timeout(600):
                while (await metrics_of(world))["omni_spool_entries"]:
                    await world.next_change()
            drained_ns = perf_counter_ns()
            await run.settled()
            account = await run.judged()
            metrics = await told_by_metrics(world)
            grown_mb = world.server.memory_mb("VmHWM") - idle_mb
            told = await asyncio.to_thread(told_by_traces, world)
            disagreements = await world.disagreements()
            exit_code = await world.server.stop()
    delays = delays_of(run, plan, (began_ns, ended_ns))
    sys.stdout.write(
        f"{LONG_OUTAGE_S:.0f} s, {len(plan.turns)} turns; {delays}; memory +{grown_mb:.0f} MB; "
        f"spool {spooled['omni_spool_bytes'] / 1e6:.1f} MB, empty {(drained_ns - back_ns) / 1e9:.1f} s after the return\n"
    )
    assert told == metrics == told_by_log(world) == Told(0, 0)
    assert account.faults == ()
    assert account.counts["answered whole"] == len(plan.turns)
    assert account.counts["chunks kept"] == account.counts["chunks written"]
    assert grown_mb < MEMORY_MAY_GROW_MB
    assert median(delays.inside_ms) <= median(delays.outside_ms) + MEDIAN_MAY_GROW_MS, str(delays)
    assert max(delays.inside_ms) <= max(delays.outside_ms) + WORST_MAY_GROW_MS, str(delays)
    assert (disagreements, exit_code) == ((), 0)


def _with_its_chunks(plan: RunPlan, trace: KeptTrace) -> KeptTrace:
    """A trace that says how many chunks are missing, as it would be with them: all else about it has to be as in any other."""
    (turn,) = [turn for turn in plan.turns if turn.mark.message_id == trace.message_id]
    if trace.num_dropped != len(turn.pieces) or trace.chunks:
        return trace
    return structs.replace(trace, chunks=turn.pieces, num_dropped=0)


def _large_answers(seed: int) -> RunPlan:
    """One long answer for each chat; every paragraph begins with its mark."""
    rng = random.Random(f"large {seed}")
    letters = string.ascii_letters + string.digits
    turns = []
    for chat in range(NUM_CHATS):
        paragraphs = tuple(
            f"⟦r0c{chat}m0p{place}w0⟧ " + "".join(rng.choices(letters, k=PARAGRAPH_CHARS)) + "."
            for place in range(NUM_PARAGRAPHS)
        )
        text = "\n\n".join(paragraphs)
        pieces = tuple(text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))
        turns.append(
            TurnPlan(
                mark=Mark(0, chat, 0),
                paragraphs=paragraphs,
                pieces=pieces,
                gaps_s=(0.0,) * len(pieces),
                wait_s=chat * BETWEEN_CHATS_S,
            )
        )
    return RunPlan(run=0, seed=seed, turns=tuple(turns))
