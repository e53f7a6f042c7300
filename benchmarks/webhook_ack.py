"""How long Evolution waits for the 200 that means "stored", with 50 webhooks in flight, on SQLite and on PostgreSQL.

`omni serve` is a process of its own, and so is the world around it, all on the same machine. The messages come from a few hundred chats; a
chat's turns wait for one another, as they do. Three loads:

    storing alone   always 50 in flight; every chat waits for an answer that began before, so messages only have to be stored
    bursts          50 at once, four times a second; every turn is answered at once, and that work is done beside
    more than fits  always 50 in flight, every turn answered at once: how much one process takes when it is never left in peace; a
                    webhook then waits for 49 others and their answers, which is why this has no budget

When all is over every answer must be on its phone, each once: an acknowledgement that was quick and not true would be worth nothing.
PostgreSQL runs with its default, durable settings (fsync on); its server shares the machine's cores too.

    python -m benchmarks webhook_ack
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

import uvloop

from benchmarks.store_writes import postgres_urls
from benchmarks.support_load import post_in_flight, wait_until_idle, webhook_request
from benchmarks.support_plan import StreamPlan, messages, pieces
from benchmarks.support_processes import Server, add_instance, omni, world

Row = tuple[str, float, str, float | None]

NUM_WEBHOOKS = 2_000
NUM_CHATS = 300
IN_FLIGHT = 50
NUM_WARM_UP = 100
BURST_EVERY_S = 0.25
# Longer than the slow answers take to begin and all webhooks behind them to be posted.
SLOW_FIRST_MS = 12_000.0
SETTLE_S = 2.0
DEADLINE_S = 180.0
# Evolution waits 30 s and then comes again; 50 ms leave it free for the next person's message.
BUDGET_MS = 50.0


def measure() -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for database, url in _databases(Path(name)):
            folder = Path(name) / database
            folder.mkdir()
            settings = {"message_spacing_ms": "0"} | ({"database_url": url} if url else {})
            with world() as around, omni(folder, **settings) as server:
                add_instance(server, around)
                rows += uvloop.run(_measure(database, server, around))
    return rows


def _databases(folder: Path) -> Iterator[tuple[str, str]]:
    yield "SQLite", ""
    with postgres_urls(folder / "postgres") as new_url:
        yield "PostgreSQL", new_url()


async def _measure(database: str, server: Server, around: Server) -> list[Row]:
    warm_up = _plans(0, NUM_WARM_UP)
    await post_in_flight(server, _requests(server, warm_up), in_flight=IN_FLIGHT)
    await wait_until_idle(server, deadline_s=DEADLINE_S)
    slow = _plans(40_000, NUM_CHATS, first_ms=SLOW_FIRST_MS)
    await post_in_flight(server, _requests(server, slow), in_flight=IN_FLIGHT)
    await asyncio.sleep(SETTLE_S)
    loads = (
        ("storing alone", _plans(10_000, NUM_WEBHOOKS), _post_always, BUDGET_MS),
        ("bursts", _plans(20_000, NUM_WEBHOOKS), _post_bursts, BUDGET_MS),
        ("more than fits", _plans(30_000, NUM_WEBHOOKS), _post_always, None),
    )
    rows: list[Row] = []
    for what, plans, post, budget_ms in loads:
        before, began_ns = server.usage(), perf_counter_ns()
        took_ns = sorted(await post(server, _requests(server, plans)))
        took_s = (perf_counter_ns() - began_ns) / 1e9
        used = server.usage() - before
        await wait_until_idle(server, deadline_s=DEADLINE_S)
        prefix = f"{database}, {what}"
        rows += [
            (f"{prefix}: acknowledged p50", _ms(took_ns, 50), "ms", None),
            (f"{prefix}: acknowledged p99", _ms(took_ns, 99), "ms", budget_ms),
            (f"{prefix}: acknowledged at the latest", took_ns[-1] / 1e6, "ms", None),
            (f"{prefix}: taken", len(took_ns) / took_s, "per second", None),
            (f"{prefix}: loop's CPU per webhook", used.loop_ns / len(took_ns) / 1e3, "us", None),
            (f"{prefix}: loop was ready and had no core", used.loop_waited_ns / took_s / 1e7, "% of time", None),
        ]
    everything = [*warm_up, *slow, *(plan for _, plans, _, _ in loads for plan in plans)]
    report = await asyncio.to_thread(around.call, "GET", "/report")
    wrong = _wrong_messages(everything, [message["text"] for message in report["messages"]])
    rows.append((f"{database}: answers missing, changed or twice, of {len(everything)}", wrong, "messages", 0))
    return rows


def _plans(first: int, count: int, *, first_ms: float = 20) -> list[StreamPlan]:
    """Brief answers that begin after ``first_ms``."""
    return [
        StreamPlan(number=first + index, num_chunks=4, chunks_per_s=100, first_ms=first_ms) for index in range(count)
    ]


def _requests(server: Server, plans: list[StreamPlan]) -> list[bytes]:
    return [webhook_request(server, plan, chat=index % NUM_CHATS) for index, plan in enumerate(plans)]


async def _post_always(server: Server, requests: list[bytes]) -> list[int]:
    return await post_in_flight(server, requests, in_flight=IN_FLIGHT)


async def _post_bursts(server: Server, requests: list[bytes]) -> list[int]:
    bursts = []
    for start in range(0, len(requests), IN_FLIGHT):
        burst = post_in_flight(server, requests[start : start + IN_FLIGHT], in_flight=IN_FLIGHT)
        bursts.append(asyncio.ensure_future(burst))
        await asyncio.sleep(BURST_EVERY_S)
    return [took_ns for took in await asyncio.gather(*bursts) for took_ns in took]


def _wrong_messages(plans: list[StreamPlan], sent: list[str]) -> int:
    """How many messages differ between what the agent said and what the phones got."""
    expected = Counter(text for plan in plans for text in messages("".join(pieces(plan))))
    got = Counter(sent)
    return sum((expected - got).values()) + sum((got - expected).values())


def _ms(ordered_ns: list[int], percent: int) -> float:
    return ordered_ns[min(len(ordered_ns) * percent // 100, len(ordered_ns) - 1)] / 1e6
