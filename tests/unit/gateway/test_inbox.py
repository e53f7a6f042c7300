"""Which webhooks become turns, and in what order they are answered."""

import asyncio
from datetime import UTC, datetime

import pytest
from msgspec import structs
from tests.unit.gateway.scripts import JOKE, telling

from omni.clock import take_anchor
from omni.errors import InboxFull, StoreError
from omni.gateway.chat_queues import ChatQueues
from omni.gateway.inbox import Inbox
from omni.gateway.receipts import ReceiptBook
from omni.model import InboundMessage
from omni.records import InboxRecord
from omni.settings import Settings
from omni.testing import MemoryLedger, ScriptedAgent


def webhook(
    text="oi", *, message_id="M1", jid="5511999990001@s.whatsapp.net", from_me=False, message=None, sent_at_s=1795342685
):
    return {
        "event": "messages.upsert",
        "instance": "shop",
        "data": {
            "key": {"remoteJid": jid, "fromMe": from_me, "id": message_id},
            "pushName": "Maria",
            "message": {"conversation": text} if message is None else message,
            "messageType": "conversation" if message is None else next(iter(message)),
            "messageTimestamp": sent_at_s,
        },
        "server_url": "http://evil.test",
        "apikey": "forged",
    }


class Answers:
    """Remembers the turns it was given; holds each until it is let go."""

    def __init__(self):
        self.texts = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, turn):
        self.texts.append(turn.message.text)
        await self.gate.wait()
        turn.trace.end_turn("completed")
        turn.on_closed("completed")


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def ledger():
    return MemoryLedger()


@pytest.fixture
def stopped():
    return []


@pytest.fixture
def echoes():
    return []


@pytest.fixture
def logged_receipts():
    return []


@pytest.fixture
async def receipts(ledger, clock, logged_receipts):
    """The real book, which knows one message sent by this process: shop's KEY1, of the trace ``t``."""
    book = ReceiptBook(
        ledger=ledger,
        reader=None,
        find_turns=None,
        log_receipt=lambda trace_id, _, event: logged_receipts.append((trace_id, event.key_id, event.status)),
        clock=clock,
        sleep=lambda _: asyncio.Event().wait(),
    )
    book.note_sent("shop", "KEY1", trace_id="t", turn=take_anchor(clock))
    yield book
    await book.aclose()


@pytest.fixture
def make_inbox(tracer, ledger, clock, stopped, receipts, echoes):
    """Inboxes on one ledger; ``stopped`` collects the chats that were stopped, and has none to stop when it holds None."""

    def make(answer, **settings):
        def stop_chat(instance_name, chat_key):
            stopped.append((instance_name, chat_key))
            return True

        return Inbox(
            ChatQueues(answer, ledger=ledger),
            tracer=tracer,
            ledger=ledger,
            clock=clock,
            settings=Settings(_env_file=None, **settings),
            receipts=receipts,
            note_echo=echoes.append,
            stop_chat=stop_chat,
        )

    return make


@pytest.fixture
async def inbox(answers, make_inbox):
    inbox = make_inbox(answers)
    yield inbox
    answers.gate.set()
    await inbox.aclose(deadline_s=5)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_message_becomes_a_turn_at_once(inbox, answers, instance):
    verdict = await inbox.take(instance, webhook())
    assert verdict.status == "success"
    assert verdict.trace_id is not None
    await settle()
    assert answers.texts == ["oi"]


async def test_every_message_of_a_list_becomes_a_turn(inbox, answers, instance):
    """Data that is a list may hold more than one message; the second one used to be lost without a word."""
    bodies = [webhook(f"text {number}", message_id=f"M{number}") for number in range(3)]
    listed = bodies[0] | {"data": [body["data"] for body in bodies]}

    first = await inbox.take(instance, listed)
    again = await inbox.take(instance, listed)
    await settle()

    assert (first.status, first.trace_id is not None) == ("success", True)
    assert (again.status, again.reason) == ("ignored", "repeat")
    assert answers.texts == ["text 0", "text 1", "text 2"]


async def test_repeats_are_ignored_for_a_day(inbox, answers, instance, clock):
    """F26: the same id is answered once, however often it comes."""
    await inbox.take(instance, webhook())
    assert (await inbox.take(instance, webhook())).reason == "repeat"
    clock.advance_ms(23 * 3600 * 1000)
    assert (await inbox.take(instance, webhook())).reason == "repeat"
    clock.advance_ms(2 * 3600 * 1000)
    again = webhook(sent_at_s=clock.wall_ns() // 10**9)
    assert (await inbox.take(instance, again)).reason == "repeat", "the ledger keeps it for longer"


async def test_ids_of_before_a_restart_are_repeats(inbox, instance):
    inbox.remember([("shop", "M1")])
    assert (await inbox.take(instance, webhook())).reason == "repeat"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (webhook(from_me=True), "own_message"),
        (webhook(jid="status@broadcast"), "status_broadcast"),
        (webhook(jid="120363000000000001@g.us"), "group"),
        ({"event": "connection.update", "instance": "shop", "data": {"state": "open"}}, "not_a_message"),
    ],
)
async def test_what_must_not_be_answered_is_not_and_says_why(inbox, answers, store, tracer, instance, body, reason):
    """F26."""
    verdict = await inbox.take(instance, body)
    assert (verdict.status, verdict.reason, verdict.trace_id) == ("ignored", reason, None)
    await settle()
    assert answers.texts == []
    assert tracer.flush()
    assert store.rows == {}


async def test_a_voice_note_is_on_record_and_not_stuck(inbox, store, tracer, instance):
    """F28: the operator finds it, closed and with its reason."""
    verdict = await inbox.take(instance, webhook(message={"audioMessage": {"seconds": 3}}))
    assert (verdict.status, verdict.reason) == ("ignored", "unsupported_type")
    assert tracer.flush()
    row = store.get_trace(verdict.trace_id)
    assert (row.status, row.error_stage, row.message_type) == ("failed", "webhook_received", "audio")
    assert row.completed_at is not None


async def test_one_chat_is_answered_in_order_and_others_do_not_wait(inbox, answers, instance):
    answers.gate.clear()
    for number in range(3):
        await inbox.take(instance, webhook(f"a{number}", message_id=f"A{number}"))
    await inbox.take(instance, webhook("b0", message_id="B0", jid="5511999990002@s.whatsapp.net"))
    await settle()
    assert answers.texts == ["a0", "b0"]
    answers.gate.set()
    await settle()
    assert answers.texts == ["a0", "b0", "a1", "a2"]
    assert inbox.num_waiting == 0


async def test_phone_and_lid_of_one_person_are_one_chat(inbox, answers, instance):
    answers.gate.clear()
    await inbox.take(instance, webhook("first", message_id="1"))
    other = webhook("second", message_id="2", jid="98765432101234@lid")
    other["data"]["key"]["remoteJidAlt"] = "5511999990001@s.whatsapp.net"
    await inbox.take(instance, other)
    await settle()
    assert answers.texts == ["first"]


async def test_full_is_said_so_that_evolution_comes_again(answers, make_inbox, instance):
    answers.gate.clear()
    inbox = make_inbox(answers, inbox_max_waiting=2)
    await inbox.take(instance, webhook(message_id="0"))
    await settle()
    await inbox.take(instance, webhook(message_id="1"))
    await inbox.take(instance, webhook(message_id="2"))
    with pytest.raises(InboxFull) as caught:
        await inbox.take(instance, webhook(message_id="3"))
    assert (caught.value.status_code, caught.value.retryable) == (503, True)
    answers.gate.set()
    await settle()
    assert (await inbox.take(instance, webhook(message_id="3"))).status == "success"
    await inbox.aclose(deadline_s=5)


async def test_a_bug_costs_one_turn_not_the_chat(make_inbox, tracer, store, instance):
    answered = []

    async def answer(turn):
        if turn.message.text == "bad":
            raise ValueError("bug")
        answered.append(turn.message.text)

    inbox = make_inbox(answer)
    bad = await inbox.take(instance, webhook("bad", message_id="1"))
    await inbox.take(instance, webhook("good", message_id="2"))
    await settle()
    assert answered == ["good"]
    assert tracer.flush()
    row = store.get_trace(bad.trace_id)
    assert (row.status, row.error_stage, row.error_message) == ("failed", "processing", "ValueError")
    await inbox.aclose(deadline_s=5)


async def test_stopping_closes_what_never_began_as_interrupted(answers, make_inbox, tracer, store, instance):
    answers.gate.clear()
    inbox = make_inbox(answers)
    await inbox.take(instance, webhook(message_id="1"))
    waiting = await inbox.take(instance, webhook(message_id="2"))
    await settle()
    await inbox.aclose(deadline_s=0)
    assert tracer.flush()
    row = store.get_trace(waiting.trace_id)
    assert (row.status, row.error_stage) == ("failed", "interrupted")
    with pytest.raises(InboxFull):
        await inbox.take(instance, webhook(message_id="3"))


async def test_webhook_to_answer_through_the_real_router(route_to, make_inbox, tracer, store, channel, clock, instance):
    router = route_to(ScriptedAgent(telling(clock, JOKE)))
    inbox = make_inbox(router.answer_turn)
    verdict = await inbox.take(instance, webhook("Tell me a joke"))
    await settle()
    await inbox.aclose(deadline_s=5)
    assert channel.texts == ["Why do programmers prefer dark mode?", "Because light attracts bugs! 🐛"]
    assert tracer.flush()
    assert store.get_trace(verdict.trace_id).status == "completed"


async def test_an_instance_without_agent_gives_a_notice_and_a_clear_cause(
    route_to, make_inbox, tracer, store, channel, clock, instance
):

    router = route_to(ScriptedAgent(telling(clock, JOKE)))
    inbox = make_inbox(router.answer_turn)
    verdict = await inbox.take(structs.replace(instance, agent_id=None), webhook())
    await settle()
    await inbox.aclose(deadline_s=5)
    assert len(channel.texts) == 1
    assert tracer.flush()
    row = store.get_trace(verdict.trace_id)
    assert (row.status, row.error_stage) == ("failed", "settings")
    assert "agent_id" in row.error_message


async def test_a_webhook_is_answered_when_its_message_is_stored_and_not_before(inbox, ledger, answers, instance):
    """The 200 means "stored": a process that dies before may forget the message, because Evolution brings it again."""
    ledger.is_held = True
    taking = asyncio.create_task(inbox.take(instance, webhook()))
    await settle()
    assert (taking.done(), answers.texts) == (False, [])
    ledger.release()
    assert (await taking).status == "success"
    await settle()
    assert answers.texts == ["oi"]


async def test_a_repeat_of_a_message_being_stored_waits_for_it(inbox, ledger, answers, instance):
    """The instance's webhook and the global one come within milliseconds; neither may be told "stored" too early."""
    ledger.is_held = True
    first, second = (asyncio.create_task(inbox.take(instance, webhook())) for _ in range(2))
    await settle()
    assert (first.done(), second.done()) == (False, False)
    ledger.release()
    assert [(await one).status for one in (first, second)] == ["success", "ignored"]
    await settle()
    assert answers.texts == ["oi"]


async def test_what_cannot_be_stored_is_refused_with_a_503_and_taken_when_it_comes_again(
    inbox, ledger, answers, store, tracer, instance
):
    ledger.failures = [StoreError("disk full", retryable=True)]
    with pytest.raises(InboxFull) as caught:
        await inbox.take(instance, webhook())
    assert caught.value.status_code == 503
    assert inbox.num_by_verdict == {"refused": 1}
    assert tracer.flush()
    assert (store.rows, answers.texts) == ({}, [])
    assert (await inbox.take(instance, webhook())).status == "success"
    await settle()
    assert answers.texts == ["oi"]


async def test_a_caller_that_hangs_up_is_answered_all_the_same(inbox, ledger, answers, instance):
    ledger.is_held = True
    taking = asyncio.create_task(inbox.take(instance, webhook()))
    await settle()
    taking.cancel()
    await settle()
    ledger.release()
    await settle()
    assert answers.texts == ["oi"]


async def test_a_message_another_process_took_is_a_repeat(inbox, ledger, answers, store, tracer, instance):
    other = InboxRecord(
        instance_name="shop",
        message_id="M1",
        chat_key="c",
        trace_id="t",
        received_at=datetime(2026, 11, 22, tzinfo=UTC),
    )
    ledger.inbox["shop", "M1"] = other
    assert (await inbox.take(instance, webhook())).reason == "repeat"
    await settle()
    assert tracer.flush()
    assert (answers.texts, store.rows) == ([], {})


async def test_a_message_older_than_the_limit_is_recorded_and_not_answered(
    inbox, answers, store, tracer, clock, instance
):
    now_s = clock.wall_ns() // 10**9
    old = await inbox.take(instance, webhook(message_id="1", sent_at_s=now_s - 3_601))
    late = await inbox.take(instance, webhook(message_id="2", sent_at_s=now_s - 30 * 60))
    await settle()
    assert (old.status, old.reason, late.status) == ("ignored", "too_old", "success")
    assert tracer.flush()
    row = store.get_trace(old.trace_id)
    assert (row.status, row.error_stage, row.error_message) == (
        "failed",
        "webhook_received",
        "not answered: too_old (3601 s)",
    )
    assert len(answers.texts) == 1


async def test_a_stop_word_stops_the_chat_and_asks_no_agent(inbox, answers, stopped, store, tracer, instance):
    verdict = await inbox.take(instance, webhook(" /PARAR "))
    await settle()
    assert (verdict.status, verdict.reason) == ("ignored", "stop_word")
    assert (answers.texts, stopped) == ([], [("shop", "5511999990001@s.whatsapp.net")])
    assert tracer.flush()
    assert store.get_trace(verdict.trace_id).status == "completed"


async def test_webhooks_that_overtook_each_other_are_answered_in_the_order_written(inbox, answers, instance):
    answers.gate.clear()
    for message_id, sent_at_s in (("0", 1795342685), ("2", 1795342690), ("1", 1795342687), ("3", 1795342690)):
        await inbox.take(instance, webhook(message_id, message_id=message_id, sent_at_s=sent_at_s))
    answers.gate.set()
    await settle()
    assert answers.texts == ["0", "1", "2", "3"]


async def test_the_ledger_follows_a_turn_and_forgets_its_text_when_it_is_done(inbox, ledger, answers, instance):
    verdict = await inbox.take(instance, webhook())
    await settle()
    rows = [op.record for op in ledger.history]
    assert [(row.state, row.version, row.num_takes, row.message is None) for row in rows] == [
        ("stored", 1, 0, False),
        ("running", 2, 1, False),
        ("done", 4, 1, True),
    ]
    assert {row.trace_id for row in rows} == {verdict.trace_id}
    assert rows[0].message.raw == {}


async def test_a_turn_that_never_began_keeps_its_row_for_the_next_start(answers, make_inbox, ledger, instance):
    answers.gate.clear()
    inbox = make_inbox(answers)
    await inbox.take(instance, webhook(message_id="1"))
    await inbox.take(instance, webhook(message_id="2"))
    await settle()
    await inbox.aclose(deadline_s=0)
    assert {row.message_id: row.state for row in ledger.inbox.values()} == {"1": "running", "2": "stored"}


async def test_a_message_taken_up_again_is_received_when_it_was(inbox, answers, store, tracer, clock, instance):
    """How long the user waited counts from the first reception, by the wall clock: the other process's is gone."""
    received_at = datetime(2026, 11, 22, 9, 59, 30, tzinfo=UTC)
    message = InboundMessage(
        instance_name="shop",
        message_id="M1",
        chat_key="5511999990001@s.whatsapp.net",
        reply_to="5511999990001@s.whatsapp.net",
        sender_phone="5511999990001",
        sender_name="Maria",
        text="oi",
        message_type="text",
    )
    record = InboxRecord(
        instance_name="shop",
        message_id="M1",
        chat_key=message.chat_key,
        trace_id="new",
        received_at=received_at,
        message=message,
    )
    inbox.take_up(instance, record, after_trace_id="old")
    await settle()
    assert answers.texts == ["oi"]
    assert tracer.flush()
    row = store.get_trace("new")
    assert (row.received_at, row.total_processing_time_ms) == (received_at, 30_000)
    webhook_row = store.get_payloads("new")[0]
    assert (webhook_row.stage, webhook_row.payload["taken_up_from"]) == ("webhook_received", "old")


def receipt(status="DELIVERY_ACK", key_id="KEY1"):
    data = {"keyId": key_id, "remoteJid": "5511999990001@s.whatsapp.net", "fromMe": True, "status": status}
    return {"event": "messages.update", "instance": "shop", "data": data, "date_time": "2026-11-22T10:00:00.000Z"}


async def test_a_receipt_is_stored_joined_to_its_turn_and_told_from_its_repeat(
    inbox, ledger, logged_receipts, instance
):
    ledger.is_held = True
    taking = asyncio.create_task(inbox.take(instance, receipt()))
    await settle()
    assert not taking.done()
    ledger.release()
    verdict = await taking
    assert (verdict.status, verdict.reason) == ("success", None)
    again = await inbox.take(instance, receipt())
    assert (again.status, again.reason) == ("ignored", "repeat")
    await settle()
    assert logged_receipts == [("t", "KEY1", "delivered")]
    assert ledger.receipts["shop", "KEY1", "delivered"].trace_id == "t"


async def test_a_receipt_that_cannot_be_stored_comes_again(inbox, ledger, instance):
    ledger.failures = [StoreError("gone", retryable=True)]
    with pytest.raises(InboxFull):
        await inbox.take(instance, receipt())
    assert (await inbox.take(instance, receipt())).status == "success"


async def test_evolutions_word_of_what_it_sent_is_handed_on(inbox, echoes, instance):
    body = webhook("sent by us", message_id="KEY9", from_me=True) | {"event": "send.message"}
    assert (await inbox.take(instance, body)).status == "success"
    assert [(echo.instance_name, echo.key_id, echo.text) for echo in echoes] == [("shop", "KEY9", "sent by us")]
