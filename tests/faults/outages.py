"""A database that goes away under load and comes back: answers keep flowing with unchanged delay, and afterwards everything is stored.

The outage begins when a fifth of the run's messages have been sent and ends when half of them have been sent during it, so that a
server which stops answering is found out by the deadline and one which goes on is not waited for. Some people begin to write in it.
"""

import random
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from statistics import median
from time import perf_counter_ns

from msgspec import Struct
from tests.faults.account import Account
from tests.faults.conftest import Scale
from tests.faults.plans import Part, RunPlan, parts_of, plan_run
from tests.faults.world import Run, World, ms_between

FLOWS_WITHIN_S = 20.0
"""Longest until a fifth of the messages of a short run were sent; it takes about a second."""
CHUNK_GAP_S = 0.025
WRITE_GAP_S = 0.3
"""Slow enough that an outage lasts for some seconds, longer than any one write may take."""
MEDIAN_MAY_GROW_MS = 50.0
WORST_MAY_GROW_MS = 1_500.0
"""One write may take ``database_wait_ms`` (a second) until it is known that the database does not take it; a message may wait for that."""

MEMORY_MAY_GROW_MB = 64.0
"""Above what the idle server had."""


class Delays(Struct, frozen=True, kw_only=True):
    """How long messages waited in Omni, in milliseconds: from their last chunk, or from the message before, until Evolution had them."""

    outside_ms: list[float]
    inside_ms: list[float]

    def __str__(self) -> str:
        told = [
            f"{name}: {len(values)} messages, median {median(values):.0f} ms, worst {max(values):.0f} ms"
            for name, values in (("outside", self.outside_ms), ("inside", self.inside_ms))
            if values
        ]
        return "; ".join(told)


class Outage(Struct, frozen=True, kw_only=True):
    """What a run with an outage in it showed; ``num_taken`` is how many webhooks were acknowledged while it lasted,
    ``num_refused`` how many posts of the run were answered with a 503."""

    account: Account
    delays: Delays
    lasted_s: float
    num_taken: int
    num_refused: int
    num_shed: int
    num_lost_rows: int
    grown_mb: float
    disagreements: tuple[str, ...]
    exit_code: int


async def run_through(
    world: World, outage: Callable[[], AbstractAsyncContextManager[None]], *, scale: Scale, wait_s: float = WRITE_GAP_S
) -> Outage:
    """Carry out one run with ``outage`` in the middle of it.

    ``wait_s`` is the mean time between a person's messages; a short one has most of them waiting in Omni when the outage begins.
    """
    idle_mb = world.server.memory_mb("VmRSS")
    plan = plan_run(
        0,
        seed=world.seed,
        num_chats=scale.num_chats,
        num_messages=scale.num_messages_in_outage,
        gap_s=CHUNK_GAP_S,
        wait_s=wait_s,
    )
    run = world.begin(plan)
    *early, latecomer = plan.chats
    num_paragraphs = sum(len(turn.paragraphs) for turn in plan.turns if turn.mark.chat in early)
    run.write_all(chats=early)
    await world.until(
        lambda: run.num_sent >= num_paragraphs // 5, within_s=scale.outage_within_s, what="first messages sent"
    )
    async with outage():
        began_ns, num_before, taken_before = perf_counter_ns(), run.num_sent, run.num_acknowledged
        run.write_all(chats=[latecomer])
        await world.until(
            lambda: run.num_sent >= min(num_before + num_paragraphs // 2, num_paragraphs),
            within_s=scale.outage_within_s,
            what="messages sent in the outage",
        )
        ended_ns, taken_after = perf_counter_ns(), run.num_acknowledged
    await run.settled()
    account = await run.judged()
    health = await world.health() or {}
    disagreements = await world.disagreements()
    seen = Outage(
        account=account,
        delays=delays_of(run, plan, (began_ns, ended_ns)),
        lasted_s=ms_between(began_ns, ended_ns) / 1_000,
        num_taken=taken_after - taken_before,
        num_refused=sum(book.statuses.count(503) for book in run.posted),
        num_shed=int(str(health["trace_events_shed"])),
        num_lost_rows=int(str(health["trace_rows_lost"])),
        grown_mb=world.server.memory_mb("VmHWM") - idle_mb,
        disagreements=disagreements,
        exit_code=await world.server.stop(),
    )
    sys.stdout.write(
        f"away for {seen.lasted_s:.1f} s, {seen.num_taken} webhooks taken meanwhile, {seen.num_refused} refused; {seen.delays}\n"
    )
    return seen


async def kill_during(
    world: World, outage: Callable[[], AbstractAsyncContextManager[None]], *, scale: Scale
) -> tuple[Account, tuple[str, ...]]:
    """One run in which Omni is killed while the database is away, and started again when it is back; its account and verify's word."""
    rng = random.Random(f"kill in outage {world.seed}")
    plan = plan_run(
        0,
        seed=world.seed,
        num_chats=scale.num_chats,
        num_messages=scale.num_messages,
        gap_s=CHUNK_GAP_S,
        wait_s=WRITE_GAP_S,
    )
    run = world.begin(plan)
    num_paragraphs = sum(len(turn.paragraphs) for turn in plan.turns)
    run.write_all()
    await world.until(lambda: run.num_sent >= num_paragraphs // 5, within_s=FLOWS_WITHIN_S, what="first messages sent")
    async with outage():
        until = min(run.num_sent + rng.randint(1, num_paragraphs // 2), num_paragraphs)
        await world.until(lambda: run.num_sent >= until, within_s=FLOWS_WITHIN_S, what="messages sent in the outage")
        world.server.kill()
    await world.start()
    await run.settled()
    return await run.judged(), await world.disagreements()


def check(seen: Outage) -> None:
    """Everything an outage may not change. Raises AssertionError."""
    assert seen.account.faults == ()
    assert seen.account.counts["answered whole"] == seen.account.counts["messages written"]
    assert seen.account.counts["chunks kept"] == seen.account.counts["chunks written"]
    assert (seen.num_shed, seen.num_lost_rows) == (0, 0)
    assert seen.grown_mb < MEMORY_MAY_GROW_MB
    assert seen.disagreements == ()
    assert seen.exit_code == 0
    delays = seen.delays
    assert median(delays.inside_ms) <= median(delays.outside_ms) + MEDIAN_MAY_GROW_MS, str(delays)
    assert max(delays.inside_ms) <= max(delays.outside_ms) + WORST_MAY_GROW_MS, str(delays)


def delays_of(run: Run, plan: RunPlan, outage_ns: tuple[int, int]) -> Delays:
    """Of every paragraph: the time from when it could go out, because it was complete and the one before was accepted."""
    ready_ns = _ready_moments(run, plan)
    inside: list[float] = []
    outside: list[float] = []
    last_ns_by_chat: dict[int, int] = {}
    for sent in run.accepted:
        parts = parts_of(sent.text)
        if parts and parts[0] in ready_ns:
            ready = max(ready_ns[parts[0]], last_ns_by_chat.get(sent.chat, 0))
            is_inside = outage_ns[0] <= ready <= outage_ns[1]
            (inside if is_inside else outside).append(max(ms_between(ready, sent.received_ns), 0.0))
        last_ns_by_chat[sent.chat] = sent.accepted_ns
    return Delays(outside_ms=outside, inside_ms=inside)


def _ready_moments(run: Run, plan: RunPlan) -> dict[Part, int]:
    turns = {turn.mark: turn for turn in plan.turns}
    moments: dict[Part, int] = {}
    for asked in run.asked:
        for place, index in enumerate(turns[asked.mark].completing_pieces):
            is_last = place == len(turns[asked.mark].paragraphs) - 1
            moment_ns = asked.ended_ns if is_last else (asked.written_ns[index : index + 1] or [None])[0]
            if moment_ns is not None:
                moments[Part(asked.mark, place)] = moment_ns
    return moments
