"""Sends that broke off: the channel's own word, the search behind it, and never one message's key for another."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.whatsapp.conftest import ManualSleep, turns

from omni.channels.whatsapp.delivery import Delivery
from omni.clock import NS_PER_MS
from omni.model import InstanceConfig, SendResult, SentEcho, SentSearch
from omni.settings import Settings
from omni.testing import FakeClock, RecordingChannel

MARIA = "5511999990001@s.whatsapp.net"
MARIA_LID = "98765432101234@lid"
JOAO = "5511999990002@s.whatsapp.net"
SHOP = InstanceConfig(name="shop")

SILENT = SendResult(is_accepted=False, error_kind="ambiguous", error="no answer")
FOUND = SentSearch(verdict="found", key_id="3EB0F")
ABSENT = SentSearch(verdict="absent")
UNKNOWN = SentSearch(verdict="unknown")
AWAY = SentSearch(verdict="unknown", retryable=True)
WAIT_S = 5


def echo(key_id="3EB0E", *, text="oi", to=MARIA, instance_name="shop"):
    return SentEcho(instance_name=instance_name, key_id=key_id, recipient=to, text=text)


class HeldChannel(RecordingChannel):
    """Holds every send until the test answers it; searches can be held as well."""

    def __init__(self):
        super().__init__()
        self.sending = {}
        self.known = []
        self.started = []
        self.search_gate = None

    async def send_text(self, instance, message):
        self.sent.append(message)
        self.sending[message.recipient] = asyncio.get_running_loop().create_future()
        return await self.sending[message.recipient]

    async def find_sent(self, instance, message, *, started_wall_ns, known_key_ids):
        self.known.append(set(known_key_ids))
        self.started.append(started_wall_ns)
        if self.search_gate is not None:
            await self.search_gate.wait()
        return await super().find_sent(instance, message, started_wall_ns=started_wall_ns, known_key_ids=known_key_ids)


class Bench:
    """A delivery on a clock the test moves, and its outcomes by chat."""

    def __init__(self, clock, sleep, **knobs):
        self.clock = clock
        self.sleep = sleep
        self.channel = HeldChannel()
        self.outcomes = {}
        chosen = Settings(_env_file=None, **{"message_spacing_ms": 0, "send_attempts": 3, **knobs})
        self.delivery = Delivery(self.channel, clock=clock, settings=chosen, sleep=sleep, jitter=lambda: 0.0)

    async def send(self, chat=MARIA, text="oi", instance=SHOP):
        told = self.outcomes.setdefault(chat, [])
        answer = self.delivery.open_answer(instance, chat, chat_key=chat, on_outcome=told.append)
        answer.feed(text, 0)
        answer.finish()
        await turns()
        return answer

    async def answer(self, result, chat=MARIA):
        """Let the send under way to a chat end with a result."""
        self.channel.sending.pop(chat).set_result(result)
        await self.sleep.pass_ms(0)

    def told(self, chat=MARIA):
        """(status, key id, error kind, attempts) of every outcome."""
        return [(each.status, each.key_id, each.error_kind, each.attempts) for each in self.outcomes.get(chat, [])]


@pytest.fixture
async def bench(clock, manual_sleep):
    made = Bench(clock, manual_sleep)
    yield made
    await made.delivery.aclose(0)


def accepted(key_id):
    return SendResult(is_accepted=True, status_code=201, key_id=key_id)


@pytest.mark.parametrize("to", [MARIA, "5511999990001", MARIA_LID])
async def test_an_echo_that_came_before_the_timeout_settles_it_at_once(bench, clock, to):
    """Evolution posts send.message before it answers; the moment it came is when the message was known to be accepted."""
    await bench.send()
    clock.advance_ms(20)
    bench.delivery.note_echo(echo(to=to))
    clock.advance_ms(30_000)
    await bench.answer(SILENT)
    assert bench.told() == [("accepted", "3EB0E", None, 1)]
    outcome = bench.outcomes[MARIA][0]
    assert (outcome.started_ns, outcome.ended_ns, outcome.status_code) == (0, 20 * NS_PER_MS, None)
    assert bench.channel.searched == []


async def test_an_echo_that_comes_while_it_is_waited_for_settles_it(bench):
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(4_999)
    assert bench.told() == []
    bench.delivery.note_echo(echo())
    await turns()
    assert bench.told() == [("accepted", "3EB0E", None, 1)]
    assert bench.channel.searched == []


async def test_an_echo_may_come_while_the_channel_is_asked(bench):
    bench.channel.search_gate = asyncio.Event()
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(5_000)
    bench.delivery.note_echo(echo())
    bench.channel.search_gate.set()
    await turns()
    assert bench.told() == [("accepted", "3EB0E", None, 1)]


@pytest.mark.parametrize(
    "other",
    [echo(text="outra"), echo(instance_name="other"), echo(to=JOAO), echo(to="1203@g.us")],
)
async def test_an_echo_of_another_text_instance_or_chat_settles_nothing(bench, other):
    await bench.send()
    bench.delivery.note_echo(other)
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(10_000)
    assert bench.told() == [("failed", None, "ambiguous", 1)]


async def test_a_found_message_has_its_key_and_is_not_sent_again(bench, clock):
    bench.channel.searches = [FOUND]
    clock.advance_ms(777)
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(5_000)
    assert bench.told() == [("accepted", "3EB0F", None, 1)]
    assert bench.channel.texts == ["oi"]
    assert bench.channel.started == [int(1_795_341_600.777 * 1e9)]


async def test_a_message_that_is_there_only_at_the_second_search_is_not_sent_again(bench):
    """Evolution writes its row after it has sent."""
    bench.channel.searches = [ABSENT, FOUND]
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(5_999)
    assert bench.told() == []
    await bench.sleep.pass_ms(1)
    assert bench.told() == [("accepted", "3EB0F", None, 1)]


async def test_a_message_that_is_nowhere_is_sent_again_and_that_counts_as_an_attempt(bench):
    bench.channel.searches = [ABSENT, ABSENT]
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(6_000)
    assert bench.channel.texts == ["oi"]
    await bench.sleep.pass_ms(500)
    assert bench.channel.texts == ["oi", "oi"]
    await bench.answer(accepted("3EB01"))
    assert bench.told() == [("accepted", "3EB01", None, 2)]


@pytest.mark.parametrize("result", [SILENT, SendResult(is_accepted=False, status_code=500, error_kind="transient")])
async def test_an_echo_in_the_pause_before_the_next_attempt_makes_it_needless(bench, result):
    """Also when Evolution had said that the failure was passing: its word that it sent is the stronger one."""
    bench.channel.searches = [ABSENT, ABSENT]
    await bench.send()
    await bench.answer(result)
    await bench.sleep.pass_ms(6_000 if result is SILENT else 0)
    bench.delivery.note_echo(echo())
    await bench.sleep.pass_ms(10_000)
    assert bench.channel.texts == ["oi"]
    assert bench.told() == [("accepted", "3EB0E", None, 1)]


async def test_a_message_that_never_gets_through_ends_its_answer(bench):
    bench.channel.searches = [ABSENT] * 6
    await bench.send(text="oi\n\nfim")
    for _ in range(3):
        await bench.answer(SILENT)
        await bench.sleep.pass_ms(10_000)
    assert bench.told() == [("failed", None, "transient", 3), ("not_sent", None, None, 0)]
    assert bench.outcomes[MARIA][0].error == "no answer; the channel has no such message"


async def test_a_message_nobody_can_tell_of_is_not_sent_again_and_the_answer_goes_on(bench):
    await bench.send(text="oi\n\nfim")
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(6_000)
    await bench.answer(accepted("3EB01"))
    assert bench.told() == [("failed", None, "ambiguous", 1), ("accepted", "3EB01", None, 1)]
    assert bench.channel.texts == ["oi", "fim"]


async def test_a_channel_that_is_away_is_asked_until_it_is_back(bench):
    """The usual cause: Evolution was restarted while it sent."""
    bench.channel.searches = [AWAY, AWAY, ABSENT]
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(5_000 + 1_000 + 1_000 + 500)
    assert bench.channel.texts == ["oi", "oi"]


async def test_a_channel_that_stays_away_is_not_asked_for_ever(bench):
    bench.channel.searches = [AWAY] * 9
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(60_000)
    assert bench.told() == [("failed", None, "ambiguous", 1)]
    assert len(bench.channel.searched) == 3


async def test_what_the_channel_failed_to_keep_is_not_taken_for_missing(bench):
    bench.channel.searches = [ABSENT, ABSENT]
    await bench.send()
    await bench.answer(SendResult(is_accepted=False, error_kind="ambiguous", error="database", is_searchable=False))
    await bench.sleep.pass_ms(10_000)
    assert bench.told() == [("failed", None, "ambiguous", 1)]


async def test_an_abandoned_answer_is_reconciled_and_not_sent_again(bench):
    bench.channel.searches = [ABSENT, ABSENT]
    answer = await bench.send()
    await bench.answer(SILENT)
    answer.abandon()
    await bench.sleep.pass_ms(10_000)
    assert bench.channel.texts == ["oi"]
    assert bench.told() == [("failed", None, "transient", 1)]


async def test_no_wait_for_an_echo_when_the_setting_is_zero(clock, manual_sleep):
    bench = Bench(clock, manual_sleep, reconcile_wait_ms=0)
    bench.channel.searches = [FOUND]
    await bench.send()
    await bench.answer(SILENT)
    assert bench.told() == [("accepted", "3EB0F", None, 1)]
    await bench.delivery.aclose(0)


async def test_a_channel_that_raises_when_asked_tells_nothing(bench, caplog):
    class Raising(HeldChannel):
        async def find_sent(self, *args, **kwargs):
            raise KeyError("segredo")

    bench.channel = Raising()
    bench.delivery = Delivery(
        bench.channel, clock=bench.clock, settings=Settings(_env_file=None), sleep=bench.sleep, jitter=lambda: 0.0
    )
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(6_000)
    assert bench.told() == [("failed", None, "ambiguous", 1)]
    assert "segredo" not in caplog.text


async def test_one_echo_is_not_given_to_two_chats_that_get_the_same_text(bench):
    """The first chat's address may be the second's; only when one of them has its own key the other's is certain."""
    await bench.send(MARIA)
    await bench.send(MARIA_LID)
    bench.delivery.note_echo(echo("3EB0M", to="11111111111111@lid"))
    bench.delivery.note_echo(echo("3EB0N", to=JOAO))
    await bench.answer(SILENT, MARIA)
    await bench.answer(SILENT, MARIA_LID)
    # 3EB0M can be Maria's phone only, 3EB0N the LID's only.
    assert bench.told(MARIA) == [("accepted", "3EB0M", None, 1)]
    assert bench.told(MARIA_LID) == [("accepted", "3EB0N", None, 1)]


async def test_an_echo_under_a_chats_own_address_is_that_chats(bench):
    """Though it may be the other's as well, as far as addresses go."""
    await bench.send(MARIA)
    await bench.send(MARIA_LID)
    bench.delivery.note_echo(echo("3EB0L", to=MARIA_LID))
    bench.delivery.note_echo(echo("3EB0P", to=MARIA))
    await bench.answer(SILENT, MARIA)
    await bench.answer(SILENT, MARIA_LID)
    assert bench.told(MARIA) == [("accepted", "3EB0P", None, 1)]
    assert bench.told(MARIA_LID) == [("accepted", "3EB0L", None, 1)]


async def test_an_echo_two_messages_could_be_waits_until_one_of_them_is_known(bench):
    await bench.send(MARIA)
    await bench.send(JOAO)
    bench.delivery.note_echo(echo("3EB0A", to=MARIA_LID))
    await bench.answer(SILENT, MARIA)
    await bench.sleep.pass_ms(1_000)
    assert bench.told(MARIA) == []
    await bench.answer(accepted("3EB0B"), JOAO)
    assert bench.told(MARIA) == [("accepted", "3EB0A", None, 1)]


async def test_the_echo_of_an_answered_send_is_nobody_elses(bench):
    await bench.send(MARIA)
    await bench.send(JOAO)
    bench.delivery.note_echo(echo("3EB0A", to=MARIA_LID))
    await bench.answer(SILENT, MARIA)
    await bench.answer(accepted("3EB0A"), JOAO)
    await bench.sleep.pass_ms(10_000)
    assert bench.told(JOAO) == [("accepted", "3EB0A", None, 1)]
    assert bench.told(MARIA) == [("failed", None, "ambiguous", 1)]
    assert bench.channel.known[0] == {"3EB0A"}


async def test_a_late_echo_of_an_accepted_message_is_not_the_next_equal_ones(bench):
    await bench.send(text="oi\n\noi")
    await bench.answer(accepted("3EB01"))
    bench.delivery.note_echo(echo("3EB01"))
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(10_000)
    assert bench.told() == [("accepted", "3EB01", None, 1), ("failed", None, "ambiguous", 1)]


async def test_a_late_echo_of_a_message_told_as_unknown_is_not_the_next_equal_ones(bench):
    """It could be either's; the second is not taken for sent because the first was."""
    await bench.send(text="oi\n\noi")
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(6_000)
    bench.delivery.note_echo(echo("3EB01"))
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(10_000)
    assert bench.told() == [("failed", None, "ambiguous", 1)] * 2


async def test_an_echo_that_can_only_be_the_unknown_messages_is_used_up_by_it(bench):
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(10_000)
    bench.delivery.note_echo(echo("3EB01"))
    await bench.send()
    bench.delivery.note_echo(echo("3EB01"))
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(4_000)
    assert bench.told() == [("failed", None, "ambiguous", 1)]
    bench.delivery.note_echo(echo("3EB02"))
    await turns()
    assert bench.told()[1:] == [("accepted", "3EB02", None, 1)]


async def test_after_half_an_hour_an_unknown_message_claims_no_echo_any_more(bench, clock):
    await bench.send()
    await bench.answer(SILENT)
    await bench.sleep.pass_ms(10_000)
    clock.advance_ms(31 * 60_000)
    await bench.send(JOAO, "x")
    await bench.answer(SILENT, JOAO)
    await bench.sleep.pass_ms(10_000)
    await bench.send()
    bench.delivery.note_echo(echo("3EB01"))
    await bench.answer(SILENT)
    assert bench.told()[1:] == [("accepted", "3EB01", None, 1)]


async def test_two_searches_at_once_do_not_give_one_message_to_both(bench):
    bench.channel.searches = [FOUND] * 4
    bench.channel.search_gate = asyncio.Event()
    await bench.send(MARIA)
    await bench.send(MARIA_LID)
    await bench.answer(SILENT, MARIA)
    await bench.answer(SILENT, MARIA_LID)
    await bench.sleep.pass_ms(5_000)
    bench.channel.search_gate.set()
    await bench.sleep.pass_ms(10_000)
    assert sorted([*bench.told(MARIA), *bench.told(MARIA_LID)], key=str) == [
        ("accepted", "3EB0F", None, 1),
        ("failed", None, "ambiguous", 1),
    ]


async def test_echoes_of_nothing_that_is_being_sent_are_forgotten(bench):
    bench.delivery.note_echo(echo("3EB00"))
    await bench.send()
    for number in range(1_000):
        bench.delivery.note_echo(echo(f"3EB{number}", text="nobody sends this"))
    await bench.answer(accepted("3EB01"))
    assert bench.delivery._reconciler._sends == {}


CHATS = [MARIA, MARIA_LID, JOAO, "5511999990003@s.whatsapp.net", "22222222222222@lid"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(CHATS), min_size=1, max_size=5, unique=True),
    st.permutations(range(5)),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.booleans(),
)
def test_no_order_of_echoes_and_answers_gives_a_message_the_key_of_another(chats, order, gone_out, answered, via_lid):
    """Every chat gets the same text at once. What is told as accepted went out, with its own key; what went out is never sent again."""

    async def run():
        clock = FakeClock()
        bench = Bench(clock, ManualSleep(clock))
        for chat in chats:
            await bench.send(chat)
        steps = [index for index in order if index < len(chats)]
        for index in steps:
            if gone_out[index]:
                to = "33333333333333@lid" if via_lid and "@lid" not in chats[index] else chats[index]
                bench.delivery.note_echo(echo(f"K{index}", to=to))
            is_answered = answered[index] and gone_out[index]
            await bench.answer(accepted(f"K{index}") if is_answered else SILENT, chats[index])
        await bench.sleep.pass_ms(20_000)
        told = {chat: bench.told(chat) for chat in chats}
        await bench.delivery.aclose(0)
        return told

    told = asyncio.run(run())
    for index, chat in enumerate(chats):
        ((status, key_id, kind, attempts),) = told[chat]
        assert attempts == 1
        if status == "accepted":
            assert (gone_out[index], key_id) == (True, f"K{index}")
        else:
            assert (answered[index] and gone_out[index], kind) == (False, "ambiguous")
