"""One ``kill -9`` at a random point of a run, and everything that has to be true before and after the restart.

The point is an event of the run, drawn from all of them, and some milliseconds behind it; one time in four the restarted process is
killed as well, while it starts or recovers.
"""

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

from msgspec import Struct
from tests.faults.account import Account
from tests.faults.books import Kept
from tests.faults.plans import plan_run
from tests.faults.world import Run, World, ms_between, open_world

from omni.clock import NS_PER_MS
from omni.sandbox.pacing import Pace

READABLE_AFTER_MS = 250
"""Another process can read everything that is older."""
CLOSED_WITHIN_S = 5.0
"""From the start of the process until no trace the dead one left is open."""

RUNS_PER_INSTANCE = 10
"""An account that has sent more than 600 messages in two minutes is too busy to be searched for one; these runs send 8 a second."""

_LONGEST_PAUSE_S = 0.02
_SECOND_KILL_SHARE = 0.25
_SECOND_KILL_AFTER_S = (0.2, 2.5)


class Killed(Struct, frozen=True, kw_only=True):
    """One run and what was wrong with it; ``closed_s`` is None when open traces stayed open."""

    account: Account
    unreadable: list[str]
    num_open: int
    closed_s: float | None

    @property
    def problems(self) -> list[str]:
        """Everything that was not as it should be."""
        late = self.closed_s is None or self.closed_s > CLOSED_WITHIN_S
        told = f"{self.num_open} traces left open, closed after {self.closed_s} s"
        return [*self.unreadable, *([told] if late else []), *(str(fault) for fault in self.account.faults)]


async def kill_and_restart(world: World, number: int, *, num_chats: int, num_messages: int) -> Killed:
    """One run with a kill in it; when this returns, all is quiet and a process is running."""
    rng = random.Random(f"kill {world.seed} {number}")
    plan = plan_run(number, seed=world.seed, num_chats=num_chats, num_messages=num_messages)
    run = world.begin(plan)
    run.write_all()
    await world.until_events(run.first_event + rng.randint(1, plan.num_events))
    await Pace().pause(rng.uniform(0, _LONGEST_PAUSE_S))
    killed_ns = world.server.kill()
    kept = await run.kept()
    unreadable = list(_unreadable(run, kept, killed_ns))
    left_open = {trace.trace_id for trace in kept.traces if trace.ending is None}
    if rng.random() < _SECOND_KILL_SHARE:
        world.server.spawn()
        await Pace().pause(rng.uniform(*_SECOND_KILL_AFTER_S))
        world.server.kill()
    world.server.spawn()
    closed = asyncio.create_task(_until_closed(run, left_open, since_ns=world.server.spawned_ns))
    await world.server.until_listening()
    await world.find_server()
    closed_s = await closed
    await run.settled()
    return Killed(
        account=await run.judged(), unreadable=unreadable, num_open=len(left_open), closed_s=closed_s
    )  # fmt: skip


def _unreadable(run: Run, kept: Kept, killed_ns: int) -> Iterator[str]:
    """What was known longer than it may stay unwritten, and cannot be read now that the process is dead."""
    before_ns = killed_ns - READABLE_AFTER_MS * NS_PER_MS
    known_ids = {trace.message_id for trace in kept.traces}
    for book in run.posted:
        if book.acknowledged_ns is not None and book.acknowledged_ns < before_ns and book.message_id not in known_ids:
            yield f"{book.message_id}: no trace {ms_between(book.acknowledged_ns, killed_ns):.0f} ms after its 200"
    pieces_by_mark = {turn.mark: turn.pieces for turn in run.plan.turns}
    for asked in run.asked:
        written = pieces_by_mark[asked.mark][: sum(moment < before_ns for moment in asked.written_ns)]
        stored = [trace.chunks for trace in kept.traces if trace.message_id == asked.mark.message_id]
        num_stored = max((len(chunks) for chunks in stored if chunks[: len(written)] == written), default=0)
        if num_stored < len(written):
            yield f"{asked.mark.message_id}: {num_stored} of {len(written)} chunks older than {READABLE_AFTER_MS} ms"
    key_ids = {message.key_id for trace in kept.traces for message in trace.messages}
    for sent in run.accepted:
        if sent.accepted_ns < before_ns and sent.key_id not in key_ids:
            yield f"chat {sent.chat}: a message on no trace {ms_between(sent.accepted_ns, killed_ns):.0f} ms after it was sent"


async def _until_closed(run: Run, trace_ids: set[str], *, since_ns: int) -> float | None:
    """Seconds from ``since_ns`` until none of these traces is open; None when that takes more than twice as long as it may."""
    while trace_ids & await run.open_trace_ids():
        if ms_between(since_ns, perf_counter_ns()) > 2_000 * CLOSED_WITHIN_S:
            return None
        await run.world.next_change()
    return ms_between(since_ns, perf_counter_ns()) / 1_000


async def check_kills(folder: Path, database_url: str, *, seed: int, num_kills: int) -> None:
    """So many runs with a kill in each, one after the other on the same data; raises AssertionError with what was wrong in which."""
    problems: dict[int, list[str]] = {}
    slowest_s = 0.0
    async with open_world(folder, seed=seed, database_url=database_url) as world:
        for number in range(1, num_kills + 1):
            if number % RUNS_PER_INSTANCE == 0:
                await world.add_instance()
            killed = await kill_and_restart(world, number, num_chats=4, num_messages=3)
            slowest_s = max(slowest_s, killed.closed_s or 0.0)
            if killed.problems:
                problems[number] = killed.problems
        disagreements = await world.disagreements()
        exit_code = await world.server.stop()
    sys.stdout.write(
        f"{num_kills - len(problems)} of {num_kills} kills without a fault; open traces closed after {slowest_s:.1f} s at most\n"
    )
    assert problems == {}, "\n".join(f"run {number}: {told}" for number, found in problems.items() for told in found)
    assert disagreements == (), "\n".join(disagreements)
    assert exit_code == 0
