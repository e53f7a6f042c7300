"""When an event happened, from a stamp with a false zone: on the recorded one first, then for every zone and any lateness."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.channels.whatsapp.event_time import EventClock, EventClocks, EventTime, read_claimed_wall_ns
from omni.clock import NS_PER_MS, NS_PER_S, Anchor

NOW_NS = 1_795_342_846 * NS_PER_S
MINUTE_NS = 60 * NS_PER_S
HOUR_NS = 60 * MINUTE_NS
ZONE_NS = 15 * MINUTE_NS


def arrived(wall_ns, *, step_ns=0):
    """Both clocks at an arrival; ``step_ns`` is by how much the wall clock was set since the start."""
    return Anchor(wall_ns=wall_ns + step_ns, mono_ns=wall_ns - NOW_NS + HOUR_NS)


def hear(clock, happened_ns, *, shift_ns, late_ns=0, age_ns=None, step_ns=0):
    """Let the clock note an event and answer where it places it. ``age_ns`` is how long before WhatsApp had stamped it."""
    at = arrived(happened_ns + late_ns, step_ns=step_ns)
    stamped_s = None if age_ns is None else (happened_ns - age_ns) // NS_PER_S
    clock.note(happened_ns + shift_ns, at, stamped_s=stamped_s)
    return clock.place(happened_ns + shift_ns, at)


def test_the_recorded_false_zone_is_undone(capture):
    recording = capture("16")
    claimed_ns = read_claimed_wall_ns(recording["date_time"])
    at = Anchor(wall_ns=int(recording["sink_epoch"] * 1_000_000) * 1_000, mono_ns=5 * NS_PER_S)
    clock = EventClock()
    clock.note(claimed_ns, at, stamped_s=recording["messageTimestamp"])
    assert clock.place(claimed_ns, at) == EventTime(
        wall_ns=int(datetime(2026, 11, 22, 10, 20, 46, 773_000, tzinfo=UTC).timestamp() * 1000) * NS_PER_MS,
        uncertainty_ms=1000,
    )


@pytest.mark.parametrize(
    ("date_time", "claimed_ns"),
    [
        ("2026-11-22T10:18:05.651Z", 1795342685_651000000),
        ("2026-11-22T07:18:05.651-03:00", 1795342685_651000000),
        ("2026-11-22T10:18:05.651", 1795342685_651000000),
        ("1969-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-13-01T00:00:00Z", None),
        ("", None),
        (None, None),
        (1795342685651, None),
        ("9" * 10_000, None),
    ],
)
def test_a_claimed_time_is_read_or_unknown(date_time, claimed_ns):
    assert read_claimed_wall_ns(date_time) == claimed_ns


zones = st.integers(-48, 56).map(lambda steps: steps * ZONE_NS)
lateness = st.one_of(st.integers(0, 500 * NS_PER_MS), st.integers(0, 30 * MINUTE_NS))
ages = st.one_of(st.none(), st.integers(0, NS_PER_S), st.integers(0, 24 * HOUR_NS))


@given(
    zone_ns=zones,
    residual_ms=st.integers(-450, 450),
    events=st.lists(st.tuples(st.integers(0, 3 * HOUR_NS), lateness, ages), max_size=12),
    prompt=st.tuples(st.integers(0, 3 * HOUR_NS), st.integers(0, 500 * NS_PER_MS), ages),
    place_last=st.booleans(),
)
def test_any_zone_is_corrected_when_one_event_came_at_once(zone_ns, residual_ms, events, prompt, place_last):
    """The law: whatever was late and however old, the truth lies within the uncertainty, and never behind the arrival."""
    shift_ns = zone_ns + residual_ms * NS_PER_MS
    heard = [(NOW_NS + after_ns, late_ns, age_ns) for after_ns, late_ns, age_ns in [*events, prompt]]
    heard.sort(key=lambda event: event[0] + event[1])
    clock = EventClock()
    for happened_ns, late_ns, age_ns in heard:
        hear(clock, happened_ns, shift_ns=shift_ns, late_ns=late_ns, age_ns=age_ns)
    for happened_ns, late_ns, _ in heard:
        at = arrived(happened_ns + late_ns)
        placed = clock.place(happened_ns + shift_ns, at)
        assert placed is not None
        assert abs(placed.wall_ns - happened_ns) <= placed.uncertainty_ms * NS_PER_MS
        assert placed.wall_ns <= at.wall_ns
        assert placed.uncertainty_ms <= 2_000


@given(zone_ns=zones, residual_s=st.integers(-300, 300), late_ms=st.integers(0, 900), age_ms=st.integers(0, 1_000))
def test_clocks_that_differ_by_minutes_are_corrected_once_a_user_wrote(zone_ns, residual_s, late_ms, age_ms):
    shift_ns = zone_ns + residual_s * NS_PER_S
    clock = EventClock()
    hear(clock, NOW_NS, shift_ns=shift_ns, late_ns=late_ms * NS_PER_MS, age_ns=age_ms * NS_PER_MS)
    placed = hear(clock, NOW_NS + MINUTE_NS, shift_ns=shift_ns, late_ns=late_ms * NS_PER_MS)
    assert placed is not None
    assert abs(placed.wall_ns - NOW_NS - MINUTE_NS) <= placed.uncertainty_ms * NS_PER_MS
    assert placed.uncertainty_ms <= 5_000


def test_a_retry_is_placed_where_it_happened_and_not_where_it_arrived():
    clock = EventClock()
    hear(clock, NOW_NS, shift_ns=-3 * HOUR_NS, late_ns=20 * NS_PER_MS)
    retried = hear(clock, NOW_NS + MINUTE_NS, shift_ns=-3 * HOUR_NS, late_ns=30 * MINUTE_NS)
    assert retried == EventTime(wall_ns=NOW_NS + MINUTE_NS, uncertainty_ms=1000)


def test_an_event_that_came_late_and_alone_tells_no_zone():
    assert hear(EventClock(), NOW_NS, shift_ns=0, late_ns=6 * MINUTE_NS) is None
    assert EventClock().place(NOW_NS, arrived(NOW_NS)) is None


def test_an_offline_backlog_does_not_move_the_clock():
    clock = EventClock()
    placed = [
        hear(clock, NOW_NS + number * NS_PER_S, shift_ns=2 * HOUR_NS, late_ns=NS_PER_MS, age_ns=9 * HOUR_NS)
        for number in range(3)
    ]
    assert placed == [EventTime(wall_ns=NOW_NS + number * NS_PER_S, uncertainty_ms=1000) for number in range(3)]


@pytest.mark.parametrize("change_ns", [HOUR_NS, -HOUR_NS])
def test_a_change_of_summer_time_is_noticed_with_the_next_event(change_ns):
    clock = EventClock()
    hear(clock, NOW_NS, shift_ns=-3 * HOUR_NS, late_ns=NS_PER_MS, age_ns=0)
    changed = hear(clock, NOW_NS + HOUR_NS, shift_ns=-3 * HOUR_NS + change_ns, late_ns=NS_PER_MS)
    assert changed == EventTime(wall_ns=NOW_NS + HOUR_NS, uncertainty_ms=1000)


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS, 90 * NS_PER_S, -7 * MINUTE_NS])
def test_a_step_of_our_own_clock_moves_the_estimate_with_it(step_ns):
    """Arrivals are kept by the monotonic clock; the answer is by the wall clock as it stands at the arrival."""
    clock = EventClock()
    hear(clock, NOW_NS, shift_ns=HOUR_NS, late_ns=5 * NS_PER_MS, age_ns=NS_PER_S // 2)
    late_ns = 10 * MINUTE_NS
    placed = hear(clock, NOW_NS + MINUTE_NS, shift_ns=HOUR_NS, late_ns=late_ns, step_ns=step_ns)
    assert placed is not None
    assert abs(placed.wall_ns - (NOW_NS + MINUTE_NS + step_ns)) <= placed.uncertainty_ms * NS_PER_MS
    assert placed.uncertainty_ms <= 4_000


def test_an_evolution_clock_that_is_set_back_is_followed_when_a_user_writes():
    clock = EventClock()
    hear(clock, NOW_NS, shift_ns=0, late_ns=NS_PER_MS, age_ns=0)
    hear(clock, NOW_NS + MINUTE_NS, shift_ns=-20 * MINUTE_NS, late_ns=NS_PER_MS, age_ns=0)
    placed = hear(clock, NOW_NS + 2 * MINUTE_NS, shift_ns=-20 * MINUTE_NS, late_ns=NS_PER_MS)
    assert placed is not None
    assert abs(placed.wall_ns - NOW_NS - 2 * MINUTE_NS) <= placed.uncertainty_ms * NS_PER_MS


@pytest.mark.parametrize("claimed_ns", [0, NOW_NS + 400 * 24 * HOUR_NS])
def test_a_time_that_no_zone_explains_teaches_nothing(claimed_ns):
    clock = EventClock()
    clock.note(claimed_ns, arrived(NOW_NS))
    assert clock.place(claimed_ns, arrived(NOW_NS)) is None
    assert hear(clock, NOW_NS, shift_ns=0) == EventTime(wall_ns=NOW_NS, uncertainty_ms=1000)
    assert clock.place(0, arrived(NOW_NS)) is None


def test_what_was_known_is_forgotten_after_a_day():
    clock = EventClock()
    hear(clock, NOW_NS, shift_ns=HOUR_NS // 2, age_ns=0)
    later_ns = NOW_NS + 30 * HOUR_NS
    assert hear(clock, later_ns, shift_ns=HOUR_NS // 4) == EventTime(wall_ns=later_ns, uncertainty_ms=1000)


def test_instances_have_clocks_of_their_own():
    clocks = EventClocks()
    clocks.note("lisbon", NOW_NS, arrived(NOW_NS))
    clocks.note("delhi", NOW_NS + 22 * ZONE_NS, arrived(NOW_NS))
    placed = [clocks.place(name, NOW_NS + 22 * ZONE_NS, arrived(NOW_NS)) for name in ("delhi", "nowhere")]
    assert placed == [EventTime(wall_ns=NOW_NS, uncertainty_ms=1000), None]
