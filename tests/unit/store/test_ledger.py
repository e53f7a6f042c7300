"""A put is done when the record would survive the process, and never before."""

import asyncio
import threading

import pytest
from tests.unit.store.fallible import FallibleDatabase, FallibleLedger, FallibleSpool
from tests.unit.store.records import inbound, outbound

from omni.errors import StoreError
from omni.settings import Settings
from omni.store.ledger import LedgerWriter
from omni.store.spooling import SpooledLedgerSink, StoreGate
from omni.testing import FakeClock


@pytest.fixture
def database():
    return FallibleDatabase()


@pytest.fixture
def rows(database):
    return FallibleLedger(database)


def writer_of(sink, *, offer_again_s=1.0, **changes):
    settings = Settings(_env_file=None, **changes)
    writer = LedgerWriter(sink, clock=FakeClock(), settings=settings, offer_again_s=offer_again_s)
    writer.start()
    return writer


@pytest.fixture
def ledger(rows):
    writer = writer_of(rows)
    yield writer
    assert writer.stop()


async def test_a_put_says_whether_the_message_is_new(ledger, database):
    assert await ledger.put(inbound(1)) is True
    assert await ledger.put(inbound(1)) is False
    assert await ledger.put(inbound(1, version=2)) is True
    assert database.ledger.inbox["shop", "M1"].version == 2


async def test_what_waits_is_stored_together_and_in_order(database, rows):
    database.mode = "hangs"
    writer = writer_of(rows)
    first = writer.put(outbound(0))
    assert await asyncio.to_thread(database.entered.wait, 10)
    others = [writer.put(outbound(number)) for number in range(1, 40)]
    assert not first.done()
    database.mode = "up"
    database.released.set()
    assert await asyncio.gather(first, *others) == [True] * 40
    assert [len(group) for group in rows.groups] == [1, 39]
    assert [op.record.index for op in rows.groups[1]] == list(range(1, 40))
    assert writer.stop()


async def test_a_put_fails_only_when_neither_database_nor_spool_takes_it(database, rows, tmp_path):
    spool = FallibleSpool(tmp_path / "p1.db", max_bytes=1_000_000)
    gate = StoreGate(spool, traces=database, ledger=rows, probe=database.probe, clock=FakeClock())
    writer = writer_of(SpooledLedgerSink(gate))
    database.mode = "away"
    assert await writer.put(inbound(1)) is True
    spool.is_broken = True
    with pytest.raises(StoreError) as refusal:
        await writer.put(inbound(2))
    assert refusal.value.retryable
    assert writer.num_failed == 1
    database.mode, spool.is_broken = "up", False
    while not gate.tend():
        pass
    assert await writer.put(inbound(2)) is True
    assert sorted(database.ledger.inbox) == [("shop", "M1"), ("shop", "M2")]
    assert writer.stop()
    spool.close()


async def test_one_bad_record_fails_alone(database, rows):
    database.mode, database.poison = "hangs", {"bad"}
    writer = writer_of(rows)
    first = writer.put(inbound(0))
    assert await asyncio.to_thread(database.entered.wait, 10)
    others = [writer.put(inbound(1)), writer.put(inbound(2, instance_name="bad")), writer.put(inbound(3))]
    database.mode = "up"
    database.released.set()
    verdicts = await asyncio.gather(first, *others, return_exceptions=True)
    assert [verdict if isinstance(verdict, bool) else type(verdict) for verdict in verdicts] == [
        True,
        True,
        StoreError,
        True,
    ]
    assert writer.num_failed == 1
    assert writer.stop()


async def test_a_fault_does_not_end_the_thread(ledger, rows, caplog):
    write, rows.write = rows.write, lambda _: 1 / 0
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        await ledger.put(inbound(1))
    rows.write = write
    assert await ledger.put(inbound(1)) is True


async def test_a_full_queue_says_no_at_once(database, rows):
    database.mode = "hangs"
    writer = writer_of(rows, inbox_max_waiting=1)
    first = writer.put(inbound(0))
    assert await asyncio.to_thread(database.entered.wait, 10)
    waiting = [writer.put(inbound(number)) for number in range(1, 5)]
    with pytest.raises(StoreError, match="Too many") as refusal:
        await writer.put(inbound(9))
    assert refusal.value.retryable
    database.mode = "up"
    database.released.set()
    assert await asyncio.gather(first, *waiting) == [True] * 5
    assert writer.stop()


async def test_who_stops_waiting_hurts_nobody(database, rows):
    database.mode = "hangs"
    writer = writer_of(rows)
    cancelled = writer.put(inbound(1))
    assert await asyncio.to_thread(database.entered.wait, 10)
    other = writer.put(inbound(2))
    cancelled.cancel()
    database.mode = "up"
    database.released.set()
    assert await other is True
    assert sorted(database.ledger.inbox) == [("shop", "M1"), ("shop", "M2")]
    assert writer.stop()


def test_puts_from_several_loops_are_settled_on_their_own(ledger):
    results = {}

    def run(number):
        results[number] = asyncio.run(put(number))

    async def put(number):
        return await asyncio.gather(*[ledger.put(inbound(number * 10 + item)) for item in range(10)])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: [True] * 10 for number in range(4)}


def test_a_loop_that_was_closed_hurts_nobody(database, rows):
    database.mode = "hangs"
    writer = writer_of(rows)

    async def put_and_leave():
        writer.put(inbound(1))

    asyncio.run(put_and_leave())
    assert database.entered.wait(10)
    database.mode = "up"
    database.released.set()
    assert writer.stop()
    assert len(database.ledger.inbox) == 1


def test_posts_are_stored_and_failures_counted_and_logged_once_a_minute(database, rows, caplog):
    writer = writer_of(rows)
    writer.post(inbound(1))
    database.mode = "hangs"
    writer.post(inbound(2))
    database.mode = "away"
    for number in range(3, 6):
        writer.post(inbound(number))
    database.released.set()
    assert writer.stop()
    assert len(database.ledger.inbox) + writer.num_failed == 5
    assert sum(record.message == "ledger_write_failed" for record in caplog.records) == (writer.num_failed > 0)


def test_a_post_to_a_ledger_that_is_closed_is_counted(rows):
    writer = writer_of(rows)
    assert writer.stop()
    writer.post(inbound(1))
    assert writer.num_failed == 1


async def test_stopping_stores_what_waits(rows, database):
    writer = writer_of(rows)
    futures = [writer.put(inbound(number)) for number in range(200)]
    assert await asyncio.to_thread(writer.stop)
    assert await asyncio.gather(*futures) == [True] * 200
    with pytest.raises(StoreError, match="closed"):
        await writer.put(inbound(1))
    assert len(database.ledger.inbox) == 200


async def test_stopping_while_the_database_hangs_keeps_to_its_deadline_and_tells_who_waits(database, rows):
    database.mode = "hangs"
    writer = writer_of(rows)
    writer.post(inbound(0))
    assert await asyncio.to_thread(database.entered.wait, 10)
    waiting = writer.put(inbound(1))
    assert not await asyncio.to_thread(lambda: writer.stop(deadline_s=0.05))
    with pytest.raises(StoreError, match="stopped"):
        await waiting
    database.mode = "up"
    database.released.set()
    assert await asyncio.to_thread(writer.stop)


async def test_what_nobody_brings_again_is_kept_until_the_store_takes_it_the_newest_version_only(database, rows):
    """A message that was answered while the disk was full must not stand as unanswered when there is room again."""
    writer = writer_of(rows, offer_again_s=0.005)
    assert await writer.put(inbound(1)) is True
    database.mode = "away"
    with pytest.raises(StoreError):
        await writer.put(inbound(2))
    with pytest.raises(StoreError):
        await writer.put(outbound(1))
    for version in (2, 3, 4):
        writer.post(inbound(1, version=version))
    async with asyncio.timeout(10):
        while writer.num_kept < 2:  # noqa: ASYNC110 - the writer's thread tells nobody
            await asyncio.sleep(0)
    database.mode = "up"
    async with asyncio.timeout(10):
        while writer.num_kept:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    assert await asyncio.to_thread(writer.stop)
    assert {key: row.version for key, row in database.ledger.inbox.items()} == {("shop", "M1"): 4}
    assert len(database.ledger.outbox) == 1
    assert writer.num_failed == 1, "only the one who was told, and will bring it again"


def test_what_is_kept_to_the_end_is_counted(database, rows):
    writer = writer_of(rows)
    database.mode = "away"
    writer.post(inbound(1))
    assert writer.stop()
    assert (writer.num_failed, writer.num_kept) == (1, 0)


class Counting:
    """A ledger's sink that takes operations, refuses them for now or for good, and counts how often it was asked."""

    def __init__(self, rows):
        self._rows = rows
        self.num_tries = 0

    def write(self, ops):
        self.num_tries += 1
        return self._rows.write(ops)


async def until(is_so):
    """The writer's thread tells nobody."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)


async def test_what_is_kept_does_not_wait_for_silence(database, rows):
    """Under load there is always a next group; the row of an answered message must not stand as unanswered until the load is over."""
    writer = writer_of(rows, offer_again_s=3_600)
    database.mode = "away"
    writer.post(inbound(1, version=2))
    await until(lambda: writer.num_kept == 1)
    database.mode = "up"
    assert await writer.put(inbound(2)) is True
    await until(lambda: writer.num_kept == 0)
    assert database.ledger.inbox["shop", "M1"].version == 2
    assert await asyncio.to_thread(writer.stop)
    assert (writer.num_failed, writer.kept_bytes) == (0, 0)


async def test_many_kept_rows_are_stored_in_portions_one_after_the_other(database, rows):
    writer = writer_of(rows, offer_again_s=3_600)
    database.mode = "away"
    for number in range(1_200):
        writer.post(outbound(number))
    await until(lambda: writer.num_kept == 1_200)
    database.mode = "up"
    assert await writer.put(inbound(1)) is True
    await until(lambda: writer.num_kept == 0)
    assert [len(group) for group in rows.groups] == [1, 500, 500, 200]
    assert await asyncio.to_thread(writer.stop)


async def test_memory_for_what_is_kept_is_bounded_in_bytes(database, rows):
    writer = writer_of(rows, offer_again_s=3_600)
    database.mode = "away"
    for number in range(60):
        writer.post(inbound(number, raw={"media": "x" * 500_000}))
    await until(lambda: writer.num_kept + writer.num_failed == 60)
    assert 20 < writer.num_kept < 33
    assert 10_000_000 < writer.kept_bytes <= 16_000_000
    before = writer.kept_bytes
    writer.post(inbound(0, version=2))
    await until(lambda: writer.kept_bytes < before)
    assert await asyncio.to_thread(writer.stop)
    assert (writer.num_failed, writer.num_kept, writer.kept_bytes) == (60, 0, 0)


async def test_a_row_that_is_refused_for_good_is_not_kept_for_ever(database, rows):
    writer = writer_of(rows, offer_again_s=0.005)
    database.mode = "away"
    for number, name in enumerate(("shop", "bad", "shop")):
        writer.post(inbound(number, instance_name=name))
    await until(lambda: writer.num_kept == 3)
    database.mode, database.poison = "up", {"bad"}
    await until(lambda: writer.num_kept == 0)
    assert (sorted(database.ledger.inbox), writer.num_failed) == ([("shop", "M0"), ("shop", "M2")], 1)
    assert await asyncio.to_thread(writer.stop)


async def test_kept_rows_stay_kept_when_the_store_goes_away_again_between_them(database, rows):
    """One is refused for good, so each is offered by itself; in the middle of that the store goes away."""
    writer = writer_of(rows, offer_again_s=0.005)
    database.mode = "away"
    for number, name in enumerate(("bad", "shop", "shop")):
        writer.post(inbound(number, instance_name=name))
    await until(lambda: writer.num_kept == 3)
    enter = database._enter

    def leave_after_two():
        enter()
        if database.num_tries >= first + 3:
            database.mode = "away"
            enter()

    first, database._enter = database.num_tries, leave_after_two
    database.poison, database.mode = {"bad"}, "up"
    await until(lambda: database.mode == "away" and writer.num_failed == 1)
    database._enter = enter
    database.mode = "up"
    await until(lambda: writer.num_kept == 0)
    assert (sorted(database.ledger.inbox), writer.num_failed) == ([("shop", "M1"), ("shop", "M2")], 1)
    assert await asyncio.to_thread(writer.stop)


async def test_a_put_is_told_the_truth_while_an_older_post_of_its_row_is_kept(database, rows):
    writer = writer_of(rows, offer_again_s=3_600)
    database.mode = "away"
    writer.post(outbound(1, version=2, state="sending"))
    await until(lambda: writer.num_kept == 1)
    for version in (1, 3):
        with pytest.raises(StoreError):
            await writer.put(outbound(1, version=version, state="accepted"))
    database.mode = "up"
    assert await writer.put(outbound(1, version=4, state="accepted")) is True
    await until(lambda: writer.num_kept == 0)
    assert [row.version for row in database.ledger.outbox.values()] == [4]
    assert (await writer.put(outbound(1, version=4)), writer.num_failed) == (False, 0)
    assert await asyncio.to_thread(writer.stop)


async def test_stopping_with_much_kept_and_a_store_that_is_away_asks_it_once_more_and_counts(database, rows):
    sink = Counting(rows)
    writer = writer_of(sink, offer_again_s=3_600)
    database.mode = "away"
    for number in range(2_000):
        writer.post(outbound(number))
    await until(lambda: writer.num_kept == 2_000)
    num_before = sink.num_tries
    assert await asyncio.to_thread(writer.stop)
    assert sink.num_tries == num_before + 1
    assert (writer.num_failed, writer.num_kept) == (2_000, 0)


async def test_a_stop_that_takes_too_long_lets_go_of_what_is_kept(database, rows):
    """Each write hangs for a while: the deadline holds, and the thread offers no more behind the one under way."""
    sink = Counting(rows)
    writer = writer_of(sink, offer_again_s=3_600)
    database.mode = "away"
    for number in range(1_500):
        writer.post(outbound(number))
    await until(lambda: writer.num_kept == 1_500)
    database.entered.clear()
    database.mode = "hangs"
    stopping = asyncio.ensure_future(asyncio.to_thread(lambda: writer.stop(deadline_s=0.2)))
    assert await asyncio.to_thread(database.entered.wait, 10)
    assert await stopping is False
    num_before = sink.num_tries
    database.mode = "up"
    database.released.set()
    assert await asyncio.to_thread(writer.stop)
    assert sink.num_tries == num_before
    assert (len(database.ledger.outbox), writer.num_failed) == (500, 1_000)
