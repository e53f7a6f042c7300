"""Whatever fails, and in whatever order: while one of the two takes records, every row is stored once and in its order."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store.fallible import FallibleDatabase, FallibleLedger, FallibleSpool
from tests.unit.store.records import AT, closed, inbound, opened, outbound, payload

from omni.errors import StoreError
from omni.ports import InsertPayload
from omni.store.draining import Drain, DrainReport, RefusalListeners
from omni.store.spool import Spool, SpoolError
from omni.store.spooling import SpooledLedgerSink, SpooledTraceSink, StoreGate
from omni.testing import FakeClock

MEGABYTE = 1_000_000


@pytest.fixture
def database():
    return FallibleDatabase()


@pytest.fixture
def spool(tmp_path):
    spool = FallibleSpool(tmp_path / "p1.db", max_bytes=MEGABYTE)
    yield spool
    spool.close()


@pytest.fixture
def gate(database, spool):
    return gate_of(database, spool)


@pytest.fixture
def sink(gate):
    return SpooledTraceSink(gate)


def gate_of(database, spool):
    return StoreGate(spool, traces=database, ledger=FallibleLedger(database), probe=database.probe, clock=FakeClock())


def tend(gate):
    """What the gate's thread does until there is nothing more to do."""
    for _ in range(1_000):
        if gate.tend():
            return
    raise AssertionError("the gate never came to an end")


def stages(database):
    return [row.stage for row in database.store.payloads]


def test_while_the_database_works_nothing_is_spooled(database, gate, sink, spool):
    sink.write([opened(), payload(stage="a")])
    assert SpooledLedgerSink(gate).write([inbound(1), inbound(1)]) == [True, False]
    assert (stages(database), gate.is_database_up, spool.path.exists()) == (["a"], True, False)


def test_a_database_that_is_away_is_not_asked_twice(database, gate, sink):
    database.mode = "away"
    sink.write([opened(), payload(stage="a")])
    sink.write([payload(stage="b")])
    assert SpooledLedgerSink(gate).write([inbound(1)]) == [True]
    assert (database.num_tries, gate.is_database_up, gate.num_spooled) == (1, False, 3)


def test_new_batches_queue_behind_what_is_spooled(database, gate, sink, spool):
    database.mode = "away"
    sink.write([opened(), payload(stage="a")])
    sink.write([payload(stage="b")])
    database.mode = "up"
    assert not gate.tend()
    assert gate.is_database_up
    sink.write([payload(stage="c")])
    assert stages(database) == ["a"]
    tend(gate)
    sink.write([payload(stage="d")])
    assert stages(database) == ["a", "b", "c", "d"]
    assert database.applied == [("own", number) for number in (1, 2, 3, 4)]
    assert not spool.path.exists()


def test_a_batch_that_was_stored_although_its_answer_was_lost_is_stored_once(database, gate, sink):
    database.mode = "deaf"
    sink.write([opened(), payload(stage="a")])
    database.mode = "up"
    tend(gate)
    sink.write([payload(stage="b")])
    assert stages(database) == ["a", "b"]


def test_the_ledger_does_not_wait_for_spooled_traces_and_older_versions_change_nothing(database, gate):
    ledger = SpooledLedgerSink(gate)
    database.mode = "away"
    assert ledger.write([outbound(1, version=1)]) == [True]
    database.mode = "up"
    gate._is_up = True
    assert ledger.write([outbound(1, version=2, state="accepted")]) == [True]
    tend(gate)
    assert [row.state for row in database.ledger.outbox.values()] == ["accepted"]


def test_what_neither_takes_is_refused_for_now(database, gate, sink, spool):
    database.mode, spool.is_broken = "away", True
    batch = [opened(), payload(stage="a")]
    for _ in range(2):
        with pytest.raises(StoreError) as refusal:
            sink.write(batch)
        assert refusal.value.retryable
    with pytest.raises(StoreError) as refusal:
        SpooledLedgerSink(gate).write([inbound(1)])
    assert refusal.value.retryable
    database.mode = "up"
    tend(gate)
    sink.write(batch)
    sink.write([payload(stage="b")])
    assert stages(database) == ["a", "b"]
    assert database.applied == [("own", 1), ("own", 2)]


def test_a_batch_offered_again_keeps_its_number(database, gate, sink, spool):
    """The database stored it, could not say so, and the spool was full: the second offer must not store it twice."""
    database.mode, spool.is_broken = "deaf", True
    batch = [opened(), payload(stage="a")]
    with pytest.raises(SpoolError):
        sink.write(batch)
    database.mode = "up"
    tend(gate)
    sink.write(batch)
    assert stages(database) == ["a"]


def test_a_row_the_database_refuses_for_good_is_raised_as_it_is(database, gate, sink):
    database.poison = {"bad"}
    with pytest.raises(StoreError) as refusal:
        sink.write([opened(), payload(stage="bad")])
    assert not refusal.value.retryable
    assert (gate.is_database_up, gate.num_spooled) == (True, 0)
    sink.write([opened(), payload(stage="good")])
    assert stages(database) == ["good"]


def test_a_bad_row_in_the_spool_costs_only_itself_and_its_trace_says_so(database, gate, sink):
    database.mode = "away"
    sink.write([opened("T1"), payload("T1", "good"), payload("T1", "bad"), closed("T1"), opened("T2")])
    database.mode, database.poison = "up", {"bad"}
    tend(gate)
    assert stages(database) == ["good", "streaming_chunks"]
    assert database.store.payloads[-1].payload == {"dropped_chunks": 0, "lost_rows": 1, "omni": {}}
    assert database.store.rows["T1"]["status"] == "completed"
    assert set(database.store.rows) == {"T1", "T2"}
    assert gate.num_lost == 1


def test_a_bad_ledger_row_in_the_spool_costs_only_itself(database, gate):
    ledger = SpooledLedgerSink(gate)
    database.mode = "away"
    ledger.write([inbound(1), inbound(2, instance_name="bad"), inbound(3)])
    database.mode, database.poison = "up", {"bad"}
    tend(gate)
    assert sorted(database.ledger.inbox) == [("shop", "M1"), ("shop", "M3")]
    assert gate.num_lost == 1


def test_a_fault_in_the_database_layer_is_a_refusal(gate, sink, database):
    def write(*_, **__):
        raise RuntimeError("bug with a name in it")

    database.write = write
    with pytest.raises(StoreError, match="RuntimeError") as refusal:
        sink.write([opened()])
    assert not refusal.value.retryable
    assert "name in it" not in str(refusal.value)


def test_a_spool_that_cannot_be_read_does_not_keep_the_database_away(database, gate, sink, spool):
    database.mode = "away"
    sink.write([opened()])
    database.mode = "up"

    def oldest(*_, **__):
        raise SpoolError("The spool's disk answered SQLITE_IOERR.", retryable=True)

    spool.oldest = oldest
    assert not gate.tend()
    assert gate.is_database_up
    assert SpooledLedgerSink(gate).write([inbound(1)]) == [True]
    assert database.ledger.inbox


def test_the_thread_brings_everything_back_by_itself(database, spool):
    gate = gate_of(database, spool)
    gate.start()
    database.mode = "away"
    sink = SpooledTraceSink(gate)
    sink.write([opened(), payload(stage="a")])
    SpooledLedgerSink(gate).write([inbound(1)])
    stored = threading.Event()
    database.store.write, write = None, database.store.write

    def note(ops):
        write(ops)
        stored.set()

    database.store.write = note
    database.mode = "up"
    assert stored.wait(10)
    assert gate.stop(deadline_s=10)
    assert (stages(database), len(database.ledger.inbox), spool.path.exists()) == (["a"], 1, False)


def test_stopping_leaves_in_the_spool_what_the_database_does_not_take(database, gate, sink, spool):
    database.mode = "away"
    sink.write([opened(), payload(stage="a")])
    assert not gate.stop(deadline_s=1)
    left = Spool(spool.path, max_bytes=MEGABYTE)
    assert left.num_traces == 1
    left.close()


def test_the_spool_of_a_dead_process_is_stored_in_its_name(database, tmp_path):
    """What that process had stored before it died is not stored again."""
    dead = Spool(tmp_path / "dead.db", max_bytes=MEGABYTE)
    dead.append_traces([opened(), payload(stage="a")], batch_no=4)
    dead.append_traces([payload(stage="b")], batch_no=5)
    dead.append_ledger([inbound(1)])
    dead.close()
    database.store.write([opened(), payload(stage="a")])
    database.last_batch["dead"] = 4
    left = Spool(tmp_path / "dead.db", max_bytes=MEGABYTE)
    drain = Drain(left, traces=database, ledger=FallibleLedger(database), process_id="dead")
    assert drain.move_all() == DrainReport(num_moved=3, num_lost=0, num_unreadable=0)
    assert (stages(database), database.applied) == (["a", "b"], [("dead", 5)])
    assert not left.path.exists()


def test_a_drain_that_is_interrupted_goes_on_where_it_was(database, tmp_path):
    left = Spool(tmp_path / "dead.db", max_bytes=MEGABYTE)
    left.append_traces([opened(), payload(stage="a")], batch_no=1)
    left.append_traces([payload(stage="b")], batch_no=2)
    drain = Drain(left, traces=database, ledger=FallibleLedger(database), process_id="dead")
    assert drain.move_some()
    database.mode = "away"
    with pytest.raises(StoreError) as refusal:
        drain.move_all()
    assert refusal.value.retryable
    database.mode = "up"
    assert drain.move_all().num_moved == 2
    assert stages(database) == ["a", "b"]


modes = st.sampled_from(["up", "up", "away", "deaf"])
steps = st.lists(st.tuples(modes, st.booleans(), st.sampled_from(["trace", "ledger", "tend"])), max_size=30)


@given(steps)
@settings(max_examples=150, deadline=None)
def test_any_pattern_of_failures_loses_and_repeats_nothing(tmp_path_factory, story):
    database = FallibleDatabase()
    spool = FallibleSpool(tmp_path_factory.mktemp("spool") / "p1.db", max_bytes=MEGABYTE)
    gate = gate_of(database, spool)
    sink, ledger = SpooledTraceSink(gate), SpooledLedgerSink(gate)
    database.store.write([opened()])
    waiting, wanted, puts = [], [], []
    for number, (mode, is_broken, what) in enumerate(story):
        database.mode, spool.is_broken = mode, is_broken
        if what == "trace":
            wanted.append(f"s{number}")
            waiting.append([payload(stage=f"s{number}")])
            _offer(sink, waiting)
        elif what == "ledger":
            try:
                ledger.write([inbound(number)])
            except StoreError:
                continue
            puts.append(("shop", f"M{number}"))
        else:
            gate.tend()
    database.mode, spool.is_broken = "up", False
    tend(gate)
    _offer(sink, waiting)
    tend(gate)
    assert stages(database) == wanted
    assert set(puts) <= set(database.ledger.inbox)
    assert gate.num_spooled == gate.num_lost == 0
    spool.close()


def _offer(sink, waiting):
    """As the recorder does it: in order, and the same batch again until it is taken."""
    while waiting:
        try:
            sink.write(waiting[0])
        except StoreError:
            return
        del waiting[0]


class Listeners:
    """Notes what it is told."""

    def __init__(self):
        self.refused, self.num_ledger = [], 0

    def traces(self, ops):
        self.refused.append([getattr(op, "stage", type(op).__name__) for op in ops])

    def ledger(self, num_refused):
        self.num_ledger += num_refused


@pytest.fixture
def listeners(gate):
    noted = Listeners()
    gate.report_refusals(RefusalListeners(traces=noted.traces, ledger=noted.ledger))
    return noted


def chunks_and_text(trace_id="T1"):
    packed = InsertPayload(
        trace_id=trace_id,
        stage="streaming_chunks",
        payload_type="stream_event",
        payload={"count": 3, "text_stage": "streaming_complete"},
        timestamp=AT,
    )
    return [packed, payload(trace_id, "streaming_complete", final_content="x")]


def test_who_wrote_a_row_counts_it_when_the_spool_could_not_store_it(database, gate, sink, listeners):
    """Then nothing is told here: the trace has one count, and the recorder has it."""
    database.mode = "away"
    sink.write([opened("T1"), payload("T1", "good"), payload("T1", "bad"), closed("T1")])
    SpooledLedgerSink(gate).write([inbound(1, instance_name="bad"), inbound(2)])
    database.mode, database.poison = "up", {"bad"}
    tend(gate)
    assert (stages(database), listeners.refused, listeners.num_ledger, gate.num_lost) == (["good"], [["bad"]], 1, 0)
    assert sorted(database.ledger.inbox) == [("shop", "M2")]


def test_chunks_go_before_the_text_they_were_cut_from(database, gate, sink, listeners):
    database.mode = "away"
    sink.write([opened(), *chunks_and_text()])
    database.mode, database.poison = "up", {"streaming_chunks"}
    tend(gate)
    assert (stages(database), listeners.refused) == (["streaming_complete"], [["streaming_chunks"]])


def test_chunks_do_not_stay_without_the_text_they_were_cut_from(database, gate, sink, listeners):
    database.mode = "away"
    sink.write([opened(), *chunks_and_text()])
    database.mode, database.poison = "up", {"streaming_complete"}
    tend(gate)
    assert (stages(database), listeners.refused) == ([], [["streaming_chunks", "streaming_complete"]])


@pytest.mark.parametrize("num_taken", range(7))
def test_pieces_that_were_stored_are_not_stored_again_when_the_database_goes_away_between_them(
    database, gate, sink, listeners, num_taken
):
    database.mode = "away"
    sink.write([opened(), *[payload(stage=stage) for stage in ("a", "b", "bad", "c")], closed()])
    enter = database._enter

    def leave_once():
        if database.num_tries == first + num_taken:
            database.num_tries += 1
            raise StoreError("the database is away", retryable=True)
        enter()

    first, database._enter = database.num_tries, leave_once
    database.mode, database.poison = "up", {"bad"}
    tend(gate)
    sink.write([payload(stage="d")])
    assert (stages(database), listeners.refused) == (["a", "b", "c", "d"], [["bad"]])
    assert database.store.rows["T1"]["status"] == "completed"


def test_a_batch_the_spool_cannot_forget_is_not_stored_again(database, gate, sink, spool, listeners):
    database.mode = "away"
    sink.write([opened(), payload(stage="a"), payload(stage="bad")])
    database.mode, database.poison = "up", {"bad"}
    remove, refusals = spool.remove, [SpoolError("The spool's disk answered SQLITE_FULL.", retryable=True)] * 3

    def refuse_first(kind, entries):
        if refusals:
            raise refusals.pop()
        remove(kind, entries)

    spool.remove = refuse_first
    tend(gate)
    assert (stages(database), listeners.refused) == (["a"], [["bad"]])
    database.mode = "away"
    sink.write([payload(stage="b")])
    database.mode = "up"
    tend(gate)
    assert stages(database) == ["a", "b"]


def test_the_own_row_of_a_trace_goes_along_with_what_follows_when_it_was_refused(database, gate, sink, listeners):
    database.mode = "away"
    sink.write([opened(), payload(stage="a"), payload(stage="b")])
    write, moods = database.write, ["refuse", "refuse"]

    def refuse_first(ops, **batch):
        if moods:
            moods.pop()
            raise StoreError("not now, and without saying so")
        write(ops, **batch)

    database.write = refuse_first
    database.mode = "up"
    tend(gate)
    assert (stages(database), set(database.store.rows), listeners.refused) == (["a", "b"], {"T1"}, [])
