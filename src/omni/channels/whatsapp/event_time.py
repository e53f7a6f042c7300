"""When an event happened by our clock, from the time Evolution wrote on it. Pure: readings in, an estimate out.

Evolution stamps each webhook with ``date_time`` when the event is first emitted and keeps that through all retries. The stamp is the local
wall clock of its host with a ``Z`` behind it: false by the host's whole zone, and by as much as the two hosts' clocks differ. Let

    shift = what an event claims - when it truly happened by our clock

    floor     no event arrives before it happened, so the shift is at least claimed - arrived, for every event
    ceiling   a message is not emitted before WhatsApp stamped it, so the shift is at most claimed - stamp plus what the stamp's
              whole seconds and our own clock may be wrong by (only messages of users carry such a stamp)
    zone      zones are multiples of 15 minutes

Within a day of events the highest floor and the lowest ceiling hold. When the floor lies within a second of a zone, the clocks agree and some
event came at once: the shift is that zone, or the floor where it is above. Otherwise the shift is what lies between floor and ceiling, which is
a few seconds where a user's message was seen. An estimate that may be wrong by more than two minutes is none.

A retried event (up to half an hour late) only lowers its own floor, which the others outweigh; a backlog only raises its own ceiling. When
an event contradicts what is known (its floor is above the ceiling, its ceiling below the floor, or it would be later than Evolution
retries), the zone or a clock was changed, and only what comes from then on counts. Arrivals are kept by the monotonic clock, so a step of our
own wall clock moves the estimate with it. An estimate is never later than the arrival. It is wrong unnoticed only while every event of a
day without users' messages was late by the same quarters of an hour.
"""

from collections import deque
from datetime import UTC, datetime

from msgspec import Struct

from omni.clock import NS_PER_MS, NS_PER_S, Anchor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Longest text that is looked at: a stamp with microseconds and an offset has 32 characters.
_MAX_STAMP_CHARS = 40

_HOUR_NS = 3_600 * NS_PER_S
_HOURS_KEPT = 24
_ZONE_STEP_NS = 900 * NS_PER_S
_FIRST_ZONE_NS, _LAST_ZONE_NS = -12 * _HOUR_NS, 14 * _HOUR_NS
# How late an event that came at once may be, and how far two clocks set by network time differ, taken together.
_PROMPT_NS = NS_PER_S
# Whole seconds of WhatsApp's stamp, and as much again for our clock against WhatsApp's.
_STAMP_SLACK_NS = 2 * NS_PER_S
# Evolution gives up after ten attempts: 30 minutes at most with its timeouts and jitter.
_LATEST_NS = 2_400 * NS_PER_S
_MAX_UNCERTAINTY_NS = 120 * NS_PER_S


class EventTime(Struct, frozen=True, kw_only=True):
    """The moment of an event: nanoseconds since 1970 UTC by our clock, and how many milliseconds that may be wrong, either way."""

    wall_ns: int
    uncertainty_ms: int


class _Hour(Struct):
    hour: int
    floor_ns: int
    ceiling_ns: int | None


def read_claimed_wall_ns(date_time: object) -> int | None:
    """What an envelope's ``date_time`` claims, in nanoseconds since 1970; UTC where it names no other zone. None when it is no time.

    >>> read_claimed_wall_ns("1970-01-01T00:00:01.500Z"), read_claimed_wall_ns("yesterday")
    (1500000000, None)
    """
    if not isinstance(date_time, str) or len(date_time) > _MAX_STAMP_CHARS:
        return None
    try:
        moment = datetime.fromisoformat(date_time.strip())
    except ValueError:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    since = aware - _EPOCH
    claimed_ns = ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
    return claimed_ns if claimed_ns >= 0 else None


class EventClock:
    """What is known of one instance's clock. Give it every event with ``note``, then ask it with ``place``. At most 24 entries."""

    def __init__(self) -> None:
        # Bounds of the shift against our monotonic clock, hour by hour.
        self._hours: deque[_Hour] = deque(maxlen=_HOURS_KEPT)

    def note(self, claimed_wall_ns: int, arrived: Anchor, *, stamped_s: int | None = None) -> None:
        """Learn from one event; ``stamped_s`` is WhatsApp's own stamp where the event is a user's message, in seconds since 1970."""
        wall_minus_mono = arrived.wall_ns - arrived.mono_ns
        floor = claimed_wall_ns - arrived.mono_ns
        if not _FIRST_ZONE_NS - _LATEST_NS - _ZONE_STEP_NS <= floor - wall_minus_mono <= _LAST_ZONE_NS + _ZONE_STEP_NS:
            return  # no zone explains it: a host without a set clock, or no time at all
        ceiling = None
        if stamped_s is not None:
            ceiling = claimed_wall_ns - stamped_s * NS_PER_S + _STAMP_SLACK_NS + wall_minus_mono
            if ceiling < floor:
                ceiling = None  # stamped after it arrived: our clock is behind, and the stamp bounds nothing of ours
        hour = arrived.mono_ns // _HOUR_NS
        while self._hours and self._hours[0].hour <= hour - _HOURS_KEPT:
            self._hours.popleft()
        if self._contradicts(floor, ceiling):
            self._hours.clear()
        if not self._hours or self._hours[-1].hour != hour:
            self._hours.append(_Hour(hour, floor, ceiling))
            return
        newest = self._hours[-1]
        newest.floor_ns = max(newest.floor_ns, floor)
        newest.ceiling_ns = _lowest(newest.ceiling_ns, ceiling)

    def place(self, claimed_wall_ns: int, arrived: Anchor) -> EventTime | None:
        """When an event happened that was noted before; None while the zone cannot be told, or when it came later than can be."""
        if not self._hours:
            return None
        wall_minus_mono = arrived.wall_ns - arrived.mono_ns
        known_floor, known_ceiling = self._bounds()
        floor = known_floor - wall_minus_mono
        top = floor + _LATEST_NS
        if known_ceiling is not None:
            top = min(top, known_ceiling - wall_minus_mono)
        shift, top = _best_shift(floor, top)
        uncertainty_ns = max(shift - floor, top - shift)
        lateness_ns = arrived.wall_ns - (claimed_wall_ns - shift)
        if uncertainty_ns > _MAX_UNCERTAINTY_NS or lateness_ns > _LATEST_NS:
            return None
        return EventTime(
            wall_ns=arrived.wall_ns - max(lateness_ns, 0),
            uncertainty_ms=-(-uncertainty_ns // NS_PER_MS),
        )

    def _bounds(self) -> tuple[int, int | None]:
        floor = max(hour.floor_ns for hour in self._hours)
        ceilings = [hour.ceiling_ns for hour in self._hours if hour.ceiling_ns is not None]
        return floor, min(ceilings, default=None)

    def _contradicts(self, floor: int, ceiling: int | None) -> bool:
        if not self._hours:
            return False
        known_floor, known_ceiling = self._bounds()
        return (
            floor + _LATEST_NS < known_floor
            or (known_ceiling is not None and floor > known_ceiling)
            or (ceiling is not None and ceiling < known_floor)
        )


class EventClocks:
    """One EventClock per instance. As many as there are configured instances, whose names the caller has looked up."""

    def __init__(self) -> None:
        self._clock_by_instance: dict[str, EventClock] = {}

    def note(self, instance_name: str, claimed_wall_ns: int, arrived: Anchor, *, stamped_s: int | None = None) -> None:
        """Learn from one event of an instance."""
        clock = self._clock_by_instance.setdefault(instance_name, EventClock())
        clock.note(claimed_wall_ns, arrived, stamped_s=stamped_s)

    def place(self, instance_name: str, claimed_wall_ns: int, arrived: Anchor) -> EventTime | None:
        """When an event of an instance happened; None when that cannot be told."""
        clock = self._clock_by_instance.get(instance_name)
        return None if clock is None else clock.place(claimed_wall_ns, arrived)


def _best_shift(floor: int, top: int) -> tuple[int, int]:
    """The likeliest shift between ``floor`` and ``top``, and the top as far as the likeliness lowers it."""
    nearest = (floor + _ZONE_STEP_NS // 2) // _ZONE_STEP_NS * _ZONE_STEP_NS
    if abs(floor - nearest) <= _PROMPT_NS:
        top = min(top, max(floor, nearest) + _PROMPT_NS)
        return min(max(floor, nearest), top), top
    above = -(-floor // _ZONE_STEP_NS) * _ZONE_STEP_NS
    return (above if above <= top else floor), top


def _lowest(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
