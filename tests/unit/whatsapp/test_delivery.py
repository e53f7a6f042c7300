"""Order, spacing, attempts and ends of delivery, on a channel that answers what the test says and a clock that only sleeping moves."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.channels.whatsapp.delivery import Delivery
from omni.clock import NS_PER_MS
from omni.errors import DeliveryError
from omni.model import InstanceConfig, MessageOutcome, OutboundMessage, SendResult
from omni.settings import Settings
from omni.testing import FakeClock, RecordingChannel

MARIA = "5511999990001@s.whatsapp.net"
JOAO = "5511999990002@s.whatsapp.net"

BUSY = SendResult(is_accepted=False, status_code=503, error_kind="transient", error="busy")
GONE = SendResult(is_accepted=False, status_code=400, error_kind="not_on_whatsapp", error="gone")
SILENT = SendResult(is_accepted=False, error_kind="ambiguous", error="no answer")

WAIT_S = 5
"""How long a test waits for what must happen at once."""


class Bench:
    """A delivery under test, what it sent and when, and what it reported."""

    def __init__(self, clock: FakeClock, settings: Settings, instance: InstanceConfig) -> None:
        self.clock = clock
        self.instance = instance
        self.channel = RecordingChannel()
        self.outcomes: list[MessageOutcome] = []
        self.delivery = Delivery(self.channel, clock=clock, settings=settings, sleep=clock.sleep, jitter=lambda: 0.0)

    def open(self, chat=MARIA, instance=None):
        return self.delivery.open_answer(
            instance or self.instance, chat, chat_key=chat, on_outcome=self.outcomes.append
        )

    async def deliver(self, text, **options):
        """The outcomes of one whole answer in one chunk."""
        answer = self.open(**options)
        answer.feed(text, 0)
        answer.finish()
        return await asyncio.wait_for(answer.wait_done(), WAIT_S)

    def told(self):
        """(index, status, attempts) of every outcome reported, in the order of reporting."""
        return [(each.message.index, each.status, each.attempts) for each in self.outcomes]

    def started_ms(self):
        return [None if each.started_ns is None else each.started_ns / NS_PER_MS for each in self.outcomes]


@pytest.fixture
async def bench(clock, settings, instance):
    made = Bench(clock, settings, instance)
    yield made
    await made.delivery.aclose(0)


async def turns(count=20):
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_answer_becomes_its_messages_in_order_with_ranges_and_chunks(bench):
    answer = bench.open()
    for index, text in enumerate(["Olá", "!\n", "\nTudo ", "", "bem?\n\nFim"]):
        answer.feed(text, index)
    answer.finish()
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert bench.channel.sent == [
        OutboundMessage(index=0, recipient=MARIA, text="Olá!", start=0, end=6, first_chunk=0, last_chunk=2),
        OutboundMessage(index=1, recipient=MARIA, text="Tudo bem?", start=6, end=17, first_chunk=2, last_chunk=4),
        OutboundMessage(index=2, recipient=MARIA, text="Fim", start=17, end=20, first_chunk=4, last_chunk=4),
    ]
    assert outcomes == tuple(bench.outcomes)
    assert outcomes[0] == MessageOutcome(
        message=bench.channel.sent[0],
        status="accepted",
        attempts=1,
        queued_ns=0,
        started_ns=0,
        ended_ns=0,
        key_id="3EB0000000000000000001",
        status_code=201,
    )


async def test_the_first_message_is_sent_while_the_answer_is_still_being_written(bench):
    answer = bench.open()
    answer.feed("Olá!\n\nTudo", 0)
    await turns()
    assert bench.channel.texts == ["Olá!"]
    answer.finish()
    await asyncio.wait_for(answer.wait_done(), WAIT_S)


async def test_messages_of_one_chat_keep_their_spacing(bench):
    await bench.deliver("a\n\nb\n\nc")
    assert bench.started_ms() == [0, 500, 1000]


async def test_an_instance_may_have_its_own_spacing_and_zero_is_one(bench):
    await bench.deliver("a\n\nb", instance=InstanceConfig(name="fast", message_spacing_ms=0))
    await bench.deliver("c\n\nd", instance=InstanceConfig(name="slow", message_spacing_ms=2000))
    assert bench.started_ms() == [0, 0, 0, 2000]


async def test_a_slow_writer_pays_no_spacing(bench):
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await turns()
    bench.clock.advance_ms(3000)
    answer.feed("b\n\n", 1)
    answer.finish()
    await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert bench.started_ms() == [0, 3500]


async def test_the_next_answer_in_a_chat_keeps_the_spacing_too(bench):
    first, second = bench.open(), bench.open()
    for answer, text in ((first, "a"), (second, "b")):
        answer.feed(text, 0)
        answer.finish()
    await asyncio.wait_for(asyncio.gather(first.wait_done(), second.wait_done()), WAIT_S)
    assert bench.channel.texts == ["a", "b"]
    assert bench.started_ms() == [0, 500]


class StuckForMaria(RecordingChannel):
    """Holds messages to Maria until she is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()

    async def send_text(self, instance, message):
        if message.recipient == MARIA:
            await self.released.wait()
        return await super().send_text(instance, message)


async def test_a_chat_that_is_stuck_holds_up_nobody_else(clock, settings, instance):
    bench = Bench(clock, settings, instance)
    channel = StuckForMaria()
    bench.delivery = Delivery(channel, clock=clock, settings=settings, sleep=clock.sleep)
    stuck = bench.open(MARIA)
    stuck.feed("a\n\nb", 0)
    stuck.finish()
    await turns()
    await bench.deliver("c\n\nd", chat=JOAO)
    assert channel.texts == ["c", "d"]
    channel.released.set()
    await asyncio.wait_for(stuck.wait_done(), WAIT_S)
    assert channel.texts == ["c", "d", "a", "b"]
    await bench.delivery.aclose(0)


async def test_two_instances_talking_to_one_person_do_not_share_a_lane(bench):
    bench.channel.gate = asyncio.Event()
    for name in ("one", "two"):
        bench.open(instance=InstanceConfig(name=name)).feed("a\n\n", 0)
    await turns()
    assert bench.delivery.active_lanes == 2


async def test_a_passing_failure_is_tried_again_with_doubling_waits_and_later_messages_wait(bench):
    bench.channel.answers = [BUSY, BUSY]
    outcomes = await bench.deliver("a\n\nb")
    assert [(each.status, each.attempts, each.error) for each in outcomes] == [
        ("accepted", 3, None),
        ("accepted", 1, None),
    ]
    assert (outcomes[0].started_ns, outcomes[0].ended_ns) == (0, 1500 * NS_PER_MS)
    assert outcomes[1].started_ns == 2000 * NS_PER_MS


@pytest.mark.parametrize(("chance", "at_ms"), [(0.0, [500, 1500]), (0.5, [750, 2250]), (0.999, [999.5, 2998.5])])
async def test_chance_adds_up_to_as_much_again_to_a_wait(bench, clock, settings, chance, at_ms):
    """So that chats which failed together do not come back together, and none comes back before its time."""
    ended = []

    class Timed(RecordingChannel):
        async def send_text(self, instance, message):
            ended.append(clock.mono_ns() / NS_PER_MS)
            return await super().send_text(instance, message)

    channel = Timed()
    channel.answers = [BUSY, BUSY]
    bench.delivery = Delivery(channel, clock=clock, settings=settings, sleep=clock.sleep, jitter=lambda: chance)
    await bench.deliver("a")
    assert ended == [0, *at_ms]


async def test_waits_stop_growing_at_the_cap(bench, clock):
    knobs = Settings(_env_file=None, send_attempts=6, send_retry_ms=500, send_retry_max_ms=1_200)
    bench.delivery = Delivery(bench.channel, clock=clock, settings=knobs, sleep=clock.sleep, jitter=lambda: 0.0)
    bench.channel.answers = [BUSY] * 6
    (outcome,) = await bench.deliver("a")
    assert (outcome.attempts, outcome.ended_ns) == (6, (500 + 1_000 + 3 * 1_200) * NS_PER_MS)


async def test_waits_differ_from_one_another_unless_told_otherwise(clock, instance):
    """The shipped chance is real: sixteen failed chats come back at sixteen moments."""
    knobs = Settings(_env_file=None, send_attempts=2)
    moments = set()
    for _ in range(16):
        bench = Bench(FakeClock(mono_ns=0), knobs, instance)
        bench.delivery = Delivery(bench.channel, clock=bench.clock, settings=knobs, sleep=bench.clock.sleep)
        bench.channel.answers = [BUSY]
        (outcome,) = await bench.deliver("a")
        moments.add(outcome.ended_ns)
        await bench.delivery.aclose(0)
    assert len(moments) > 1
    assert all(500 * NS_PER_MS <= moment <= 1_000 * NS_PER_MS for moment in moments)


async def test_a_server_that_asks_for_patience_gets_it(bench):
    bench.channel.answers = [SendResult(is_accepted=False, error_kind="transient", retry_after_s=7.0)]
    (outcome,) = await bench.deliver("a")
    assert (outcome.status, outcome.ended_ns) == ("accepted", 7000 * NS_PER_MS)


async def test_a_server_that_asks_for_too_much_patience_is_not_waited_for(bench):
    bench.channel.answers = [SendResult(is_accepted=False, error_kind="transient", retry_after_s=3600.0)]
    (outcome,) = await bench.deliver("a")
    assert (outcome.status, outcome.attempts, outcome.ended_ns) == ("failed", 1, 0)


async def test_when_the_attempts_are_used_up_the_rest_of_the_answer_is_not_sent(bench):
    bench.channel.answers = [BUSY, BUSY, BUSY]
    outcomes = await bench.deliver("a\n\nb\n\nc")
    assert bench.told() == [(0, "failed", 3), (1, "not_sent", 0), (2, "not_sent", 0)]
    assert [(each.error_kind, each.error, each.status_code) for each in outcomes] == [
        ("transient", "busy", 503),
        (None, "an earlier message of the answer failed", None),
        (None, "an earlier message of the answer failed", None),
    ]


async def test_a_failure_for_good_ends_its_answer_and_no_other(bench):
    bench.channel.answers = [GONE]
    first, second = bench.open(), bench.open()
    first.feed("a\n\nb\n\n", 0)
    second.feed("c\n\n", 0)
    await turns()
    first.feed("d\n\n", 1)
    first.notice("desculpe")
    for answer in (first, second):
        answer.finish()
        await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert bench.channel.texts == ["a", "c"]
    assert [(each.status, each.error_kind) for each in await first.wait_done()] == [
        ("failed", "not_on_whatsapp"),
        ("not_sent", None),
        ("not_sent", None),
        ("not_sent", None),
    ]


async def test_a_message_that_may_have_gone_out_is_not_sent_again_while_nobody_can_tell_and_the_rest_follows(bench):
    """The rest waits for the channel's own word (5 s), then for two searches (1 s apart)."""
    bench.channel.answers = [SILENT]
    outcomes = await bench.deliver("a\n\nb")
    assert bench.channel.texts == ["a", "b"]
    assert [(each.status, each.attempts, each.error_kind) for each in outcomes] == [
        ("failed", 1, "ambiguous"),
        ("accepted", 1, None),
    ]
    assert bench.started_ms() == [0, 6500]


async def test_a_channel_that_raises_fails_one_message_and_is_logged_by_type(bench, caplog):
    bench.channel.answers = [KeyError("segredo 5511999990001")]
    outcomes = await bench.deliver("a\n\nb")
    assert [(each.status, each.error_kind, each.error) for each in outcomes] == [
        ("failed", "ambiguous", "the channel raised KeyError"),
        ("accepted", None, None),
    ]
    (record,) = [each for each in caplog.records if each.msg == "channel_raised"]
    assert (record.levelno, record.exception) == (logging.ERROR, "KeyError")
    assert record.where.startswith("testing.py:")
    assert "segredo" not in caplog.text


async def test_a_listener_that_raises_stops_no_message(bench, caplog):
    def broken(_outcome):
        raise ValueError

    answer = bench.delivery.open_answer(bench.instance, MARIA, chat_key=MARIA, on_outcome=broken)
    answer.feed("a\n\nb", 0)
    answer.finish()
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert [each.status for each in outcomes] == ["accepted", "accepted"]
    assert [each.exception for each in caplog.records if each.msg == "outcome_listener_raised"] == ["ValueError"] * 2


async def test_a_notice_follows_the_text_and_belongs_to_no_chunk(bench):
    answer = bench.open()
    answer.feed("a\n\nb", 0)
    answer.notice("desculpe")
    answer.finish()
    await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert bench.channel.texts == ["a", "b", "desculpe"]
    assert bench.channel.sent[-1] == OutboundMessage(index=2, recipient=MARIA, text="desculpe", start=4, end=4)


async def test_an_answer_may_be_a_notice_only(bench):
    answer = bench.open()
    answer.notice("desculpe")
    answer.finish()
    (outcome,) = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert outcome.message == OutboundMessage(index=0, recipient=MARIA, text="desculpe")


async def test_an_answer_without_text_is_done_when_it_is_finished(bench):
    assert await bench.deliver(" \n\n") == ()
    assert bench.delivery.active_lanes == 0


async def test_nothing_can_follow_the_end(bench):
    answer = bench.open()
    answer.notice("desculpe")
    with pytest.raises(DeliveryError):
        answer.feed("a", 0)
    answer.finish()
    answer.finish()
    with pytest.raises(DeliveryError):
        answer.notice("outra")
    assert len(await asyncio.wait_for(answer.wait_done(), WAIT_S)) == 1


async def test_an_abandoned_answer_sends_nothing_that_was_not_started(bench):
    bench.channel.gate = asyncio.Event()
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    await turns()
    answer.abandon()
    answer.feed("c\n\nd", 1)
    answer.finish()
    assert bench.told() == [(1, "not_sent", 0), (2, "not_sent", 0), (3, "not_sent", 0)]
    bench.channel.gate.set()
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert [each.status for each in outcomes] == ["accepted", "not_sent", "not_sent", "not_sent"]
    assert [each.error for each in outcomes] == [None, *["the answer was abandoned"] * 3]
    assert bench.channel.texts == ["a"]


async def test_an_abandoned_answer_is_not_tried_again(bench):
    bench.channel.answers = [BUSY]
    bench.channel.gate = asyncio.Event()
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await turns()
    answer.abandon()
    answer.finish()
    bench.channel.gate.set()
    (outcome,) = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert (outcome.status, outcome.attempts, outcome.error_kind) == ("failed", 1, "transient")


async def test_a_lane_is_gone_once_its_spacing_is_over(bench):
    released = asyncio.Event()

    async def hold(_duration_s):
        await released.wait()

    delivery = Delivery(bench.channel, clock=bench.clock, settings=Settings(_env_file=None), sleep=hold)
    answer = delivery.open_answer(bench.instance, MARIA, chat_key=MARIA, on_outcome=bench.outcomes.append)
    answer.feed("a", 0)
    answer.finish()
    await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert (delivery.active_lanes, delivery.unsettled_messages) == (1, 0)
    released.set()
    await turns()
    assert delivery.active_lanes == 0


async def test_closing_lets_waiting_messages_go_out(bench):
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    await bench.delivery.aclose(WAIT_S)
    assert bench.channel.texts == ["a", "b"]
    assert bench.delivery.active_lanes == 0


async def test_closing_does_not_wait_for_a_spacing_with_nothing_behind_it(clock, settings, instance):
    bench = Bench(clock, settings, instance)
    bench.delivery = Delivery(bench.channel, clock=clock, settings=settings, sleep=lambda _s: asyncio.Event().wait())
    await bench.deliver("a")
    await asyncio.wait_for(bench.delivery.aclose(60), WAIT_S)
    assert bench.delivery.active_lanes == 0


async def test_past_the_deadline_what_was_not_started_is_not_sent_and_what_was_is_unknown(bench, caplog):
    bench.channel.gate = asyncio.Event()
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    await turns()
    await asyncio.wait_for(bench.delivery.aclose(0), WAIT_S)
    answer.feed("c", 1)
    answer.finish()
    outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert [(each.status, each.attempts, each.error_kind, each.error) for each in outcomes] == [
        ("failed", 1, "ambiguous", "stopped while it was being sent"),
        ("not_sent", 0, None, "stopped before it was sent"),
        ("not_sent", 0, None, "stopped before it was sent"),
    ]
    assert [each.messages for each in caplog.records if each.msg == "delivery_cut_off"] == [2]


async def test_a_message_stopped_between_two_attempts_failed_for_the_reason_of_the_last(clock, settings, instance):
    bench = Bench(clock, settings, instance)
    bench.delivery = Delivery(bench.channel, clock=clock, settings=settings, sleep=lambda _s: asyncio.Event().wait())
    bench.channel.answers = [BUSY]
    answer = bench.open()
    answer.feed("a\n\n", 0)
    await turns()
    await asyncio.wait_for(bench.delivery.aclose(0), WAIT_S)
    assert [(each.status, each.attempts, each.error_kind) for each in bench.outcomes] == [("failed", 1, "transient")]


async def test_a_message_is_told_once_whatever_happens(bench):
    bench.channel.answers = [GONE]
    answer = bench.open()
    answer.feed("a\n\nb\n\n", 0)
    await turns()
    answer.abandon()
    answer.finish()
    await bench.delivery.aclose(0)
    assert bench.told() == [(0, "failed", 1), (1, "not_sent", 0)]


async def test_the_text_of_an_abandoned_answer_is_all_told_as_not_sent(bench):
    """Also what the splitter still held: text generated is text sent and text explicitly not sent."""
    answer = bench.open()
    answer.abandon()
    for index, text in enumerate(["um", "\n\ndois\n", "tr", "ês"]):
        answer.feed(text, index)
    answer.finish()
    told = await asyncio.wait_for(answer.wait_done(), WAIT_S)
    assert [(each.status, each.message.text, each.message.start, each.message.end) for each in told] == [
        ("not_sent", "um", 0, 4),
        ("not_sent", "dois\ntrês", 4, 13),
    ]


@given(st.lists(st.text(alphabet="ab \n", max_size=9), max_size=30))
def test_every_messages_chunks_are_those_its_range_was_fed_with(chunks):
    owners = [index for index, chunk in enumerate(chunks) for _ in chunk]

    async def run():
        clock = FakeClock()
        channel = RecordingChannel()
        delivery = Delivery(channel, clock=clock, settings=Settings(_env_file=None), sleep=clock.sleep)
        answer = delivery.open_answer(InstanceConfig(name="shop"), MARIA, chat_key=MARIA, on_outcome=lambda _o: None)
        for index, chunk in enumerate(chunks):
            answer.feed(chunk, index)
        answer.finish()
        await answer.wait_done()
        await delivery.aclose(0)
        return channel.sent

    for message in asyncio.run(run()):
        expected = owners[message.start : message.end]
        assert (message.first_chunk, message.last_chunk) == (expected[0], expected[-1])


def test_a_chat_is_served_again_after_the_loop_that_served_it_ended(clock, settings, instance):
    """Scripts run asyncio.run more than once; the first leaves its spacing unslept."""
    delivery = Delivery(RecordingChannel(), clock=clock, settings=settings, sleep=lambda _: asyncio.Event().wait())

    async def deliver_one():
        answer = delivery.open_answer(instance, MARIA, chat_key=MARIA, on_outcome=lambda _: None)
        answer.feed("olá", 0)
        answer.finish()
        outcomes = await asyncio.wait_for(answer.wait_done(), WAIT_S)
        return [each.status for each in outcomes], delivery.active_lanes

    assert [asyncio.run(deliver_one()) for _ in range(2)] == [(["accepted"], 1), (["accepted"], 1)]
    assert delivery.active_lanes == 0


def test_a_chat_on_one_loop_does_not_wait_for_its_lane_on_another(clock, settings, instance):
    """A script may answer the same chat from two threads, each with a loop of its own."""
    delivery = Delivery(RecordingChannel(), clock=clock, settings=settings, sleep=lambda _: asyncio.Event().wait())
    first_is_spacing, second_is_done = Event(), Event()

    async def deliver_one():
        answer = delivery.open_answer(instance, MARIA, chat_key=MARIA, on_outcome=lambda _: None)
        answer.feed("olá", 0)
        answer.finish()
        return [each.status for each in await asyncio.wait_for(answer.wait_done(), WAIT_S)]

    async def first():
        told = await deliver_one()
        first_is_spacing.set()
        second_is_done.wait(2 * WAIT_S)
        return told

    with ThreadPoolExecutor(1) as pool:
        told_first = pool.submit(asyncio.run, first())
        assert first_is_spacing.wait(WAIT_S)
        try:
            assert asyncio.run(deliver_one()) == ["accepted"]
        finally:
            second_is_done.set()
        assert told_first.result(WAIT_S) == ["accepted"]
    assert delivery.active_lanes == 0


async def test_messages_that_wait_are_settled_when_their_task_is_cancelled_from_outside(bench):
    """As asyncio.run does with every task that is left."""
    bench.channel.gate = asyncio.Event()
    answer = bench.open()
    answer.feed("um\n\ndois\n\n", 0)
    answer.finish()
    await turns()
    lane_task = next(task for task in asyncio.all_tasks() if task.get_name() == "omni-lane")
    lane_task.cancel()
    await asyncio.wait({lane_task}, timeout=WAIT_S)
    assert [each.status for each in await asyncio.wait_for(answer.wait_done(), WAIT_S)] == ["failed", "not_sent"]
    assert bench.delivery.active_lanes == 0
