"""The only place that asks what time it is.

Durations come from the monotonic clock, always. A trace takes one wall-clock reading when it opens (its ``Anchor``); every
later wall time of that trace is the anchor plus monotonic time passed, so a clock that is set forward or back in the
middle of an answer changes nothing in it.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """Where Omni's parts get their time from; tests hand in a fake one."""

    def mono_ns(self) -> int:
        """Nanoseconds on the monotonic clock; only differences mean anything. Safe from any thread."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC on the wall clock. Safe from any thread."""
        ...


class SystemClock:
    """The machine's clocks."""

    # Bound as class attributes: one attribute look-up and no Python frame on the hot path.
    mono_ns = staticmethod(time.perf_counter_ns)
    wall_ns = staticmethod(time.time_ns)


@dataclass(frozen=True, slots=True)
class Anchor:
    """One wall-clock reading and the monotonic reading taken with it."""

    wall_ns: int
    mono_ns: int

    def at(self, mono_ns: int) -> datetime:
        """The UTC wall time at a monotonic reading, microsecond grain."""
        return wall_datetime(self.wall_ns) + timedelta(microseconds=(mono_ns - self.mono_ns) // 1_000)

    def mono_at(self, wall: datetime) -> int:
        """The monotonic reading at a UTC wall time, for moments that were kept by the wall clock only."""
        since = wall - wall_datetime(self.wall_ns)
        return self.mono_ns + since // timedelta(microseconds=1) * 1_000

    def offset_ns(self, mono_ns: int) -> int:
        """Nanoseconds from the anchor to a monotonic reading, cut to the microsecond.

        The database keeps microseconds; cutting here makes a figure the same before it is stored and after.
        """
        return (mono_ns - self.mono_ns) // 1_000 * 1_000


def take_anchor(clock: Clock) -> Anchor:
    """Read both clocks once."""
    return Anchor(wall_ns=clock.wall_ns(), mono_ns=clock.mono_ns())


def wall_datetime(wall_ns: int) -> datetime:
    """A timezone-aware UTC datetime from wall-clock nanoseconds, microsecond grain."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=wall_ns // 1_000)


def whole_ms(duration_ns: int | None) -> int | None:
    """Nanoseconds as whole milliseconds, rounded to the nearest; None stays None.

    >>> whole_ms(1_499_999), whole_ms(None)
    (1, None)
    """
    return None if duration_ns is None else (duration_ns + NS_PER_MS // 2) // NS_PER_MS


def exact_ms(duration_ns: int | None) -> float | None:
    """Nanoseconds as milliseconds with three decimals; None stays None.

    >>> exact_ms(1_234_567)
    1.235
    """
    return None if duration_ns is None else round(duration_ns / NS_PER_MS, 3)
