"""How turns begin when a crowd of webhooks comes in."""

import asyncio

from omni.gateway.starting_line import NUM_FREE, StartingLine

NUM_TURNS = 50
PATIENCE_S = 10


async def begin(line, order, number):
    await line.wait()
    order.append(number)


async def test_a_few_turns_together_begin_at_once():
    line, order = StartingLine(), []
    for number in range(NUM_FREE):
        await begin(line, order, number)
    assert order == list(range(NUM_FREE))


async def test_a_crowd_begins_in_order_and_not_in_one_round_of_the_loop():
    line, order = StartingLine(), []
    turns = [asyncio.ensure_future(begin(line, order, number)) for number in range(NUM_TURNS)]
    await asyncio.sleep(0)
    assert order == list(range(NUM_FREE))
    async with asyncio.timeout(PATIENCE_S):
        rounds = []
        while len(order) < NUM_TURNS:
            before = len(order)
            await asyncio.sleep(0)
            rounds.append(len(order) - before)
        await asyncio.gather(*turns)
    assert order == list(range(NUM_TURNS))
    assert max(rounds) == 1


async def test_webhooks_that_go_on_coming_hold_nobody_back_for_long():
    """Under steady pressure there is no quiet moment to wait for."""
    line, order = StartingLine(), []
    turns = [asyncio.ensure_future(begin(line, order, number)) for number in range(NUM_FREE + 1)]
    async with asyncio.timeout(PATIENCE_S):
        while NUM_FREE not in order:
            turns.append(asyncio.ensure_future(begin(line, order, len(turns))))
            await asyncio.sleep(0)
    for turn in turns:
        turn.cancel()
    await asyncio.gather(*turns, return_exceptions=True)


async def test_a_turn_that_is_cancelled_while_it_waits_holds_up_nobody():
    line, order = StartingLine(), []
    turns = [asyncio.ensure_future(begin(line, order, number)) for number in range(NUM_FREE + 2)]
    await asyncio.sleep(0)
    turns[NUM_FREE].cancel()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*turns, return_exceptions=True)
    assert order == [*range(NUM_FREE), NUM_FREE + 1]
