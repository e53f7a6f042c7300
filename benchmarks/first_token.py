"""What tracing and delivering add to the first token: the real path beside a bare loop over the same client, stream by stream.

Two streams of a pair follow each other, in changing order, against a simulated agent in another process. One goes the whole way: agent
client, streamer, trace with a recorder writing to SQLite, splitter and delivery to a simulated Evolution. The other is read by
a loop that keeps nothing. Each is timed from the socket read that brought the first visible text until whoever is to have it has it: the
delivery's ``feed`` has returned, or the loop holds the event. Once on an idle process, once with 100 further traced streams.

The read's stamp is taken when the event loop's thread runs, so waiting for that thread is not in it. It is in the second set of
figures, which count from the agent's write: there a recorder that held the interpreter would show.
"""

import asyncio
import gc
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

import uvloop

from benchmarks.support_plan import StreamPlan
from benchmarks.support_processes import Server, world
from omni.channels.whatsapp.delivery import AnswerDelivery, Delivery
from omni.gateway.hive_streamer import AnswerStreamer, Question
from omni.model import AgentRequest, InboundMessage, InstanceConfig, TextDelta
from omni.runtime import Runtime
from omni.settings import Settings
from omni.tracing.events import FirstTokenSeen

Row = tuple[str, float, str, float | None]

NUM_PAIRS = 500
NUM_WARM_UP = 25
NUM_OTHERS = 100
MEDIAN_BUDGET_US = 50.0
TAIL_BUDGET_US = 1_000.0


class Moments(NamedTuple):
    """One stream's first token on the machine's clock, in nanoseconds: the agent's write, the socket read, in the right hands."""

    written_ns: int
    read_ns: int
    held_ns: int


class TimedDelivery(Delivery):
    """Notes when the first visible text of each chat's answer has been fed."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fed_ns: dict[str, int] = {}

    def open_answer(self, *args, chat_key: str, **kwargs) -> AnswerDelivery:
        answer = super().open_answer(*args, chat_key=chat_key, **kwargs)
        feed, fed_ns = answer.feed, self.fed_ns

        def feed_and_note(text: str, chunk_index: int) -> None:
            feed(text, chunk_index)
            if chat_key not in fed_ns and text.strip():
                fed_ns[chat_key] = perf_counter_ns()

        answer.feed = feed_and_note  # type: ignore[method-assign] # a probe
        return answer


class Bench:
    """The parts of one Omni on this event loop, asking the world outside."""

    def __init__(self, runtime: Runtime, around: Server) -> None:
        self.runtime = runtime
        self.delivery = TimedDelivery(runtime.channel, clock=runtime.clock, settings=runtime.settings)
        self.streamer = AnswerStreamer(
            delivery=self.delivery, typing=runtime.typing, clock=runtime.clock, language=runtime.settings.language
        )
        self.agent = runtime.gateway.backends["hive"]
        self.instance = InstanceConfig(
            name="bench", evolution_url=around.url, evolution_key="key", agent_api_url=around.url, agent_id="bench"
        )

    async def bare(self, plan: StreamPlan) -> Moments:
        first: Moments | None = None
        async for event in self.agent.run(self._request(plan)):
            if first is None and type(event) is TextDelta and event.text.strip():
                held_ns = perf_counter_ns()
                first = Moments(int(event.text), event.mono_ns, held_ns)
        assert first is not None
        return first

    async def traced(self, plan: StreamPlan) -> Moments:
        chat = f"55119{plan.number:08d}@s.whatsapp.net"
        message = InboundMessage(
            instance_name="bench",
            message_id=f"M{plan.number}",
            chat_key=chat,
            reply_to=chat,
            sender_phone=chat.split("@", maxsplit=1)[0],
            sender_name="Bench",
            text=plan.question(),
            message_type="text",
        )
        trace = self.runtime.tracer.open_turn(message, is_streaming=True)
        question = Question(instance=self.instance, request=self._request(plan), recipient=chat, chat_key=chat)
        if not await self.streamer.answer(question, self.agent, trace):
            raise RuntimeError(f"the turn ended as {trace.timeline.ending}")
        seen = next(event for event in trace._journal.events if type(event) is FirstTokenSeen)
        return Moments(int(seen.content), seen.mono_ns, self.delivery.fed_ns.pop(chat))

    def _request(self, plan: StreamPlan) -> AgentRequest:
        return AgentRequest(
            base_url=self.instance.agent_api_url or "",
            api_key="key",
            agent_kind="agent",
            agent_id="bench",
            message=plan.question(),
            session_id=f"s{plan.number}",
            user_id="u",
        )


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, world() as around:
        settings = Settings(_env_file=None, sqlite_database_path=Path(folder) / "bench.db")
        runtime = Runtime(settings)
        try:
            return uvloop.run(_measure(Bench(runtime, around)))
        finally:
            runtime.close()


async def _measure(bench: Bench) -> list[Row]:
    async with bench.runtime.online():
        await _pairs(bench, NUM_WARM_UP, first_number=0)
        gc.collect()
        gc.freeze()  # as `omni serve` does once it stands
        idle = await _pairs(bench, NUM_PAIRS, first_number=100_000)
        async with _others(bench):
            loaded = await _pairs(bench, NUM_PAIRS, first_number=200_000)
        await bench.delivery.aclose(5)
    runtime = bench.runtime
    assert runtime.recorder is not None
    assert runtime.recorder.num_shed == runtime.recorder.num_lost == 0
    return [*_rows("idle", idle), *_rows(f"beside {NUM_OTHERS} streams", loaded)]


async def _pairs(bench: Bench, num: int, *, first_number: int) -> list[tuple[Moments, Moments]]:
    """(traced, bare) moments of ``num`` pairs."""
    rng = random.Random(first_number)
    pairs = []
    for index in range(num):
        number = first_number + 2 * index
        # No fixed rhythm, which could fall in step with the recorder's or the other streams'.
        plans = [
            StreamPlan(
                number=number + each, num_chunks=3, chunks_per_s=500, first_ms=rng.uniform(2, 9), is_stamped=True
            )
            for each in range(2)
        ]
        if index % 2:
            traced, bare = await bench.traced(plans[0]), await bench.bare(plans[1])
        else:
            bare, traced = await bench.bare(plans[0]), await bench.traced(plans[1])
        pairs.append((traced, bare))
    return pairs


@asynccontextmanager
async def _others(bench: Bench) -> AsyncIterator[None]:
    """Traced streams of 20 chunks a second for as long as the block runs, each followed by another."""

    async def keep_streaming(lane: int) -> None:
        number = 1_000_000 + lane
        while True:
            await bench.traced(
                StreamPlan(number=number, num_chunks=100, chunks_per_s=20, first_ms=20 + 5 * lane, is_stamped=True)
            )
            number += NUM_OTHERS

    streams = [asyncio.create_task(keep_streaming(lane)) for lane in range(NUM_OTHERS)]
    await asyncio.sleep(1.5)  # until all of them have begun
    try:
        yield
    finally:
        for stream in streams:
            stream.cancel()
        ends = await asyncio.gather(*streams, return_exceptions=True)
        broken = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
        if broken:
            raise RuntimeError("a stream beside the measured ones failed") from broken[0]


def _rows(when: str, pairs: list[tuple[Moments, Moments]]) -> Iterator[Row]:
    for since, has_budget in (("read", True), ("agent's write", False)):
        traced_ns = [_took_ns(traced, since) for traced, _ in pairs]
        bare_ns = [_took_ns(bare, since) for _, bare in pairs]
        added_ns = [ours - limit for ours, limit in zip(traced_ns, bare_ns, strict=True)]
        for percent, budget in ((50, MEDIAN_BUDGET_US), (99, TAIL_BUDGET_US)):
            what = f"{when}, since the {since}: "
            yield f"{what}added p{percent}", _us(added_ns, percent), "us", budget if has_budget else None
            yield f"{what}bare loop p{percent}", _us(bare_ns, percent), "us", None
            yield f"{what}traced p{percent}", _us(traced_ns, percent), "us", None


def _took_ns(moments: Moments, since: str) -> int:
    return moments.held_ns - (moments.read_ns if since == "read" else moments.written_ns)


def _us(values_ns: list[int], percent: int) -> float:
    return sorted(values_ns)[len(values_ns) * percent // 100] / 1e3
