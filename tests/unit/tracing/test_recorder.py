"""The recorder keeps what it can, counts what it cannot, and never holds an answer up."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.tracing.test_streaming_context import open_turn, read_back

from omni.clock import Anchor
from omni.errors import StoreError
from omni.settings import Settings
from omni.testing import FakeClock, MemoryStore
from omni.tracing.events import ChunkReceived
from omni.tracing.packing import pack_chunks, unpack_chunks
from omni.tracing.recorder import Recorder
from omni.tracing.rows import RowPlanner
from omni.tracing.service import Tracer


class FrozenStore(MemoryStore):
    """A store whose writes hang until they are let go."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def write(self, ops):
        self.entered.set()
        assert self.released.wait(30)
        super().write(ops)


def stream(trace, num_chunks, text="ab "):
    trace.log_agent_request({"message": "oi"})
    trace.log_first_token(text)
    for index in range(num_chunks):
        trace.log_streaming_chunk(text, index, event_type="RunContent")
    trace.log_streaming_complete(text * num_chunks)


def test_everything_is_written_when_it_stops(store, clock, settings):
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    traces = [open_turn(tracer, message_id=f"M{number}") for number in range(50)]
    for trace in traces:
        stream(trace, 20)
    assert recorder.stop()
    assert [store.get_trace(trace.trace_id).status for trace in traces] == ["completed"] * 50
    assert recorder.num_pending == 0


def test_a_batch_is_one_transaction(store, clock):
    settings = Settings(_env_file=None, trace_flush_ms=50)
    recorder = Recorder(store, clock=clock, settings=settings)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    for number in range(20):
        stream(open_turn(tracer, message_id=f"M{number}"), 30)
    recorder.start()
    assert recorder.stop()
    assert store.num_batches == 1


def test_a_frozen_store_costs_chunk_records_which_are_counted_in_the_trace():
    """Truth rules 7 and 8: the text is kept by the stream's end, the missing records are named."""
    store, clock = FrozenStore(), FakeClock()
    settings = Settings(_env_file=None, trace_flush_ms=1, trace_queue_events=1_000)
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    first = open_turn(tracer)
    assert store.entered.wait(10)
    trace = open_turn(tracer, message_id="M2")
    stream(trace, 1_500)
    store.released.set()
    stored = read_back(tracer, store, trace)
    assert recorder.stop()
    timeline = stored.timeline
    assert timeline.total_chunks == 1_500
    assert timeline.num_dropped_chunks == recorder.num_shed > 400
    assert len(timeline.chunks) == 1_500 - recorder.num_shed
    assert timeline.content == "ab " * 1_500
    assert trace.get_streaming_summary()["dropped_chunks"] == recorder.num_shed
    assert store.get_trace(first.trace_id).status == "received"


def test_one_bad_row_costs_no_other_trace_its_rows(clock, settings):
    """F30."""

    class PickyStore(MemoryStore):
        def write(self, ops):
            if any("poison" in str(getattr(op, "payload", "")) for op in ops):
                raise StoreError("this row is not acceptable")
            super().write(ops)

    store = PickyStore()
    recorder = Recorder(store, clock=clock, settings=settings)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    good, bad = open_turn(tracer, message_id="good"), open_turn(tracer, message_id="bad")
    stream(good, 3)
    bad.log_stage("poison", {"poison": True})
    recorder.start()
    assert recorder.flush()
    stream(bad, 3)
    assert recorder.stop()
    assert store.get_trace(good.trace_id).status == "completed"
    assert recorder.num_lost > 0


def test_a_passing_failure_is_tried_again(store, clock, settings):
    store.failures = [StoreError("locked", retryable=True), StoreError("locked", retryable=True)]
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    trace = open_turn(tracer)
    assert recorder.flush()
    assert store.get_trace(trace.trace_id).status == "received"
    assert recorder.num_lost == 0
    assert recorder.stop()


def test_a_sink_that_raises_anything_does_not_end_the_writer(store, clock, settings):
    store.failures = [RuntimeError("bug")]
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    open_turn(tracer)
    assert recorder.flush()
    trace = open_turn(tracer, message_id="M2")
    assert recorder.flush()
    assert store.get_trace(trace.trace_id) is not None
    assert recorder.num_lost == 1
    assert recorder.stop()


def test_a_trace_whose_first_rows_were_refused_is_still_stored_with_the_count(store, clock, settings):
    """What was lost is in the trace (truth rule 7)."""
    store.failures = [StoreError("no"), StoreError("no")]
    recorder = Recorder(store, clock=clock, settings=settings)
    recorder.start()
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    trace = open_turn(tracer)
    assert recorder.flush()
    assert store.get_trace(trace.trace_id) is None
    stream(trace, 3)
    stored = read_back(tracer, store, trace)
    assert recorder.stop()
    assert stored.row.status == "completed"
    assert stored.row.sender_phone == "5511999990001"
    loss = [row.payload for row in stored.payloads if row.payload_type == "error"]
    assert [(item["dropped_chunks"], item["lost_rows"]) for item in loss] == [(0, 1)]


def test_chunks_of_a_running_stream_are_stored_before_its_end_and_packed_after(tracer, recorder, store, clock):
    trace = open_turn(tracer)
    trace.log_agent_request({})
    trace.log_first_token("um ")
    trace.log_streaming_chunk("um ", 0)
    assert recorder.flush()
    trace.log_streaming_chunk("dois ", 1)
    clock.advance_ms(300)
    assert recorder.flush()
    running = read_back(tracer, store, trace)
    assert [chunk.text for chunk in running.timeline.chunks] == ["um ", "dois "]
    assert sum(row.stage == "streaming_chunks" for row in running.payloads) == 2
    trace.log_streaming_chunk("três", 2)
    trace.log_streaming_complete("um dois três")
    done = read_back(tracer, store, trace)
    assert sum(row.stage == "streaming_chunks" for row in done.payloads) == 1
    assert [(chunk.index, chunk.text) for chunk in done.timeline.chunks] == [(0, "um "), (1, "dois "), (2, "três")]


def test_without_a_recorder_figures_are_kept_in_memory(clock):
    trace = open_turn(Tracer(clock=clock, recorder=None, reader=None))
    stream(trace, 5)
    assert trace.get_streaming_summary()["total_chunks"] == 5


@given(
    st.lists(
        st.tuples(
            st.text(max_size=12), st.integers(0, 3_000_000), st.sampled_from(["RunContent", "TeamRunContent", None])
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, 1000),
)
def test_packing_keeps_every_chunk_exactly(pieces, first_index):
    anchor = Anchor(wall_ns=0, mono_ns=777)
    now_ns, chunks = anchor.mono_ns, []
    for position, (text, gap_us, kind) in enumerate(pieces):
        now_ns += gap_us * 1_000
        chunks.append(ChunkReceived(now_ns, first_index + position, text, kind))
    assert unpack_chunks(pack_chunks(chunks, anchor), anchor, text_by_stage={}) == chunks
    packed = pack_chunks(chunks, anchor, text_stage="streaming_complete")
    whole = "".join(chunk.text for chunk in chunks)
    assert unpack_chunks(packed, anchor, text_by_stage={"streaming_complete": whole}) == chunks
    with pytest.raises(ValueError, match="not the one"):
        unpack_chunks(packed, anchor, text_by_stage={"streaming_complete": whole + "!"})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_rows_of_a_finished_trace_do_not_depend_on_the_batches(batch_sizes):
    """However the writer's rounds fall, the stored trace is the same."""
    clock = FakeClock()
    tracer = Tracer(clock=clock, recorder=None, reader=None)
    trace = open_turn(tracer)
    stream(trace, 10)
    events = trace._journal.events
    settings = Settings(_env_file=None)
    whole = _stored([events], trace, settings)
    cuts, position = [], 0
    for size in batch_sizes:
        position += size
        cuts.append(events[:position])
    cuts.append(events)
    assert _stored(cuts, trace, settings) == whole


def _stored(rounds, trace, settings):
    store = MemoryStore()
    planner = RowPlanner(trace.trace_id, trace.anchor, settings=settings)
    for events in rounds:
        ops = planner.plan(events, now_ns=0, flush_now=True)
        if ops:
            store.write(ops)
    rows = [(row.stage, row.payload_type, row.payload) for row in store.payloads]
    return sorted(rows, key=lambda row: (row[0], str(row[2]))), store.rows


def test_a_changed_answer_is_noticed_when_the_chunks_are_read(tracer, recorder, store):
    """The chunks do not silently take another text's pieces."""
    trace = open_turn(tracer)
    stream(trace, 4)
    assert recorder.flush()
    for position, row in enumerate(store.payloads):
        if row.stage == "streaming_complete":
            payload = row.payload | {"final_content": "x" * len(row.payload["final_content"])}
            store.payloads[position] = structs.replace(row, payload=payload)
    timeline = read_back(tracer, store, trace).timeline
    assert (timeline.chunks, timeline.num_dropped_chunks) == ((), 4)


def test_an_answer_that_is_not_its_chunks_keeps_both(tracer, store):
    """A caller may close a stream with another text; then the chunks keep theirs and the trace says that they differ."""
    trace = open_turn(tracer)
    trace.log_agent_request({})
    trace.log_streaming_chunk("one", 0)
    trace.log_streaming_complete("another")
    timeline = read_back(tracer, store, trace).timeline
    assert ([chunk.text for chunk in timeline.chunks], timeline.content) == (["one"], "another")
    assert timeline.is_content_verified is False


@pytest.mark.parametrize("num_chunks", [1_000])
def test_a_thousand_chunks_are_one_payload_row(tracer, recorder, store, num_chunks):
    trace = open_turn(tracer)
    stream(trace, num_chunks)
    assert recorder.flush()
    assert sum(row.stage == "streaming_chunks" for row in store.get_payloads(trace.trace_id)) == 1


class Unspellable:
    """A key that cannot be written: the worst a caller can put into a payload."""

    def __str__(self):
        raise RuntimeError("no")


def test_an_event_that_cannot_be_planned_costs_only_itself(store, clock, settings):
    recorder = Recorder(store, clock=clock, settings=settings)
    tracer = Tracer(clock=clock, recorder=recorder, reader=store)
    trace = open_turn(tracer)
    trace.log_agent_request({"message": "oi"})
    trace.log_stage("mine", {Unspellable(): 1})
    trace.log_streaming_chunk("olá", 0)
    trace.log_streaming_complete("olá")
    recorder.start()  # all of it in one round
    stored = read_back(tracer, store, trace)
    assert recorder.stop()
    assert (stored.row.status, stored.timeline.content, recorder.num_lost) == ("completed", "olá", 1)
    assert [row.stage for row in stored.payloads] == [
        "agent_request",
        "streaming_request",
        "streaming_chunks",
        "streaming_complete",
        "agent_response",
        "streaming_chunks",
    ]
    assert stored.payloads[-1].payload["lost_rows"] == 1
