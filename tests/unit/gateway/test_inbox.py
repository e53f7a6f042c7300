"""Which webhooks become turns, and in what order they are answered."""

import asyncio

import pytest
from tests.unit.gateway.scripts import JOKE, telling

from omni.errors import InboxFull
from omni.gateway.inbox import Inbox
from omni.settings import Settings
from omni.testing import ScriptedAgent


def webhook(text="oi", *, message_id="M1", jid="5511999990001@s.whatsapp.net", from_me=False, message=None):
    return {
        "event": "messages.upsert",
        "instance": "shop",
        "data": {
            "key": {"remoteJid": jid, "fromMe": from_me, "id": message_id},
            "pushName": "Maria",
            "message": {"conversation": text} if message is None else message,
            "messageType": "conversation" if message is None else next(iter(message)),
            "messageTimestamp": 1795342685,
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


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
async def inbox(answers, tracer, clock, settings):
    inbox = Inbox(answers, tracer=tracer, clock=clock, settings=settings)
    yield inbox
    answers.gate.set()
    await inbox.aclose(deadline_s=5)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_message_becomes_a_turn_at_once(inbox, answers, instance):
    verdict = inbox.take(instance, webhook())
    assert verdict.status == "success"
    assert verdict.trace_id is not None
    assert answers.texts == []
    await settle()
    assert answers.texts == ["oi"]


async def test_every_message_of_a_list_becomes_a_turn(inbox, answers, instance):
    """Data that is a list may hold more than one message; the second one used to be lost without a word."""
    bodies = [webhook(f"text {number}", message_id=f"M{number}") for number in range(3)]
    listed = bodies[0] | {"data": [body["data"] for body in bodies]}

    first = inbox.take(instance, listed)
    again = inbox.take(instance, listed)
    await settle()

    assert (first.status, first.trace_id is not None) == ("success", True)
    assert (again.status, again.reason) == ("ignored", "repeat")
    assert answers.texts == ["text 0", "text 1", "text 2"]


async def test_repeats_are_ignored_for_a_day(inbox, answers, instance, clock):
    """F26: the same id is answered once, however often it comes."""
    inbox.take(instance, webhook())
    assert inbox.take(instance, webhook()).reason == "repeat"
    clock.advance_ms(23 * 3600 * 1000)
    assert inbox.take(instance, webhook()).reason == "repeat"
    clock.advance_ms(2 * 3600 * 1000)
    assert inbox.take(instance, webhook()).status == "success"


async def test_ids_of_before_a_restart_are_repeats(inbox, instance):
    inbox.remember([("shop", "M1")])
    assert inbox.take(instance, webhook()).reason == "repeat"


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
    verdict = inbox.take(instance, body)
    assert (verdict.status, verdict.reason, verdict.trace_id) == ("ignored", reason, None)
    await settle()
    assert answers.texts == []
    assert tracer.flush()
    assert store.rows == {}


async def test_a_voice_note_is_on_record_and_not_stuck(inbox, store, tracer, instance):
    """F28: the operator finds it, closed and with its reason."""
    verdict = inbox.take(instance, webhook(message={"audioMessage": {"seconds": 3}}))
    assert (verdict.status, verdict.reason) == ("ignored", "unsupported_type")
    assert tracer.flush()
    row = store.get_trace(verdict.trace_id)
    assert (row.status, row.error_stage, row.message_type) == ("failed", "webhook_received", "audio")
    assert row.completed_at is not None


async def test_one_chat_is_answered_in_order_and_others_do_not_wait(inbox, answers, instance):
    answers.gate.clear()
    for number in range(3):
        inbox.take(instance, webhook(f"a{number}", message_id=f"A{number}"))
    inbox.take(instance, webhook("b0", message_id="B0", jid="5511999990002@s.whatsapp.net"))
    await settle()
    assert answers.texts == ["a0", "b0"]
    answers.gate.set()
    await settle()
    assert answers.texts == ["a0", "b0", "a1", "a2"]
    assert (inbox.num_waiting, inbox.num_running) == (0, 0)


async def test_phone_and_lid_of_one_person_are_one_chat(inbox, answers, instance):
    answers.gate.clear()
    inbox.take(instance, webhook("first", message_id="1"))
    other = webhook("second", message_id="2", jid="98765432101234@lid")
    other["data"]["key"]["remoteJidAlt"] = "5511999990001@s.whatsapp.net"
    inbox.take(instance, other)
    await settle()
    assert answers.texts == ["first"]


async def test_full_is_said_so_that_evolution_comes_again(answers, tracer, clock, instance):
    answers.gate.clear()
    inbox = Inbox(answers, tracer=tracer, clock=clock, settings=Settings(_env_file=None, inbox_max_waiting=2))
    inbox.take(instance, webhook(message_id="0"))
    await settle()
    inbox.take(instance, webhook(message_id="1"))
    inbox.take(instance, webhook(message_id="2"))
    with pytest.raises(InboxFull) as caught:
        inbox.take(instance, webhook(message_id="3"))
    assert (caught.value.status_code, caught.value.retryable) == (503, True)
    answers.gate.set()
    await settle()
    assert inbox.take(instance, webhook(message_id="3")).status == "success"
    await inbox.aclose(deadline_s=5)


async def test_a_bug_costs_one_turn_not_the_chat(tracer, store, clock, settings, instance):
    answered = []

    async def answer(turn):
        if turn.message.text == "bad":
            raise ValueError("bug")
        answered.append(turn.message.text)

    inbox = Inbox(answer, tracer=tracer, clock=clock, settings=settings)
    bad = inbox.take(instance, webhook("bad", message_id="1"))
    inbox.take(instance, webhook("good", message_id="2"))
    await settle()
    assert answered == ["good"]
    assert tracer.flush()
    row = store.get_trace(bad.trace_id)
    assert (row.status, row.error_stage, row.error_message) == ("failed", "processing", "ValueError")
    await inbox.aclose(deadline_s=5)


async def test_stopping_closes_what_never_began_as_interrupted(answers, tracer, store, clock, settings, instance):
    answers.gate.clear()
    inbox = Inbox(answers, tracer=tracer, clock=clock, settings=settings)
    inbox.take(instance, webhook(message_id="1"))
    waiting = inbox.take(instance, webhook(message_id="2"))
    await settle()
    await inbox.aclose(deadline_s=0)
    assert tracer.flush()
    row = store.get_trace(waiting.trace_id)
    assert (row.status, row.error_stage) == ("failed", "interrupted")
    with pytest.raises(InboxFull):
        inbox.take(instance, webhook(message_id="3"))


async def test_webhook_to_answer_through_the_real_router(route_to, tracer, store, channel, clock, settings, instance):
    router = route_to(ScriptedAgent(telling(clock, JOKE)))
    inbox = Inbox(router.answer_turn, tracer=tracer, clock=clock, settings=settings)
    verdict = inbox.take(instance, webhook("Tell me a joke"))
    await settle()
    await inbox.aclose(deadline_s=5)
    assert channel.texts == ["Why do programmers prefer dark mode?", "Because light attracts bugs! 🐛"]
    assert tracer.flush()
    assert store.get_trace(verdict.trace_id).status == "completed"


async def test_an_instance_without_agent_gives_a_notice_and_a_clear_cause(
    route_to, tracer, store, channel, clock, settings, instance
):
    from msgspec import structs

    router = route_to(ScriptedAgent(telling(clock, JOKE)))
    inbox = Inbox(router.answer_turn, tracer=tracer, clock=clock, settings=settings)
    verdict = inbox.take(structs.replace(instance, agent_id=None), webhook())
    await settle()
    await inbox.aclose(deadline_s=5)
    assert len(channel.texts) == 1
    assert tracer.flush()
    row = store.get_trace(verdict.trace_id)
    assert (row.status, row.error_stage) == ("failed", "settings")
    assert "agent_id" in row.error_message
