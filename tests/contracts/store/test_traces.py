"""Traces are written whole or not at all, read back as they were, counted by the database and removed with their payloads."""

import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import text

from omni.errors import RecordNotFound, StoreError
from omni.ports import (
    DropPayloads,
    InsertPayload,
    InsertTrace,
    PayloadRow,
    TraceFilter,
    TraceReader,
    TraceRow,
    TraceSink,
    TraceSummary,
    UpdateTrace,
    WriteOp,
)
from omni.store.database import Database
from omni.store.instances import SqlInstanceStore
from omni.store.queries import SqlTraceReader
from omni.store.writes import SqlTraceSink
from omni.tracing.redact import Redactor

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)

WHOLE_TRACE: dict[str, Any] = {
    "instance_name": "flash",
    "whatsapp_message_id": "3EB0A",
    "sender_phone": "5511999990001",
    "sender_name": "Ana 🌸",
    "sender_jid": "5511999990001@s.whatsapp.net",
    "message_type": "text",
    "has_media": False,
    "has_quoted_message": True,
    "message_length": 30,
    "session_name": "whatsapp_5511999990001",
    "agent_session_id": "s-1",
    "received_at": NOON,
    "processing_started_at": NOON + timedelta(milliseconds=1),
    "agent_request_at": NOON + timedelta(milliseconds=2),
    "agent_response_at": NOON + timedelta(milliseconds=450),
    "evolution_send_at": NOON + timedelta(milliseconds=500),
    "completed_at": NOON + timedelta(seconds=1),
    "status": "completed",
    "error_message": None,
    "error_stage": None,
    "agent_processing_time_ms": 448,
    "total_processing_time_ms": 1000,
    "agent_request_tokens": 321,
    "agent_response_tokens": 45,
    "agent_response_success": True,
    "agent_response_length": 95,
    "agent_tools_used": 1,
    "evolution_response_code": 201,
    "evolution_success": True,
}


@pytest.fixture
def sink(database: Database) -> TraceSink:
    SqlInstanceStore(database).create({"name": "flash"})
    return SqlTraceSink(database)


@pytest.fixture
def reader(database: Database) -> TraceReader:
    return SqlTraceReader(database)


def payload(trace_id: str, stage: str, content: dict[str, Any] | None = None, **more: Any) -> InsertPayload:
    return InsertPayload(
        trace_id=trace_id,
        stage=stage,
        payload_type=more.pop("payload_type", "stream_event"),
        payload={"stage": stage} if content is None else content,
        timestamp=more.pop("timestamp", NOON),
        **more,
    )


def stages(reader: TraceReader, trace_id: str) -> list[str]:
    return [row.stage for row in reader.get_payloads(trace_id)]


def num_payloads(database: Database) -> int:
    with database.reading("counting payloads") as connection:
        return int(connection.scalar(text("SELECT count(*) FROM trace_payloads")) or 0)


def test_every_column_of_a_trace_comes_back(sink: TraceSink, reader: TraceReader) -> None:
    sink.write([InsertTrace("t1", WHOLE_TRACE)])
    assert reader.get_trace("t1") == TraceRow(trace_id="t1", **WHOLE_TRACE)


def test_columns_not_given_are_unknown_not_zero(sink: TraceSink, reader: TraceReader) -> None:
    sink.write([InsertTrace("t1", {"received_at": NOON})])
    assert reader.get_trace("t1") == TraceRow(trace_id="t1", received_at=NOON)


def test_a_trace_nobody_wrote_is_none(reader: TraceReader) -> None:
    assert reader.get_trace("nobody") is None
    assert reader.get_payloads("nobody") == []


def test_every_field_of_a_payload_comes_back(sink: TraceSink, reader: TraceReader) -> None:
    content = {"message": "Olá 🌸", "list": [1, 2.5, None, True]}
    op = payload(
        "t1",
        "agent_response",
        content,
        payload_type="response",
        status_code=200,
        error_details="slow",
        contains_media=True,
        contains_base64=True,
    )
    sink.write([InsertTrace("t1", {"received_at": NOON}), op])
    (row,) = reader.get_payloads("t1")
    assert row == PayloadRow(
        id=1,
        trace_id="t1",
        stage="agent_response",
        payload_type="response",
        payload=content,
        timestamp=NOON,
        status_code=200,
        error_details="slow",
        payload_size_original=44,
        payload_size_compressed=56,
        contains_media=True,
        contains_base64=True,
    )


def test_payloads_come_back_in_the_order_they_were_written(sink: TraceSink, reader: TraceReader) -> None:
    sink.write([InsertTrace("t1", {}), payload("t1", "b"), payload("t1", "a", timestamp=NOON - timedelta(hours=1))])
    sink.write([payload("t1", "c")])
    assert stages(reader, "t1") == ["b", "a", "c"]


def test_new_values_reach_the_trace_in_one_batch_or_in_many(sink: TraceSink, reader: TraceReader) -> None:
    sink.write([InsertTrace("t1", {"received_at": NOON}), UpdateTrace("t1", {"status": "processing"})])
    sink.write(
        [
            UpdateTrace("t1", {"status": "agent_called", "agent_request_at": NOON}),
            UpdateTrace("t1", {"status": "completed", "agent_tools_used": 2}),
        ]
    )
    assert reader.get_trace("t1") == TraceRow(
        trace_id="t1", received_at=NOON, status="completed", agent_request_at=NOON, agent_tools_used=2
    )


def test_removed_segments_are_replaced_by_the_packed_row(sink: TraceSink, reader: TraceReader) -> None:
    sink.write([InsertTrace("t1", {}), payload("t1", "streaming_chunks"), payload("t1", "first_token")])
    sink.write([InsertTrace("t2", {}), payload("t2", "streaming_chunks")])
    sink.write([DropPayloads("t1", "streaming_chunks"), payload("t1", "streaming_chunks", {"whole": True})])
    assert [(row.stage, row.payload) for row in reader.get_payloads("t1")] == [
        ("first_token", {"stage": "first_token"}),
        ("streaming_chunks", {"whole": True}),
    ]
    assert stages(reader, "t2") == ["streaming_chunks"]


def test_times_in_another_zone_are_stored_as_utc(sink: TraceSink, reader: TraceReader) -> None:
    brazil = NOON.astimezone(timezone(timedelta(hours=-3)))
    sink.write([InsertTrace("t1", {"received_at": brazil}), payload("t1", "a", timestamp=brazil)])
    trace = reader.get_trace("t1")
    assert trace is not None
    assert trace.received_at == NOON
    assert trace.received_at.utcoffset() == timedelta(0)
    assert reader.get_payloads("t1")[0].timestamp == NOON


def test_times_are_naive_text_with_microseconds_in_sqlite(database: Database, sink: TraceSink) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL has a type for it")
    whole_second = NOON.replace(microsecond=0)
    sink.write([InsertTrace("t1", {"received_at": whole_second}), payload("t1", "a")])
    with database.reading("reading raw text") as connection:
        raw = connection.execute(text("SELECT received_at, timestamp FROM message_traces JOIN trace_payloads")).one()
        stored = connection.exec_driver_sql("SELECT typeof(received_at) FROM message_traces").scalar_one()
    assert (tuple(raw), stored) == (("2026-11-22 12:00:00.000000", "2026-11-22 12:00:00.123456"), "text")


def test_a_trace_of_an_instance_nobody_configured_is_kept(
    database: Database, sink: TraceSink, reader: TraceReader
) -> None:
    sink.write([InsertTrace("t1", {"instance_name": "ghost", "received_at": NOON})])
    sink.write([InsertTrace("t2", {"instance_name": "flash"})])
    sink.write([UpdateTrace("t2", {"instance_name": "ghost"})])
    kept_name = "ghost" if database.is_sqlite else None
    assert reader.get_trace("t1") == TraceRow(trace_id="t1", instance_name=kept_name, received_at=NOON)
    assert reader.get_trace("t2") == TraceRow(trace_id="t2", instance_name=kept_name)


def test_text_no_database_can_hold_is_marked_not_refused(sink: TraceSink, reader: TraceReader) -> None:
    sink.write([InsertTrace("t1", {"sender_name": "A\0na \ud83d", "error_message": "olá\0"})])
    assert reader.get_trace("t1") == TraceRow(trace_id="t1", sender_name="A\ufffdna \ufffd", error_message="olá\ufffd")


@pytest.mark.parametrize(
    ("op", "sentence"),
    [
        (UpdateTrace("t1", {"colour": "red"}), "message_traces has no column 'colour' that can be written."),
        (InsertTrace("t2", {"colour": "red"}), "message_traces has no column 'colour' that can be written."),
        (UpdateTrace("t1", {"trace_id": "t9"}), "message_traces has no column 'trace_id' that can be written."),
        (
            UpdateTrace("t1", {"message_length": 2**40}),
            "message_traces.message_length takes a whole number of 32 bits or nothing, not a value of type int.",
        ),
        (
            UpdateTrace("t1", {"status": "x", "received_at": "2026-11-22"}),
            "message_traces.received_at takes a datetime or nothing, not a value of type str.",
        ),
        (
            UpdateTrace("t1", {"has_media": 1}),
            "message_traces.has_media takes true or false or nothing, not a value of type int.",
        ),
        (
            UpdateTrace("t1", {"sender_name": b"Ana"}),
            "message_traces.sender_name takes text or nothing, not a value of type bytes.",
        ),
    ],
)
def test_values_that_do_not_belong_in_a_column_are_refused_by_name(
    sink: TraceSink, reader: TraceReader, op: WriteOp, sentence: str
) -> None:
    sink.write([InsertTrace("t1", {})])
    with pytest.raises(StoreError) as refused:
        sink.write([payload("t1", "a"), op])
    assert (refused.value.sentence, refused.value.retryable) == (sentence, False)
    assert stages(reader, "t1") == []


@pytest.mark.parametrize("op", [payload("ghost", "a"), UpdateTrace("ghost", {"status": "completed"})])
def test_rows_for_a_trace_that_is_not_stored_are_refused_not_lost(
    sink: TraceSink, reader: TraceReader, op: WriteOp
) -> None:
    with pytest.raises(RecordNotFound) as refused:
        sink.write([InsertTrace("t1", {}), op])
    assert refused.value.sentence == "1 of 1 rows are for traces that are not stored (writing traces)."
    assert reader.get_trace("t1") is None


def test_f30_one_failing_operation_undoes_its_batch_and_leaves_the_next_write_working(
    sink: TraceSink, reader: TraceReader
) -> None:
    sink.write([InsertTrace("t1", {"status": "received"})])
    with pytest.raises(StoreError) as refused:
        sink.write(
            [
                InsertTrace("t2", {}),
                payload("t2", "a"),
                UpdateTrace("t1", {"status": "completed"}),
                InsertTrace("t1", {"status": "again"}),
            ]
        )
    assert refused.value.retryable is False
    assert (reader.get_trace("t1"), reader.get_trace("t2")) == (TraceRow(trace_id="t1", status="received"), None)
    sink.write([payload("t1", "a"), UpdateTrace("t1", {"status": "completed"})])
    assert reader.get_trace("t1") == TraceRow(trace_id="t1", status="completed")
    assert stages(reader, "t1") == ["a"]


def test_f32_a_payload_over_the_limit_is_cut_and_marked_and_keys_are_masked_before_it_is_stored(
    database: Database, sink: TraceSink, reader: TraceReader
) -> None:
    redactor = Redactor(max_chars=1_000, keeps_sensitive=False)
    webhook = {"apikey": "EVO-KEY-1234567", "data": {"message": {"conversation": "x" * 5_000_030}}}
    sink.write([InsertTrace("t1", {}), payload("t1", "webhook_received", redactor.clean(webhook))])
    (row,) = reader.get_payloads("t1")
    assert row.payload == {
        "apikey": "…4567",
        "data": {"message": {"conversation": "x" * 1_000 + "… [cut, 5000030 characters]"}},
    }
    assert row.payload_size_original is not None
    assert row.payload_size_original < 1_200


def test_f33_an_unserializable_value_costs_itself_not_the_payload(sink: TraceSink, reader: TraceReader) -> None:
    content = {"text": "olá", "when": NOON, "raw": b"x"}
    sink.write([InsertTrace("t1", {}), payload("t1", "a", content), payload("t1", "b", {"x": {1}}, error_details="e")])
    first, second = reader.get_payloads("t1")
    assert (first.payload, first.error_details) == (
        {"text": "olá", "when": {"unserializable": "datetime"}, "raw": {"unserializable": "bytes"}},
        "not serializable: datetime (1x), bytes (1x)",
    )
    assert second.error_details == "e; not serializable: set (1x)"


def test_f34_talking_about_media_is_not_media(sink: TraceSink, reader: TraceReader) -> None:
    content = {"message": "send the document to social media, with image and video"}
    flags = Redactor(max_chars=1_000, keeps_sensitive=False).media_flags(
        {"data": {"message": {"conversation": content}}}
    )
    op = payload("t1", "a", content, contains_media=flags.contains_media, contains_base64=flags.contains_base64)
    sink.write([InsertTrace("t1", {}), op])
    (row,) = reader.get_payloads("t1")
    assert (row.contains_media, row.contains_base64) == (False, False)


def test_an_unreadable_payload_is_none_and_says_why(database: Database, sink: TraceSink, reader: TraceReader) -> None:
    sink.write([InsertTrace("t1", {}), payload("t1", "a"), payload("t1", "b", error_details="was cut")])
    with database.writing("damaging payloads") as connection:
        connection.execute(text("UPDATE trace_payloads SET payload_compressed = 'eJw=' WHERE stage = 'b'"))
        connection.execute(text("UPDATE trace_payloads SET payload_compressed = NULL WHERE stage = 'a'"))
    assert [(row.payload, row.error_details) for row in reader.get_payloads("t1")] == [
        (None, None),
        (None, "was cut; payload unreadable: compressed data damaged or cut short"),
    ]


@pytest.fixture
def listed(sink: TraceSink) -> list[TraceRow]:
    """Five traces, a minute apart, the newest first."""
    differences: list[dict[str, Any]] = [
        {},
        {"status": "failed", "error_stage": "streaming_error", "total_processing_time_ms": None},
        {"status": "error", "error_stage": "streaming_error", "sender_phone": "5521", "instance_name": None},
        {"status": "processing", "message_type": "image", "has_media": True, "agent_processing_time_ms": None},
        {"session_name": "other", "agent_session_id": "s-2", "agent_processing_time_ms": 1001, "message_type": None},
    ]
    rows = [
        TraceRow(trace_id=f"t{age}", **WHOLE_TRACE | {"received_at": NOON - timedelta(minutes=age)} | difference)
        for age, difference in enumerate(differences)
    ]
    fields = TraceRow.__struct_fields__[1:]
    sink.write([InsertTrace(row.trace_id, {name: getattr(row, name) for name in fields}) for row in rows])
    return rows


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (TraceFilter(), ["t0", "t1", "t2", "t3", "t4"]),
        (TraceFilter(limit=2), ["t0", "t1"]),
        (TraceFilter(limit=2, offset=3), ["t3", "t4"]),
        (TraceFilter(phone="5521"), ["t2"]),
        (TraceFilter(instance_name="flash"), ["t0", "t1", "t3", "t4"]),
        (TraceFilter(status="completed"), ["t0", "t4"]),
        (TraceFilter(message_type="image"), ["t3"]),
        (TraceFilter(session_name="other"), ["t4"]),
        (TraceFilter(agent_session_id="s-2"), ["t4"]),
        (TraceFilter(has_media=True), ["t3"]),
        (TraceFilter(has_media=False), ["t0", "t1", "t2", "t4"]),
        (TraceFilter(received_from=NOON - timedelta(minutes=2)), ["t0", "t1", "t2"]),
        (TraceFilter(received_to=NOON - timedelta(minutes=3)), ["t3", "t4"]),
        (TraceFilter(received_from=NOON - timedelta(minutes=3), received_to=NOON, status="error"), ["t2"]),
        (TraceFilter(status="completed", phone="5521"), []),
    ],
)
def test_listing_filters_and_sorts_newest_first(
    reader: TraceReader, listed: list[TraceRow], wanted: TraceFilter, ids: list[str]
) -> None:
    by_id = {row.trace_id: row for row in listed}
    assert reader.list_traces(wanted) == [by_id[trace_id] for trace_id in ids]


@pytest.mark.parametrize("wanted", [TraceFilter(limit=0), TraceFilter(limit=1001), TraceFilter(offset=-1)])
def test_a_listing_without_bounds_is_refused(reader: TraceReader, wanted: TraceFilter) -> None:
    with pytest.raises(StoreError) as refused:
        reader.list_traces(wanted)
    assert refused.value.status_code == 422


def test_the_summary_counts_completed_failed_and_open_traces(reader: TraceReader, listed: list[TraceRow]) -> None:
    assert len(listed) == 5
    assert reader.summarize(received_from=None, received_to=None, instance_name=None) == TraceSummary(
        total_messages=5,
        successful_messages=2,
        failed_messages=2,
        success_rate=40.0,
        avg_processing_time_ms=1000.0,
        avg_agent_time_ms=586.25,
        message_types={"text": 3, "image": 1, "unknown": 1},
        error_stages={"streaming_error": 2},
        instances={"flash": 4, "unknown": 1},
    )


def test_the_summary_keeps_to_its_window_and_instance(reader: TraceReader, listed: list[TraceRow]) -> None:
    assert len(listed) == 5
    assert reader.summarize(
        received_from=NOON - timedelta(minutes=2), received_to=NOON - timedelta(minutes=1), instance_name="flash"
    ) == TraceSummary(
        total_messages=1,
        successful_messages=0,
        failed_messages=1,
        success_rate=0.0,
        avg_processing_time_ms=None,
        avg_agent_time_ms=448.0,
        message_types={"text": 1},
        error_stages={"streaming_error": 1},
        instances={"flash": 1},
    )


def test_a_summary_of_nothing_has_no_rate_and_no_averages(reader: TraceReader) -> None:
    assert reader.summarize(received_from=None, received_to=None, instance_name=None) == TraceSummary(
        total_messages=0,
        successful_messages=0,
        failed_messages=0,
        success_rate=None,
        avg_processing_time_ms=None,
        avg_agent_time_ms=None,
        message_types={},
        error_stages={},
        instances={},
    )


def test_recent_message_ids_are_the_newest_that_have_instance_and_id(sink: TraceSink, reader: TraceReader) -> None:
    def trace(age: int, **columns: Any) -> InsertTrace:
        received = NOON - timedelta(minutes=age)
        given = {"instance_name": "flash", "whatsapp_message_id": f"m{age}", "received_at": received}
        return InsertTrace(f"t{age}", given | columns)

    sink.write(
        [trace(4), trace(1), trace(2, whatsapp_message_id=None), trace(0, instance_name=None), trace(3), trace(9)]
    )
    assert reader.recent_message_ids(received_from=NOON - timedelta(minutes=4), limit=10) == [
        ("flash", "m1"),
        ("flash", "m3"),
        ("flash", "m4"),
    ]
    assert reader.recent_message_ids(received_from=NOON - timedelta(minutes=4), limit=1) == [("flash", "m1")]


def test_f29_removing_old_traces_removes_their_payloads_and_nothing_else(
    database: Database, sink: TraceSink, reader: TraceReader
) -> None:
    # More than one of the small transactions the removal works in.
    num_old = 450
    ops: list[WriteOp] = []
    for number in range(num_old):
        old = NOON - timedelta(days=40, seconds=number)
        ops += [InsertTrace(f"old{number}", {"received_at": old}), payload(f"old{number}", "a")]
    ops += [InsertTrace("new", {"received_at": NOON}), payload("new", "a"), InsertTrace("undated", {})]
    sink.write(ops)
    cutoff = NOON - timedelta(days=30)
    assert reader.count_older_than(cutoff) == num_old
    assert reader.delete_older_than(cutoff) == num_old
    assert (reader.count_older_than(cutoff), reader.delete_older_than(cutoff)) == (0, 0)
    assert reader.get_trace("new") is not None
    assert reader.get_trace("undated") is not None
    assert (stages(reader, "new"), num_payloads(database)) == (["a"], 1)


def test_f29_a_payload_written_after_its_trace_was_removed_leaves_no_orphan(
    database: Database, sink: TraceSink, reader: TraceReader
) -> None:
    sink.write([InsertTrace("old", {"received_at": NOON - timedelta(days=40)})])
    assert reader.delete_older_than(NOON) == 1
    with pytest.raises(RecordNotFound):
        sink.write([payload("old", "message_receipt")])
    assert num_payloads(database) == 0


def test_reading_goes_on_while_a_writer_holds_the_database(
    database: Database, sink: TraceSink, reader: TraceReader
) -> None:
    sink.write([InsertTrace("t1", {"status": "received"})])
    with database.writing("holding the write lock") as connection:
        connection.execute(text("UPDATE message_traces SET status = 'completed'"))
        assert reader.get_trace("t1") == TraceRow(trace_id="t1", status="received")
    assert reader.get_trace("t1") == TraceRow(trace_id="t1", status="completed")


def test_two_writers_wait_for_each_other(database: Database, sink: TraceSink, reader: TraceReader) -> None:
    def write_some(prefix: str) -> None:
        own = SqlTraceSink(database)
        for number in range(20):
            own.write([InsertTrace(f"{prefix}{number}", {"instance_name": "flash"}), payload(f"{prefix}{number}", "a")])

    threads = [threading.Thread(target=write_some, args=(prefix,)) for prefix in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(reader.list_traces(TraceFilter(limit=1000))) == 60
    assert num_payloads(database) == 60


@pytest.fixture
def impatient(tmp_path: Any) -> Iterator[tuple[Database, sqlite3.Connection]]:
    """A SQLite database that gives up waiting at once, and a foreign connection that can hold its lock."""
    path = tmp_path / "held.db"
    database = Database.open(f"sqlite:///{path}")
    with database.reading("shortening the wait") as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    holder = sqlite3.connect(path, isolation_level=None)
    yield database, holder
    holder.close()
    database.close()


def test_a_locked_database_is_a_passing_failure(impatient: tuple[Database, sqlite3.Connection]) -> None:
    database, holder = impatient
    sink = SqlTraceSink(database)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as refused:
        sink.write([InsertTrace("t1", {})])
    assert (refused.value.sentence, refused.value.retryable) == ("SQLite answered SQLITE_BUSY (writing traces).", True)
    holder.execute("ROLLBACK")
    sink.write([InsertTrace("t1", {})])
    assert SqlTraceReader(database).get_trace("t1") == TraceRow(trace_id="t1")


def test_a_stored_value_never_stands_in_an_error(database: Database, sink: TraceSink) -> None:
    sink.write([InsertTrace("t1", {"sender_phone": "5511999990001"})])
    with pytest.raises(StoreError) as refused:
        sink.write([InsertTrace("t1", {"sender_phone": "5511999990001", "error_message": "hush"})])
    shown = f"{refused.value.sentence} {refused.value.detail} {refused.value.__cause__}"
    assert "5511999990001" not in shown
    assert "hush" not in shown


def test_removing_chunk_segments_uses_the_index_of_the_trace(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL plans by its statistics")
    with database.reading("explaining") as connection:
        plan = connection.exec_driver_sql(
            f"EXPLAIN QUERY PLAN {SqlTraceSink(database)._sql.drop_payloads}", ("t", "s")
        ).all()
    assert [row[3] for row in plan] == ["SEARCH trace_payloads USING INDEX ix_trace_payloads_trace_id (trace_id=?)"]
