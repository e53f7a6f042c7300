"""How long delivery waits for others: the pauses between attempts, and waits that end without what was waited for.

Both run on a sleep that is handed in, so that tests pass hours in no time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from omni.clock import NS_PER_MS, NS_PER_S
from omni.settings import Settings

Sleep = Callable[[float], Awaitable[None]]
Jitter = Callable[[], float]
"""Gives a number from 0 up to 1, a new one each time."""

MS_PER_S = NS_PER_S // NS_PER_MS


class Backoff:
    """The pauses between the attempts of one thing.

    Each pause is twice the one before, up to a cap, and up to as much again is added by chance (equal jitter). A socket that dropped
    fails many chats in the same moment; chance keeps them from coming back in the same moment. The half that is certain keeps the promise
    of the setting: with full jitter the second attempt could follow the first at once, against a socket that is just coming back.
    """

    def __init__(self, settings: Settings, *, jitter: Jitter) -> None:
        self._first_s = settings.send_retry_ms / MS_PER_S
        self._cap_s = settings.send_retry_max_ms / MS_PER_S
        self._jitter = jitter

    def pause_s(self, num_failed: int, *, asked_s: float = 0.0) -> float:
        """Seconds to wait after ``num_failed`` attempts; never less than the other side asked for."""
        step_s: float = min(self._first_s * 2 ** (num_failed - 1), self._cap_s)
        return max(step_s, asked_s) + self._jitter() * step_s


async def wait_up_to(future: asyncio.Future[Any], limit_s: float, *, sleep: Sleep) -> bool:
    """Wait until ``future`` is done, for ``limit_s`` at most; whether it is. The future itself is left alone."""
    if future.done() or limit_s <= 0:
        return future.done()
    timer = asyncio.ensure_future(sleep(limit_s))
    try:
        await asyncio.wait({future, timer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
    return future.done()
