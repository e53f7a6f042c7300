"""What the agent client costs per event over a socket, beside aiohttp alone reading and counting the same bytes.

A server in another process (``support_stream``) sends one run in Agno 3's framing, events of about 300 bytes: as fast as it can, so that
a read brings hundreds of them, and paced, one event per write and read, as from an agent at work. This process reads it three ways, in
changing order: with aiohttp's ``content.iter_any()``; with that and the least that can make sense of this one framing, lines split
and three fields decoded; and with ``HiveClient.run`` consumed to its end. All use uvloop and the session ``omni serve`` uses,
and what arrived is compared with what was sent.

CPU is this process's alone, from the first event's read to the end of the body: opening a run is paid once and is not in it. Values
are medians; what the client adds is the median of the differences within a round.

Between paced events the process sleeps and the processor forgets: the same code then costs several times what it costs in a loop, bare
decoding included, and how much depends on the machine and its neighbours. So in a burst the budget is what the client adds, and
paced it is the ratio to the bare read, which pays for the sleep as well.
"""

import gc
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import uvloop

from benchmarks.framing import decode_bare
from benchmarks.support_processes import Server, streaming_agent
from benchmarks.support_stream import Stream, events_of
from omni.agents.hive import HiveClient
from omni.agents.hive_http import run_fields
from omni.clock import SystemClock
from omni.connections import Connections
from omni.model import AgentRequest, FirstByte, RunEnded, TextDelta
from omni.settings import Settings

Row = tuple[str, float, str, float | None]

NUM_WARM_UP = 2
NUM_ROUNDS = 16
BURST = Stream(num_pieces=16_384)
PACED = Stream(num_pieces=512, gap_us=300)  # a sleep of 300 us, its slack and the write come to about 400
BURST_BUDGET_US = 2.5
PACED_BUDGET_RATIO = 1.5


class Reading(NamedTuple):
    """One run read: CPU and time from the first read to the end, and how many reads there were after the first."""

    cpu_ns: int
    took_ns: int
    num_reads: int


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._took_ns = time.perf_counter_ns()
        self._cpu_ns = time.process_time_ns()

    def stop(self, num_reads: int) -> Reading:
        cpu_ns = time.process_time_ns() - self._cpu_ns
        return Reading(cpu_ns, time.perf_counter_ns() - self._took_ns, num_reads)


class Bench:
    """Reads one stream in each of the ways."""

    def __init__(self, connections: Connections, around: Server) -> None:
        self._connections = connections
        self._url = around.url
        self._client = HiveClient(connections.session, clock=SystemClock(), settings=Settings(_env_file=None))

    async def count_bytes(self, stream: Stream) -> Reading:
        async with self._post(stream) as response:
            reads = response.content.iter_any()
            num_bytes, num_reads = len(await anext(reads)), 0
            watch = Stopwatch()
            async for data in reads:
                num_bytes += len(data)
                num_reads += 1
            reading = watch.stop(num_reads)
        _check(num_bytes == sum(map(len, events_of(stream))))
        return reading

    async def split_lines(self, stream: Stream) -> Reading:
        async with self._post(stream) as response:
            reads = response.content.iter_any()
            await anext(reads)
            events, num_reads, rest = [], 0, b""
            watch = Stopwatch()
            async for data in reads:
                num_reads += 1
                *lines, rest = (rest + data).split(b"\n")
                events += [decode_bare(line[6:]) for line in lines if line.startswith(b"data: ")]
            reading = watch.stop(num_reads)
        _check("".join(event.content or "" for event in events[:-1]) == stream.text())
        return reading

    async def run_client(self, stream: Stream) -> Reading:
        run = self._client.run(self._request(stream))
        async for event in run:
            if type(event) is FirstByte:
                break
        watch = Stopwatch()
        events = [event async for event in run]
        reading = watch.stop(0)
        deltas = [event for event in events if type(event) is TextDelta]
        end = events[-1]
        _check(type(end) is RunEnded and end.ending == "completed")
        _check("".join(delta.text for delta in deltas) == stream.text())
        # All events of a read carry the moment it returned.
        return reading._replace(num_reads=len({event.mono_ns for event in [*deltas, end]}))

    def _post(self, stream: Stream):
        form = run_fields(self._request(stream))
        return self._connections.session().post(f"{self._url}/agents/wire/runs", data=form)

    def _request(self, stream: Stream) -> AgentRequest:
        return AgentRequest(
            base_url=self._url,
            api_key="key",
            agent_kind="agent",
            agent_id="wire",
            message=stream.question(),
            session_id="s",
            user_id="u",
        )


def measure() -> list[Row]:
    with streaming_agent() as around:
        return uvloop.run(_measure(around))


async def _measure(around: Server) -> list[Row]:
    connections = Connections(Settings(_env_file=None))
    async with connections.lease():
        bench = Bench(connections, around)
        rows: list[Row] = []
        for name, stream in (("burst", BURST), ("paced", PACED)):
            await _rounds(bench, stream, NUM_WARM_UP)
            rows += _rows(name, stream, await _rounds(bench, stream, NUM_ROUNDS))
        return rows


async def _rounds(bench: Bench, stream: Stream, num: int) -> list[tuple[Reading, ...]]:
    """Readings of ``num`` rounds: bytes counted, lines split, client."""
    ways = (bench.count_bytes, bench.split_lines, bench.run_client)
    rounds = []
    for index in range(num):
        readings: list[Reading | None] = [None] * len(ways)
        for turn in range(len(ways)):
            way = (index + turn) % len(ways)
            gc.collect()  # no run pays for what the one before it left
            readings[way] = await ways[way](stream)
        rounds.append(tuple(readings))
    return rounds


def _rows(name: str, stream: Stream, rounds: list[tuple[Reading, ...]]) -> Iterator[Row]:
    num_events = len(events_of(stream)) - 1  # the first one is read before the clock starts
    bare, split, ours = (
        statistics.median(r.cpu_ns for r in way) / num_events / 1e3 for way in zip(*rounds, strict=True)
    )
    added = statistics.median(ours.cpu_ns - bare.cpu_ns for bare, _, ours in rounds) / num_events / 1e3
    gap = statistics.median(bare.took_ns for bare, _, _ in rounds) / num_events / 1e3
    is_burst = stream.gap_us is None
    yield f"{name}: bare aiohttp, bytes counted", bare, "us/event", None
    yield f"{name}: bare aiohttp, lines split and three fields decoded", split, "us/event", None
    yield f"{name}: HiveClient, consumed to the end", ours, "us/event", None
    yield f"{name}: HiveClient less bytes counted", added, "us/event", BURST_BUDGET_US if is_burst else None
    yield f"{name}: HiveClient / bytes counted", ours / bare, "x", None if is_burst else PACED_BUDGET_RATIO
    yield f"{name}: HiveClient / lines split and three fields decoded", ours / split, "x", None
    for what, way in (("bytes counted", 0), ("HiveClient", 2)):
        per_read = num_events / statistics.median(readings[way].num_reads for readings in rounds)
        yield f"{name}: events per read, {what}", per_read, "events", None
    if not is_burst:
        yield f"{name}: time between events", gap, "us", None


def _check(is_whole: bool) -> None:
    if not is_whole:
        raise RuntimeError("what arrived is not what was sent")
