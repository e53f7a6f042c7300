"""The typing sign: one pulse at a time, gone when the answer is, and never in the way."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from omni.channels.whatsapp.presence import PULSE_MS, TypingIndicator
from omni.model import InstanceConfig

MARIA = "5511999990001@s.whatsapp.net"
JOAO = "5511999990002@s.whatsapp.net"

WAIT_S = 5
"""How long a test waits for what must happen at once."""


class HeldPresence:
    """A channel that holds every composing call until the test answers it, as Evolution does for the sign's duration."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self._held: list[asyncio.Future[bool]] = []

    async def send_text(self, instance, message):
        raise AssertionError("the typing sign sends no text")

    async def send_presence(self, instance, recipient, *, state, duration_ms):
        self.calls.append((recipient, state, duration_ms))
        if state == "paused":
            return True
        held = asyncio.get_running_loop().create_future()
        self._held.append(held)
        return await held

    def answer(self, result):
        """Let the oldest held call return this or raise it."""
        held = self._held.pop(0)
        if isinstance(result, Exception):
            held.set_exception(result)
        else:
            held.set_result(result)

    @property
    def states(self):
        return [state for _, state, _ in self.calls]


async def turns():
    for _ in range(20):
        await asyncio.sleep(0)


async def no_pause(_duration_s):
    await asyncio.sleep(0)


@pytest.fixture
def channel():
    return HeldPresence()


@pytest.fixture
async def indicator(channel):
    made = TypingIndicator(channel, sleep=no_pause)
    yield made
    await made.aclose()


@pytest.fixture
def shop():
    return InstanceConfig(name="shop")


async def test_a_pulse_is_followed_by_the_next_only_when_it_has_returned(indicator, channel, shop):
    async with indicator.shown(shop, MARIA):
        await turns()
        assert channel.calls == [(MARIA, "composing", PULSE_MS)]
        channel.answer(True)
        await turns()
        assert channel.states == ["composing", "composing"]


async def test_a_channel_that_answers_at_once_is_asked_once_a_pulse(channel, shop):
    """Without the pause this would be a loop at full speed."""
    pauses = []

    async def pause(duration_s):
        pauses.append(duration_s)
        await asyncio.Event().wait()

    indicator = TypingIndicator(channel, sleep=pause)
    async with indicator.shown(shop, MARIA):
        await turns()
        channel.answer(True)
        await turns()
        assert (channel.states, pauses) == (["composing"], [8.0])
    await indicator.aclose()


async def test_an_answer_that_ends_without_a_message_clears_the_sign(indicator, channel, shop):
    async with indicator.shown(shop, MARIA):
        await turns()
    await turns()
    assert channel.calls == [(MARIA, "composing", PULSE_MS), (MARIA, "paused", 0)]
    channel.answer(True)
    await turns()
    assert (channel.states, indicator.active_chats) == (["composing", "paused"], 0)


async def test_a_message_clears_the_sign_itself(indicator, channel, shop):
    async with indicator.shown(shop, MARIA) as typing:
        await turns()
        typing.note_message()
    await turns()
    assert channel.states == ["composing"]


async def test_a_pulse_behind_the_last_message_is_cleared(indicator, channel, shop):
    async with indicator.shown(shop, MARIA) as typing:
        await turns()
        typing.note_message()
        channel.answer(True)
        await turns()
    await turns()
    assert channel.states == ["composing", "composing", "paused"]


async def test_a_refused_sign_is_not_asked_for_again_in_that_answer(indicator, channel, shop):
    async with indicator.shown(shop, MARIA):
        await turns()
        channel.answer(False)
        await turns()
    await turns()
    assert (channel.states, indicator.active_chats) == (["composing"], 0)


async def test_the_next_answer_waits_for_the_last_pulse_to_return_and_asks_again(indicator, channel, shop):
    """Evolution ends every pulse with "paused", which would switch off a newer one."""
    async with indicator.shown(shop, MARIA) as typing:
        await turns()
        typing.note_message()
    async with indicator.shown(shop, MARIA):
        await turns()
        assert channel.states == ["composing"]
        channel.answer(True)
        await turns()
        assert channel.states == ["composing", "composing"]


async def test_chats_do_not_wait_for_each_other(indicator, channel, shop):
    async with indicator.shown(shop, MARIA), indicator.shown(shop, JOAO):
        await turns()
        assert [recipient for recipient, _, _ in channel.calls] == [MARIA, JOAO]


async def test_an_answer_that_is_over_before_the_first_pulse_shows_nothing(indicator, channel, shop):
    async with indicator.shown(shop, MARIA):
        pass
    await turns()
    assert (channel.calls, indicator.active_chats) == ([], 0)


async def test_a_switched_off_indicator_asks_for_nothing(channel, shop):
    indicator = TypingIndicator(channel, is_enabled=False, sleep=no_pause)
    async with indicator.shown(shop, MARIA) as typing:
        await turns()
        typing.note_message()
    assert (channel.calls, indicator.active_chats) == ([], 0)


async def test_a_channel_that_raises_costs_the_sign_and_not_the_answer(indicator, channel, shop, caplog):
    async with indicator.shown(shop, MARIA):
        await turns()
        channel.answer(KeyError("x"))
        await turns()
        assert indicator.active_chats == 0
    assert [(each.msg, each.levelno) for each in caplog.records] == [("typing_sign_failed", logging.ERROR)]


async def test_the_answers_own_failure_passes_through_and_clears_the_sign(indicator, channel, shop):
    async def failing_answer():
        async with indicator.shown(shop, MARIA):
            await turns()
            raise LookupError

    with pytest.raises(LookupError):
        await failing_answer()
    await turns()
    assert channel.states == ["composing", "paused"]


async def test_closing_cancels_what_is_under_way(indicator, channel, shop):
    async with indicator.shown(shop, MARIA):
        await turns()
        await indicator.aclose()
        await turns()
        assert indicator.active_chats == 0


def test_closing_on_one_loop_leaves_the_calls_of_another_alone(channel, shop):
    """Two threads of a script answer in the same chat; the first to end neither waits for the other's calls nor cancels them."""
    indicator = TypingIndicator(channel)
    first_is_shown, second_is_closed = Event(), Event()

    async def first():
        async with indicator.shown(shop, MARIA):
            await turns()
            first_is_shown.set()
            assert second_is_closed.wait(2 * WAIT_S)
            num_under_way = indicator.active_chats
        await indicator.aclose()
        return num_under_way

    async def second():
        async with indicator.shown(shop, MARIA):
            await turns()
        await asyncio.wait_for(indicator.aclose(), WAIT_S)
        return indicator.active_chats

    with ThreadPoolExecutor(1) as pool:
        told_first = pool.submit(asyncio.run, first())
        assert first_is_shown.wait(WAIT_S)
        try:
            assert asyncio.run(second()) == 1
        finally:
            second_is_closed.set()
        assert told_first.result(WAIT_S) == 1
    assert indicator.active_chats == 0
