"""Batches are stored exactly once, and who has which trace open is true whenever a process dies."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from omni.errors import RecordNotFound, StoreError
from omni.ports import InsertPayload, InsertTrace, TraceRow, TraceSink, UpdateTrace, WriteOp
from omni.store.database import Database
from omni.store.queries import SqlTraceReader
from omni.store.schema import omni_open_traces, omni_processes
from omni.store.writes import SqlTraceSink
from omni.testing import FakeClock

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def sink(database: Database) -> SqlTraceSink:
    return SqlTraceSink(database, process_id="p1", clock=FakeClock(wall=NOON))


@pytest.fixture
def reader(database: Database) -> SqlTraceReader:
    return SqlTraceReader(database)


def payload(trace_id: str, number: int = 0) -> InsertPayload:
    return InsertPayload(
        trace_id=trace_id, stage="custom", payload_type="response", payload={"number": number}, timestamp=NOON
    )


def opened(trace_id: str) -> list[WriteOp]:
    return [InsertTrace(trace_id, {"received_at": NOON}), payload(trace_id)]


def closed(trace_id: str) -> UpdateTrace:
    return UpdateTrace(trace_id, {"status": "completed", "completed_at": NOON})


def open_traces(database: Database) -> dict[str, str]:
    with database.reading("reading open traces") as connection:
        rows = connection.execute(select(omni_open_traces.c.trace_id, omni_open_traces.c.process_id)).all()
    return dict(sorted((trace_id, process_id) for trace_id, process_id in rows))


def pages(database: Database) -> dict[str, int]:
    with database.reading("reading pages") as connection:
        rows = connection.execute(select(omni_processes.c.process_id, omni_processes.c.last_batch)).all()
    return dict(sorted((process_id, last_batch) for process_id, last_batch in rows))


def numbers(reader: SqlTraceReader, trace_id: str) -> list[int]:
    return [row.payload["number"] for row in reader.get_payloads(trace_id)]


def test_a_sink_with_a_process_is_a_trace_sink(sink: SqlTraceSink) -> None:
    assert isinstance(accept(sink), SqlTraceSink)


def accept(sink: TraceSink) -> TraceSink:
    return sink


def test_a_batch_is_stored_once_however_often_it_comes(
    database: Database, sink: SqlTraceSink, reader: SqlTraceReader
) -> None:
    sink.write(opened("t1"), batch_no=1)
    for _ in range(2):
        sink.write([payload("t1", 2)], batch_no=2)
    sink.write(opened("t1"), batch_no=1)
    sink.write([payload("t1", 7)], batch_no=7)
    assert numbers(reader, "t1") == [0, 2, 7]
    assert pages(database) == {"p1": 7}


def test_a_batch_that_is_refused_can_come_again(database: Database, sink: SqlTraceSink, reader: SqlTraceReader) -> None:
    with pytest.raises(RecordNotFound):
        sink.write([*opened("t1"), payload("ghost")], batch_no=1)
    assert (pages(database), open_traces(database), reader.get_trace("t1")) == ({}, {}, None)
    sink.write(opened("t1"), batch_no=1)
    assert numbers(reader, "t1") == [0]


def test_each_process_has_its_own_pages(database: Database, sink: SqlTraceSink, reader: SqlTraceReader) -> None:
    sink.write(opened("t1"), batch_no=5)
    SqlTraceSink(database, process_id="p2").write([payload("t1", 1)], batch_no=1)
    assert numbers(reader, "t1") == [0, 1]
    assert pages(database) == {"p1": 5, "p2": 1}


def test_a_batch_left_by_a_dead_process_counts_as_its_own_and_is_no_sign_of_life(
    database: Database, sink: SqlTraceSink, reader: SqlTraceReader
) -> None:
    long_ago = NOON - timedelta(days=1)
    with database.writing("entering a process") as connection:
        row = {"process_id": "dead", "started_at": long_ago, "heartbeat_at": long_ago, "last_batch": 3}
        connection.execute(omni_processes.insert().values(row))
    sink.write([InsertTrace("t3", {})], batch_no=3, process_id="dead")
    sink.write([InsertTrace("t4", {})], batch_no=4, process_id="dead")
    assert [reader.get_trace("t3"), reader.get_trace("t4")] == [None, TraceRow(trace_id="t4")]
    assert open_traces(database) == {"t4": "dead"}
    assert pages(database) == {"dead": 4}
    with database.reading("reading the heartbeat") as connection:
        assert connection.scalar(select(omni_processes.c.heartbeat_at)) == long_ago


def test_a_batch_of_our_own_is_a_heartbeat(database: Database, sink: SqlTraceSink) -> None:
    long_ago = NOON - timedelta(days=400)
    with database.writing("entering a process") as connection:
        row = {"process_id": "p1", "started_at": long_ago, "heartbeat_at": long_ago, "last_batch": 0}
        connection.execute(omni_processes.insert().values(row))
    sink.write(opened("t1"), batch_no=1)
    with database.reading("reading the heartbeat") as connection:
        started_at, heartbeat_at = connection.execute(
            select(omni_processes.c.started_at, omni_processes.c.heartbeat_at)
        ).one()
    assert started_at == long_ago
    assert heartbeat_at > NOON - timedelta(days=300)


def test_a_process_nobody_entered_is_entered_by_its_first_batch(database: Database, sink: SqlTraceSink) -> None:
    sink.write(opened("t1"), batch_no=1)
    with database.reading("reading processes") as connection:
        row = connection.execute(select(omni_processes.c.process_id, omni_processes.c.started_at)).one()
    assert tuple(row) == ("p1", NOON)


def test_a_numbered_batch_of_nobody_is_refused(database: Database, reader: SqlTraceReader) -> None:
    with pytest.raises(StoreError, match="needs the process it belongs to"):
        SqlTraceSink(database).write(opened("t1"), batch_no=1)
    assert reader.get_trace("t1") is None


@pytest.mark.parametrize(
    ("ops", "still_open"),
    [
        (opened("t1"), {"t1": "p1"}),
        ([*opened("t1"), UpdateTrace("t1", {"status": "processing"})], {"t1": "p1"}),
        ([*opened("t1"), UpdateTrace("t1", {"status": "failed", "completed_at": None})], {"t1": "p1"}),
        ([*opened("t1"), closed("t1")], {}),
        ([InsertTrace("t1", {"completed_at": NOON})], {}),
        ([*opened("t1"), *opened("t2"), closed("t1")], {"t2": "p1"}),
    ],
)
def test_a_trace_is_open_from_its_row_until_a_row_completes_it(
    database: Database, sink: SqlTraceSink, ops: Sequence[WriteOp], still_open: dict[str, str]
) -> None:
    sink.write(ops)
    assert open_traces(database) == still_open


def test_what_closes_a_trace_may_come_later_and_from_another_process(database: Database, sink: SqlTraceSink) -> None:
    sink.write([*opened("t1"), *opened("t2")])
    sink.write([closed("t1")])
    assert open_traces(database) == {"t2": "p1"}
    SqlTraceSink(database, process_id="p2").write([closed("t2")])
    assert open_traces(database) == {}


def test_a_library_keeps_no_books(database: Database) -> None:
    SqlTraceSink(database).write(opened("t1"))
    assert (open_traces(database), pages(database)) == ({}, {})


def test_removing_a_trace_removes_it_from_the_books(
    database: Database, sink: SqlTraceSink, reader: SqlTraceReader
) -> None:
    sink.write([*opened("t1"), InsertTrace("t2", {"received_at": NOON + timedelta(days=1)})])
    assert reader.delete_older_than(NOON + timedelta(hours=1)) == 1
    assert open_traces(database) == {"t2": "p1"}


def test_many_traces_are_read_at_once_in_the_order_asked_for(sink: SqlTraceSink, reader: SqlTraceReader) -> None:
    ids = [f"t{number:04}" for number in range(1_100)]
    ops: list[WriteOp] = []
    for trace_id in ids:
        ops += opened(trace_id)
    sink.write([*ops, InsertTrace("bare", {}), payload("t0007", 2)])
    wanted = ["nobody", *reversed(ids), "bare"]
    assert [row.trace_id for row in reader.get_traces(wanted)] == [*reversed(ids), "bare"]
    found = reader.get_payloads_of(wanted)
    assert set(found) == set(ids)
    assert found["t0007"] == reader.get_payloads("t0007")
    assert [row.payload for row in found["t0007"]] == [{"number": 0}, {"number": 2}]


def test_nothing_asked_for_is_nothing_found(reader: SqlTraceReader) -> None:
    nothing: tuple[list[Any], dict[str, Any]] = (reader.get_traces([]), reader.get_payloads_of([]))
    assert nothing == ([], {})
