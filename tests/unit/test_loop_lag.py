"""The event loop's lag: what the health route says of it must be what happened."""

import asyncio

from omni.clock import NS_PER_MS, SystemClock
from omni.loop_lag import LoopLag

STALL_MS = 60
PATIENCE_S = 10


def stand_still(clock, duration_ms):
    """Keep the loop's thread busy, as a slow piece of code would."""
    until_ns = clock.mono_ns() + duration_ms * NS_PER_MS
    while clock.mono_ns() < until_ns:
        pass


async def wait_for_readings(lag, num):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if lag.figures()["num_readings"] >= num:
                return
            await asyncio.sleep(0)


async def test_nothing_is_said_before_the_first_reading():
    lag = LoopLag(clock=SystemClock(), period_ms=1)
    assert lag.figures() == {"p50": None, "p99": None, "max": None, "num_readings": 0}


async def test_a_stall_is_one_reading_as_long_as_it_was():
    clock = SystemClock()
    lag = LoopLag(clock=clock, period_ms=1)
    with lag.watching():
        await wait_for_readings(lag, 20)
        usual = lag.figures()["max"]
        stand_still(clock, STALL_MS)
        await wait_for_readings(lag, 40)
    figures = lag.figures()
    # The reading was due up to one period into the stall.
    assert figures["max"] >= STALL_MS - 2
    assert usual < figures["max"]
    assert figures["p50"] < STALL_MS


async def test_no_reading_is_taken_when_watching_is_over():
    clock = SystemClock()
    lag = LoopLag(clock=clock, period_ms=1)
    with lag.watching():
        await wait_for_readings(lag, 3)
    before = lag.figures()
    stand_still(clock, 5)
    for _ in range(5):
        await asyncio.sleep(0)
    assert lag.figures() == before
