"""What the ledger knows of outgoing messages and when, what happens when it cannot take them, and going on after a restart."""

import asyncio
from datetime import timedelta
from hashlib import sha256

import pytest
from tests.unit.whatsapp.conftest import turns

from omni.channels.whatsapp.delivery import Delivery
from omni.clock import NS_PER_MS
from omni.errors import DeliveryError, StoreError
from omni.model import InstanceConfig, MessageOutcome, OutboundMessage, SendResult, SentSearch
from omni.ports import PutOutbound
from omni.records import OutboxRecord
from omni.settings import Settings
from omni.testing import MemoryLedger, RecordingChannel

MARIA = "5511999990001@s.whatsapp.net"
GONE = SendResult(is_accepted=False, status_code=400, error_kind="not_on_whatsapp", error="gone")
BUSY = SendResult(is_accepted=False, status_code=503, error_kind="transient", error="busy")
WAIT_S = 5


class Bench:
    """A delivery with a ledger, on a clock the test moves."""

    def __init__(self, clock, manual_sleep, **knobs):
        self.clock = clock
        self.sleep = manual_sleep
        self.channel = RecordingChannel()
        self.ledger = MemoryLedger()
        self.outcomes = []
        self.knobs = Settings(_env_file=None, **{"message_spacing_ms": 500, "send_retry_ms": 500, **knobs})
        self.delivery = self.new_delivery()

    def new_delivery(self):
        return Delivery(
            self.channel,
            clock=self.clock,
            settings=self.knobs,
            ledger=self.ledger,
            sleep=self.sleep,
            jitter=lambda: 0.0,
        )

    def open(self, **options):
        return self.delivery.open_answer(
            InstanceConfig(name="shop"),
            MARIA,
            chat_key="maria",
            on_outcome=self.outcomes.append,
            answer_id="t1",
            trace_id="t1",
            **options,
        )

    def resume(self, records):
        return self.delivery.resume_answer(
            InstanceConfig(name="shop"),
            MARIA,
            chat_key="maria",
            on_outcome=self.outcomes.append,
            records=records,
            answer_id="t1",
            trace_id="t1",
        )

    def rows(self):
        return [self.ledger.outbox[uid] for uid in sorted(self.ledger.outbox)]

    def log(self):
        """(index, state, version) of every write, in order."""
        return [
            (op.record.index, op.record.state, op.record.version)
            for op in self.ledger.history
            if isinstance(op, PutOutbound)
        ]


@pytest.fixture
async def bench(clock, manual_sleep):
    made = Bench(clock, manual_sleep)
    yield made
    await made.delivery.aclose(0)


async def test_a_message_is_on_record_before_it_is_sent_and_with_its_verdict_after(bench, clock):
    start = "2026-11-22T10:00:00+00:00"
    bench.channel.gate = asyncio.Event()
    answer = bench.open()
    answer.feed("Olá!\n\n", 3)
    await turns()
    (row,) = bench.rows()
    known = OutboxRecord(
        message_uid="t1/0",
        answer_id="t1",
        trace_id="t1",
        instance_name="shop",
        chat_key="maria",
        recipient=MARIA,
        index=0,
        text="Olá!",
        text_sha256=sha256("Olá!".encode()).hexdigest(),
        start=0,
        end=6,
        first_chunk=3,
        last_chunk=3,
        state="sending",
        version=1,
        queued_at=row.queued_at,
        started_at=row.queued_at,
    )
    assert (row, row.queued_at.isoformat()) == (known, start)
    clock.advance_ms(40)
    bench.channel.gate.set()
    await turns()
    (row,) = bench.rows()
    assert row == OutboxRecord(
        **{name: getattr(known, name) for name in known.__struct_fields__}
        | {
            "state": "accepted",
            "version": 2,
            "attempts": 1,
            "ended_at": known.queued_at + timedelta(milliseconds=40),
            "key_id": "3EB0000000000000000001",
            "status_code": 201,
        }
    )


async def test_a_message_that_has_to_wait_is_queued_first(bench):
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    await turns()
    assert bench.log() == [(0, "sending", 1), (1, "queued", 1), (0, "accepted", 2)]
    await bench.sleep.pass_ms(449)
    assert bench.log()[3:] == []
    await bench.sleep.pass_ms(1)
    assert bench.log()[3:] == [(1, "sending", 2)]
    await bench.sleep.pass_ms(50)
    assert bench.log()[4:] == [(1, "accepted", 3)]


async def test_the_write_hides_in_the_spacing(bench):
    """50 ms before its turn a message is told to the ledger; a write that takes less costs nothing."""
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    await bench.sleep.pass_ms(449)
    bench.ledger.is_held = True
    await bench.sleep.pass_ms(31)
    bench.ledger.release()
    await bench.sleep.pass_ms(20)
    assert [each.started_ns / NS_PER_MS for each in bench.outcomes] == [0, 500]


async def test_a_slow_ledger_is_told_earlier_the_next_time(bench):
    answer = bench.open()
    bench.ledger.is_held = True
    answer.feed("a\n\nb\n\n", 0)
    await bench.sleep.pass_ms(120)
    bench.ledger.release()
    await turns()
    bench.ledger.history.clear()
    await bench.sleep.pass_ms(259)
    assert bench.log() == []
    await bench.sleep.pass_ms(1)
    assert bench.log() == [(1, "sending", 2)]


async def test_a_message_that_comes_late_in_the_spacing_is_written_once(bench):
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await bench.sleep.pass_ms(470)
    answer.feed("b\n\n", 1)
    await turns()
    assert bench.log()[2:] == [(1, "sending", 1)]
    await bench.sleep.pass_ms(30)
    assert bench.channel.texts == ["a", "b"]


async def test_nothing_is_sent_while_its_write_is_under_way(bench):
    bench.ledger.is_held = True
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await bench.sleep.pass_ms(1_200)
    assert bench.channel.texts == []
    bench.ledger.release()
    await turns()
    assert bench.channel.texts == ["a"]
    assert bench.delivery.num_unledgered == 0


async def test_a_ledger_that_takes_too_long_holds_up_no_answer(bench, caplog):
    """1,000 ms for the database and 250 for the spool behind it; the failure is counted, told and logged once a minute."""
    bench.ledger.is_held = True
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    answer.finish()
    await bench.sleep.pass_ms(1_249)
    assert bench.channel.texts == []
    await bench.sleep.pass_ms(1)
    assert bench.channel.texts == ["a"]
    await bench.sleep.pass_ms(5_000)
    assert [(each.status, each.is_unledgered) for each in bench.outcomes] == [("accepted", True)] * 2
    assert bench.delivery.num_unledgered == 2
    assert [(each.trace_id, each.message_index, each.total) for each in caplog.records] == [("t1", 0, 1)]
    bench.ledger.release()
    assert [row.state for row in bench.rows()] == ["accepted", "accepted"]


async def test_a_ledger_that_refuses_holds_up_no_answer_either(bench):
    bench.ledger.failures = [StoreError("disk full")]
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await turns()
    assert bench.channel.texts == ["a"]
    assert (bench.delivery.num_unledgered, bench.outcomes[0].is_unledgered) == (1, True)


async def test_what_is_not_sent_is_on_record_too(bench):
    bench.channel.answers = [GONE]
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    await turns()
    answer.feed("c\n\nd", 1)
    answer.finish()
    assert [(row.state, row.text, row.error_kind, row.error) for row in bench.rows()] == [
        ("failed", "a", "not_on_whatsapp", "gone"),
        *[("not_sent", text, None, "an earlier message of the answer failed") for text in "bcd"],
    ]
    assert [(row.start, row.end) for row in bench.rows()] == [(0, 3), (3, 6), (6, 9), (9, 10)]


async def test_an_answer_abandoned_while_its_first_write_is_under_way_sends_nothing(bench):
    bench.ledger.is_held = True
    answer = bench.open()
    answer.feed("a\n\nb", 0)
    await turns()
    answer.abandon()
    answer.finish()
    bench.ledger.release()
    await turns()
    assert bench.channel.texts == []
    assert [each.status for each in await asyncio.wait_for(answer.wait_done(), WAIT_S)] == ["not_sent", "not_sent"]
    assert [row.state for row in bench.rows()] == ["not_sent", "not_sent"]


async def test_a_message_stopped_while_its_write_is_under_way_is_not_sent(bench):
    bench.ledger.is_held = True
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await turns()
    await bench.delivery.aclose(0)
    assert [(each.status, each.error) for each in bench.outcomes] == [("not_sent", "stopped before it was sent")]


async def test_attempts_after_the_first_need_no_write(bench):
    bench.channel.answers = [BUSY]
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await bench.sleep.pass_ms(500)
    assert bench.log() == [(0, "sending", 1), (0, "accepted", 2)]
    assert bench.rows()[0].attempts == 2


async def test_answers_without_an_id_of_their_own_get_one(bench):
    for _ in range(2):
        text = bench.delivery.open_text(InstanceConfig(name="shop"), "5511999990002")
        text.feed("oi", 0)
        text.finish()
    await bench.sleep.pass_ms(500)
    rows = bench.rows()
    assert len({row.answer_id for row in rows}) == 2
    assert {(row.trace_id, row.chat_key, row.index) for row in rows} == {(None, "5511999990002@s.whatsapp.net", 0)}


@pytest.mark.parametrize("text", ["\ud83d", "a\x00b"])
async def test_text_that_is_no_utf8_has_a_hash_all_the_same(bench, text):
    answer = bench.open()
    answer.notice(text)
    answer.finish()
    await turns()
    assert len(bench.rows()[0].text_sha256) == 64


async def die(bench):
    """End the process as a death does: the rows it leaves, and a new delivery on the same ledger."""
    rows = list(bench.rows())
    await bench.delivery.aclose(0)
    bench.outcomes.clear()
    bench.delivery = bench.new_delivery()
    return rows


async def cut_off(bench, text, *, held_at):
    """The rows of a process that died when it had sent ``held_at`` messages more than the first."""
    bench.open().feed(text, 0)
    for _ in range(held_at):
        await bench.sleep.pass_ms(500)
    return await die(bench)


async def test_a_restart_goes_on_at_the_first_message_that_was_not_sent(bench):
    rows = await cut_off(bench, "a\n\nb\n\nc\n\nd", held_at=1)
    assert [row.state for row in rows] == ["accepted", "accepted", "queued"]
    bench.ledger.history.clear()
    answer = bench.resume(rows)
    assert (answer.num_messages, answer.resumes_at) == (3, 9)
    answer.feed("d", 0)
    answer.notice("desculpe")
    answer.finish()
    await bench.sleep.pass_ms(1_000)
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert bench.channel.texts == ["a", "b", "c", "d", "desculpe"]
    assert [each.message.index for each in bench.outcomes] == [2, 3, 4]
    assert outcomes == answer.snapshot()
    assert [(o.message.index, o.status, o.message.start, o.message.end) for o in outcomes] == [
        (0, "accepted", 0, 3),
        (1, "accepted", 3, 6),
        (2, "accepted", 6, 9),
        (3, "accepted", 9, 10),
        (4, "accepted", 10, 10),
    ]
    assert bench.log() == [
        (2, "sending", 2),
        (3, "queued", 1),
        (4, "queued", 1),
        (2, "accepted", 3),
        (3, "sending", 2),
        (3, "accepted", 3),
        (4, "sending", 2),
        (4, "accepted", 3),
    ]


async def test_the_known_messages_of_a_resumed_answer_keep_their_outcomes(bench, clock):
    bench.channel.answers = [BUSY]
    rows = await cut_off(bench, "a\n\nb\n\n", held_at=1)
    clock.advance_ms(10_000)
    answer = bench.resume(rows)
    assert answer.snapshot()[0] == MessageOutcome(
        message=OutboundMessage(index=0, recipient=MARIA, text="a", start=0, end=3, first_chunk=0, last_chunk=0),
        status="accepted",
        attempts=2,
        queued_ns=0,
        started_ns=0,
        ended_ns=500 * NS_PER_MS,
        key_id="3EB0000000000000000002",
        status_code=201,
    )
    assert answer.snapshot()[1].status == "pending"


@pytest.mark.parametrize(
    ("search", "texts", "told"),
    [
        (SentSearch(verdict="found", key_id="3EB0F"), ["b"], ("accepted", 1, "3EB0F", None)),
        (SentSearch(verdict="absent"), ["a", "b"], ("accepted", 2, "3EB0000000000000000001", None)),
        (SentSearch(verdict="unknown"), ["b"], ("failed", 1, None, "ambiguous")),
    ],
)
async def test_a_message_that_was_being_sent_is_looked_for_before_anything_else_is_sent(bench, search, texts, told):
    bench.channel.gate = asyncio.Event()
    bench.open().feed("a\n\nb\n\n", 0)
    await turns()
    answer = bench.resume(await die(bench))
    bench.channel.gate = None
    bench.channel.searches = [search, search]
    answer.finish()
    await bench.sleep.pass_ms(4_999)
    assert bench.channel.texts == []
    await bench.sleep.pass_ms(4_000)
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert bench.channel.texts == texts
    assert (outcomes[0].status, outcomes[0].attempts, outcomes[0].key_id, outcomes[0].error_kind) == told
    assert bench.channel.searched[0].text == "a"


async def test_an_answer_that_had_been_given_up_stays_given_up(bench):
    bench.channel.answers = [GONE]
    bench.open().feed("a\n\nb\n\n", 0)
    queued = bench.rows()[1]
    await turns()
    rows = [bench.rows()[0], queued]
    assert [row.state for row in rows] == ["failed", "queued"]
    resumed = bench.resume(rows)
    resumed.feed("c", 1)
    resumed.notice("desculpe")
    resumed.finish()
    told = await asyncio.wait_for(resumed.wait_done(), WAIT_S)
    assert bench.channel.texts == ["a"]
    assert [(each.status, each.error) for each in told[1:]] == [
        ("not_sent", "an earlier message of the answer failed")
    ] * 3


async def test_an_answer_whose_notice_is_on_record_takes_no_more_text(bench):
    answer = bench.open()
    answer.feed("a", 0)
    answer.notice("desculpe")
    rows = await die(bench)
    resumed = bench.resume(rows)
    resumed.feed_rest("a e mais")
    with pytest.raises(DeliveryError):
        resumed.feed("mais", 1)
    resumed.finish()
    assert resumed.num_messages == 2


class Chunk:
    def __init__(self, index, text):
        self.index = index
        self.text = text


@pytest.mark.parametrize(
    ("chunks", "ranges"),
    [
        ([(0, "a\n\nbb"), (1, "b\n\nc"), (2, ""), (3, "c\n\nd")], [(0, 1), (1, 3), (3, 3)]),
        ([(0, "a\n\nbbb\n\n"), (7, "cc\n\nd")], [(0, 0), (7, 7), (7, 7)]),
        ([(0, "a\n\nbb")], [(0, 0), (0, 0), (0, 0)]),
        ([], [(0, 0), (0, 0), (0, 0)]),
    ],
)
async def test_the_rest_of_the_text_keeps_its_chunks(bench, chunks, ranges):
    """Chunks whose record was lost are taken for part of the last one known."""
    answer = bench.open()
    answer.feed("a\n\n", 0)
    rows = await die(bench)
    resumed = bench.resume(rows)
    resumed.feed_rest("a\n\nbbb\n\ncc\n\nd", [Chunk(index, text) for index, text in chunks])
    resumed.finish()
    messages = [each.message for each in resumed.snapshot()][1:]
    assert [(message.text, message.start, message.end) for message in messages] == [
        ("bbb", 3, 8),
        ("cc", 8, 12),
        ("d", 12, 13),
    ]
    assert [(message.first_chunk, message.last_chunk) for message in messages] == ranges


async def test_less_text_than_the_outbox_knows_is_nothing_new(bench):
    """The last chunks' records may be lost while their messages are not."""
    answer = bench.open()
    answer.feed("um\n\ndois\n\n", 0)
    rows = await die(bench)
    resumed = bench.resume(rows)
    resumed.feed_rest("um\n\nd", [Chunk(0, "um\n\nd")])
    resumed.finish()
    assert resumed.num_messages == 2


async def test_records_with_a_hole_are_gone_on_behind_the_last(bench):
    answer = bench.open()
    answer.feed("a\n\nb\n\nc\n\n", 0)
    rows = await die(bench)
    resumed = bench.resume([rows[2]])
    resumed.feed("d", 1)
    resumed.finish()
    await bench.sleep.pass_ms(500)
    assert [(each.message.index, each.message.start) for each in bench.outcomes] == [(2, 6), (3, 9)]


async def test_a_stop_while_it_is_looked_for_leaves_a_message_unknown(bench):
    bench.channel.gate = asyncio.Event()
    bench.open().feed("a\n\nb\n\n", 0)
    resumed = bench.resume(await die(bench))
    resumed.finish()
    await turns()
    await bench.delivery.aclose(0)
    assert [(each.status, each.error_kind, each.error) for each in bench.outcomes] == [
        ("failed", "ambiguous", "Omni died while it was being sent"),
        ("not_sent", None, "stopped before it was sent"),
    ]
