"""What was not kept is told on the trace in the numbers of the totals, whenever it is refused and by whom."""

import gc
import logging

import pytest
from tests.unit.tracing.test_recorder import stream
from tests.unit.tracing.test_streaming_context import open_turn, read_back

from omni.errors import StoreError
from omni.ports import InsertPayload, InsertTrace, UpdateTrace
from omni.settings import Settings
from omni.testing import MemoryStore
from omni.tracing.events import ReceiptSeen
from omni.tracing.journal import TraceJournal
from omni.tracing.loss_book import LossBook
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer
from omni.tracing.verify_stream import Losses, read_losses

REFUSED = StoreError("this row is not acceptable")


class MoodyStore(MemoryStore):
    """Answers its next writes as ``moods`` say and takes everything afterwards; keeps out what belongs to no trace, as databases do."""

    def __init__(self, *moods):
        super().__init__()
        self.moods = list(moods)

    def write(self, ops):
        if self.moods and self.moods.pop(0) == "refuse":
            raise REFUSED
        new = {op.trace_id for op in ops if isinstance(op, InsertTrace)}
        if any(op.trace_id not in self.rows.keys() | new for op in ops):
            raise StoreError("no such trace")
        super().write(ops)


def recording(store, clock, **settings):
    recorder = Recorder(store, clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1, **settings))
    return recorder, Tracer(clock=clock, recorder=recorder, reader=store)


def losses_of(store, trace):
    return read_losses(store.get_payloads(trace.trace_id))


def test_a_row_refused_after_the_ending_was_planned_is_told_all_the_same(clock):
    store = MoodyStore("refuse", "ok", "ok", "refuse")
    recorder, tracer = recording(store, clock)
    trace = open_turn(tracer)
    stream(trace, 3)
    recorder.start()
    assert recorder.flush()
    assert recorder.num_lost == 1
    assert losses_of(store, trace) == Losses(lost_rows=1)
    assert recorder.stop()


@pytest.mark.parametrize("num_refusals", range(1, 7))
def test_the_own_row_of_a_trace_comes_back_with_all_that_is_known(clock, num_refusals):
    store = MoodyStore(*["refuse"] * num_refusals)
    recorder, tracer = recording(store, clock)
    trace = open_turn(tracer)
    trace.log_stage("one", {})
    trace.log_stage("two", {})
    trace.update_session_info(session_name="s")
    trace.end_turn("completed")
    recorder.start()
    assert recorder.flush()
    row = store.get_trace(trace.trace_id)
    assert (row.status, row.session_name, row.sender_phone) == ("completed", "s", "5511999990001")
    kept = [stage for stage in ("one", "two") if any(each.stage == stage for each in store.payloads)]
    told = losses_of(store, trace)
    assert told == Losses(lost_rows=recorder.num_lost)
    assert len(kept) + recorder.num_lost in (2, 3), "the payloads, and the own row when that was refused by itself"
    assert recorder.stop()


def test_a_trace_whose_row_is_refused_whatever_comes_with_it_ends_nowhere_and_is_counted(clock):
    """No endless tries: each thing is offered a few times."""

    class NoHeaders(MoodyStore):
        num_tries = 0

        def write(self, ops):
            self.num_tries += 1
            if any(isinstance(op, InsertTrace) for op in ops):
                raise REFUSED
            super().write(ops)

    store = NoHeaders()
    recorder, tracer = recording(store, clock)
    trace = open_turn(tracer)
    trace.log_stage("one", {})
    recorder.start()
    assert recorder.flush()
    trace.log_stage("two", {})
    trace.end_turn("completed")
    assert recorder.flush()
    assert recorder.stop()
    # The row, a payload, another, and the values at the end.
    assert (recorder.num_lost, store.rows, store.payloads) == (4, {}, [])
    assert store.num_tries < 40


def test_a_row_that_is_there_already_is_no_reason_to_refuse_what_belongs_to_it(clock):
    """A commit whose answer was lost: the row is refused as a repeat, again and again, and the rest is stored."""

    class Deaf(MoodyStore):
        def write(self, ops):
            super().write(ops)
            if self.num_batches == 1:
                raise StoreError("no answer")

    store = Deaf()
    recorder, tracer = recording(store, clock)
    trace = open_turn(tracer)
    recorder.start()
    assert recorder.flush()
    stream(trace, 3)
    assert read_back(tracer, store, trace).row.status == "completed"
    assert losses_of(store, trace) == Losses(lost_rows=1)
    assert recorder.stop()


def test_what_the_spool_could_not_store_after_all_is_told_by_the_recorder(clock, caplog):
    """From another thread, on an open trace and on one that nobody remembers."""
    store = MemoryStore()
    recorder, tracer = recording(store, clock)
    recorder.start()
    ended, still_open = open_turn(tracer, message_id="M1"), open_turn(tracer, message_id="M2")
    stream(ended, 3)
    assert recorder.flush()
    row = InsertPayload(trace_id=ended.trace_id, stage="mine", payload_type="request", payload={}, timestamp=None)
    chunks = {"count": 3, "sizes": [1, 1, 1]}
    packed = InsertPayload(
        trace_id=ended.trace_id, stage="streaming_chunks", payload_type="stream_event", payload=chunks, timestamp=None
    )
    ended_id = ended.trace_id
    del ended
    gc.collect()
    recorder.note_refused([row, packed, UpdateTrace(still_open.trace_id, {"status": "processing"})])
    assert recorder.flush()
    assert read_losses(store.get_payloads(ended_id)) == Losses(dropped_chunks=3, lost_rows=1)
    assert losses_of(store, still_open) == Losses()
    still_open.end_turn("completed")
    assert recorder.flush()
    assert losses_of(store, still_open) == Losses(lost_rows=1)
    assert (recorder.counts().num_shed, recorder.counts().num_lost) == (3, 2)
    assert recorder.stop()
    last = [record for record in caplog.records if record.message == "trace_records_lost"][-1]
    assert (last.num_shed_total, last.num_lost_total) == (3, 2)


def test_what_is_refused_behind_the_recorders_stop_is_counted_and_logged(clock, caplog):
    """The spool is emptied last."""
    recorder, tracer = recording(MemoryStore(), clock)
    recorder.start()
    trace = open_turn(tracer)
    assert recorder.stop()
    recorder.note_refused([UpdateTrace(trace.trace_id, {"status": "processing"})])
    assert recorder.counts().num_lost == 1
    assert [record.num_lost_total for record in caplog.records if record.message == "trace_records_lost"] == [1]


def test_an_own_row_the_spool_could_not_store_comes_back(clock):
    store = MemoryStore()
    recorder, tracer = recording(store, clock)
    recorder.start()
    trace = open_turn(tracer)
    assert recorder.flush()
    gone = store.rows.pop(trace.trace_id)
    recorder.note_refused([InsertTrace(trace.trace_id, gone)])
    stream(trace, 3)
    assert read_back(tracer, store, trace).row.status == "completed"
    assert losses_of(store, trace) == Losses(lost_rows=recorder.num_lost) == Losses(lost_rows=1)
    assert recorder.stop()


def test_told_losses_that_were_lost_are_told_again(clock):
    store = MoodyStore()
    recorder, tracer = recording(store, clock)
    recorder.start()
    trace = open_turn(tracer)
    stream(trace, 3)
    assert recorder.flush()
    row = InsertPayload(trace_id=trace.trace_id, stage="mine", payload_type="request", payload={}, timestamp=None)
    recorder.note_refused([row])
    assert recorder.flush()
    (told,) = [each for each in store.payloads if each.payload_type == "error"]
    store.payloads.remove(told)
    again = InsertPayload(
        trace_id=trace.trace_id,
        stage=told.stage,
        payload_type="error",
        payload=told.payload,
        timestamp=told.timestamp,
    )
    recorder.note_refused([again])
    assert recorder.flush()
    assert losses_of(store, trace) == Losses(lost_rows=1)
    assert recorder.num_lost == 1
    assert recorder.stop()


def test_a_receipt_refused_long_after_the_ending_adds_to_what_the_trace_says(clock):
    """It comes on a journal of its own; readers see totals of the trace, not of the journal."""
    store = MoodyStore("refuse", "ok", "refuse")
    recorder, tracer = recording(store, clock)
    trace = open_turn(tracer)
    stream(trace, 3)
    trace_id, anchor = trace.trace_id, trace.anchor
    recorder.start()
    assert recorder.flush()
    del trace
    gc.collect()
    store.moods = ["refuse"]
    TraceJournal(trace_id, anchor, recorder).append(ReceiptSeen(mono_ns=clock.mono_ns(), key_id="K", status="read"))
    assert recorder.flush()
    assert read_losses(store.get_payloads(trace_id)) == Losses(lost_rows=2)
    assert recorder.num_lost == 2
    assert recorder.stop()


def test_an_open_trace_says_what_it_lost_when_the_recorder_stops(clock):
    store = MoodyStore("ok", "refuse")
    recorder, tracer = recording(store, clock)
    trace = open_turn(tracer)
    recorder.start()
    assert recorder.flush()
    trace.log_stage("one", {})
    assert recorder.flush()
    assert (losses_of(store, trace), recorder.num_lost) == (Losses(), 1)
    assert recorder.stop()
    assert losses_of(store, trace) == Losses(lost_rows=1)


def test_losses_of_a_trace_that_is_taken_up_again_begin_with_what_it_says(clock):
    store = MoodyStore("ok", "refuse")
    recorder, tracer = recording(store, clock)
    trace = open_turn(tracer)
    recorder.start()
    assert recorder.flush()
    trace.log_stage("one", {})
    assert recorder.stop()
    next_recorder, next_tracer = recording(store, clock)
    next_recorder.start()
    row = store.get_trace(trace.trace_id)
    again = next_tracer.reopen(row, store.get_payloads(trace.trace_id)).context
    store.moods = ["refuse", "refuse"]
    again.log_stage("two", {})
    assert next_recorder.flush()
    again.end_turn("interrupted")
    assert next_recorder.stop()
    assert losses_of(store, trace) == Losses(lost_rows=2)
    assert next_recorder.num_lost == 1


def test_the_last_totals_are_logged_although_nothing_happens_any_more(clock, caplog):
    """Losses that went on were not logged with each; when they are over their totals are, without waiting for the next event."""
    caplog.set_level(logging.ERROR)

    class Full:
        is_database_up, num_spooled, spool_bytes, num_lost = False, 1, 1, 0
        sheds_chunks = True

    store, tiers = MemoryStore(), Full()
    recorder = Recorder(store, clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1), tiers=tiers)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    recorder.start()
    for number in range(3):
        stream(open_turn(tracer, message_id=f"M{number}"), 4)
        assert recorder.flush()
    lines = [record.num_shed_total for record in caplog.records if record.message == "trace_records_lost"]
    assert lines == [4]
    tiers.sheds_chunks = False
    assert recorder.flush()
    lines = [record.num_shed_total for record in caplog.records if record.message == "trace_records_lost"]
    assert lines == [4, 12]
    assert recorder.stop()


def test_the_first_token_stays_known_when_its_chunk_is_not_kept(clock, store):
    """A caller who never says which was the first text: the moment stands at the stream's end, in the summary and in what is read back."""

    class Full:
        is_database_up, sheds_chunks, num_spooled, spool_bytes, num_lost = False, True, 1, 1, 0

    recorder = Recorder(store, clock=clock, settings=Settings(_env_file=None, trace_flush_ms=1), tiers=Full())
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    recorder.start()
    trace = open_turn(tracer)
    trace.log_agent_request({})
    clock.advance_ms(150)
    for index in range(4):
        trace.log_streaming_chunk(" " if index == 0 else "ab ", index)
        clock.advance_ms(50)
    trace.log_streaming_complete(" ab ab ab ")
    timeline = read_back(tracer, store, trace).timeline
    assert (timeline.chunks, timeline.num_dropped_chunks, timeline.first_token_latency_ms) == ((), 4, 200)
    assert trace.timeline.first_token_ns == timeline.first_token_ns
    assert trace.get_streaming_summary()["first_token_latency_ms"] == 200
    assert recorder.stop()


def test_the_book_forgets_counts_that_are_zero_and_keeps_the_others_up_to_a_bound():
    book = LossBook()
    assert book.of("kept") is not None
    losses = book.of("lost")
    book.count(losses, num_shed=0, num_lost=1)
    del losses
    gc.collect()
    assert book.of("lost").num_lost == 1
    for number in range(25_000):
        book.count(book.of(f"T{number}"), num_shed=1, num_lost=0)
    assert (book.num_shed, book.num_lost) == (25_000, 1)
    assert len(book.take_due(is_last=False)) == 20_000
    gc.collect()
    assert book.of("lost").num_lost == 0
