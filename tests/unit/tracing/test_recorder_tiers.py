"""What the store does not take now is kept and offered again; what cannot be kept is counted, once, and told on the trace."""

import logging
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import settings as run_with
from hypothesis import strategies as st
from msgspec import Struct
from tests.unit.tracing.test_recorder import stream
from tests.unit.tracing.test_streaming_context import open_turn, read_back

from omni.clock import SystemClock
from omni.errors import StoreError
from omni.ports import InsertPayload
from omni.settings import Settings
from omni.testing import FakeClock, MemoryStore
from omni.tracing.events import ReceiptSeen
from omni.tracing.held import HeldBatches, Part
from omni.tracing.losses import LossCount, memory_bytes
from omni.tracing.recorder import Recorder, RecorderCounts, TraceJournal
from omni.tracing.rows import RowPlanner
from omni.tracing.service import Tracer
from omni.tracing.stored import read_stored_trace
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.verify_stream import read_losses

AWAY = StoreError("away", retryable=True)


class AwayStore(MemoryStore):
    """A store that takes nothing while ``is_away``."""

    is_away = False

    def write(self, ops):
        if self.is_away:
            raise AWAY
        super().write(ops)


class Tiers(Struct):
    """Tiers that say what a test wants."""

    is_database_up: bool = True
    sheds_chunks: bool = False
    num_spooled: int = 0
    spool_bytes: int = 0
    num_lost: int = 0


@pytest.fixture
def store():
    return AwayStore()


@pytest.fixture
def tiers():
    return Tiers()


@pytest.fixture
def recorder(store, clock, tiers):
    settings = Settings(_env_file=None, trace_flush_ms=1, trace_memory_max_mb=1)
    recorder = Recorder(store, clock=clock, settings=settings, tiers=tiers)
    recorder.start()
    yield recorder
    assert recorder.stop()


def let_it_look(recorder):
    """The writer has looked at everything, though it may have stored nothing."""
    for _ in range(1_000):
        recorder.flush(deadline_s=0.005)
        if recorder.num_pending == 0:
            return
    raise AssertionError("the writer does not look")


def stages(store, trace):
    return [row.stage for row in store.get_payloads(trace.trace_id)]


def test_what_the_store_does_not_take_is_stored_when_it_is_back(tracer, recorder, store):
    store.is_away = True
    traces = [open_turn(tracer, message_id=f"M{number}") for number in range(5)]
    for trace in traces:
        stream(trace, 20)
    let_it_look(recorder)
    counts = recorder.counts()
    assert (counts.num_held > 0, counts.held_bytes > 0, counts.num_lost, counts.num_shed) == (True, True, 0, 0)
    store.is_away = False
    assert recorder.flush()
    assert [read_back(tracer, store, trace).timeline.total_chunks for trace in traces] == [20] * 5
    assert (recorder.counts().num_held, recorder.counts().held_bytes) == (0, 0)
    assert recorder.num_lost == recorder.num_shed == 0


def test_events_logged_while_the_store_is_away_keep_their_order(tracer, recorder, store):
    trace = open_turn(tracer)
    let_it_look(recorder)
    store.is_away = True
    for number in range(30):
        trace.log_stage(f"s{number}", {})
        if number % 7 == 0:
            let_it_look(recorder)
    store.is_away = False
    assert recorder.flush()
    assert stages(store, trace) == [f"s{number}" for number in range(30)]


def test_memory_stays_bounded_and_chunks_go_before_anything_else(tracer, recorder, store, caplog):
    """Two megabytes of chunks, one of room: every header, ending and text is kept, and the counts agree."""
    store.is_away = True
    first = open_turn(tracer)
    let_it_look(recorder)
    traces = [open_turn(tracer, message_id=f"M{number}") for number in range(30)]
    for trace in traces:
        stream(trace, 500)
        let_it_look(recorder)
        assert recorder.counts().held_bytes <= 1_000_000
    assert recorder.num_lost == 0
    store.is_away = False
    assert recorder.flush()
    read = [read_back(tracer, store, trace) for trace in traces]
    assert [item.row.status for item in read] == ["completed"] * 30
    assert [item.timeline.content for item in read] == ["ab " * 500] * 30
    assert [item.timeline.total_chunks for item in read] == [500] * 30
    dropped = [item.timeline.num_dropped_chunks for item in read]
    assert set(dropped) == {0, 500}
    assert sum(dropped) == recorder.num_shed > 0
    assert [trace.get_streaming_summary()["dropped_chunks"] for trace in traces] == dropped
    assert [trace.get_streaming_summary()["total_chunks"] for trace in traces] == [500] * 30
    assert [journal.num_shed for journal in (trace._journal for trace in traces)] == dropped
    assert logged_totals(caplog) == (recorder.num_shed, 0)
    assert store.get_trace(first.trace_id).status == "received"


def test_beyond_that_payloads_go_and_headers_and_endings_stay(tracer, recorder, store, caplog):
    store.is_away = True
    open_turn(tracer)
    let_it_look(recorder)
    traces = [open_turn(tracer, message_id=f"M{number}") for number in range(30)]
    for trace in traces:
        trace.log_stage("big", {"text": "x" * 100_000})
        trace.end_turn("completed")
        let_it_look(recorder)
    store.is_away = False
    assert recorder.flush()
    assert [store.get_trace(trace.trace_id).status for trace in traces] == ["completed"] * 30
    is_kept = ["big" in stages(store, trace) for trace in traces]
    assert 0 < sum(is_kept) < 30
    told = [loss_of(store, trace) for trace in traces]
    assert told == [None if kept else {"dropped_chunks": 0, "lost_rows": 1} for kept in is_kept]
    assert recorder.num_lost == 30 - sum(is_kept)
    assert logged_totals(caplog) == (0, recorder.num_lost)


def test_only_when_nothing_else_is_left_whole_traces_go_and_those_that_are_open_come_back(tracer, recorder, store):
    store.is_away = True
    traces = [open_turn(tracer, message_id=f"M{number}" + "x" * 10_000) for number in range(300)]
    let_it_look(recorder)
    for number in range(300):
        traces.append(open_turn(tracer, message_id=f"N{number}" + "x" * 10_000))
        if number % 10 == 0:
            let_it_look(recorder)
            assert recorder.counts().held_bytes <= 4_000_000
    store.is_away = False
    assert recorder.flush()
    assert recorder.num_lost > 0
    assert len(store.rows) == 600
    for trace in traces:
        trace.end_turn("completed")
    assert recorder.flush()
    told = [loss_of(store, trace) or {"lost_rows": 0} for trace in traces]
    assert sum(item["lost_rows"] for item in told) == recorder.num_lost
    assert {columns["status"] for columns in store.rows.values()} == {"completed"}


def loss_of(store, trace):
    """What readers take from the rows that tell losses; None without any."""
    payloads = store.get_payloads(trace.trace_id)
    told = read_losses(payloads)
    if not any(row.payload_type == "error" for row in payloads):
        return None
    return {"dropped_chunks": told.dropped_chunks, "lost_rows": told.lost_rows}


def logged_totals(caplog):
    """What the last line of the log says."""
    lines = [record for record in caplog.records if record.message == "trace_records_lost"]
    return (lines[-1].num_shed_total, lines[-1].num_lost_total)


def test_a_full_spool_leaves_chunks_out_and_keeps_the_text(tracer, recorder, store, tiers, clock):
    tiers.sheds_chunks = True
    trace = open_turn(tracer)
    trace.log_agent_request({})
    for index in range(10):
        trace.log_streaming_chunk("ab ", index)
    clock.advance_ms(1_000)
    assert recorder.flush()
    assert "streaming_chunks" not in stages(store, trace)
    trace.log_streaming_complete("ab " * 10)
    stored = read_back(tracer, store, trace)
    assert (stored.timeline.num_dropped_chunks, stored.timeline.total_chunks) == (10, 10)
    assert stored.timeline.content == "ab " * 10
    assert recorder.num_shed == 10
    assert trace.get_streaming_summary()["dropped_chunks"] == 10
    assert sum(stage == "streaming_chunks" for stage in stages(store, trace)) == 1


def test_segments_skipped_while_there_was_no_room_come_when_there_is(tracer, recorder, store, tiers, clock):
    """Skipping a segment loses nothing and counts nothing."""
    trace = open_turn(tracer)
    trace.log_streaming_chunk("um ", 0)
    assert recorder.flush()
    tiers.sheds_chunks = True
    trace.log_streaming_chunk("dois ", 1)
    assert recorder.flush()
    assert sum(stage == "streaming_chunks" for stage in stages(store, trace)) == 1
    tiers.sheds_chunks = False
    assert recorder.flush()
    assert [chunk.text for chunk in read_back(tracer, store, trace).timeline.chunks] == ["um ", "dois "]
    tiers.sheds_chunks = True
    trace.log_streaming_error("cut", content="um dois ")
    stored = read_back(tracer, store, trace)
    assert (stored.timeline.content, stored.timeline.num_dropped_chunks, recorder.num_shed) == ("um dois ", 2, 2)


def test_a_running_stream_costs_no_memory_twice_while_the_store_is_away(tracer, recorder, store, clock):
    trace = open_turn(tracer)
    assert recorder.flush()
    store.is_away = True
    trace.log_stage("one", {})
    let_it_look(recorder)
    held = recorder.counts().held_bytes
    for index in range(1_000):
        trace.log_streaming_chunk("text ", index)
    clock.advance_ms(5_000)
    let_it_look(recorder)
    assert recorder.counts().held_bytes == held
    store.is_away = False
    assert recorder.flush()
    assert recorder.flush()
    assert len(read_back(tracer, store, trace).timeline.chunks) == 1_000


def test_events_shed_before_they_were_looked_at_keep_the_text_of_a_failed_stream(clock):
    """The queue's bound, with a stream that breaks: the text comes with its end."""
    store = AwayStore()
    settings = Settings(_env_file=None, trace_queue_events=1_000)
    recorder = Recorder(store, clock=clock, settings=settings)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    trace = open_turn(tracer)
    for index in range(1_500):
        trace.log_streaming_chunk("ab ", index)
    trace.log_streaming_error("cut", content="ab " * 1_500)
    recorder.start()
    stored = read_back(tracer, store, trace)
    assert recorder.stop()
    assert (stored.timeline.content, stored.timeline.total_chunks) == ("ab " * 1_500, 1_500)
    assert len(stored.timeline.chunks) + recorder.num_shed == 1_500
    assert stored.timeline.num_dropped_chunks == recorder.num_shed == 501


def test_a_packed_row_that_is_refused_is_replaced_by_its_count(clock, settings):
    class NoChunks(MemoryStore):
        def write(self, ops):
            if any(isinstance(op, InsertPayload) and "sizes" in op.payload for op in ops):
                raise StoreError("too large")
            super().write(ops)

    store = NoChunks()
    recorder = Recorder(store, clock=clock, settings=settings)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    trace = open_turn(tracer)
    stream(trace, 7)
    recorder.start()
    stored = read_back(tracer, store, trace)
    assert recorder.stop()
    assert (stored.timeline.num_dropped_chunks, recorder.num_shed, recorder.num_lost) == (7, 7, 0)
    assert (stored.row.status, stored.timeline.content) == ("completed", "ab " * 7)


def test_stopping_with_a_store_that_is_away_keeps_its_deadline_and_counts(clock, caplog):
    store = AwayStore()
    recorder = Recorder(store, clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1))
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    store.is_away = True
    trace = open_turn(tracer)
    stream(trace, 7)
    assert not recorder.stop(deadline_s=0.1)
    counts = recorder.counts()
    # The trace's row and its columns, request (twice), first token, end, answer; seven chunks.
    assert counts == RecorderCounts(
        num_pending=0,
        num_shed=7,
        num_lost=6,
        num_held=0,
        held_bytes=0,
        num_spooled=0,
        spool_bytes=0,
        is_database_up=True,
    )
    assert logged_totals(caplog) == (7, 6)
    assert recorder.stop()


def test_the_counts_show_what_is_behind_the_sink(store, clock, settings):
    tiers = Tiers(is_database_up=False, num_spooled=3, spool_bytes=900, num_lost=2)
    recorder = Recorder(store, clock=clock, settings=settings, tiers=tiers)
    assert recorder.counts() == RecorderCounts(
        num_pending=0,
        num_shed=0,
        num_lost=2,
        num_held=0,
        held_bytes=0,
        num_spooled=3,
        spool_bytes=900,
        is_database_up=False,
    )


def test_the_estimate_of_memory_is_no_lower_than_what_is_used(clock, settings):
    """The bound holds in truth, not only on paper."""
    planner_ops = []
    for number in range(20):
        trace = open_turn(Tracer(clock=SystemClock(), recorder=None, reader=None), message_id=f"M{number}")
        stream(trace, 300, text="word ")
        planner = RowPlanner(trace.trace_id, trace.anchor, settings=settings)
        planner_ops.append((planner, trace._journal.events))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = [planner.plan(events, now_ns=0, flush_now=True) for planner, events in planner_ops]
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    estimated = sum(memory_bytes(ops) for ops in held)
    assert used <= estimated * 1.2
    assert estimated <= used * 4


@given(st.lists(st.sampled_from(["ok", "away", "refuse"]), max_size=14), st.integers(1, 4))
@example(["refuse", "ok", "ok", "refuse"], 1)
@example(["refuse", "refuse", "ok"], 1)
@example(["refuse", "refuse", "refuse", "ok"], 1)
@run_with(max_examples=100, deadline=None)
def test_any_pattern_of_failures_stores_each_row_once_or_counts_it(pattern, num_traces):
    clock = FakeClock()

    class Moody(MemoryStore):
        def write(self, ops):
            mood = pattern.pop(0) if pattern else "ok"
            if mood == "away":
                raise AWAY
            if mood == "refuse":
                raise StoreError("no")
            super().write(ops)

    store = Moody()
    recorder = Recorder(store, clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1))
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    has_refusals = "refuse" in pattern
    traces = [open_turn(tracer, message_id=f"M{number}") for number in range(num_traces)]
    recorder.start()
    for trace in traces:
        stream(trace, 5)
        trace.log_stage("mine", {"n": 1})
    # Who waits for a flush makes the writer try at once, instead of after its pause.
    assert any(recorder.flush(deadline_s=0.005) for _ in range(1_000))
    is_calm = not pattern
    assert recorder.stop()
    # Rows that tell losses tell totals, and may come more than once.
    rows = [(row.trace_id, row.stage) for row in store.payloads if row.payload_type != "error"]
    assert len(rows) == len(set(rows))
    # Stopping offers once more what was refused, the traces' own rows and what they tell: all agrees then, to the last row.
    if is_calm:
        assert {row.trace_id for row in store.payloads} <= set(store.rows)
        told = [loss_of(store, trace) or {"dropped_chunks": 0, "lost_rows": 0} for trace in traces]
        assert sum(item["dropped_chunks"] for item in told) == recorder.num_shed
        assert sum(item["lost_rows"] for item in told) == recorder.num_lost
        assert set(store.rows) == {trace.trace_id for trace in traces}
        read = [read_back(tracer, store, trace).timeline.num_dropped_chunks for trace in traces]
        assert read == [item["dropped_chunks"] for item in told]
    if not has_refusals:
        assert recorder.num_lost == recorder.num_shed == 0
        assert [stages(store, trace) for trace in traces] == [
            [
                "agent_request",
                "streaming_request",
                "first_token",
                "streaming_chunks",
                "streaming_complete",
                "agent_response",
                "mine",
            ]
        ] * num_traces


def reopened(tracer, store, recorder, clock, trace, **changes):
    """The trace as another process takes it up: its stored events first, on a journal that goes on."""
    stored = read_stored_trace(store.get_trace(trace.trace_id), store.get_payloads(trace.trace_id))
    events = [*stored.timeline.chunks, *stored.timeline.messages]
    journal = TraceJournal(trace.trace_id, stored.timeline.anchor, recorder, stored_events=events, **changes)
    return StreamingTraceContext(trace.trace_id, journal=journal, clock=clock)


def test_a_trace_taken_up_again_is_closed_with_the_text_that_was_stored(tracer, recorder, store, clock):
    trace = open_turn(tracer)
    trace.log_agent_request({})
    trace.log_streaming_chunk("um ", 0)
    trace.log_streaming_chunk("dois ", 1)
    assert recorder.flush()
    again = reopened(tracer, store, recorder, clock, trace, has_segments=True)
    again.log_streaming_chunk("três", 2)
    again.log_streaming_error("died", "interrupted", ending="interrupted")
    stored = read_back(tracer, store, again)
    assert [chunk.text for chunk in stored.timeline.chunks] == ["um ", "dois ", "três"]
    assert (stored.timeline.ending, stored.timeline.content) == ("interrupted", "um dois três")
    assert stages(store, trace).count("streaming_chunks") == 1
    assert stages(store, trace).count("agent_request") == 1
    assert recorder.num_lost == 0


def test_a_trace_taken_up_again_only_to_be_closed_gets_its_packed_row(tracer, recorder, store, clock):
    trace = open_turn(tracer)
    for index, text in enumerate(["um ", "dois "]):
        trace.log_streaming_chunk(text, index)
        assert recorder.flush()
    assert stages(store, trace).count("streaming_chunks") == 2
    again = reopened(tracer, store, recorder, clock, trace, has_segments=True, num_shed=3)
    again.end_turn("interrupted", error_stage="interrupted")
    stored = read_back(tracer, store, again)
    assert [chunk.text for chunk in stored.timeline.chunks] == ["um ", "dois "]
    assert (stored.row.status, stored.timeline.num_dropped_chunks) == ("failed", 3)
    assert recorder.num_shed == 0


def test_a_receipt_while_the_answer_is_still_written_costs_neither_anything(tracer, recorder, store, clock):
    """It comes on a journal of its own, on the same trace, and may be written in the same round."""
    trace = open_turn(tracer)
    trace.log_streaming_chunk("um ", 0)
    assert recorder.flush()
    for number in range(20):
        trace.log_streaming_chunk("x ", number + 1)
        seen = ReceiptSeen(mono_ns=clock.mono_ns(), key_id=f"K{number}", status="read")
        TraceJournal(trace.trace_id, trace.anchor, recorder).append(seen)
        clock.advance_ms(20)
    assert recorder.flush()
    assert stages(store, trace).count("message_receipt") == 20
    assert len(read_back(tracer, store, trace).timeline.chunks) == 21


def test_a_chunk_after_the_end_joins_the_others(tracer, recorder, store):
    trace = open_turn(tracer)
    trace.log_streaming_chunk("um ", 0)
    trace.log_streaming_complete("um dois ")
    trace.log_streaming_chunk("dois ", 1)
    trace.end_turn("completed")
    timeline = read_back(tracer, store, trace).timeline
    assert [chunk.text for chunk in timeline.chunks] == ["um ", "dois "]


def test_a_held_batch_that_was_offered_is_never_changed():
    """It may have been stored: what it says must stay what it said."""
    counted = []
    held = HeldBatches(lambda losses, chunks, rows: counted.append((chunks, rows)))
    ops = [InsertPayload(trace_id="T", stage="big", payload_type="request", payload={"x": "y" * 9_000}, timestamp=None)]
    held.add([Part(LossCount(), ops)])
    offered = held.offer_head()
    for _ in range(3):
        held.add([Part(LossCount(), list(ops))])
        held.fit(10_000)
    assert held.offer_head() is offered
    assert offered == ops
    assert sum(rows for _, rows in counted) == 3


def test_losses_are_reported_once_a_minute_while_they_go_on(clock, caplog):
    caplog.set_level(logging.ERROR)
    store = AwayStore()
    settings = Settings(_env_file=None, trace_flush_ms=1, trace_memory_max_mb=1)
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    store.is_away = True
    for number in range(40):
        stream(open_turn(tracer, message_id=f"M{number}"), 500)
        let_it_look(recorder)
    lines = [record for record in caplog.records if record.message == "trace_records_lost"]
    assert len(lines) == 1
    clock.advance_ms(61_000)
    stream(open_turn(tracer), 500)
    let_it_look(recorder)
    store.is_away = False
    assert recorder.stop()
    assert len([record for record in caplog.records if record.message == "trace_records_lost"]) in (2, 3)
    assert logged_totals(caplog) == (recorder.num_shed, recorder.num_lost)
