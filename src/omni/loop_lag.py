"""How late the event loop runs what is due: whether one answer, or one slow piece of code, holds up all the others.

A timer asks to be called every ``period_ms`` and notes how late it was; the newest readings make the figures of the health route. It
sees whatever keeps the loop's thread from running, a busy machine and other threads holding the interpreter included, and it can
not say which of them it was. Whoever asks while the loop stands still gets the answer, and the lag, afterwards.

At the default of 20 readings a second this costs a process that has nothing else to do about a fifth of a percent of a core, nearly all
of it for waking up, and less in one that is awake anyway. The loop's timers count whole milliseconds: a lag below one reads as
anything from zero to one.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from omni.clock import NS_PER_MS, Clock, exact_ms

MAX_READINGS = 1_200
"""Readings kept: the last minute at the default period."""


class LoopLag:
    """Watches one event loop. ``watching`` is used on that loop; ``figures`` may be asked from any thread."""

    def __init__(self, *, clock: Clock, period_ms: int) -> None:
        self._clock = clock
        self._period_ns = period_ms * NS_PER_MS
        self._lags_ns: deque[int] = deque(maxlen=MAX_READINGS)
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take readings of the running loop inside the block."""
        self._due_ns = self._clock.mono_ns() + self._period_ns
        self._wait(self._period_ns)
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def figures(self) -> dict[str, float | int | None]:
        """Median, 99th percentile and maximum of the lag in milliseconds and how many readings they are of; None without any."""
        lags_ns = sorted(self._lags_ns.copy())
        num = len(lags_ns)
        return {
            "p50": exact_ms(lags_ns[num // 2]) if num else None,
            "p99": exact_ms(lags_ns[num * 99 // 100]) if num else None,
            "max": exact_ms(lags_ns[-1]) if num else None,
            "num_readings": num,
        }

    def _wait(self, wait_ns: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_ns / 1e9, self._look)

    def _look(self) -> None:
        lag_ns = self._clock.mono_ns() - self._due_ns
        if lag_ns < -NS_PER_MS:
            # A loop counts from when its turn began, so a timer set late in a long turn fires early: no reading yet.
            self._wait(-lag_ns)
            return
        self._lags_ns.append(max(lag_ns, 0))
        # The next one is due a period after this one ran: a long stall is one reading, not many.
        self._due_ns = self._clock.mono_ns() + self._period_ns
        self._wait(self._period_ns)
